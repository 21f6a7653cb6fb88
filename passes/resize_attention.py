"""Attributes of fused attention that name sizes, rewritten for the heads and dims that stay: one function an operator.

A head is gone when all its dims are. The scale of the logits defaults to 1 / sqrt(dims of a head); where dims were cut,
the dense model's is written out, so that it doesn't change with the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.resize import Resizer, Resizing
from snp_onnx.tracing.labels import Labels
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.attention import projection_bounds, rotary_head_size


def keep_scale(node: gs.Node, op: Op, before: int, after: int) -> None:
    """Write out the scale of the logits that `before` dims a head stood for, where `after` would stand for another."""
    if before != after and not op.attr("scale", 0.0):
        node.attrs["scale"] = float(before) ** -0.5


def _counts(resizing: Resizing, labels: Labels, heads: int) -> tuple[int, int]:
    """Heads and dims a head that stay of an axis with all heads."""
    alive = resizing.places(labels).reshape(heads, -1) >= 0
    return int(alive.any(axis=1).sum()), int(alive.any(axis=0).sum())


def _operand(resizing: Resizing, name: str, heads: int) -> tuple[int, int, int]:
    """Heads that stay, and dims a head before and after, of an operand with three, four or five axes."""
    shape, after = resizing.shape(name), resizing.after(name)
    if len(shape) == 3:
        stay, dims = _counts(resizing, resizing.labels(name, 2), heads)
        return stay, shape[2] // heads, dims
    place = 1 if len(shape) == 4 else 2
    return after[place], shape[-1], after[-1]


def _standard(node: gs.Node, op: Op, resizing: Resizing) -> None:
    counts = [int(op.attr(name, 0)) for name in ("q_num_heads", "kv_num_heads")]
    query, before, after = _operand(resizing, op.input(0), counts[0])
    if len(resizing.shape(op.input(0))) == 3:
        node.attrs["q_num_heads"] = query
        node.attrs["kv_num_heads"] = _operand(resizing, op.input(1), counts[1])[0]
    keep_scale(node, op, before, after)


def _multi_head(node: gs.Node, op: Op, resizing: Resizing) -> None:
    heads, before, after = _operand(resizing, op.input(0), int(op.attr("num_heads", 1)))
    node.attrs["num_heads"] = heads
    keep_scale(node, op, before, after)


def _fused_projection(node: gs.Node, op: Op, resizing: Resizing) -> None:
    columns, heads = resizing.labels(op.input(1), 1), int(op.attr("num_heads", 1))
    parts = np.split(columns, projection_bounds(op, len(columns)))
    stay, dims = _counts(resizing, parts[0], heads)
    sizes = [resizing.count(part) for part in parts]
    node.attrs["num_heads"] = stay
    if "qkv_hidden_sizes" in node.attrs or len(set(sizes)) > 1:
        node.attrs["qkv_hidden_sizes"] = sizes
    keep_scale(node, op, len(parts[0]) // heads, dims)


def _group_query(node: gs.Node, op: Op, resizing: Resizing) -> None:
    heads, shared = int(op.attr("num_heads", 1)), int(op.attr("kv_num_heads", 1))
    query, key = resizing.labels(op.input(0), 2), op.input(1)
    each = len(query) // (heads if key else heads + 2 * shared)
    keys = resizing.labels(key, 2) if key else query[heads * each : (heads + shared) * each]
    node.attrs["num_heads"], _ = _counts(resizing, query[: heads * each], heads)
    node.attrs["kv_num_heads"], _ = _counts(resizing, keys, shared)


def _rotary(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """Only an input with three axes is told its heads by an attribute, and not where the angles tell."""
    source = op.input(0)
    if len(resizing.shape(source)) == 3 and op.attr("num_heads", 0):
        width = resizing.shape(source)[2]
        each = rotary_head_size(op, width, 0)
        node.attrs["num_heads"], _ = _counts(resizing, resizing.labels(source, 2), width // each)


FUSED_RESIZERS: Mapping[tuple[str, str], Resizer] = MappingProxyType(
    {
        ("", "Attention"): _standard,
        ("", "RotaryEmbedding"): _rotary,
        ("com.microsoft", "Attention"): _fused_projection,
        ("com.microsoft", "MultiHeadAttention"): _multi_head,
        ("com.microsoft", "GroupQueryAttention"): _group_query,
        ("com.microsoft", "RotaryEmbedding"): _rotary,
    }
)
"""Operators, by domain and name, with attributes to rewrite."""
