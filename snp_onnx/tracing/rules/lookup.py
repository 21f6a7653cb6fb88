"""Gather with constant indices selects labels; rows picked at run time bar the axis they are picked from."""

from __future__ import annotations

import numpy as np

from snp_onnx.tracing.labels import Labels
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer


def gather(op: Op, tracer: Tracer) -> None:
    source, indices, output = op.input(0), op.input(1), op.outputs[0]
    axes = tracer.axes(source)
    axis = int(op.attr("axis", 0)) % len(axes)
    picked = tracer.value(indices)
    if picked is None or indices in tracer.facts.origins:
        tracer.barrier(op, source, axis, "positions are picked at run time")
        middle = tracer.axes(indices)
    elif picked.ndim == 1 and len(axes) > 2 and tracer.is_shared(source) and not tracer.layers(source):
        tracer.barrier(op, source, axis, "several nodes pick from it")
        middle = (tracer.classes.fresh(picked.size),)  # the source stays, so each may pick what it needs
    else:
        middle = _picked(op, tracer, source, axis, np.asarray(picked, dtype=np.int64))
    tracer.set_axes(output, [*axes[:axis], *middle, *axes[axis + 1 :]])


def _picked(op: Op, tracer: Tracer, source: str, axis: int, indices: Labels) -> tuple[Labels, ...]:
    labels = tracer.axes(source)[axis][indices % tracer.shape(source)[axis]]
    if indices.ndim == 0:
        tracer.barrier(op, source, axis, "a single position is picked", labels.reshape(1))
        return ()
    if indices.ndim == 1:
        if len(labels) == 1:
            tracer.barrier(op, source, axis, "a single position is picked", labels)
        return (labels,)
    if tracer.is_live(source, axis):
        tracer.barrier(op, source, axis, f"picked with indices of rank {indices.ndim}")
    return tracer.axes(op.input(1))
