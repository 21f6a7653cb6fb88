"""Transforms of signals: samples in time stay whole, other axes pass."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.normalisation import bar_axes
from snp_onnx.tracing.tracer import Tracer


def fourier(op: Op, tracer: Tracer) -> None:
    """DFT: over one axis, and over the last one, which holds real and imaginary parts."""
    rank = len(tracer.shape(op.input(0)))
    axis = op.attr("axis", 1 if op.version < 20 else -2)
    if op.input(2):
        value = tracer.value(op.input(2))
        axis = None if value is None else int(value.reshape(-1)[0])
    bar_axes(op, tracer, range(rank) if axis is None else [int(axis) % rank, rank - 1])


def short_time_fourier(op: Op, tracer: Tracer) -> None:
    """STFT: (batch, samples, parts) becomes (batch, frames, frequencies, parts)."""
    source, output, reason = op.input(0), op.outputs[0], f"{op.type} works over this axis"
    for axis in (1, 2):
        tracer.barrier(op, source, axis, reason)
    tracer.barrier_all(op, op.input(2), reason)
    rest = [tracer.whole(op, output, axis, reason) for axis in (1, 2, 3)]
    tracer.set_axes(output, [tracer.axes(source)[0], *rest])
