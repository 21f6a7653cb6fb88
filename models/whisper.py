"""The encoder of Whisper (2212.04356) with the names of its published checkpoints: two Conv1d, then pre-norm layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import attend, heads_at, heads_of, joined

MELS = 80


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines, then cosines, of geometrically spaced frequencies: `[positions, width]`."""
    step = math.log(10000.0) / (width // 2 - 1)
    turned = torch.arange(positions)[:, None] * torch.exp(-step * torch.arange(width // 2))[None, :]
    return torch.cat((turned.sin(), turned.cos()), dim=1)


class Attention(nn.Module):
    """The keys have no bias."""

    def __init__(self, width: int, heads: int, sdpa: bool) -> None:
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads_of(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        result: Tensor = self.out_proj(joined(attend(q, k, v, sdpa=self.sdpa)))
        return result


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, gelu: str, sdpa: bool) -> None:
        super().__init__()
        self.self_attn, self.gelu = Attention(width, heads, sdpa), gelu
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        hidden = functional.gelu(self.fc1(self.final_layer_norm(x)), approximate=self.gelu)
        result: Tensor = x + self.fc2(hidden)
        return result


class WhisperEncoder(nn.Module):
    """Log-mel frames `[batch, 80, frames]` to hidden states `[batch, frames / 2, d_model]`."""

    def __init__(self, width: int, frames: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding((frames + 1) // 2, width, _weight=sinusoids((frames + 1) // 2, width))
        self.embed_positions.weight.requires_grad = False  # computed, so never drawn
        self.layers, self.layer_norm = nn.ModuleList(layers), nn.LayerNorm(width)

    def forward(self, input_features: Tensor) -> Tensor:
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(input_features))))
        x = x.permute(0, 2, 1) + self.embed_positions.weight
        for layer in self.layers:
            x = layer(x)
        result: Tensor = self.layer_norm(x)
        return result


def whisper_encoder(
    width: float = 1.0,
    in_size: int = 3000,
    *,
    depth: int = 4,
    heads: int = 6,
    head_dim: int = 64,
    gelu: str = "none",
    sdpa: bool = False,
) -> nn.Module:
    """The encoder of Whisper-tiny unless told otherwise; `in_size` is the number of frames."""
    heads = heads_at(heads, width)
    wide = heads * head_dim
    return WhisperEncoder(wide, in_size, [Layer(wide, heads, gelu, sdpa) for _ in range(depth)])
