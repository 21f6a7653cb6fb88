"""Attention in one node, and rotary positions: ONNX's own and onnxruntime's."""

from __future__ import annotations

import torch
from torch import Tensor

from snp_onnx.recovery.operators.kernel import Factory, Kernel, refuse
from snp_onnx.tracing.op import Op

Outputs = tuple[Tensor | None, ...]
HIDDEN = -1e30
"""Added to the logits of what may not be seen: no weight is left, and a sum of two is still finite."""

FILTER = -10000.0
"""What onnxruntime adds to the logits of positions that are masked, unless the node says otherwise."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    bias: Tensor | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> Tensor:
    """softmax(scale q kᵀ + bias) v for tensors (B, H, S, D); key-value heads are shared evenly by query heads.

    `softcap` c bounds logits to c tanh(logits / c); `sink` (H,) is one more logit that only takes weight away.
    """
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    logits = (q * scale) @ k.transpose(-1, -2)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    if sink is None:
        return torch.softmax(logits, -1) @ v
    extra = sink.reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
    return torch.softmax(torch.cat([logits, extra], -1), -1)[..., :-1] @ v


def apart(x: Tensor, heads: int) -> Tensor:
    """(B, S, H D) as (B, H, S, D); four axes stay."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """(B, H, S, D) as (B, S, H D)."""
    return x.transpose(1, 2).flatten(2)


def causal(queries: int, keys: int, before: int, like: Tensor, window: int = 0) -> Tensor:
    """(S, T), `HIDDEN` where a key lies behind its query or, with a window, too far before it."""
    distance = torch.arange(queries)[:, None] + before - torch.arange(keys)[None]
    hidden = distance < 0 if window <= 0 else (distance < 0) | (distance >= window)
    return torch.zeros(queries, keys).masked_fill(hidden, HIDDEN).to(like.device)


def _total(*parts: Tensor | None) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return None if not given else sum(given[1:], given[0])


def _masked(op: Op, mask: Tensor | None, keys: int, value: float) -> Tensor | None:
    """What a mask of onnxruntime adds: (B,) lengths, (B, T) positions, or (B, S, T) pairs."""
    if mask is None:
        return None
    if mask.ndim == 1:
        mask = torch.arange(keys, device=mask.device)[None] < mask[:, None]
    if mask.ndim not in (2, 3):
        raise refuse(op, f"a mask of {mask.ndim} axes")
    wide = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    return torch.zeros(wide.shape, device=mask.device).masked_fill(wide == 0, value)


def _projection(op: Op) -> Kernel:
    """com.microsoft Attention: one product gives queries, keys and values."""
    heads, sizes = int(op.attr("num_heads", 1)), op.attr("qkv_hidden_sizes", None)
    scale, value = float(op.attr("scale", 0.0)), float(op.attr("mask_filter_value", FILTER))
    is_causal = bool(op.attr("unidirectional", 0))
    if op.attr("do_rotary", 0) or op.attr("past_present_share_buffer", 0):
        raise refuse(op, "rotary positions or a shared buffer")

    def run(
        x: Tensor, weight: Tensor, shift: Tensor | None = None, mask: Tensor | None = None,
        past: Tensor | None = None, bias: Tensor | None = None,
    ) -> Outputs:  # fmt: skip
        product = x @ weight if shift is None else x @ weight + shift
        widths = list(sizes or [weight.shape[1] // 3] * 3)
        q, k, v = (apart(part, heads) for part in torch.split(product, widths, -1))
        before = 0
        if past is not None:
            before, k, v = past.shape[3], torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        order = causal(q.shape[2], k.shape[2], before, q) if is_causal else None
        hidden = _masked(op, mask, k.shape[2], value)
        found = joined(attend(q, k, v, scale or q.shape[-1] ** -0.5, _total(order, hidden, bias)))
        return (found, torch.stack([k, v])) if len(op.outputs) > 1 else (found,)

    return run


def _multi_head(op: Op) -> Kernel:
    """com.microsoft MultiHeadAttention: queries, keys and values apart, packed, or by head."""
    heads, scale = int(op.attr("num_heads", 1)), float(op.attr("scale", 0.0))
    value, is_causal = float(op.attr("mask_filter_value", FILTER)), bool(op.attr("unidirectional", 0))

    def run(
        query: Tensor, key: Tensor | None = None, values: Tensor | None = None, shift: Tensor | None = None,
        mask: Tensor | None = None, bias: Tensor | None = None, past_key: Tensor | None = None,
        past_value: Tensor | None = None, *_: Tensor | None,
    ) -> Outputs:  # fmt: skip
        q, k, v = _parts(query, key, values, shift, heads)
        before = 0
        if past_key is not None and past_value is not None:
            before, k, v = past_key.shape[2], torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        order = causal(q.shape[2], k.shape[2], before, q) if is_causal else None
        hidden = _masked(op, mask, k.shape[2], value)
        found = joined(attend(q, k, v, scale or q.shape[-1] ** -0.5, _total(order, hidden, bias)))
        return found, k, v

    return run


def _parts(
    query: Tensor, key: Tensor | None, values: Tensor | None, shift: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by head, with their biases."""
    if key is None:  # packed: (B, S, H, 3, D)
        q, k, v = (part.transpose(1, 2) for part in query.unbind(3))
    elif values is None:  # keys and values packed: (B, T, H, 2, D)
        q, (k, v) = apart(query, heads), (part.transpose(1, 2) for part in key.unbind(3))
    else:
        q, k, v = apart(query, heads), apart(key, heads), apart(values, heads)
    if shift is None:
        return q, k, v
    widths = [part.shape[1] * part.shape[3] for part in (q, k, v)]
    q, k, v = (
        part + bias.reshape(1, part.shape[1], 1, -1)
        for part, bias in zip((q, k, v), torch.split(shift, widths), strict=True)
    )
    return q, k, v


def _group_query(op: Op) -> Kernel:
    """com.microsoft GroupQueryAttention: causal, with a cache, and rotary positions if asked for."""
    heads, shared = int(op.attr("num_heads", 1)), int(op.attr("kv_num_heads", 1))
    scale, cap = float(op.attr("scale", 0.0)), float(op.attr("softcap", 0.0))
    window, is_interleaved = int(op.attr("local_window_size", -1)), bool(op.attr("rotary_interleaved", 0))
    if op.attr("smooth_softmax", 0) == 1:
        raise refuse(op, "a smooth softmax")

    def run(
        query: Tensor, key: Tensor | None, values: Tensor | None, past_key: Tensor | None, past_value: Tensor | None,
        lengths: Tensor, total: Tensor, cos: Tensor | None = None, sin: Tensor | None = None,
        places: Tensor | None = None, bias: Tensor | None = None, sink: Tensor | None = None, *_: Tensor | None,
    ) -> Outputs:  # fmt: skip
        if key is None or values is None:
            each = query.shape[-1] // (heads + 2 * shared)
            query, key, values = torch.split(query, [heads * each, shared * each, shared * each], -1)
        q, k, v = apart(query, heads), apart(key, shared), apart(values, shared)
        before = 0 if int(total) == q.shape[2] else int(lengths.reshape(-1)[0]) + 1 - q.shape[2]
        if before and int(lengths.min()) != int(lengths.max()):
            raise refuse(op, "caches of several lengths")
        if op.attr("do_rotary", 0):
            assert cos is not None, op.name
            assert sin is not None, op.name
            where = places if places is not None else torch.arange(before, before + q.shape[2], device=q.device)[None]
            q, k = (rotated(part, cos[where.long()], sin[where.long()], is_interleaved) for part in (q, k))
        if before and past_key is not None and past_value is not None:
            k, v = torch.cat([past_key[:, :, :before], k], 2), torch.cat([past_value[:, :, :before], v], 2)
        order = causal(q.shape[2], k.shape[2], before, q, window)
        found = attend(q, k, v, scale or q.shape[-1] ** -0.5, _total(order, bias), cap, sink)
        return joined(found), k, v

    return run


def rotated(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    """Rotate pairs of dimensions of (B, H, S, D) by angles (B, S, R / 2); dimensions beyond R stay."""
    cos, sin, width = cos[:, None], sin[:, None], 2 * cos.shape[-1]
    turning, rest = x[..., :width], x[..., width:]
    if is_interleaved:
        first, second = turning[..., ::2], turning[..., 1::2]
        moved = torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2)
    else:
        first, second = turning.chunk(2, -1)
        moved = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    return torch.cat([moved, rest], -1) if rest.shape[-1] else moved


def _fused_rotary(op: Op) -> Kernel:
    """com.microsoft RotaryEmbedding: one place to start from, or a place for every position."""
    heads, is_interleaved = int(op.attr("num_heads", 0)), bool(op.attr("interleaved", 0))
    is_partial = bool(op.attr("rotary_embedding_dim", 0))

    def run(x: Tensor, places: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        is_joined = x.ndim == 3
        count = heads if heads and is_partial else x.shape[-1] // (2 * cos.shape[1]) if is_joined else 0
        wide = apart(x, count)
        if places.numel() == 1 and places.ndim < 2:
            places = places.reshape(1, 1) + torch.arange(wide.shape[2], device=places.device)[None]
        turned = rotated(wide, cos[places.long()], sin[places.long()], is_interleaved)
        return joined(turned) if is_joined else turned

    return run


def _rotary(op: Op) -> Kernel:
    """ONNX RotaryEmbedding: tables by place, or angles for every position of every sample."""
    heads, is_interleaved = int(op.attr("num_heads", 0)), bool(op.attr("interleaved", 0))

    def run(x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None = None) -> Tensor:
        if places is not None:
            cos, sin = cos[places.long()], sin[places.long()]
        turned = rotated(apart(x, heads), cos, sin, is_interleaved)
        return joined(turned) if x.ndim == 3 else turned

    return run


def _standard(op: Op) -> Kernel:
    """ONNX Attention, on three axes or on four."""
    counts = [int(op.attr(name, 0)) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    scale, cap, is_causal = float(op.attr("scale", 0.0)), float(op.attr("softcap", 0.0)), op.attr("is_causal", 0)
    if any(op.outputs[3:]):
        raise refuse(op, "the logits as an output")
    if op.attr("left_window_size", -1) >= 0 or op.attr("right_window_size", -1) >= 0:
        raise refuse(op, "a window")
    if is_causal and op.input(6):
        raise refuse(op, "a number of keys that count, with causal order,")

    def run(
        query: Tensor, key: Tensor, values: Tensor, mask: Tensor | None = None, past_key: Tensor | None = None,
        past_value: Tensor | None = None, lengths: Tensor | None = None,
    ) -> Outputs:  # fmt: skip
        q, k, v = (apart(part, count) for part, count in zip((query, key, values), counts, strict=True))
        before = 0
        if past_key is not None and past_value is not None:
            before, k, v = past_key.shape[2], torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, HIDDEN)
        if mask is not None and mask.shape[-1] < k.shape[2]:
            mask = torch.nn.functional.pad(mask, [0, k.shape[2] - mask.shape[-1]], value=HIDDEN)
        real = None if lengths is None else _masked(op, lengths, k.shape[2], HIDDEN)
        order = causal(q.shape[2], k.shape[2], before, q) if is_causal else None
        found = attend(q, k, v, scale or q.shape[-1] ** -0.5, _total(order, mask, real), cap)
        return joined(found) if query.ndim == 3 else found, k, v

    return run


ATTENTION: dict[str, Factory] = {"Attention": _standard, "RotaryEmbedding": _rotary}
FUSED_ATTENTION: dict[str, Factory] = {
    "Attention": _projection,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
    "RotaryEmbedding": _fused_rotary,
}
