"""Weights that constant nodes compute (a norm times a direction, a scaled copy) become plain initialisers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome
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
}


def computed_weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    """Values of weights that a chain of constant nodes computes and that no reversible path leads to."""
    weights = Weights(model)
    found: dict[str, npt.NDArray[np.generic]] = {}
    for op in ops_of(model):
        for place in _WEIGHT_PLACES.get(op.type, ()):
            name = op.input(place)
            if name and weights.is_computed(name):
                found[name] = weights.array(name)
    return found


@dataclass(frozen=True, slots=True)
class FoldConstants:
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
            constant = gs.Constant(name, np.ascontiguousarray(values))
            for consumer in list(variable.outputs):
                for place, tensor in enumerate(consumer.inputs):
                    if tensor is variable:
                        consumer.inputs[place] = constant
            for node in list(variable.inputs):
                node.outputs.remove(variable)
                if not node.outputs:
                    graph.nodes.remove(node)
            notes.append(Note(name, "a weight computed from constants became an initialiser"))
        return Outcome(bool(notes), tuple(notes))
