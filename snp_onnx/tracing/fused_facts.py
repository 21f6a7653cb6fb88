"""Shapes of onnxruntime's fused operators, which onnx can't infer: output extents from input extents and attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.tracing.op import Op

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Values = Mapping[str, npt.NDArray[np.generic]]


def fused_shapes(op: Op, shapes: Shapes, values: Values) -> dict[str, Shape]:
    """Shapes of a fused operator's outputs, as far as they can be told; nothing for any other operator."""
    rule = _RULES.get(op.type) if op.domain == "com.microsoft" or op.type == "SimplifiedLayerNormalization" else None
    if rule is None or any(name and name not in shapes for name in op.inputs):
        return {}
    found = rule(op, shapes, values)
    return {name: shape for name, shape in zip(op.outputs, found, strict=False) if name and shape is not None}


def typed_by(op: Op, output: str) -> str:
    """The input whose type an output of a fused operator has; the mask's index of an embedding is like the ids."""
    return op.input(2 if op.type == "EmbedLayerNormalization" and [output] != op.outputs[1:2] else 0)


Found = list[Shape | None]


def _same(op: Op, shapes: Shapes, values: Values) -> Found:
    return [shapes[op.input(0)]]


def _normalised(op: Op, shapes: Shapes, values: Values) -> Found:
    """Output, the statistics of every row, and the sum that is normalised."""
    shape = shapes[op.input(0)]
    return [shape, None, None, shape]


def _embedded(op: Op, shapes: Shapes, values: Values) -> Found:
    ids, table = shapes[op.input(0)], shapes[op.input(2)]
    return [(*ids, table[1]), (ids[0],), (*ids, table[1])]


def _product(op: Op, shapes: Shapes, values: Values) -> Found:
    """FusedMatMul, whose attributes may swap the last two axes of either operand, and bring its first one in front."""
    left, right = (_turned(op, side, shapes[name]) for side, name in zip("AB", op.inputs[:2], strict=True))
    if min(len(left), len(right)) < 2:
        return []
    return [(*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])]


def _turned(op: Op, side: str, shape: Shape) -> Shape:
    """The shape of an operand as it is multiplied."""
    if op.attr(f"transBatch{side}", 0) and len(shape) > 2:
        shape = (*shape[1:-1], shape[0], shape[-1])
    if op.attr(f"trans{side}", 0) and len(shape) > 1:
        shape = (*shape[:-2], shape[-1], shape[-2])
    return shape


def _fused_projection(op: Op, shapes: Shapes, values: Values) -> Found:
    batch, length, _ = shapes[op.input(0)]
    columns, heads = shapes[op.input(1)][1], int(op.attr("num_heads", 1))
    sizes = op.attr("qkv_hidden_sizes", None) or [columns // 3] * 3
    past = shapes[op.input(4)][3] if op.input(4) else 0
    total = past if op.attr("past_present_share_buffer", 0) else past + length
    return [(batch, length, int(sizes[2])), (2, batch, heads, total, int(sizes[1]) // heads)]


def _multi_head(op: Op, shapes: Shapes, values: Values) -> Found:
    query, heads = shapes[op.input(0)], int(op.attr("num_heads", 1))
    keys = shapes[op.input(1)] if op.input(1) else query
    value = shapes[op.input(2)] if op.input(2) else keys
    length = keys[2] if len(keys) == 4 else keys[1]
    dims, each = (shape[-1] if len(shape) > 3 else shape[-1] // heads for shape in (keys, value))
    past = shapes[op.input(6)][2] if op.input(6) else 0
    caches: Found = [(query[0], heads, past + length, n) for n in (dims, each)]
    return [(query[0], query[1], heads * each), *([None, None] if op.input(8) else caches)]


def _group_query(op: Op, shapes: Shapes, values: Values) -> Found:
    """The cache grows by the new positions unless it is a buffer that holds them already."""
    (batch, length, width), heads, shared = shapes[op.input(0)], op.attr("num_heads", 1), op.attr("kv_num_heads", 1)
    each = width // (heads if op.input(1) else heads + 2 * shared)
    past = shapes[op.input(3)][2] if op.input(3) else 0
    given: Any = values.get(op.input(6))
    total = past + length if given is None else max(past, int(given.reshape(-1)[0]))
    return [(batch, length, heads * each), *[(batch, shared, total, each)] * 2]


_RULES: Mapping[str, Callable[[Op, Shapes, Values], Found]] = MappingProxyType(
    {
        **dict.fromkeys(("Gelu", "QuickGelu", "BiasGelu", "FastGelu", "RotaryEmbedding"), _same),
        "SimplifiedLayerNormalization": _same,
        **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _normalised),
        "EmbedLayerNormalization": _embedded,
        "FusedMatMul": _product,
        "Attention": _fused_projection,
        "MultiHeadAttention": _multi_head,
        "GroupQueryAttention": _group_query,
    }
)
