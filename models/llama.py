"""LLaMA (2302.13971) with the names of its published checkpoints: rotary positions, grouped key-value heads, SwiGLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.attention import RMSNorm, angles, attend, causal_mask, heads_at, heads_of, joined, repeat_heads, rotated


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, interleaved: bool, sdpa: bool | str) -> None:
        super().__init__()
        each = width // heads
        self.heads, self.kv_heads, self.interleaved, self.sdpa = heads, kv_heads, interleaved, sdpa
        self.q_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(width, kv_heads * each, bias=False) for _ in range(2))

    def forward(self, x: Tensor, turned: Tensor, mask: Tensor) -> Tensor:
        q = rotated(heads_of(self.q_proj(x), self.heads), turned, self.interleaved)
        k = rotated(heads_of(self.k_proj(x), self.kv_heads), turned, self.interleaved)
        v, count = heads_of(self.v_proj(x), self.kv_heads), self.heads // self.kv_heads
        if self.sdpa == "gqa":
            mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        else:
            mixed = attend(q, repeat_heads(k, count), repeat_heads(v, count), mask, bool(self.sdpa))
        result: Tensor = self.o_proj(joined(mixed))
        return result


class Mlp(nn.Module):
    """SwiGLU with two matrices, or with one for gate and value (`gate_up_proj`, as in Phi-3)."""

    def __init__(self, width: int, hidden: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.gate_up_proj = nn.Linear(width, 2 * hidden, bias=False)
        else:
            self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_up_proj(x).chunk(2, dim=-1) if self.fused else (self.gate_proj(x), self.up_proj(x))
        result: Tensor = self.down_proj(functional.silu(gate) * value)
        return result


class Layer(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(width), attention
        self.post_attention_layernorm, self.mlp = RMSNorm(width), mlp

    def forward(self, x: Tensor, turned: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turned, mask)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Llama(nn.Module):
    """Token numbers `[batch, sequence]` to logits `[batch, sequence, vocabulary]`."""

    def __init__(self, width: int, head_dim: int, vocabulary: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.embed_tokens, self.layers = nn.Embedding(vocabulary, width), nn.ModuleList(layers)
        self.norm, self.lm_head = RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        sequence = input_ids.shape[1]
        x, turned, mask = self.embed_tokens(input_ids), angles(sequence, self.head_dim), causal_mask(sequence)
        for layer in self.layers:
            x = layer(x, turned, mask)
        result: Tensor = self.lm_head(self.norm(x))
        return result


def llama(
    width: float = 1.0,
    *,
    depth: int = 12,
    heads: int = 12,
    kv_heads: int = 4,
    head_dim: int = 64,
    hidden: int | None = None,
    vocabulary: int = 32000,
    fused: bool = False,
    interleaved: bool = False,
    sdpa: bool | str = False,
) -> nn.Module:
    """A small LLaMA; `hidden` is 8/3 of d_model unless given, `fused` joins gate and value in one matrix.

    `sdpa` "gqa" lets torch's own attention function repeat the key-value heads; only the dynamo exporter knows it.
    """
    if heads % kv_heads:
        raise ValueError(f"{heads} heads can't share {kv_heads} key-value heads: use a divisor")
    group = heads // kv_heads
    kv_heads = heads_at(kv_heads, width)
    heads, wide = kv_heads * group, kv_heads * group * head_dim
    inner = hidden or 8 * wide // 3
    layers: list[nn.Module] = [
        Layer(Attention(wide, heads, kv_heads, interleaved, sdpa), Mlp(wide, inner, fused), wide) for _ in range(depth)
    ]
    return Llama(wide, head_dim, vocabulary, layers)
