"""Pooling, global pooling and resizing: channels pass, spatial axes stay."""

from __future__ import annotations

from snp_onnx.tracing.labels import still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer


def pool(op: Op, tracer: Tracer) -> None:
    """Batch and channels pass; MaxPool's indices count positions of the whole tensor, so they bar its axes."""
    source = op.input(0)
    axes = tracer.axes(source)
    for axis in range(2, len(axes)):
        tracer.barrier(op, source, axis, "spatial axis of a pooling")
    if any(op.outputs[1:]):
        tracer.barrier_all(op, source, "the indices of this MaxPool count its channels")
    for name in op.outputs:
        if name:
            tracer.set_axes(name, [*axes[:2], *(still(n) for n in tracer.shape(name)[2:])])


def resize(op: Op, tracer: Tracer) -> None:
    """Resize and Upsample: axes whose extent stays pass, those that are resampled stay whole."""
    source, output = op.input(0), op.outputs[0]
    if op.input(3) and tracer.value(op.input(3)) is None:
        tracer.barrier_all(op, source, f"the sizes of this {op.type} are computed at run time")
    labels = []
    extents = zip(tracer.shape(source), tracer.shape(output), strict=True)
    for axis, (before, after) in enumerate(extents):
        if before != after or axis > 1:
            tracer.barrier(op, source, axis, "resampled axis")
            labels.append(still(after))
        else:
            labels.append(tracer.axes(source)[axis])
    tracer.set_axes(output, labels)
