"""Operators on strings that are more than position by position."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.lookup import found_many
from snp_onnx.tracing.tracer import Tracer


def string_split(op: Op, tracer: Tracer) -> None:
    """StringSplit: one more axis, as long as the longest text needs."""
    axes, parts, counts = tracer.axes(op.input(0)), op.outputs[0], op.outputs[1] if op.outputs[1:] else ""
    if parts:
        tracer.set_axes(parts, [*axes, tracer.whole(op, parts, len(axes), found_many(op))])
    tracer.set_axes(counts, axes)


def term_counts(op: Op, tracer: Tracer) -> None:
    """TfIdfVectorizer: counts sequences of tokens along the last axis; rows pass."""
    source, output, reason = op.input(0), op.outputs[0], f"{op.type} works over this axis"
    last = len(tracer.shape(source)) - 1
    tracer.barrier(op, source, last, reason)
    tracer.set_axes(output, [*tracer.axes(source)[:-1], tracer.whole(op, output, last, reason)])
