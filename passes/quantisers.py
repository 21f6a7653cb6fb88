"""Reading what QuantizeLinear and DequantizeLinear nodes of a graph hold: codes q stand for y = s (q - z).

A weight is a DequantizeLinear over integers that are there, or over the codes that a QuantizeLinear makes of floats
that are there, as quantisation-aware training leaves them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import values_of

Vector = npt.NDArray[np.float64]

_DOMAINS = (None, "", "ai.onnx", "com.microsoft")


def is_quantiser(node: gs.Node, kind: str) -> bool:
    return bool(node.op == kind and node.domain in _DOMAINS)


def is_weight(node: gs.Node) -> bool:
    """Whether a DequantizeLinear gives a weight of its own, with constant scales, not in blocks.

    Either reads integers, or the codes of floats (as quantisation-aware training leaves them) that nothing else reads.
    Weights whose zero point is at an end have no codes for one of the signs, and stay as they are.
    """
    held, rest = held_by(node), [tensor for tensor in node.inputs[1:] if tensor.name]
    if not all(isinstance(tensor, gs.Constant) for tensor in (held, *rest)) or len(held.outputs) > 1:
        return False
    if node.attrs.get("block_size", 0) or (is_fake(node) and not _is_undone(node)):
        return False
    kind = None if isinstance(held.dtype, int) else np.dtype(held.dtype)
    if kind is None or kind.kind not in ("f" if is_fake(node) else "iu"):
        return False
    limits = limits_of(node)
    zero = along(node, 2, len(held.shape))
    return limits is not None and bool(np.all((zero > limits.min) & (zero < limits.max)))


def held_by(node: gs.Node) -> gs.Tensor:
    """What a DequantizeLinear reads, or the QuantizeLinear before it where that reads a constant."""
    return node.inputs[0].inputs[0].inputs[0] if is_fake(node) else node.inputs[0]


def is_fake(node: gs.Node) -> bool:
    """Whether a DequantizeLinear reads the codes that a QuantizeLinear makes of floats that are there."""
    makers = node.inputs[0].inputs
    return (
        len(makers) == 1 and is_quantiser(makers[0], "QuantizeLinear") and isinstance(makers[0].inputs[0], gs.Constant)
    ) and len(node.inputs[0].outputs) == 1


def limits_of(node: gs.Node) -> np.iinfo[Any] | None:
    """The type of a weight's codes; None where they aren't whole integers of at least a byte."""
    codes = node.inputs[0]
    if is_fake(node):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        kind: Any = np.uint8 if zero is None else zero.dtype
    else:
        kind = codes.dtype
    return np.iinfo(kind) if not isinstance(kind, int) and np.dtype(kind).kind in "iu" else None


def codes_of(node: gs.Node) -> Vector:
    """The codes of a weight."""
    held = held_by(node)
    values = np.asarray(values_of(held)).astype(np.float64)
    limits = limits_of(node)
    if not is_fake(node) or limits is None:
        return values
    scale, zero = (along(node, place, values.ndim) for place in (1, 2))
    return np.clip(np.rint(values / scale) + zero, limits.min, limits.max)


def dequantised(node: gs.Node) -> npt.NDArray[Any]:
    codes = codes_of(node)
    floats = (codes - along(node, 2, codes.ndim)) * along(node, 1, codes.ndim)
    return floats.astype(np.asarray(values_of(node.inputs[1])).dtype)


def is_pair(node: gs.Node) -> bool:
    """Whether a DequantizeLinear undoes the QuantizeLinear before it, which quantises an activation."""
    makers = node.inputs[0].inputs
    if (
        len(makers) != 1
        or not is_quantiser(makers[0], "QuantizeLinear")
        or isinstance(makers[0].inputs[0], gs.Constant)
    ):
        return False
    return _is_undone(node)


def _is_undone(node: gs.Node) -> bool:
    """Whether scales, zero points and axis are those of the QuantizeLinear before."""
    first = node.inputs[0].inputs[0]
    rank = len(node.inputs[0].shape or ())
    if len(first.inputs) != len(node.inputs) or (rank and axis_of(first, rank) != axis_of(node, rank)):
        return False
    return all(
        isinstance(a, gs.Constant) and isinstance(b, gs.Constant) and np.array_equal(values_of(a), values_of(b))
        for a, b in zip(first.inputs[1:], node.inputs[1:], strict=True)
    )


def reach_of(node: gs.Node) -> tuple[Vector, Vector]:
    """The least and the largest value that a DequantizeLinear can give, along its axis."""
    zero = np.asarray(values_of(node.inputs[2])) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    scale, limits = np.asarray(values_of(node.inputs[1]), np.float64), np.iinfo(zero.dtype)
    wide = zero.astype(np.float64)
    return (limits.min - wide) * scale, (limits.max - wide) * scale


def axis_of(node: gs.Node, rank: int) -> int:
    return int(node.attrs.get("axis", 1)) % max(rank, 1)


def other_axes(node: gs.Node, rank: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(rank) if axis != axis_of(node, rank))


def along(node: gs.Node, place: int, rank: int) -> Vector:
    """Scale or zero point in a shape that broadcasts against the values."""
    if len(node.inputs) <= place or not node.inputs[place].name:
        return np.zeros((), np.float64)
    values = np.asarray(values_of(node.inputs[place])).astype(np.float64)
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if axis == axis_of(node, rank) else 1 for axis in range(rank)])
