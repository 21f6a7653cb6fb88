"""Quantisation taken out of a graph and put back: y = s (q - z) read as y, and y written as q = round(y / s) + z.

`Dequantise` makes the float model that a QDQ model stands for: every quantised weight becomes the floats that it is
read as, under its own name, and pairs of QuantizeLinear and DequantizeLinear on activations go. (A quantiser leaves
Relu and Clip out where the ends of the codes do their work: then a Clip takes the pair's place.) `Requantise` writes
changed floats into the QDQ graph: weights on the same axis with scales from their new ranges, biases with s_x s_w.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from snp_onnx.external import array_of
from snp_onnx.passes.base import (
    Note,
    Outcome,
    constants,
    fresh_name,
    holds_floats,
    replace_node,
    replace_values,
    values_of,
)

Array = npt.NDArray[np.generic]

SAME = 1e-3
"""In steps of the quantiser: floats nearer than this to what is stored are not written anew."""

_NONNEGATIVE = frozenset(
    (
        *("Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Concat", "Slice"),
        *("Split", "Pad", "DequantizeLinear"),
    )
)
"""Operators that give nothing below zero, or nothing that wasn't there before: codes from zero on say nothing new."""

NARROW = 64
"""Steps to either side that a weight of 7 bits has."""

_DOMAINS = (None, "", "ai.onnx", "com.microsoft")


@dataclass(frozen=True, slots=True)
class Dequantise:
    """The float model of a QDQ graph; what is quantised in another way stays as it is."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        weights = pairs = 0
        outputs = {id(tensor) for tensor in graph.outputs}
        for node in [node for node in graph.nodes if _is(node, "DequantizeLinear")]:
            if is_weight(node) and id(node.outputs[0]) not in outputs:
                source = _held(node)
                replace_values(source, np.ascontiguousarray(_dequantised(node)))
                replace_node(graph, node, source)
                weights += 1
            elif _is_pair(node) and _without_pair(graph, node, outputs):
                pairs += 1
        notes = (
            [Note("model", f"quantised: {weights} weights are pruned as the floats they stand for")] if weights else []
        )
        return Outcome(weights + pairs > 0, tuple(notes))


@dataclass(frozen=True, slots=True, eq=False)
class Requantise:
    """Write float values, by the name of the initialiser, into a QDQ graph of the same shapes.

    `narrow` are the weights that use 7 bits of their 8, for processors that would overflow otherwise.
    """

    values: Mapping[str, Array]
    narrow: frozenset[str] = frozenset()

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes: list[Note] = []
        quantised = [node for node in graph.nodes if _is(node, "DequantizeLinear") and is_weight(node)]
        biases = {id(bias): (source, weight) for source, weight, bias in _layers(graph)}
        for node in quantised:
            if id(node) not in biases and _held(node).name in self.values:
                notes += self._weight(graph, node)
        for node in quantised:
            if id(node) in biases and node.inputs[0].name in self.values:
                notes += self._bias(graph, node, *biases[id(node)])
        written = {id(_held(node)) for node in quantised}
        for constant in constants(graph):
            new = self.values.get(constant.name)
            if new is None or id(constant) in written or not holds_floats(constant):
                continue
            if not np.array_equal(new, values_of(constant)):
                replace_values(constant, new)
                notes.append(Note(constant.name, "folded"))
        return Outcome(bool(notes), tuple(notes))

    def _weight(self, graph: gs.Graph, node: gs.Node) -> list[Note]:
        """Scales that take in the new range by as many steps as the old one had; zero points stay."""
        held = _held(node)
        wanted, limits = np.asarray(self.values[held.name], np.float64), _limits(node)
        scale, zero = (_along(node, place, wanted.ndim) for place in (1, 2))
        if np.all(np.abs(wanted / scale - (_codes(node) - zero)) <= SAME):
            return []
        if limits.bits <= 16:
            steps = NARROW if held.name in self.narrow else limits.max
            above, below = np.minimum(limits.max - zero, steps), np.minimum(zero - limits.min, steps)
            need = np.maximum(wanted / above, -wanted / below)
            most = need.max() if scale.size == 1 else need.max(axis=_others(node, need.ndim))
            most = np.where(most > 0, most, scale.reshape(np.shape(most)))
            scale = _set_scale(graph, node, most.reshape(values_of(node.inputs[1]).shape))
        if _is_fake(node):
            _set_scale(graph, node.inputs[0].inputs[0], np.asarray(values_of(node.inputs[1])))
            replace_values(held, wanted.astype(np.asarray(values_of(held)).dtype))
        else:
            _set_codes(node, wanted, scale, zero)
        return [Note(held.name, "folded and quantised again")]

    def _bias(self, graph: gs.Graph, node: gs.Node, source: gs.Node, weight: gs.Node) -> list[Note]:
        """Runtimes that fuse the layer read a bias in steps of s_x s_w, whatever its own scale says."""
        stored, wanted = node.inputs[0], np.asarray(self.values[node.inputs[0].name], np.float64)
        step = np.asarray(values_of(source.inputs[1])) * np.asarray(values_of(weight.inputs[1]))
        before = np.asarray(values_of(node.inputs[1]))
        exact = np.asarray(values_of(stored)).astype(np.float64) * before
        same_scale = np.array_equal(np.broadcast_to(step.reshape(-1), before.reshape(-1).shape), before.reshape(-1))
        if same_scale and np.all(np.abs(wanted - exact) <= SAME * before):
            return []
        step = np.broadcast_to(step.reshape(-1), before.reshape(-1).shape).reshape(before.shape)
        _set_codes(node, wanted, _set_scale(graph, node, step), np.zeros(()))
        return [Note(stored.name, "folded and quantised again")]


def narrow_weights(model: onnx.ModelProto) -> frozenset[str]:
    """Weights in 8 bits that use 7 of them (`reduce_range` of onnxruntime's quantiser)."""
    read = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    bytes_ = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    held = [tensor for tensor in model.graph.initializer if tensor.name in read and tensor.data_type in bytes_]
    return frozenset(t.name for t in held if np.ptp(array_of(t).astype(np.int64)) <= 2 * NARROW)


def _is(node: gs.Node, kind: str) -> bool:
    return bool(node.op == kind and node.domain in _DOMAINS)


def is_weight(node: gs.Node) -> bool:
    """Whether a DequantizeLinear gives a weight of its own, with constant scales, not in blocks.

    Either reads integers, or the codes of floats (as quantisation-aware training leaves them) that nothing else reads.
    Weights whose zero point is at an end have no codes for one of the signs, and stay as they are.
    """
    held, rest = _held(node), [tensor for tensor in node.inputs[1:] if tensor.name]
    if not all(isinstance(tensor, gs.Constant) for tensor in (held, *rest)) or len(held.outputs) > 1:
        return False
    if node.attrs.get("block_size", 0) or (_is_fake(node) and not _is_undone(node)):
        return False
    kind = None if isinstance(held.dtype, int) else np.dtype(held.dtype)
    if kind is None or kind.kind not in ("f" if _is_fake(node) else "iu"):
        return False
    limits = _limits(node)
    zero = _along(node, 2, len(held.shape))
    return limits is not None and bool(np.all((zero > limits.min) & (zero < limits.max)))


def _held(node: gs.Node) -> gs.Tensor:
    """What a DequantizeLinear reads, or the QuantizeLinear before it where that reads a constant."""
    return node.inputs[0].inputs[0].inputs[0] if _is_fake(node) else node.inputs[0]


def _is_fake(node: gs.Node) -> bool:
    """Whether a DequantizeLinear reads the codes that a QuantizeLinear makes of floats that are there."""
    makers = node.inputs[0].inputs
    return (
        len(makers) == 1 and _is(makers[0], "QuantizeLinear") and isinstance(makers[0].inputs[0], gs.Constant)
    ) and len(node.inputs[0].outputs) == 1


def _limits(node: gs.Node) -> np.iinfo[Any] | None:
    """The type of a weight's codes; None where they aren't whole integers of at least a byte."""
    codes = node.inputs[0]
    if _is_fake(node):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        kind: Any = np.uint8 if zero is None else zero.dtype
    else:
        kind = codes.dtype
    return np.iinfo(kind) if not isinstance(kind, int) and np.dtype(kind).kind in "iu" else None


def _codes(node: gs.Node) -> npt.NDArray[np.float64]:
    """The codes of a weight."""
    held = _held(node)
    values = np.asarray(values_of(held)).astype(np.float64)
    limits = _limits(node)
    if not _is_fake(node) or limits is None:
        return values
    scale, zero = (_along(node, place, values.ndim) for place in (1, 2))
    return np.clip(np.rint(values / scale) + zero, limits.min, limits.max)


def _is_pair(node: gs.Node) -> bool:
    """Whether a DequantizeLinear undoes the QuantizeLinear before it, which quantises an activation."""
    makers = node.inputs[0].inputs
    if len(makers) != 1 or not _is(makers[0], "QuantizeLinear") or isinstance(makers[0].inputs[0], gs.Constant):
        return False
    return _is_undone(node)


def _is_undone(node: gs.Node) -> bool:
    """Whether scales, zero points and axis are those of the QuantizeLinear before."""
    first = node.inputs[0].inputs[0]
    rank = len(node.inputs[0].shape or ())
    if len(first.inputs) != len(node.inputs) or (rank and _axis(first, rank) != _axis(node, rank)):
        return False
    return all(
        isinstance(a, gs.Constant) and isinstance(b, gs.Constant) and np.array_equal(values_of(a), values_of(b))
        for a, b in zip(first.inputs[1:], node.inputs[1:], strict=True)
    )


def _without_pair(graph: gs.Graph, node: gs.Node, outputs: set[int]) -> bool:
    """Take a pair out, or leave a Clip in its place where the codes' lower end stands for an activation function."""
    first = node.inputs[0].inputs[0]
    before, after = first.inputs[0], node.outputs[0]
    lowest, highest = _range(node)
    makers = before.inputs
    is_bounded = bool(lowest.min() >= 0 and makers and makers[0].op not in _NONNEGATIVE)
    if is_bounded or (id(after) in outputs and lowest.size == 1):
        _clip(graph, node, before, lowest.min() if is_bounded else -np.inf, highest.max() if is_bounded else np.inf)
    elif id(after) in outputs:
        return False
    else:
        replace_node(graph, node, before)
    return True


def _range(node: gs.Node) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The least and the largest value that a DequantizeLinear can give, along its axis."""
    zero = np.asarray(values_of(node.inputs[2])) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    scale, limits = np.asarray(values_of(node.inputs[1]), np.float64), np.iinfo(zero.dtype)
    wide = zero.astype(np.float64)
    return (limits.min - wide) * scale, (limits.max - wide) * scale


def _clip(graph: gs.Graph, node: gs.Node, source: gs.Tensor, lowest: float, highest: float) -> None:
    """Turn a DequantizeLinear into a Clip of what was quantised, in the form that the graph's operator set has."""
    bounds = {"min": lowest, "max": highest}
    kind = np.asarray(values_of(node.inputs[1])).dtype
    node.op, node.domain, node.inputs, node.attrs = "Clip", None, [source], {}
    if graph.opset < 11:
        node.attrs = {name: float(bound) for name, bound in bounds.items()}
        return
    for name, bound in bounds.items():
        node.inputs.append(gs.Constant(fresh_name(graph, f"{node.outputs[0].name}_{name}"), np.array(bound, kind)))


def _layers(graph: gs.Graph) -> list[tuple[gs.Node, gs.Node, gs.Node]]:
    """The DequantizeLinear nodes of input, weight and bias of every layer that has all three."""
    found = []
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2:
            makers = [tensor.inputs[0] for tensor in node.inputs[:3] if tensor.inputs]
            if len(makers) == 3 and all(_is(maker, "DequantizeLinear") for maker in makers):
                scales = [maker.inputs[1] for maker in makers]
                sizes = [np.size(values_of(scale)) if isinstance(scale, gs.Constant) else 0 for scale in scales]
                if sizes[0] == 1 and sizes[1] in (1, sizes[2]):
                    found.append((makers[0], makers[1], makers[2]))
    return found


def _axis(node: gs.Node, rank: int) -> int:
    return int(node.attrs.get("axis", 1)) % max(rank, 1)


def _others(node: gs.Node, rank: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(rank) if axis != _axis(node, rank))


def _along(node: gs.Node, place: int, rank: int) -> npt.NDArray[np.float64]:
    """Scale or zero point in a shape that broadcasts against the values."""
    if len(node.inputs) <= place or not node.inputs[place].name:
        return np.zeros((), np.float64)
    values = np.asarray(values_of(node.inputs[place])).astype(np.float64)
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if axis == _axis(node, rank) else 1 for axis in range(rank)])


def _dequantised(node: gs.Node) -> Array:
    codes = _codes(node)
    floats = (codes - _along(node, 2, codes.ndim)) * _along(node, 1, codes.ndim)
    return floats.astype(np.asarray(values_of(node.inputs[1])).dtype)


def _set_scale(graph: gs.Graph, node: gs.Node, scale: Array) -> npt.NDArray[np.float64]:
    """Give a node its own scale; the one that is stored, in a shape that broadcasts."""
    held = node.inputs[1]
    stored = np.asarray(scale, dtype=np.asarray(values_of(held)).dtype)
    if len(held.outputs) > 1:
        node.inputs[1] = gs.Constant(fresh_name(graph, held.name), stored)
    else:
        replace_values(held, stored)
    return _along(node, 1, len(_held(node).shape) if _is(node, "DequantizeLinear") else len(node.inputs[0].shape))


def _set_codes(
    node: gs.Node, wanted: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], zero: npt.NDArray[np.float64]
) -> None:
    stored = node.inputs[0]
    kind = np.asarray(values_of(stored)).dtype
    limits = np.iinfo(kind)
    codes = np.clip(np.rint(wanted / scale) + zero, limits.min, limits.max)
    replace_values(stored, codes.astype(kind))
