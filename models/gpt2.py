"""GPT-2 with the names of its published checkpoints: one projection for q, k and v, parted by Split; tied embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import attend, heads_at, heads_of, joined


class Conv1D(nn.Module):
    """A linear layer whose weight is stored `[in, out]`, over flattened positions."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(inner, outer)), nn.Parameter(torch.zeros(outer))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.weight.shape[1])


class Attention(nn.Module):
    """Causal by a stored triangle, cut to the sequence's length and used by Where."""

    def __init__(self, width: int, heads: int, positions: int, sdpa: bool) -> None:
        super().__init__()
        self.width, self.heads, self.sdpa = width, heads, sdpa
        self.c_attn, self.c_proj = Conv1D(width, 3 * width), Conv1D(width, width)
        self.bias: Tensor
        triangle = torch.ones(positions, positions, dtype=torch.bool).tril()[None, None]
        self.register_buffer("bias", triangle, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.shape[1]
        q, k, v = (heads_of(part, self.heads) for part in self.c_attn(x).split(self.width, dim=2))
        seen = self.bias[:, :, :sequence, :sequence]
        if self.sdpa:
            mixed = attend(q, k, v, seen, sdpa=True)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            mixed = torch.softmax(torch.where(seen, scores, torch.finfo(torch.float32).min), dim=-1) @ v
        result: Tensor = self.c_proj(joined(mixed))
        return result


class Mlp(nn.Module):
    def __init__(self, width: int, gelu: str) -> None:
        super().__init__()
        self.c_fc, self.act, self.c_proj = Conv1D(width, 4 * width), nn.GELU(gelu), Conv1D(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return result


class Block(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), attention
        self.ln_2, self.mlp = nn.LayerNorm(width), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


class GPT2(nn.Module):
    """Token numbers `[batch, sequence]` to logits `[batch, sequence, vocabulary]`."""

    def __init__(self, width: int, vocabulary: int, positions: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.h, self.ln_f = nn.ModuleList(blocks), nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.shape[1])[None])
        for block in self.h:
            x = block(x)
        return functional.linear(self.ln_f(x), self.wte.weight)


def gpt2(
    width: float = 1.0,
    *,
    depth: int = 12,
    heads: int = 12,
    head_dim: int = 64,
    vocabulary: int = 50257,
    positions: int = 1024,
    gelu: str = "tanh",
    sdpa: bool = False,
) -> nn.Module:
    """The smallest GPT-2 unless told otherwise."""
    heads = heads_at(heads, width)
    wide = heads * head_dim
    blocks: list[nn.Module] = [
        Block(Attention(wide, heads, positions, sdpa), Mlp(wide, gelu), wide) for _ in range(depth)
    ]
    return GPT2(wide, vocabulary, positions, blocks)
