"""Operators that work position by position: unary ones, and broadcasting ones that unite aligned positions."""

from __future__ import annotations

import itertools

from snp_onnx.tracing.labels import HEAD, SUMMED, Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer

UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitCast",
    "BitwiseNot",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "RegexFullMatch",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
BROADCASTING = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "StringConcat",
    "Sub",
    "Sum",
    "SwiGLU",
    "Where",
    "Xor",
]
_SUMS = frozenset(("Add", "Sub", "Sum", "Mean"))


def unary(op: Op, tracer: Tracer) -> None:
    """Outputs have the labels of the first input; the others are scalars (Clip's bounds, Dropout's ratio)."""
    axes = tracer.axes(op.input(0))
    for name in op.outputs:
        tracer.set_axes(name, axes)


def broadcasting(op: Op, tracer: Tracer) -> None:
    """Positions aligned from the right are one unit; an axis of extent one is repeated and carries none."""
    rank = len(tracer.shape(op.outputs[0]))
    columns: list[list[Labels]] = [[] for _ in range(rank)]
    whole = _left_whole(op, tracer) if op.type == "Add" else None
    for name in filter(None, op.inputs):
        axes = tracer.axes(name)
        for axis, labels in enumerate(axes, start=rank - len(axes)):
            if (name, axis - rank) != whole:
                columns[axis].append(labels)
    output = [
        _united(column, extent, tracer) for column, extent in zip(columns, tracer.shape(op.outputs[0]), strict=True)
    ]
    tracer.set_axes(op.outputs[0], output)
    if op.type in _SUMS:
        _flag_streams(op, tracer, output)


def _left_whole(op: Op, tracer: Tracer) -> tuple[str, int] | None:
    """An operand and its axis (from the end) over heads that the other one may lose and it doesn't.

    A bias of the scores (ALiBi, relative positions) that several layers add, or that can't shrink: united, it would tie
    the heads of all of them. The rewrite picks from it what each layer needs. Where heads are merged with the batch
    there are no places to pick: then the heads stay.
    """
    for bias, scores in itertools.permutations(op.inputs, 2):
        if tracer.layers(bias) or not tracer.layers(scores):
            continue
        for place in range(-min(len(tracer.shape(bias)), len(tracer.shape(scores))), 0):
            labels, heads = tracer.axes(bias)[place], tracer.axes(scores)[place]
            if (
                len(labels) != len(heads)
                or not tracer.classes.is_live(heads)
                or not tracer.classes.has(heads, HEAD).all()
            ):
                continue
            is_live, axis = tracer.classes.is_live(labels), len(tracer.shape(scores)) + place
            if tracer.varies(scores, axis):
                if not is_live:
                    tracer.barrier(op, scores, axis, "a bias by batch and head stays whole")
                    return bias, place
            elif tracer.is_shared(bias) or not is_live:
                tracer.barrier(op, bias, len(tracer.shape(bias)) + place, "a bias of the scores, left whole")
                return bias, place
    return None


def _flag_streams(op: Op, tracer: Tracer, output: list[Labels]) -> None:
    """An axis is a stream where outputs of different layers are added along it.

    What one layer gives may meet itself, as in rotary positions or GELU by tanh, or a constant, or be the same along
    the axis, as an attention mask is over the heads: none of these is a stream.
    """
    for place, labels in enumerate(reversed(output)):
        along = [name for name in op.inputs if tracer.shape(name)[::-1][place : place + 1] == (len(labels),)]
        added = {tracer.layers(name) for name in along} - {frozenset()}
        if len(added) > 1 and tracer.classes.is_live(labels):
            tracer.classes.flag(labels, SUMMED)


def _united(column: list[Labels], extent: int, tracer: Tracer) -> Labels:
    aligned = [labels for labels in column if len(labels) == extent]
    if extent == 1 or not aligned:
        return still(extent)
    for other in aligned[1:]:
        tracer.classes.unite(aligned[0], other)
    return aligned[0]
