"""Operators that read or write where indices say: Gather, Scatter and their kin, Compress, OneHot.

Constant indices of a Gather select labels. All others bar the axes whose positions they name; the other axes of data,
indices and updates are aligned.
"""

from __future__ import annotations

import numpy as np

from snp_onnx.tracing.labels import Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Tracer

PICKED = "positions are picked at run time"
WRITTEN = "positions are written at run time"
COUNTING = ("NonZero", "Unique", "NonMaxSuppression", "StringNormalizer", "ImageDecoder")


def gather(op: Op, tracer: Tracer) -> None:
    source, indices, output = op.input(0), op.input(1), op.outputs[0]
    axes = tracer.axes(source)
    axis = int(op.attr("axis", 0)) % len(axes)
    picked = tracer.value(indices)
    if picked is None or indices in tracer.facts.origins:
        tracer.barrier(op, source, axis, PICKED)
        middle = tracer.axes(indices)
    elif picked.ndim == 1 and len(axes) > 2 and tracer.is_shared(source) and not tracer.layers(source):
        tracer.barrier(op, source, axis, "several nodes pick from it")
        middle = (tracer.classes.fresh(picked.size),)  # the source stays, so each may pick what it needs
    else:
        tracer.bar_places(op, source, axis)
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


def gather_elements(op: Op, tracer: Tracer) -> None:
    """GatherElements: each index names a position along one axis; on the others it stands where what it picks does."""
    source, indices = op.input(0), op.input(1)
    axis = int(op.attr("axis", 0)) % len(tracer.shape(source))
    for name in (source, indices):
        tracer.barrier(op, name, axis, PICKED)
    _align(tracer, source, indices, axis)
    tracer.set_axes(op.outputs[0], tracer.axes(indices))


def scatter_elements(op: Op, tracer: Tracer) -> None:
    """ScatterElements and the older Scatter: the same, and what is written stands where its index does."""
    source, indices, updates = op.inputs[:3]
    axis = int(op.attr("axis", 0)) % len(tracer.shape(source))
    for name in op.inputs[:3]:
        tracer.barrier(op, name, axis, WRITTEN)
    for name in (indices, updates):
        _align(tracer, source, name, axis)
    tracer.set_axes(op.outputs[0], tracer.axes(source))


def gather_nd(op: Op, tracer: Tracer) -> None:
    """GatherND: the last axis of the indices names a position on each of as many axes behind the batch axes."""
    source, indices = op.input(0), op.input(1)
    axes, places = tracer.axes(source), tracer.axes(indices)
    batch, count = int(op.attr("batch_dims", 0)), len(places[-1])
    for axis in range(batch):
        tracer.classes.unite(axes[axis], places[axis])
    for axis in range(batch, batch + count):
        tracer.barrier(op, source, axis, PICKED)
    tracer.barrier(op, indices, len(places) - 1, PICKED)
    tracer.set_axes(op.outputs[0], [*axes[:batch], *places[batch:-1], *axes[batch + count :]])


def scatter_nd(op: Op, tracer: Tracer) -> None:
    """ScatterND: updates are (rows of the indices, axes of the data that no index names)."""
    source, indices, updates = op.inputs[:3]
    axes, written = tracer.axes(source), tracer.axes(updates)
    rows, count = len(tracer.shape(indices)) - 1, tracer.shape(indices)[-1]
    for axis in range(count):
        tracer.barrier(op, source, axis, WRITTEN)
    for axis in range(rows):
        tracer.barrier(op, updates, axis, WRITTEN)
    tracer.barrier_all(op, indices, WRITTEN)
    for labels, other in zip(axes[count:], written[rows:], strict=True):
        tracer.classes.unite(labels, other)
    tracer.set_axes(op.outputs[0], axes)


def tensor_scatter(op: Op, tracer: Tracer) -> None:
    """TensorScatter: a run of positions of a cache is written over; one start for every entry of the batch."""
    source, updates = op.input(0), op.input(1)
    axes = tracer.axes(source)
    sequence = int(op.attr("axis", -2)) % len(axes)
    for name in (source, updates):
        tracer.barrier(op, name, sequence, WRITTEN)
    _align(tracer, source, updates, sequence)
    if op.input(2):
        tracer.classes.unite(axes[0], tracer.axes(op.input(2))[0])
    tracer.set_axes(op.outputs[0], axes)


def compress(op: Op, tracer: Tracer) -> None:
    """Compress: a condition picks positions of one axis, or of all axes as one."""
    source, axis = op.input(0), op.attr("axis", None)
    tracer.barrier_all(op, op.input(1), PICKED)
    if axis is None:
        opaque(op, tracer, PICKED, [source])
        return
    labels = list(tracer.axes(source))
    axis %= len(labels)
    tracer.barrier(op, source, axis, PICKED)
    labels[axis] = tracer.whole(op, op.outputs[0], axis, PICKED)
    tracer.set_axes(op.outputs[0], labels)


def one_hot(op: Op, tracer: Tracer) -> None:
    """OneHot of ONNX and OneHotEncoder: one more axis, with a position for every number that may occur."""
    source, output = op.input(0), op.outputs[0]
    labels = list(tracer.axes(source))
    axis, reason = int(op.attr("axis", -1)) % (len(labels) + 1), f"{op.type} has a position for every number"
    for name in op.inputs[1:]:
        tracer.barrier_all(op, name, reason)
    labels.insert(axis, tracer.whole(op, output, axis, reason))
    tracer.set_axes(output, labels)


def counted(op: Op, tracer: Tracer) -> None:
    """Operators of `COUNTING`: what comes out, and how much, depends on all that goes in."""
    opaque(op, tracer, found_many(op))


def found_many(op: Op) -> str:
    """Why an output whose extent the data decide stays whole."""
    return f"{op.type} gives as many positions as it finds"


def extracted(op: Op, tracer: Tracer) -> None:
    """ArrayFeatureExtractor: picks from the last axis; a vector counts as one row."""
    source, output = op.input(0), op.outputs[0]
    tracer.barrier(op, source, len(tracer.shape(source)) - 1, PICKED)
    tracer.barrier_all(op, op.input(1), PICKED)
    rows = list(tracer.axes(source)[:-1]) or [still(1)]
    tracer.set_axes(output, [*rows, tracer.whole(op, output, len(rows), PICKED)])


def _align(tracer: Tracer, source: str, other: str, but: int) -> None:
    """Unite positions on all axes but one; the shorter tensor stands at the start of the longer one."""
    for axis, (left, right) in enumerate(zip(tracer.axes(source), tracer.axes(other), strict=True)):
        if axis != but:
            count = min(len(left), len(right))
            tracer.classes.unite(left[:count], right[:count])
