"""Decoders that take keys and values of earlier positions in and hand them on, named as optimum exports them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.attention import angles, attend, causal_mask, heads_of, joined, repeat_heads, rotated
from models.exporting import Surface
from models.llama import Attention, Llama

Caches = list[Tensor]


class CachedLlama(nn.Module):
    """Tokens `[batch, sequence]` and, layer by layer, keys and values `[batch, kv heads, past, head_dim]`.

    Gives logits and the same tensors with the new positions behind the old ones.
    """

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        model, before, length = self.model, past[0].shape[2], input_ids.shape[1]
        turned, mask = angles(before + length, model.head_dim)[before:], causal_mask(before + length)[before:]
        x, present = model.embed_tokens(input_ids), Caches()
        for layer, key, value in zip(model.layers, past[::2], past[1::2], strict=True):
            mixed, *seen = _attend(layer.self_attn, layer.input_layernorm(x), turned, mask, key, value)
            x = x + mixed
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            present += seen
        return (model.lm_head(model.norm(x)), *present)


def _attend(part: Attention, x: Tensor, turned: Tensor, mask: Tensor, key: Tensor, value: Tensor) -> Caches:
    q = rotated(heads_of(part.q_proj(x), part.heads), turned, part.interleaved)
    k = rotated(heads_of(part.k_proj(x), part.kv_heads), turned, part.interleaved)
    keys, values = torch.cat((key, k), dim=2), torch.cat((value, heads_of(part.v_proj(x), part.kv_heads)), dim=2)
    count = part.heads // part.kv_heads
    mixed = attend(q, repeat_heads(keys, count), repeat_heads(values, count), mask)
    return [part.o_proj(joined(mixed)), keys, values]


def cached_surface(model: Llama, sequence: int, past: int, rows: int = 1) -> Surface:
    """Examples and names of a cached decoder's inputs; batch, sequence and past may vary."""
    generator = torch.Generator().manual_seed(0)
    first = model.layers[0].self_attn
    shape, vocabulary = (rows, first.kv_heads, past, model.head_dim), model.embed_tokens.num_embeddings
    samples = {"input_ids": torch.randint(vocabulary, (rows, sequence), generator=generator)}
    axes: dict[str, dict[int, str]] = {"input_ids": {0: "batch", 1: "sequence"}, "output": {0: "batch", 1: "sequence"}}
    present = []
    for layer in range(len(model.layers)):
        for part in ("key", "value"):
            samples[f"past_key_values.{layer}.{part}"] = torch.randn(shape, generator=generator)
            axes[f"past_key_values.{layer}.{part}"] = {0: "batch", 2: "past"}
            axes[f"present.{layer}.{part}"] = {0: "batch", 2: "total"}
            present.append(f"present.{layer}.{part}")
    return Surface(samples, axes, tuple(present))
