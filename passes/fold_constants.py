"""Weights that constant nodes compute (a norm times a direction, a part of a packed one) become plain initialisers.

What else is computed on the way becomes one too, so that what it is all computed from needn't stay in the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name
from snp_onnx.tracing.op import ops_of
from snp_onnx.tracing.weights import Weights

_WEIGHT_PLACES: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "FusedConv": (1, 2),
    "FusedGemm": (0, 1, 2),
    "MatMul": (0, 1),
    "FusedMatMul": (0, 1),
    "Einsum": (0, 1),
    "Attention": (1, 2),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
}


def computed_weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    """Values of weights that a chain of constant nodes computes and that no reversible path leads to.

    With them comes what else nodes of such a chain give to others, unless it is larger than what the chain starts from.
    What starts from a large constant that a body reads too stays computed: it would be in the file twice.
    """
    weights, ops = Weights(model), list(ops_of(model))
    names = (op.input(place) for op in ops for place in _WEIGHT_PLACES.get(op.type, ()))
    found = {name: weights.array(name) for name in names if name and weights.is_computed(name)}
    held = {name for op in ops if op.has_subgraph for name in op.reads}
    for name, values in list(found.items()):
        shared = held.intersection(source for op in weights.chain(name) for source in op.reads)
        if any(2 * weights.array(source).size > values.size for source in shared):
            del found[name]
    chain = {op.index: op for name in found for op in weights.chain(name)}
    inside = {name for op in chain.values() for name in op.outputs}
    most = sum(weights.array(name).size for name in {n for op in chain.values() for n in op.reads} - inside)
    outside = {name for op in ops if op.index not in chain for name in op.reads}
    for name in sorted(inside & outside - found.keys()):
        if weights.is_computed(name) and (values := weights.array(name)).size <= most:
            found[name] = values
    return found


@dataclass(frozen=True, slots=True)
class FoldConstants(Pass):
    """Replace the named computed tensors by initialisers of those values."""

    values: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        tensors = graph.tensors()
        outputs = {id(tensor) for tensor in graph.outputs}
        for name, values in self.values.items():
            variable = tensors.get(name)
            if not isinstance(variable, gs.Variable) or id(variable) in outputs:
                continue
            constant = gs.Constant(name, np.asarray(values, order="C"))
            for consumer in list(variable.outputs):
                for place, tensor in enumerate(consumer.inputs):
                    if tensor is variable:
                        consumer.inputs[place] = constant
            variable.name = fresh_name(graph, f"{name}_computed")
            notes.append(Note(name, "a weight computed from constants became an initialiser"))
            for node in list(variable.inputs):
                _drop_unread(graph, node, outputs)
        return Outcome(bool(notes), tuple(notes))


def _drop_unread(graph: gs.Graph, node: gs.Node, outputs: Collection[int]) -> None:
    """Take out a node that nobody reads, and what only it read; one with another part that is read stays."""
    if not node.outputs or any(tensor.outputs or id(tensor) in outputs for tensor in node.outputs):
        return  # it is out already, by another way, or is read
    makers = {id(maker): maker for tensor in node.inputs for maker in tensor.inputs}
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes.remove(node)
    for maker in makers.values():
        _drop_unread(graph, maker, outputs)
