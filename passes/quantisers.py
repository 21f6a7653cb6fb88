"""Reading weights that a graph stores quantised: codes q stand for y = s (q - z).

A weight is a DequantizeLinear over integers that are there, or over the codes that a QuantizeLinear makes of floats
that are there, as quantisation-aware training leaves them. Or it is a Mul of a scale and of integers that a Cast makes
floats, perhaps after a Sub took their zero point away, as weight-only quantisation leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import numpy_type, values_of

Vector = npt.NDArray[np.float64]

_DOMAINS = (None, "", "ai.onnx", "com.microsoft")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A weight that is stored quantised."""

    node: gs.Node
    """The node that gives its floats."""
    held: gs.Constant
    """Its codes; where `is_fake`, floats of which a QuantizeLinear makes the codes."""
    scale: tuple[gs.Node, int]
    """The node that reads the scale, and the place."""
    zero: Vector
    """Zero points in a shape that broadcasts against the codes."""
    limits: np.iinfo[Any]
    """The type of the codes."""
    is_fake: bool = False

    @property
    def steps(self) -> Vector:
        """The scales in a shape of the codes' rank that broadcasts against them."""
        node, place = self.scale
        rank = len(self.held.shape)
        if is_quantiser(node, "DequantizeLinear"):
            return _spread(along(node, place, rank), rank)
        return _spread(np.asarray(values_of(node.inputs[place])).astype(np.float64), rank)

    @property
    def codes(self) -> Vector:
        values = np.asarray(values_of(self.held)).astype(np.float64)
        if not self.is_fake:
            return values
        return np.clip(np.rint(values / self.steps) + self.zero, self.limits.min, self.limits.max)

    @property
    def floats(self) -> npt.NDArray[Any]:
        """What is read, in the type that it is read in."""
        node, place = self.scale
        kind = _type_of(self.node) if self.node.op == "Mul" else np.asarray(values_of(node.inputs[place])).dtype
        return ((self.codes - self.zero) * self.steps).astype(kind)


def _type_of(node: gs.Node) -> Any:
    """The type that a Mul gives: as declared, or that of an operand that is a constant or comes from a Cast."""
    found = [node.outputs[0].dtype]
    found += [tensor.dtype for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    makers = [maker for tensor in node.inputs for maker in tensor.inputs if maker.op == "Cast"]
    found += [onnx.helper.tensor_dtype_to_np_dtype(int(maker.attrs["to"])) for maker in makers]
    return numpy_type(next((kind for kind in found if kind), np.float32))


def stored_weights(graph: gs.Graph) -> Iterator[Stored]:
    """The quantised weights that can be written again.

    They have constant scales, not in blocks, codes that nothing else reads, and codes for both signs: weights whose
    zero point is at an end stay as they are.
    """
    for node in graph.nodes:
        found = None
        if is_quantiser(node, "DequantizeLinear"):
            found = _dequantised(node)
        elif node.op == "Mul" and node.domain in _STANDARD:
            found = _multiplied(node)
        if found is not None and np.all((found.zero > found.limits.min) & (found.zero < found.limits.max)):
            yield found


def is_quantiser(node: gs.Node, kind: str) -> bool:
    return bool(node.op == kind and node.domain in _DOMAINS)


_STANDARD = (None, "", "ai.onnx")


def _dequantised(node: gs.Node) -> Stored | None:
    is_fake = _is_fake(node)
    held = node.inputs[0].inputs[0].inputs[0] if is_fake else node.inputs[0]
    rest = [tensor for tensor in node.inputs[1:] if tensor.name]
    if not all(isinstance(tensor, gs.Constant) for tensor in (held, *rest)) or len(held.outputs) > 1:
        return None
    if node.attrs.get("block_size", 0) or (is_fake and not _is_undone(node)):
        return None
    if _kind(held) not in ("f" if is_fake else "iu"):
        return None
    kind: Any = held.dtype
    if is_fake:
        kind = node.inputs[2].dtype if len(node.inputs) > 2 else np.uint8
    limits = None if isinstance(kind, int) or np.dtype(kind).kind not in "iu" else np.iinfo(kind)
    return None if limits is None else Stored(node, held, (node, 1), along(node, 2, len(held.shape)), limits, is_fake)


def _multiplied(node: gs.Node) -> Stored | None:
    """(codes - zero point) * scale: one operand of the Mul comes from integers by Cast and Sub alone."""
    for place, other in ((0, 1), (1, 0)):
        scale, path = _constant_behind_casts(node, other), _codes_behind(node, place)
        if scale is None or path is None:
            continue
        held, zero = path
        factor = scale[0].inputs[scale[1]]
        is_wide = len(factor.shape) > len(held.shape) or _kind(factor) != "f"
        if is_wide or any(len(c.shape) > len(held.shape) for c in (zero,) if c is not None):
            return None
        zeros = np.zeros(()) if zero is None else np.asarray(values_of(zero)).astype(np.float64)
        if all(n in (1, m) for t in (factor, zeros) for n, m in zip(t.shape[::-1], held.shape[::-1], strict=False)):
            return Stored(node, held, scale, _spread(zeros, len(held.shape)), np.iinfo(held.dtype))
    return None


def _codes_behind(node: gs.Node, place: int) -> tuple[gs.Constant, gs.Constant | None] | None:
    """The integers that an operand is made of, and the zero points that a Sub takes away."""
    zero = None
    tensor, is_cast = node.inputs[place], False
    while not isinstance(tensor, gs.Constant):
        maker = tensor.inputs[0] if len(tensor.inputs) == 1 and len(tensor.outputs) == 1 else None
        if maker is None or maker.op not in ("Cast", "Sub") or maker.domain not in _STANDARD:
            return None
        if maker.op == "Sub":
            found = _constant_behind_casts(maker, 1)
            if found is None or zero is not None:
                return None
            zero = found[0].inputs[found[1]]
        is_cast = is_cast or maker.op == "Cast"
        tensor = maker.inputs[0]
    is_own = is_cast and len(tensor.outputs) == 1 and len(tensor.shape) > 1
    is_code = is_own and _kind(tensor) in ("i", "u") and np.dtype(tensor.dtype).itemsize <= 2
    return (tensor, zero) if is_code else None


def _constant_behind_casts(node: gs.Node, place: int) -> tuple[gs.Node, int] | None:
    """Where a constant is read of which Casts alone make an operand."""
    tensor = node.inputs[place]
    while not isinstance(tensor, gs.Constant):
        if len(tensor.inputs) != 1 or tensor.inputs[0].op != "Cast":
            return None
        node, place = tensor.inputs[0], 0
        tensor = node.inputs[0]
    return node, place


def _kind(tensor: gs.Constant) -> str:
    """The kind of a constant's type, bfloat16 being a float; none where numpy has no such type."""
    kind = numpy_type(tensor.dtype)
    return "f" if kind.name == "bfloat16" else "" if kind.kind == "V" else kind.kind


def _spread(values: Vector, rank: int) -> Vector:
    return values.reshape((1,) * (rank - values.ndim) + values.shape)


def _is_fake(node: gs.Node) -> bool:
    """Whether a DequantizeLinear reads the codes that a QuantizeLinear makes of floats that are there."""
    makers = node.inputs[0].inputs
    return (
        len(makers) == 1 and is_quantiser(makers[0], "QuantizeLinear") and isinstance(makers[0].inputs[0], gs.Constant)
    ) and len(node.inputs[0].outputs) == 1


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


def along(node: gs.Node, place: int, rank: int) -> Vector:
    """Scale or zero point in a shape that broadcasts against the values."""
    if len(node.inputs) <= place or not node.inputs[place].name:
        return np.zeros((), np.float64)
    values = np.asarray(values_of(node.inputs[place])).astype(np.float64)
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if axis == axis_of(node, rank) else 1 for axis in range(rank)])
