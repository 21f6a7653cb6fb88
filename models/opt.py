"""OPT (2205.01068) with the names of its published checkpoints; positions learned, by ALiBi or by a relative bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import RelativeBias, alibi, attend, causal_mask, heads_at, heads_of, joined

OFFSET = 2  # the first two rows of OPT's position table are unused


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, sdpa: bool) -> None:
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (heads_of(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        result: Tensor = self.out_proj(joined(attend(q, k, v, mask, self.sdpa)))
        return result


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, sdpa: bool) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, sdpa)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        result: Tensor = x + self.fc2(functional.relu(self.fc1(self.final_layer_norm(x))))
        return result


class OPT(nn.Module):
    """Token numbers `[batch, sequence]` to logits `[batch, sequence, vocabulary]`, by the embedding's transpose."""

    def __init__(self, width: int, heads: int, vocabulary: int, table: int, layers: list[nn.Module], bias: str) -> None:
        super().__init__()
        self.heads, self.bias = heads, bias
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.embed_positions = nn.Embedding(table + OFFSET, width) if bias == "learned" else None
        self.relative = RelativeBias(heads) if bias == "relative" else None
        self.layers, self.final_layer_norm = nn.ModuleList(layers), nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        sequence = input_ids.shape[1]
        x, mask = self.embed_tokens(input_ids), causal_mask(sequence)
        if self.embed_positions is not None:
            x = x + self.embed_positions(torch.arange(sequence)[None] + OFFSET)
        elif self.relative is not None:
            mask = mask + self.relative(sequence)
        else:
            mask = mask + alibi(self.heads, sequence)
        for layer in self.layers:
            x = layer(x, mask)
        return functional.linear(self.final_layer_norm(x), self.embed_tokens.weight)


def opt(
    width: float = 1.0,
    *,
    depth: int = 12,
    heads: int = 12,
    head_dim: int = 64,
    vocabulary: int = 50272,
    positions: int = 2048,
    bias: str = "learned",
    sdpa: bool = False,
) -> nn.Module:
    """OPT-125M unless told otherwise; `bias` "learned" (a table of `positions` rows), "alibi" or "relative"."""
    if bias not in ("learned", "alibi", "relative"):
        raise ValueError(f"bias {bias!r}: use 'learned', 'alibi' or 'relative'")
    heads = heads_at(heads, width)
    wide = heads * head_dim
    return OPT(wide, heads, vocabulary, positions, [Layer(wide, heads, sdpa) for _ in range(depth)], bias)
