"""BERT (1810.04805) with the names of its published checkpoints: post-norm, separate projections, a padding mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention import attend, heads_at, heads_of, joined, padding_mask


class Embeddings(nn.Module):
    def __init__(self, width: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.position_ids: Tensor
        self.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)

    def forward(self, tokens: Tensor, types: Tensor) -> Tensor:
        total = self.word_embeddings(tokens) + self.token_type_embeddings(types)
        total = total + self.position_embeddings(self.position_ids[:, : tokens.shape[1]])
        result: Tensor = self.LayerNorm(total)
        return result


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, sdpa: bool) -> None:
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (heads_of(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        return joined(attend(q, k, v, mask, self.sdpa))


class Output(nn.Module):
    """`LayerNorm(dense(x) + shortcut)`."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        result: Tensor = self.LayerNorm(self.dense(x) + shortcut)
        return result


class Attention(nn.ModuleDict):
    """The names `self` and `output` of the checkpoints."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self["output"](self["self"](x, mask), x)
        return result


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, gelu: str, sdpa: bool) -> None:
        super().__init__()
        self.attention = Attention({"self": SelfAttention(width, heads, sdpa), "output": Output(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.activation = nn.GELU(gelu)
        self.output = Output(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        result: Tensor = self.output(self.activation(self.intermediate["dense"](x)), x)
        return result


class Bert(nn.Module):
    """Token numbers, mask and types `[batch, sequence]` to hidden states `[batch, sequence, d_model]`, or pooled."""

    def __init__(
        self, embeddings: nn.Module, layers: list[nn.Module], pooler: nn.Module | None, sdpa: bool = False
    ) -> None:
        super().__init__()
        self.sdpa = sdpa
        self.embeddings = embeddings
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.pooler = None if pooler is None else nn.ModuleDict({"dense": pooler})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        mask = padding_mask(attention_mask, self.sdpa)
        x = self.embeddings(input_ids, token_type_ids)
        layers = self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, mask)
        result: Tensor = x if self.pooler is None else torch.tanh(self.pooler["dense"](x[:, 0]))
        return result


def bert(
    width: float = 1.0,
    *,
    depth: int = 12,
    heads: int = 12,
    head_dim: int = 64,
    vocabulary: int = 30522,
    positions: int = 512,
    pooled: bool = False,
    gelu: str = "none",
    sdpa: bool = False,
) -> nn.Module:
    """BERT-base unless told otherwise; `pooled` gives `tanh(dense(first position))` instead of the hidden states."""
    heads = heads_at(heads, width)
    wide = heads * head_dim
    layers: list[nn.Module] = [Layer(wide, heads, gelu, sdpa) for _ in range(depth)]
    pooler = nn.Linear(wide, wide) if pooled else None
    return Bert(Embeddings(wide, vocabulary, positions), layers, pooler, sdpa)
