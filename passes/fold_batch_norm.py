"""BatchNormalization behind Conv, ConvTranspose or Gemm is folded into the weight and bias before it.

y = s (W x + b - m) + t with s = g / sqrt(v + eps): W' = s W, b' = s (b - m) + t. Statistics and folds then see the
same layer; a normalisation that stands elsewhere stays and is sliced like any other per-channel parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name, holds_floats, replace_values, values_of

_LINEAR = ("Conv", "ConvTranspose", "Gemm")
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FoldBatchNorm(Pass):
    """Fold every inference-mode BatchNormalization whose producer's output nothing else reads."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        for norm, linear in _foldable(graph):
            _fold(graph, norm, linear)
            notes.append(Note(norm.name or norm.op, "folded into the layer before it"))
        graph.nodes[:] = [node for node in graph.nodes if node.op != "BatchNormalization" or node.outputs]
        return Outcome(bool(notes), tuple(notes))

    def ensures(self, graph: gs.Graph) -> str:
        norm, linear = next(_foldable(graph), (None, None))
        return "" if norm is None or linear is None else f"{norm.name} still stands behind {linear.name}"


def _foldable(graph: gs.Graph) -> Iterator[tuple[gs.Node, gs.Node]]:
    """Every normalisation that the layer before it can take in, with that layer."""
    outputs = {id(tensor) for tensor in graph.outputs}
    for norm in [node for node in graph.nodes if node.op == "BatchNormalization" and node.outputs]:
        linear = _foldable_producer(norm, outputs)
        if linear is not None:
            yield norm, linear


def _foldable_producer(norm: gs.Node, outputs: set[int]) -> gs.Node | None:
    source = norm.inputs[0]
    if norm.attrs.get("training_mode", 0) or len([t for t in norm.outputs if t.name]) > 1 or id(source) in outputs:
        return None
    if len(source.inputs) != 1 or len(source.outputs) != 1 or source.inputs[0].op not in _LINEAR:
        return None
    linear = source.inputs[0]
    parameters = [*linear.inputs[1:], *norm.inputs[1:]]
    if not all(isinstance(tensor, gs.Constant) for tensor in parameters if tensor.name):
        return None
    if any(len(tensor.outputs) > 1 or id(tensor) in outputs for tensor in linear.inputs[1:]):
        return None
    plain = all(linear.attrs.get(name, 1.0) == 1.0 for name in ("alpha", "beta"))
    return linear if plain and holds_floats(linear.inputs[1]) else None


def _fold(graph: gs.Graph, norm: gs.Node, linear: gs.Node) -> None:
    gain, shift, mean, variance = (np.asarray(values_of(t), dtype=np.float64) for t in norm.inputs[1:5])
    scale = gain / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
    weight = linear.inputs[1]
    dtype = values_of(weight).dtype
    has_bias = len(linear.inputs) > 2 and linear.inputs[2].name
    bias = np.asarray(values_of(linear.inputs[2]), dtype=np.float64) if has_bias else np.zeros_like(mean)
    scaled = _scaled(np.asarray(values_of(weight), dtype=np.float64), scale, linear)
    replace_values(weight, scaled.astype(dtype))
    folded = (scale * (bias - mean) + shift).astype(dtype)
    if has_bias:
        replace_values(linear.inputs[2], folded)
    else:
        while len(linear.inputs) > 2:
            linear.inputs.pop()
        linear.inputs.append(gs.Constant(fresh_name(graph, f"{weight.name}_bias"), folded))
    output = norm.outputs[0]
    norm.outputs.clear()
    linear.outputs[0] = output


def _scaled(weight: Vector, scale: Vector, linear: gs.Node) -> Vector:
    """The weight with every output multiplied by its scale."""
    if linear.op == "Conv":
        return weight * scale.reshape(-1, *([1] * (weight.ndim - 1)))
    if linear.op == "Gemm":
        return weight * (scale[:, None] if linear.attrs.get("transB", 0) else scale[None, :])
    groups = int(linear.attrs.get("group", 1))
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    factors = scale.reshape(groups, 1, -1, *([1] * (weight.ndim - 2)))
    return (by_group * factors).reshape(weight.shape)
