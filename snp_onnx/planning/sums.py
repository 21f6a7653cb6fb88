"""Sums: layers whose outputs are only added to each other, and so are one layer of all their inputs side by side.

W₁x₁ + W₂x₂ = [W₁ W₂][x₁; x₂]: what one input loses the other one can take over, and of two copies of a feature in both
one may go for nothing, not both. Their inputs are measured side by side, decided together and folded together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import helper

from snp_onnx.planning.windows import PATCH_COLUMNS, window_of
from snp_onnx.tracing import Linear
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.op import Op


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """Two or more layers in graph order, and the tensor that is their sum with whatever else is added to it.

    `terms` are the tensors that are added: the outputs of the layers with their biases, in the same order, and others.
    """

    layers: tuple[Linear, ...]
    total: str
    terms: tuple[str, ...]

    @property
    def input(self) -> str:
        """The name of the tensor that has the inputs of all layers side by side."""
        return "beside::" + "+".join(linear.input for linear in self.layers)


def find_sums(flow: Flow, linears: Iterable[Linear]) -> tuple[Sum, ...]:
    """The sums of these layers that can be solved as one: products of the same positions of different tensors."""
    alike: dict[tuple[object, ...], dict[str, Linear]] = {}
    for linear in linears:
        output = flow.bias(linear)[1]
        total = _total(flow, output)
        if total != output and is_own_product(flow, linear):
            members = alike.setdefault((total, *_positions(flow, linear)), {})
            if all(linear.input != other.input for other in members.values()):
                members[output] = linear
    found = []
    for members in alike.values():
        total = _total(flow, next(iter(members)))
        terms = tuple(_terms(flow, total))
        if len(members) > 1 and members.keys() <= set(terms) and _columns(flow, members.values()) <= PATCH_COLUMNS:
            others = (name for name in terms if name not in members)
            found.append(Sum(tuple(members.values()), total, (*members, *others)))
    return tuple(found)


def with_inputs_beside(model: onnx.ModelProto, sums: Iterable[Sum]) -> onnx.ModelProto:
    """A copy of the model with a Concat of the inputs of every sum; the model itself where there is none."""
    wanted = list(sums)
    if not wanted:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for each in wanted:
        inputs, axis = [linear.input for linear in each.layers], each.layers[0].input_axis
        result.graph.node.append(helper.make_node("Concat", inputs, [each.input], each.input, axis=axis))
    return result


def is_own_product(flow: Flow, linear: Linear) -> bool:
    """Whether a layer is one plain matrix product, or convolution, with a weight that nobody else reads."""
    op, shape = linear.op, flow.shape
    if (
        not linear.mixes
        or linear.groups > 1
        or op.type not in ("Conv", "Gemm", "MatMul", "FusedMatMul")
        or op.attr("alpha", 1.0) != 1.0
    ):
        return False
    if op.type in ("MatMul", "FusedMatMul") and len(shape(linear.weight)) != 2:
        return False
    if op.input(2) and op.type in ("Conv", "Gemm") and not _adds_row(flow, linear):
        return False
    path = flow.weights.path(linear.weight)
    alike = linear.input_axis == linear.output_axis and len(shape(linear.input)) == len(shape(linear.output))
    return alike and path is not None and all(map(flow.is_sole, [path.root, linear.weight]))


def _adds_row(flow: Flow, linear: Linear) -> bool:
    """Whether what the node itself adds is a constant with one entry for each output, or one for all.

    C of a Gemm may also be a matrix or a column, and belongs to no output where the weight is the left operand.
    """
    bias, outputs = linear.op.input(2), flow.shape(linear.weight)[linear.out_axis]
    row = linear.output_axis == 1 and flow.shape(bias)[-1:] == (outputs,)
    size = math.prod(flow.shape(bias))
    return flow.weights.knows(bias) and linear.op.attr("beta", 1.0) == 1.0 and (size == 1 or (row and size == outputs))


def _positions(flow: Flow, linear: Linear) -> tuple[object, ...]:
    """What has to be alike for the rows of two layers' inputs to be at the same positions."""
    shape, axis = flow.shape(linear.input), linear.input_axis
    window = window_of(flow.trace, linear) if linear.op.type == "Conv" else None
    rows, trace = (*shape[:axis], *shape[axis + 1 :]), flow.trace
    return axis, rows, trace.facts.types.get(linear.input), window, trace.gates.get(linear.input)


def _columns(flow: Flow, linears: Iterable[Linear]) -> int:
    """Of windows, if they are read whole."""
    sizes = [flow.shape(linear.weight) for linear in linears if linear.op.type == "Conv"]
    widths = [flow.shape(linear.input)[linear.input_axis] for linear in linears]
    taps = 1
    for extent in sizes[0][2:] if sizes else ():
        taps *= extent
    return sum(widths) * taps


def _total(flow: Flow, output: str) -> str:
    """The last of the sums that a tensor goes into, of which nobody else reads one before."""
    while (reader := flow.only_reader(output)) is not None and _is_sum(flow, reader):
        output = reader.outputs[0]
    return output


def _terms(flow: Flow, total: str) -> Iterator[str]:
    """The tensors that are added up to a total, through sums that nobody else reads."""
    maker = flow.maker(total)
    assert maker is not None
    for name in maker.inputs:
        inner = flow.maker(name)
        if inner is not None and _is_sum(flow, inner) and flow.is_sole(name):
            yield from _terms(flow, name)
        else:
            yield name


def _is_sum(flow: Flow, op: Op) -> bool:
    """Whether a node only adds up different activations of one shape."""
    if not op.is_standard or op.type not in ("Add", "Sum") or len(set(op.inputs)) != len(op.inputs):
        return False
    shape = flow.shape(op.outputs[0])
    return all(not flow.weights.knows(name) and flow.shape(name) == shape for name in op.inputs)
