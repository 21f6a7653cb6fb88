"""Attention in one node, onnxruntime's operators and ONNX's own, and the rotation of positions.

The same as between separate nodes: an axis of all heads is a product (heads, dims); heads of queries, keys and values
are one unit, what is contracted between activations stays whole, and the output is the product of the query's heads
and the value's dims. Keys and values shared by several query heads make these one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snp_onnx.tracing.labels import HEAD, Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Linear, Tracer

CONTRACTED = "contracted between two activations"


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Labels of one operand's heads and of the dims inside each."""

    heads: Labels
    dims: Labels


def standard(op: Op, tracer: Tracer) -> None:
    """Attention of ONNX: (batch, heads, sequence, dims), or (batch, sequence, heads times dims) with counts given."""
    if op.input(6):
        tracer.barrier_all(op, op.input(6), "lengths of an attention")
    counts = [int(op.attr(name, 0)) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    q, k, v = (_apart(op, tracer, name, count) for name, count in zip(op.inputs[:3], counts, strict=True))
    _attend(op, tracer, q, k, v)
    _mask(op, tracer, op.input(3), q.heads)
    for place, part in ((4, k), (5, v)):
        _cache(op, tracer, op.input(place), op.outputs[place - 3] if len(op.outputs) > place - 3 else "", part)
    query = tracer.axes(op.input(0))
    if len(query) == 4:
        tracer.set_axes(op.outputs[0], [query[0], q.heads, query[2], v.dims])
    else:
        _set_joined(op, tracer, q.heads, v.dims)
    if len(op.outputs) > 3 and op.outputs[3]:
        extents = tracer.shape(op.outputs[3])
        tracer.set_axes(op.outputs[3], [still(extents[0]), q.heads, still(extents[2]), still(extents[3])])


def multi_head(op: Op, tracer: Tracer) -> None:
    """MultiHeadAttention: q, k and v apart, or k and v, or all three packed inside each head; one bias for all."""
    count = int(op.attr("num_heads", 1))
    if any(op.inputs[8:]) or any(op.outputs[3:]):
        opaque(op, tracer, "attention with a cache of beams or with its weights as an output")
        return
    query, key, value = op.input(0), op.input(1), op.input(2)
    packed = next((name for name in (query, key) if name and len(tracer.shape(name)) == 5), "")
    parts = [_apart(op, tracer, name, count) for name in (query, key, value) if name]
    q, k, v = parts[0], parts[min(1, len(parts) - 1)], parts[-1]
    if packed:  # one axis of dims for all that is packed: it is contracted, so values keep theirs too
        tracer.barrier(op, packed, 3, "queries, keys and values are packed")
    _attend(op, tracer, q, k, v)
    if op.input(3):
        _packed_bias(tracer, op.input(3), (q, k, v))
    if op.input(4):
        tracer.barrier_all(op, op.input(4), "mask of an attention")
    _mask(op, tracer, op.input(5), q.heads)
    for place, part in ((6, k), (7, v)):
        _cache(op, tracer, op.input(place), op.outputs[place - 5] if len(op.outputs) > place - 5 else "", part)
    _set_joined(op, tracer, q.heads, v.dims)


def fused_projection(op: Op, tracer: Tracer) -> None:
    """Attention of onnxruntime: multiplies its input by one weight for q, k and v, whose columns follow each other."""
    source, weight, bias = op.input(0), op.input(1), op.input(2)
    if not tracer.is_constant(weight) or tracer.is_constant(source):
        opaque(op, tracer, "the weight of this Attention is computed at run time")
        return
    tracer.classes.unite(tracer.axes(source)[-1], tracer.axes(weight)[0])
    count, columns = int(op.attr("num_heads", 1)), tracer.axes(weight)[1]
    q, k, v = (_split(tracer, part, count) for part in np.split(columns, projection_bounds(op, len(columns))))
    if bias:
        tracer.classes.unite(tracer.axes(bias)[-1], columns)
    _attend(op, tracer, q, k, v)
    _bar(op, tracer, source, (0, 1), "sequence of an attention")
    for name in (op.input(3), op.input(6)):
        if name:
            tracer.barrier_all(op, name, "mask of an attention")
    _mask(op, tracer, op.input(5), q.heads)
    for name in (op.input(4), *op.outputs[1:]):
        _both_caches(op, tracer, name, k, v)
    _set_joined(op, tracer, q.heads, v.dims)
    tracer.linears.append(Linear(op, source, 2, weight, 0, 1, op.outputs[0], 2))


def projection_bounds(op: Op, columns: int) -> list[int]:
    """Where keys and values start among the columns of an Attention's weight."""
    sizes: Sequence[int] = op.attr("qkv_hidden_sizes", None) or [columns // 3] * 3
    return [int(sizes[0]), int(sizes[0]) + int(sizes[1])]


def group_query(op: Op, tracer: Tracer) -> None:
    """GroupQueryAttention: a key-value head with the query heads that share it is one unit; all dims stay whole."""
    query, key, value = op.input(0), op.input(1), op.input(2)
    if any(op.inputs[12:14]) or any(op.outputs[3:]):
        opaque(op, tracer, "attention with a quantised cache or with its weights as an output")
        return
    count, shared = int(op.attr("num_heads", 1)), int(op.attr("kv_num_heads", 1))
    if key:
        q, k, v = (_apart(op, tracer, name, n) for name, n in ((query, count), (key, shared), (value, shared)))
    else:
        columns = tracer.axes(query)[2]
        each = len(columns) // (count + 2 * shared)
        parts = np.split(columns, [count * each, (count + shared) * each])
        q, k, v = (_split(tracer, part, n) for part, n in zip(parts, (count, shared, shared), strict=True))
        _bar(op, tracer, query, (0, 1), "sequence of an attention")
    _attend(op, tracer, q, k, v)
    for labels in (k.dims, v.dims):
        tracer.barrier(op, query, 2, "keys and values have dims of one size", labels)
    for name in (*op.inputs[5:10], *op.inputs[14:]):
        if name:
            tracer.barrier_all(op, name, "positions and lengths of an attention")
    _mask(op, tracer, op.input(10), q.heads)
    if op.input(11):
        tracer.classes.unite(tracer.axes(op.input(11))[0], q.heads)
    for place, part in ((3, k), (4, v)):
        _cache(op, tracer, op.input(place), op.outputs[place - 2] if len(op.outputs) > place - 2 else "", part)
    _set_joined(op, tracer, q.heads, v.dims)


def rotary(op: Op, tracer: Tracer) -> None:
    """RotaryEmbedding: mixes the dims of each head, which stay whole, as all positions do; heads pass."""
    source = op.input(0)
    tables = op.inputs[1:3] if op.is_standard else op.inputs[2:4]
    axes = tracer.axes(source)
    if len(axes) == 3:
        each = rotary_head_size(op, tracer.shape(source)[2], tracer.shape(tables[0])[-1])
        dims = _split(tracer, axes[2], len(axes[2]) // each).dims
        tracer.barrier(op, source, 2, "rotary positions mix the dims of a head", dims)
    else:
        tracer.barrier(op, source, 3, "rotary positions mix the dims of a head")
    _bar(op, tracer, source, (0, 1) if len(axes) == 3 else (0, 2), "sequence of an attention")
    for name in op.inputs[1:]:
        if name:
            tracer.barrier_all(op, name, "rotary positions mix the dims of a head")
    tracer.set_axes(op.outputs[0], axes)


def rotary_head_size(op: Op, width: int, angles: int) -> int:
    """Dims of a head in a RotaryEmbedding whose input has three axes."""
    count = int(op.attr("num_heads", 0))
    return width // count if count else 2 * angles


def _split(tracer: Tracer, labels: Labels, count: int) -> Heads:
    heads, dims = tracer.products.split(labels, (count, len(labels) // count))
    return Heads(heads, dims)


def _apart(op: Op, tracer: Tracer, name: str, count: int) -> Heads:
    """An operand (batch, sequence, heads times dims), (batch, heads, sequence, dims) or (.., heads, packed, dims)."""
    axes = tracer.axes(name)
    rest = {3: (0, 1), 4: (0, 2), 5: (0, 1)}[len(axes)]
    _bar(op, tracer, name, rest, "sequence of an attention")
    if len(axes) == 3:
        return _split(tracer, axes[2], count)
    return Heads(axes[1] if len(axes) == 4 else axes[2], axes[-1])


def _bar(op: Op, tracer: Tracer, name: str, axes: Sequence[int], reason: str) -> None:
    for axis in axes:
        tracer.barrier(op, name, axis, reason)


def _attend(op: Op, tracer: Tracer, q: Heads, k: Heads, v: Heads) -> None:
    """Heads are one unit, a key-value head with all its query heads; a single one of them may serve any number."""
    tracer.classes.unite(k.heads, v.heads)
    if len(k.heads) == len(q.heads):
        tracer.classes.unite(q.heads, k.heads)
    elif len(k.heads) > 1:
        tracer.classes.unite(q.heads.reshape(len(k.heads), -1), k.heads[:, None])
    for labels in (q.heads, k.heads):
        if len(labels) > 1:
            tracer.classes.flag(labels, HEAD)
    tracer.classes.unite(q.dims, k.dims)
    tracer.barrier(op, op.input(0), len(tracer.axes(op.input(0))) - 1, CONTRACTED, q.dims)


def _set_joined(op: Op, tracer: Tracer, heads: Labels, dims: Labels) -> None:
    batch, length, _ = tracer.shape(op.outputs[0])
    tracer.set_axes(op.outputs[0], [still(batch), still(length), tracer.products.merge((heads, dims))])


def _packed_bias(tracer: Tracer, bias: str, parts: Sequence[Heads]) -> None:
    """One vector of a bias for each of q, k and v."""
    labels = tracer.axes(bias)[0]
    sizes = [len(part.heads) * len(part.dims) for part in parts]
    for own, part in zip(np.split(labels, np.cumsum(sizes)[:-1]), parts, strict=True):
        tracer.classes.unite(own, tracer.products.merge((part.heads, part.dims)))


def _mask(op: Op, tracer: Tracer, name: str, heads: Labels) -> None:
    """What is added to the logits may differ from head to head: axis -3 of it."""
    if not name:
        return
    for axis, labels in enumerate(tracer.axes(name)):
        if axis == len(tracer.axes(name)) - 3 and len(labels) == len(heads) > 1:
            tracer.classes.unite(labels, heads)
        else:
            tracer.barrier(op, name, axis, "mask of an attention")


def _cache(op: Op, tracer: Tracer, past: str, present: str, part: Heads) -> None:
    """Keys or values of earlier positions, (batch, heads, sequence, dims): the same heads and dims."""
    if past:
        axes = tracer.axes(past)
        tracer.classes.unite(axes[1], part.heads)
        tracer.classes.unite(axes[3], part.dims)
        _bar(op, tracer, past, (0, 2), "sequence of an attention")
    if present:
        extents = tracer.shape(present)
        tracer.set_axes(present, [still(extents[0]), part.heads, still(extents[2]), part.dims])


def _both_caches(op: Op, tracer: Tracer, name: str, k: Heads, v: Heads) -> None:
    """Keys and values of earlier positions as one tensor (2, batch, heads, sequence, dims)."""
    if not name:
        return
    tracer.classes.unite(k.dims, v.dims)
    if name not in op.outputs:
        tracer.classes.unite(tracer.axes(name)[2], k.heads)
        tracer.classes.unite(tracer.axes(name)[4], k.dims)
        _bar(op, tracer, name, (0, 1, 3), "sequence of an attention")
        return
    extents = tracer.shape(name)
    tracer.set_axes(name, [*(still(n) for n in extents[:2]), k.heads, still(extents[3]), k.dims])
