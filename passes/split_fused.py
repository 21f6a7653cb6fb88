"""FusedConv and FusedGemm of onnxruntime's optimiser become Conv and Gemm with their activation behind them.

    FusedConv(X, W, B, Z) = activation(Conv(X, W, B) + Z)

The runtime joins them again when it loads the model, so nothing is slower, and any runtime can read the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name, numpy_type

_PLAIN = {"FusedConv": "Conv", "FusedGemm": "Gemm"}
_NAMES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"), ()),
    **dict.fromkeys(("LeakyRelu", "Elu", "ThresholdedRelu"), ("alpha",)),
    "HardSigmoid": ("alpha", "beta"),
    "Selu": ("alpha", "gamma"),
    "Clip": ("min", "max"),
}
"""Activations, and the names of their numbers in the order of `activation_params`."""


@dataclass(frozen=True, slots=True)
class SplitFused(Pass):
    """Write every fused node whose activation is known as plain ones; the others stay."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        for node in [node for node in graph.nodes if node.domain == "com.microsoft" and node.op in _PLAIN]:
            activation = node.attrs.get("activation", "")
            if activation and activation not in _NAMES:
                continue
            notes.append(Note(node.name or node.op, f"{node.op} became {_PLAIN[node.op]} and its activation"))
            _split(graph, node, activation)
        return Outcome(bool(notes), tuple(notes))


def _split(graph: gs.Graph, node: gs.Node, activation: str) -> None:
    numbers = _numbers(node, activation)
    added = node.inputs[3] if node.op == "FusedConv" and len(node.inputs) > 3 and node.inputs[3].name else None
    node.op, node.domain = _PLAIN[node.op], None
    node.attrs = {name: value for name, value in node.attrs.items() if not name.startswith("activation")}
    if len(node.inputs) > 3:
        del node.inputs[3]
    if added is not None:
        _behind(graph, node, "Add", [added], {})
    if not activation:
        return
    last = node if added is None else node.outputs[0].outputs[0]
    if activation == "Clip" and graph.opset >= 11:
        kind = numpy_type(node.inputs[1].dtype or last.outputs[0].dtype or np.float32)
        bounds = [gs.Constant(fresh_name(graph, f"{node.outputs[0].name}_{n}"), np.array(v, kind)) for n, v in numbers]
        _behind(graph, last, "Clip", bounds, {})
    else:
        _behind(graph, last, activation, [], dict(numbers))


def _numbers(node: gs.Node, activation: str) -> list[tuple[str, Any]]:
    """The numbers of an activation by name: FusedConv has them in a row, FusedGemm one by one."""
    names = _NAMES.get(activation, ())
    listed = node.attrs.get("activation_params")
    if listed is not None:
        return [(name, float(value)) for name, value in zip(names, listed, strict=False)]
    given = [(name, node.attrs.get(f"activation_{name}")) for name in names]
    return [(name, float(value)) for name, value in given if value is not None]


def _behind(graph: gs.Graph, node: gs.Node, kind: str, operands: list[gs.Tensor], attrs: dict[str, Any]) -> None:
    """Put a node behind another: it gives what that one gave."""
    output = node.outputs[0]
    between = gs.Variable(fresh_name(graph, f"{output.name}_{node.op.lower()}"), output.dtype, output.shape)
    node.outputs[0] = between
    name = f"{node.name}_{kind.lower()}" if node.name else ""
    new = gs.Node(kind, name, attrs, [between, *operands], [output])
    graph.nodes.insert(next(place for place, other in enumerate(graph.nodes) if other is node) + 1, new)
