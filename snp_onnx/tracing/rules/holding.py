"""Sequences, optionals and maps: they hold tensors, or numbers by name, and have no axes of their own."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.elementwise import unary
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Tracer

HOLDING = (
    *("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength"),
    *("SplitToSequence", "ConcatFromSequence", "Optional", "OptionalHasElement"),
)
OF_MAPS = ("CastMap", "DictVectorizer", "ZipMap")
"""Operators of `ai.onnx.ml` on dictionaries."""


def holding(op: Op, tracer: Tracer) -> None:
    """What goes into a sequence, an optional or a map, and what comes out of one, stays whole."""
    opaque(op, tracer, f"{op.type} works on what has no axes: a sequence, an optional or a map")


def element(op: Op, tracer: Tracer) -> None:
    """OptionalGetElement: of a tensor, the tensor itself."""
    if tracer.knows(op.input(0)):
        unary(op, tracer)
    else:
        holding(op, tracer)
