"""The float model that a quantised one stands for: every quantised weight becomes the floats that it is read as.

It keeps its name, so that what is decided and folded for the float model can be written into the quantised one. Pairs
of QuantizeLinear and DequantizeLinear on activations go. A quantiser leaves Relu and Clip out where the ends of the
codes do their work: then a Clip takes the pair's place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name, replace_node, replace_values, values_of
from snp_onnx.passes.quantisers import is_pair, is_quantiser, reach_of, stored_weights

_NONNEGATIVE = frozenset(
    (
        *("Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Resize", "Concat", "Slice"),
        *("Split", "Pad", "DequantizeLinear"),
    )
)
"""Operators that give nothing below zero, or nothing that wasn't there before: codes from zero on say nothing new."""


@dataclass(frozen=True, slots=True)
class Dequantise(Pass):
    """The float model of a graph with `stored_weights`; what is quantised in another way stays as it is."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        weights = pairs = 0
        outputs = {id(tensor) for tensor in graph.outputs}
        for stored in list(stored_weights(graph)):
            if id(stored.node.outputs[0]) not in outputs:
                replace_values(stored.held, stored.floats)
                replace_node(graph, stored.node, stored.held)
                weights += 1
        for node in [node for node in graph.nodes if is_quantiser(node, "DequantizeLinear")]:
            if is_pair(node) and _without_pair(graph, node, outputs):
                pairs += 1
        notes = (
            [Note("model", f"quantised: {weights} weights are pruned as the floats they stand for")] if weights else []
        )
        return Outcome(weights + pairs > 0, tuple(notes))


def _without_pair(graph: gs.Graph, node: gs.Node, outputs: set[int]) -> bool:
    """Take a pair out, or leave a Clip in its place where the codes' lower end stands for an activation function."""
    first = node.inputs[0].inputs[0]
    before, after = first.inputs[0], node.outputs[0]
    lowest, highest = reach_of(node)
    makers = before.inputs
    is_bounded = bool(lowest.min() >= 0 and makers and makers[0].op not in _NONNEGATIVE)
    if is_bounded or (id(after) in outputs and lowest.size == 1):
        _clip(graph, node, before, lowest.min() if is_bounded else -np.inf, highest.max() if is_bounded else np.inf)
    elif id(after) in outputs:
        return False
    else:
        replace_node(graph, node, before)
    return True


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
