"""Floats written into a quantised graph: q = round(y / s) + z, with scales from the new range of what changed.

A weight keeps its type, axis and zero point. A bias is stored in steps of s_x s_w, which runtimes that fuse a layer
take for granted. What didn't change keeps its codes.
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
from snp_onnx.passes.base import Note, Outcome, Pass, constants, fresh_name, holds_floats, replace_values, values_of
from snp_onnx.passes.quantisers import Stored, along, is_quantiser, stored_weights

Array = npt.NDArray[Any]

SAME = 1e-3
"""In steps of the quantiser: floats nearer than this to what is stored are not written anew."""

NARROW = 64
"""Steps to either side that a weight of 7 bits has."""


@dataclass(frozen=True, slots=True, eq=False)
class Requantise(Pass):
    """Write float values, by the name of the initialiser, into a quantised graph of the same shapes.

    `narrow` are the weights that use 7 bits of their 8, for processors that would overflow otherwise.
    """

    values: Mapping[str, Array]
    narrow: frozenset[str] = frozenset()

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes: list[Note] = []
        quantised = list(stored_weights(graph))
        biases = {id(bias): (source, weight) for source, weight, bias in _layers(graph)}
        for stored in quantised:
            if id(stored.node) not in biases and stored.held.name in self.values:
                notes += self._weight(graph, stored)
        for stored in quantised:
            if id(stored.node) in biases and stored.node.inputs[0].name in self.values:
                notes += self._bias(graph, stored.node, *biases[id(stored.node)])
        written = {id(stored.held) for stored in quantised}
        for constant in constants(graph):
            new = self.values.get(constant.name)
            if new is None or id(constant) in written or not holds_floats(constant):
                continue
            if not np.array_equal(new, values_of(constant)):
                replace_values(constant, new)
                notes.append(Note(constant.name, "folded"))
        return Outcome(bool(notes), tuple(notes))

    def _weight(self, graph: gs.Graph, stored: Stored) -> list[Note]:
        """Scales that take in the new range by as many steps as the old one had; zero points stay."""
        held, limits, zero = stored.held, stored.limits, stored.zero
        wanted = np.asarray(self.values[held.name], np.float64)
        if np.all(np.abs(wanted / stored.steps - (stored.codes - zero)) <= SAME):
            return []
        if limits.bits <= 16:
            most_steps = NARROW if held.name in self.narrow else limits.max
            above, below = np.minimum(limits.max - zero, most_steps), np.minimum(zero - limits.min, most_steps)
            need = np.maximum(wanted / above, -wanted / below)
            steps = stored.steps
            shared = tuple(axis for axis, extent in enumerate(steps.shape) if extent == 1)
            most = need.max(axis=shared, keepdims=True) if need.size else steps
            _set_scale(graph, *stored.scale, np.where(most > 0, most, steps))
        if stored.is_fake:
            first = stored.node.inputs[0].inputs[0]
            _set_scale(graph, first, 1, np.asarray(values_of(stored.node.inputs[1])))
            replace_values(held, wanted.astype(np.asarray(values_of(held)).dtype))
        else:
            _set_codes(held, wanted, stored.steps, zero)
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
        _set_scale(graph, node, 1, step)
        _set_codes(stored, wanted, along(node, 1, len(stored.shape)), np.zeros(()))
        return [Note(stored.name, "folded and quantised again")]


def narrow_weights(model: onnx.ModelProto) -> frozenset[str]:
    """Weights in 8 bits that use 7 of them (`reduce_range` of onnxruntime's quantiser)."""
    read = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    bytes_ = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    held = [tensor for tensor in model.graph.initializer if tensor.name in read and tensor.data_type in bytes_]
    return frozenset(t.name for t in held if np.ptp(array_of(t).astype(np.int64)) <= 2 * NARROW)


def _layers(graph: gs.Graph) -> list[tuple[gs.Node, gs.Node, gs.Node]]:
    """The DequantizeLinear nodes of input, weight and bias of every layer that has all three."""
    found = []
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose", "Gemm") and len(node.inputs) > 2:
            makers = [tensor.inputs[0] for tensor in node.inputs[:3] if tensor.inputs]
            if len(makers) == 3 and all(is_quantiser(maker, "DequantizeLinear") for maker in makers):
                scales = [maker.inputs[1] for maker in makers]
                sizes = [np.size(values_of(scale)) if isinstance(scale, gs.Constant) else 0 for scale in scales]
                if sizes[0] == 1 and sizes[1] in (1, sizes[2]):
                    found.append((makers[0], makers[1], makers[2]))
    return found


def _set_scale(graph: gs.Graph, node: gs.Node, place: int, scale: Array) -> None:
    """Give a node a scale of its own, stored in the shape and type that it had."""
    held = node.inputs[place]
    before = np.asarray(values_of(held))
    stored = np.asarray(scale, dtype=before.dtype).reshape(before.shape)
    if len(held.outputs) > 1:
        node.inputs[place] = gs.Constant(fresh_name(graph, held.name), stored)
    else:
        replace_values(held, stored)


def _set_codes(
    held: gs.Constant,
    wanted: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
    zero: npt.NDArray[np.float64],
) -> None:
    kind = np.asarray(values_of(held)).dtype
    limits = np.iinfo(kind)
    codes = np.clip(np.rint(wanted / scale) + zero, limits.min, limits.max)
    replace_values(held, codes.astype(kind))
