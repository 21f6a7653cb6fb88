"""onnxruntime's normalisations of a sum: the normalised axis stays whole, and the sum inside is a residual stream."""

from __future__ import annotations

from snp_onnx.tracing.labels import SUMMED, Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer


def skip_norm(op: Op, tracer: Tracer) -> None:
    """SkipLayerNormalization and its simplified form: x + skip (+ bias), normalised; the fourth output is the sum."""
    source, skip = op.input(0), op.input(1)
    axes = tracer.axes(source)
    for name in filter(None, op.inputs[1:]):
        for axis, labels in enumerate(tracer.axes(name), start=len(axes) - len(tracer.axes(name))):
            if len(labels) == len(axes[axis]):
                tracer.classes.unite(labels, axes[axis])
    if not tracer.is_constant(source) and not tracer.is_constant(skip) and tracer.is_live(source, len(axes) - 1):
        tracer.classes.flag(axes[-1], SUMMED)
    tracer.barrier(op, source, len(axes) - 1, f"{op.type} works over this axis")
    for place, name in enumerate(op.outputs):
        if name:
            tracer.set_axes(name, axes if place in (0, 3) else [*axes[:-1], still(1)])


def embedding_norm(op: Op, tracer: Tracer) -> None:
    """EmbedLayerNormalization: rows of tables picked at run time, added up and normalised."""
    tables = [name for name in op.inputs[2:5] if name]
    width: Labels = tracer.axes(tables[0])[1]
    for name in tables:
        tracer.classes.unite(tracer.axes(name)[1], width)
        tracer.barrier(op, name, 0, "positions are picked at run time")
    for name in op.inputs[5:7]:
        tracer.classes.unite(tracer.axes(name)[0], width)
    tracer.barrier(op, tables[0], 1, f"{op.type} works over this axis")
    for place, name in enumerate(op.outputs):
        if place == 1:
            tracer.set_still(name)
        elif name:
            batch, length, _ = tracer.shape(name)
            tracer.set_axes(name, [still(batch), still(length), width])
