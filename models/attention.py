"""What the transformer recipes share: attention over heads, masks, rotary positions, repeated key-value heads."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def heads_of(x: Tensor, heads: int) -> Tensor:
    """`[batch, sequence, heads * d]` to `[batch, heads, sequence, d]`."""
    batch, sequence, width = x.shape
    return x.view(batch, sequence, heads, width // heads).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """`[batch, heads, sequence, d]` to `[batch, sequence, heads * d]`."""
    batch, heads, sequence, each = x.shape
    return x.transpose(1, 2).reshape(batch, sequence, heads * each)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, sdpa: bool = False) -> Tensor:
    """`softmax(q kᵀ / sqrt(d) + mask) v`, written out or by torch's own function; all `[batch, heads, sequence, d]`."""
    if sdpa:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, dim=-1) @ v


def padding_mask(attention_mask: Tensor, square: bool) -> Tensor:
    """0 where a position counts and a huge negative number where it doesn't, `[batch, 1, 1, sequence]`.

    `square` repeats the third axis: the Attention operator of onnxruntime 1.31 doesn't broadcast it.
    """
    mask = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
    return mask.expand(-1, -1, mask.shape[-1], -1) if square else mask


def causal_mask(sequence: int) -> Tensor:
    """0 up to the own position and a huge negative number after it, `[sequence, sequence]`."""
    return torch.full((sequence, sequence), torch.finfo(torch.float32).min).triu(1)


def repeat_heads(x: Tensor, count: int) -> Tensor:
    """Every key-value head `count` times in a row: `[batch, heads, sequence, d]` to `[batch, heads * count, …]`."""
    if count == 1:
        return x
    batch, heads, sequence, each = x.shape
    return x[:, :, None].expand(batch, heads, count, sequence, each).reshape(batch, heads * count, sequence, each)


def angles(sequence: int, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotary angles, `[sequence, head_dim / 2]`."""
    inverse = 1.0 / base ** (torch.arange(0, head_dim, 2).to(torch.float32) / head_dim)
    return torch.outer(torch.arange(sequence).to(torch.float32), inverse)


def rotated(x: Tensor, turned: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary positions: pairs are `(i, i + d / 2)` (LLaMA), or neighbours where interleaved (GPT-J)."""
    if interleaved:
        every = torch.stack((turned, turned), dim=-1).flatten(-2)
        other = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        every, half = torch.cat((turned, turned), dim=-1), x.shape[-1] // 2
        other = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * every.cos() + other * every.sin()


def alibi(heads: int, sequence: int) -> Tensor:
    """Bias linear in the distance, with one slope a head: `[heads, sequence, sequence]` (2108.12409)."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1).to(torch.float32) / heads)
    place = torch.arange(sequence)
    return -slopes[:, None, None] * (place[:, None] - place[None, :]).abs().to(torch.float32)


class RelativeBias(nn.Module):
    """A learned bias for each head and clipped distance, `[heads, sequence, sequence]`; as T5's, in plain buckets."""

    def __init__(self, heads: int, reach: int = 16) -> None:
        super().__init__()
        self.reach = reach
        self.relative_attention_bias = nn.Embedding(2 * reach + 1, heads)

    def forward(self, sequence: int) -> Tensor:
        place = torch.arange(sequence)
        bucket = (place[None, :] - place[:, None]).clamp(-self.reach, self.reach) + self.reach
        bias: Tensor = self.relative_attention_bias(bucket)
        return bias.permute(2, 0, 1)


class RMSNorm(nn.Module):
    """`x / sqrt(mean x² + eps) * weight`, written out as in LLaMA."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def heads_at(heads: int, width: float) -> int:
    """`heads * width`, at least one: `width` scales d_model by whole heads."""
    return max(1, round(heads * width))
