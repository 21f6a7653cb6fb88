"""Gemm, and MatMul with a constant on either side or of two activations."""

from __future__ import annotations

from snp_onnx.tracing.labels import HEAD, Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Linear, Product, Tracer


def gemm(op: Op, tracer: Tracer) -> None:
    """Y = A B + C: the contracted axes of A and B are one, C broadcasts to Y."""
    a, b, output = op.input(0), op.input(1), op.outputs[0]
    row, inner = (1, 0) if op.attr("transA", 0) else (0, 1)
    contracted, column = (1, 0) if op.attr("transB", 0) else (0, 1)
    tracer.classes.unite(tracer.axes(a)[inner], tracer.axes(b)[contracted])
    rows, columns = tracer.axes(a)[row], tracer.axes(b)[column]
    if op.input(2):
        _unite_bias(tracer, op.input(2), (rows, columns))
    tracer.set_axes(output, [rows, columns])
    if tracer.is_constant(b) and not tracer.is_constant(a):
        tracer.linears.append(Linear(op, a, inner, b, contracted, column, output, 1))
    elif tracer.is_constant(a):
        tracer.linears.append(Linear(op, b, contracted, a, inner, row, output, 0))
    else:
        _contract_activations(op, tracer, (a, inner), (b, contracted), [(a, row), (b, column)])


def _unite_bias(tracer: Tracer, bias: str, output: tuple[Labels, Labels]) -> None:
    for labels, target in zip(reversed(tracer.axes(bias)), reversed(output), strict=False):
        if len(labels) == len(target):
            tracer.classes.unite(labels, target)


def matmul(op: Op, tracer: Tracer) -> None:
    """Y = A B over the last two axes, the others broadcast; a vector on either side has no row or column.

    FusedMatMul says with an attribute that the last two axes of an operand are swapped.
    """
    a, b, output = op.input(0), op.input(1), op.outputs[0]
    if op.attr("transBatchA", 0) or op.attr("transBatchB", 0):
        opaque(op, tracer, "a FusedMatMul that moves batch axes")
        return
    ranks = len(tracer.shape(a)), len(tracer.shape(b))
    inner, contracted = ranks[0] - 1, max(0, ranks[1] - 2)
    row, column = inner - 1, ranks[1] - 1
    if op.attr("transA", 0) and ranks[0] > 1:
        row, inner = inner, row
    if op.attr("transB", 0) and ranks[1] > 1:
        contracted, column = column, contracted
    tracer.classes.unite(tracer.axes(a)[inner], tracer.axes(b)[contracted])
    labels = _batch_axes(op, tracer)
    if ranks[0] > 1:
        labels.append(tracer.axes(a)[row])
    if ranks[1] > 1:
        labels.append(tracer.axes(b)[column])
    tracer.set_axes(output, labels)
    last = len(labels) - 1
    if tracer.is_constant(b) and ranks[1] == 2:
        tracer.linears.append(Linear(op, a, inner, b, contracted, column, output, last))
    elif tracer.is_constant(a) and ranks[0] == 2 and ranks[1] >= 2:
        tracer.linears.append(Linear(op, b, contracted, a, inner, row, output, last - 1))
    else:
        rest = [(output, axis) for axis in range(len(labels))]
        for name, rank in zip((a, b), ranks, strict=True):
            if tracer.is_constant(name):
                tracer.barrier(
                    op, *((a, inner) if name == a else (b, contracted)), f"contracted with a constant of rank {rank}"
                )
        _contract_activations(op, tracer, (a, inner), (b, contracted), rest)


def _batch_axes(op: Op, tracer: Tracer) -> list[Labels]:
    """Leading axes broadcast like an elementwise operator's; between two activations they count heads."""
    left, right = (tracer.axes(name)[:-2] for name in op.inputs)
    rank = max(len(left), len(right))
    united: list[Labels] = []
    for place in range(-rank, 0):
        pair = [side[place] for side in (left, right) if len(side) >= -place]
        extent = max(len(labels) for labels in pair)
        aligned = [labels for labels in pair if len(labels) == extent]
        for other in aligned[1:]:
            tracer.classes.unite(aligned[0], other)
        if extent > 1:
            tracer.classes.flag(aligned[0], HEAD)
        united.append(aligned[0] if extent > 1 else still(extent))
    return united


def _contract_activations(
    op: Op, tracer: Tracer, left: tuple[str, int], right: tuple[str, int], rest: list[tuple[str, int]]
) -> None:
    """The axis that is summed over stays whole, unless its units were found to be free to go (inside heads)."""
    reason = tracer.contractions.get(op.index, "contracted between two activations")
    if reason:
        for tensor, axis in (left, right):
            tracer.barrier(op, tensor, axis, reason)
    tracer.activation_products.append(Product(op, (left, *rest), (left, right), not reason))
