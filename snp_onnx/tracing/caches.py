"""Caches: keys and values of an attention that a decoder takes in and hands on as inputs and outputs of its graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx

from snp_onnx.tracing.facts import AxisOf
from snp_onnx.tracing.labels import HEAD
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer

_FUSED = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention"))
"""Nodes that are an attention; their second and third outputs are the keys and values seen so far."""


def possible_caches(model: onnx.ModelProto, tracer: Tracer) -> frozenset[AxisOf]:
    """Axes that could count heads: of inputs and outputs with four axes or more, all but the first."""
    names = [value.name for value in (*model.graph.input, *model.graph.output) if tracer.knows(value.name)]
    ranks = {name: len(tracer.shape(name)) for name in names}
    return frozenset((name, axis) for name, rank in ranks.items() if rank > 3 for axis in range(1, rank))


def find_caches(model: onnx.ModelProto, tracer: Tracer, ops: Sequence[Op]) -> frozenset[AxisOf]:
    """The axes that count heads, of inputs, and of outputs that hold keys or values; `tracer` left the possible open.

    An output behind a product of activations holds attention weights or what was made with them: no cache.
    """
    makers = {name: op for op in ops for name in op.outputs if name}
    outputs = [value.name for value in model.graph.output]
    inputs = [value.name for value in model.graph.input if not tracer.is_constant(value.name)]
    names = [*inputs, *(name for name in outputs if not _is_mixed(name, tracer, makers))]
    return frozenset(found for name in names if tracer.knows(name) for found in _head_axes(name, tracer))


def _head_axes(tensor: str, tracer: Tracer) -> Iterator[AxisOf]:
    for axis, labels in enumerate(tracer.axes(tensor)):
        if len(labels) > 1 and tracer.classes.has(labels, HEAD).all() and tracer.is_live(tensor, axis):
            yield tensor, axis


def _is_mixed(tensor: str, tracer: Tracer, makers: Mapping[str, Op]) -> bool:
    """Whether a product of activations that counts heads lies between a tensor and the layers that it comes from."""
    products = {product.op.index for product in tracer.activation_products}
    layers = {linear.output for linear in tracer.linears}
    waiting, seen = [tensor], {tensor}
    while waiting:
        name = waiting.pop()
        op = makers.get(name)
        if op is None or (op.type in _FUSED and name in op.outputs[1:3]):
            continue
        if op.type in _FUSED or (op.index in products and any(True for _ in _head_axes(op.outputs[0], tracer))):
            return True
        if name not in layers:
            fresh = [source for source in op.inputs if source and source not in seen]
            seen.update(fresh)
            waiting += fresh
    return False
