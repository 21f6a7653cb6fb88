"""Padding: the input that says which positions of a sequence are real, and the tensors whose rows they are."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from snp_onnx.tracing.facts import Shape

_TYPES = frozenset(
    (
        *(onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL),
        *(onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16),
    )
)


def mask_of(model: onnx.ModelProto) -> str | None:
    """The (batch, sequence) input called a mask, 0 where a position is padding; None where there isn't exactly one.

    Masks named after what they leave out (`padding_mask`) mean the opposite, and are left alone.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found = [value.name for value in model.graph.input if value.name not in constants and _is_mask(value)]
    return found[0] if len(found) == 1 else None


def _is_mask(value: onnx.ValueInfoProto) -> bool:
    name, kind = value.name.lower(), value.type.tensor_type
    return "mask" in name and "pad" not in name and kind.elem_type in _TYPES and len(kind.shape.dim) == 2


def has_rows_of(mask: Sequence[int], tensor: Shape, axis: int) -> bool:
    """Whether a tensor's rows, all axes but the unit `axis`, are the mask's positions: (B, S, ...) or (B * S, ...).

    >>> has_rows_of((2, 8), (2, 8, 32), 2), has_rows_of((2, 8), (16, 32), 1), has_rows_of((2, 8), (2, 32), 1)
    (True, True, False)
    """
    rows = tuple(extent for place, extent in enumerate(tensor) if place != axis)
    return rows == tuple(mask) or (len(rows) == 1 and rows[0] == mask[0] * mask[1])
