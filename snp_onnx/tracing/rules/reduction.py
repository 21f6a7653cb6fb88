"""Reductions, determinants and losses: the reduced axes must stay whole, the others pass."""

from __future__ import annotations

from collections.abc import Sequence

from snp_onnx.tracing.labels import STREAM, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer

REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]


def reduction(op: Op, tracer: Tracer) -> None:
    """Reduce*: axes are an attribute or, in newer opsets, the second input; none means all of them."""
    given: Sequence[int] | None = op.attr("axes", None)
    if op.input(1):
        value = tracer.value(op.input(1))
        if value is None:
            _opaque(op, tracer)
            return
        given = [int(axis) for axis in value.reshape(-1)]
    if not given and op.attr("noop_with_empty_axes", 0):
        tracer.set_axes(op.outputs[0], tracer.axes(op.input(0)))
        return
    _reduce(op, tracer, list(given) if given else list(range(len(tracer.shape(op.input(0))))))


def arg_reduction(op: Op, tracer: Tracer) -> None:
    """ArgMax and ArgMin: the result counts positions of the reduced axis."""
    _reduce(op, tracer, [int(op.attr("axis", 0))])


def top_k(op: Op, tracer: Tracer) -> None:
    """TopK: works over one axis, whose extent in the outputs is k."""
    source = op.input(0)
    axis = int(op.attr("axis", -1)) % len(tracer.shape(source))
    tracer.barrier(op, source, axis, "TopK works over this axis")
    for name in op.outputs:
        if name:
            labels = list(tracer.axes(source))
            labels[axis] = still(tracer.shape(name)[axis])
            tracer.set_axes(name, labels)


def determinant(op: Op, tracer: Tracer) -> None:
    """Det: of the matrices that the last two axes hold."""
    source = op.input(0)
    last = len(tracer.shape(source)) - 1
    for axis in (last - 1, last):
        tracer.barrier(op, source, axis, f"{op.type} reduces this axis")
    tracer.set_axes(op.outputs[0], tracer.axes(source)[:-2])


def loss(op: Op, tracer: Tracer) -> None:
    """NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss: (N, classes, D...), reduced over classes or everything."""
    source, output, is_whole = op.input(0), op.outputs[0], op.attr("reduction", "mean") != "none"
    scores = tracer.axes(source)
    rest = [labels for axis, labels in enumerate(scores) if axis != 1]
    for labels, own in zip(rest, tracer.axes(op.input(1)), strict=True):
        tracer.classes.unite(labels, own)
    if op.input(2):
        tracer.classes.unite(tracer.axes(op.input(2))[0], scores[1])
    for axis in range(len(scores)) if is_whole else [1]:
        tracer.barrier(op, source, axis, f"{op.type} reduces this axis")
    tracer.set_axes(output, [] if is_whole else rest)
    for name in op.outputs[1:]:
        tracer.set_axes(name, scores)


def _reduce(op: Op, tracer: Tracer, axes: list[int]) -> None:
    source = op.input(0)
    rank = len(tracer.shape(source))
    reduced = {axis % rank for axis in axes}
    is_open = op.outputs[0] in tracer.open_norms
    for axis in reduced:
        if is_open:  # squares of a rotated stream: removed units are zero, and the divisor is corrected
            tracer.classes.flag(tracer.axes(source)[axis], STREAM)
        else:
            tracer.barrier(op, source, axis, f"{op.type} reduces this axis")
    kept = bool(op.attr("keepdims", 1))
    labels = [
        still(1) if axis in reduced else part
        for axis, part in enumerate(tracer.axes(source))
        if kept or axis not in reduced
    ]
    tracer.set_axes(op.outputs[0], labels)


def _opaque(op: Op, tracer: Tracer) -> None:
    tracer.barrier_all(op, op.input(0), f"the axes of this {op.type} are computed at run time")
    tracer.set_still(op.outputs[0])
