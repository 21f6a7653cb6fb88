"""Flow: who reads a tensor, how deep a node lies, and which bias belongs to which layer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx

from snp_onnx.cost import RECURRENT
from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.groups import Mask, Trace
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Linear
from snp_onnx.tracing.weights import Weights

_SUMS: Mapping[tuple[str, str], int] = MappingProxyType(
    {("com.microsoft", "SkipLayerNormalization"): 4, ("com.microsoft", "SkipSimplifiedLayerNormalization"): 3}
)
"""Fused nodes that add up two activations and a bias, and the place of this."""

_INNER_BIASES: Mapping[tuple[str, str], int] = MappingProxyType(
    {**_SUMS, ("com.microsoft", "BiasGelu"): 1, ("com.microsoft", "FastGelu"): 1}
)
"""Fused nodes that add a bias, and its place among their inputs."""


class Flow:
    """The graph of a traced model as edges between its nodes."""

    def __init__(self, model: onnx.ModelProto, trace: Trace) -> None:
        self.trace = trace
        self.weights = Weights(model)
        self.readers: dict[str, list[Op]] = {}
        self._outputs = {value.name for value in model.graph.output}
        self._makers = {name: op for op in trace.ops for name in op.outputs if name}
        self._linears = {linear.output: linear for linear in trace.linears}
        self._reads = [tuple(dict.fromkeys(op.reads)) for op in trace.ops]
        for op, reads in zip(trace.ops, self._reads, strict=True):
            for name in reads:
                self.readers.setdefault(name, []).append(op)

    def shape(self, tensor: str) -> Shape:
        return self.trace.facts.shapes[tensor]

    def are_alike(self, *tensors: str) -> bool:
        """Whether the tensors have one shape, and it is known."""
        shapes = {self.trace.facts.shapes.get(tensor) for tensor in tensors}
        return len(shapes) == 1 and None not in shapes

    def is_sole(self, tensor: str) -> bool:
        """Whether one node reads the tensor and nobody else does, the graph's outputs included."""
        return len(self.readers.get(tensor, ())) == 1 and tensor not in self._outputs

    def is_output(self, tensor: str) -> bool:
        return tensor in self._outputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The graph's outputs, sorted."""
        return tuple(sorted(self._outputs))

    def only_reader(self, tensor: str) -> Op | None:
        return self.readers[tensor][0] if self.is_sole(tensor) else None

    def maker(self, tensor: str) -> Op | None:
        """The node that gives the tensor; None for inputs and initialisers."""
        return self._makers.get(tensor)

    def depths(self) -> dict[int, int]:
        """The longest way from an input to each node, by its index."""
        depth: dict[str, int] = {}
        found = {}
        for op, reads in zip(self.trace.ops, self._reads, strict=True):
            found[op.index] = 1 + max((depth.get(name, 0) for name in reads), default=0)
            depth.update(dict.fromkeys(op.outputs, found[op.index]))
        return found

    def last(self, place: Mapping[int, int]) -> dict[str, int]:
        """For every activation that depends on a node of `place`, the largest number there."""
        last: dict[str, int] = {}
        for op, reads in zip(self.trace.ops, self._reads, strict=True):
            numbers = [last[name] for name in reads if name in last]
            numbers += [place[op.index]] if op.index in place else []
            if numbers:
                last.update({name: max(numbers) for name in op.outputs})
        return last

    def moved(self, alive: Mask, also: frozenset[str] = frozenset()) -> frozenset[str]:
        """Tensors whose remaining values differ from the dense model's: a layer before them lost inputs.

        Those of `also` differ for another reason.
        """
        axes = self.trace.axes
        losers = {
            linear.op.index
            for linear in self.trace.linears
            if linear.mixes and not alive[axes[linear.weight][linear.in_axis]].all()
        }
        losers |= {
            product.op.index
            for product in self.trace.products
            if product.is_open and not alive[axes[product.contracted[0][0]][product.contracted[0][1]]].all()
        }
        found: set[str] = set()
        for op, reads in zip(self.trace.ops, self._reads, strict=True):
            if op.index in losers or any(name in found for name in reads) or not also.isdisjoint(op.outputs):
                found.update(op.outputs)
        return frozenset(found)

    def bias(self, linear: Linear) -> tuple[str | None, str]:
        """The bias initialiser (O,) that only this layer reads, if there is one, and the output with it added.

        Where a fused node behind adds the bias (`is_bias_apart`), no tensor has it added: then the bare output.
        """
        op, output = linear.op, linear.output
        if op.type in ("Conv", "Gemm"):
            plain = all(op.attr(name, 1.0) == 1.0 for name in ("alpha", "beta")) and linear.output_axis == 1
            return (op.input(2) if plain and self._is_bias(op.input(2), linear) else None), output
        if (op.domain, op.type) == ("com.microsoft", "Attention"):
            return (op.input(2) if self._is_bias(op.input(2), linear) else None), output
        reader = self.only_reader(output)
        is_last = linear.output_axis == len(self.shape(output)) - 1
        if op.type not in ("MatMul", "FusedMatMul") or op.attr("alpha", 1.0) != 1.0 or not is_last or reader is None:
            return None, output
        place = _INNER_BIASES.get((reader.domain, reader.type))
        if place is not None and reader.input(place) != output:
            return (reader.input(place) if self._is_bias(reader.input(place), linear) else None), output
        if reader.is_standard and reader.type == "Add":
            other = next((name for name in reader.inputs if name != output), "")
            if self._is_bias(other, linear) and self.are_alike(reader.outputs[0], output):
                return other, reader.outputs[0]
        return None, output

    def recurrent_bias(self, linear: Linear) -> str | None:
        """The bias initialiser (directions, 2 gates x hidden) of an LSTM, GRU or RNN that only this layer reads.

        Its first half is added to what the layer makes of its input.
        """
        name = linear.op.input(3) if linear.op.type in RECURRENT else ""
        path = self.weights.path(name) if name and self.weights.knows(name) and self.is_sole(name) else None
        return name if path is not None and not path.ops else None

    def is_bias_apart(self, linear: Linear) -> bool:
        """Whether the bias of a layer is added inside the node behind it, with more than that."""
        name, output = self.bias(linear)
        return name is not None and output == linear.output and name not in linear.op.inputs

    def residual(self, output: str) -> tuple[str, str] | None:
        """The sum that a tensor goes into whole, and the other activation in it; None where it isn't just added.

        A bias that the same node adds must be that of the layer which gives the tensor.
        """
        reader = self.only_reader(output)
        if reader is None or not ((reader.is_standard and reader.type == "Add") or self._has_sum(reader, output)):
            return None
        other = next((name for name in reader.inputs[:2] if name != output), output)
        total = reader.outputs[0] if reader.type == "Add" else reader.outputs[3]
        alike = self.are_alike(other, output, total)
        return (total, other) if alike and other != output and not self.weights.knows(other) else None

    def _has_sum(self, reader: Op, output: str) -> bool:
        """Whether a fused node adds the tensor to another and gives the sum."""
        place = _SUMS.get((reader.domain, reader.type))
        if place is None or not any(reader.outputs[3:]):
            return False
        linear = self._linears.get(output)
        return not reader.input(place) or (linear is not None and self.bias(linear)[0] == reader.input(place))

    def _is_bias(self, tensor: str, linear: Linear) -> bool:
        if not tensor or not self.weights.knows(tensor) or not self.is_sole(tensor):
            return False
        path = self.weights.path(tensor)
        return path is not None and not path.ops and self.shape(tensor) == (self.shape(linear.weight)[linear.out_axis],)
