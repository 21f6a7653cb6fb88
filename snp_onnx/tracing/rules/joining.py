"""Operators that join and cut axes: Concat, Split, Slice, Pad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from snp_onnx.tracing.extents import is_extent_of
from snp_onnx.tracing.labels import Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.operands import Cut, pad_amounts, slice_axes, slice_cuts, split_sizes
from snp_onnx.tracing.tracer import Tracer


def concat(op: Op, tracer: Tracer) -> None:
    """Labels follow each other on the joined axis and are united on all others."""
    rank = len(tracer.shape(op.outputs[0]))
    axis = int(op.attr("axis", 1)) % rank
    parts = [tracer.axes(name) for name in op.inputs]
    labels: list[Labels] = []
    for place in range(rank):
        column = [part[place] for part in parts]
        if place == axis:
            labels.append(np.concatenate(column))
        else:
            for other in column[1:]:
                tracer.classes.unite(column[0], other)
            labels.append(column[0])
    tracer.set_axes(op.outputs[0], labels)


def split(op: Op, tracer: Tracer) -> None:
    """Each output takes its run of labels; the sizes are rewritten with the widths."""
    source = op.input(0)
    axes = tracer.axes(source)
    axis = int(op.attr("axis", 0)) % len(axes)
    sizes = split_sizes(op, tracer)
    if sizes is None:
        opaque(op, tracer, "the sizes of this Split are computed at run time")
        return
    tracer.bar_places(op, source, axis)
    for name, labels in zip(op.outputs, np.split(axes[axis], np.cumsum(sizes)[:-1]), strict=True):
        if name:
            tracer.set_axes(name, [labels if place == axis else part for place, part in enumerate(axes)])


def slice_(op: Op, tracer: Tracer) -> None:
    """The labels in the window; a step other than one on an axis that could shrink bars it."""
    source, output = op.input(0), op.outputs[0]
    cuts = slice_cuts(op, tracer, tracer.shape(source))
    labels = list(tracer.axes(source))
    if cuts is None:
        for axis in slice_axes(op, tracer, len(labels)):
            tracer.barrier(op, source, axis, "the bounds of this Slice are computed at run time")
            labels[axis] = still(tracer.shape(output)[axis])
        tracer.set_axes(output, labels)
        return
    for cut in cuts:
        if cut.step != 1 and tracer.is_live(source, cut.axis):
            tracer.barrier(op, source, cut.axis, "sliced with a step")
        if not cut.is_open and not _is_whole(op, tracer, cut):
            tracer.bar_places(op, source, cut.axis)
        labels[cut.axis] = _window(labels[cut.axis], cut)
    tracer.set_axes(output, labels)


def _is_whole(op: Op, tracer: Tracer, cut: Cut) -> bool:
    """Whether a window ends at the axis' own extent, computed at run time."""
    from_start = cut.start == 0 and cut.step == 1 and op.input(1) not in tracer.facts.origins
    return from_start and is_extent_of(tracer, op.input(2), cut.entry, op.input(0), cut.axis)


def _window(labels: Labels, cut: Cut) -> Labels:
    return labels[np.arange(cut.start, cut.stop, cut.step)]


def pad(op: Op, tracer: Tracer) -> None:
    """Constant padding adds fresh units (the zero channels of an option-A shortcut); other modes bar the axis."""
    source, output = op.input(0), op.outputs[0]
    amounts = pad_amounts(op, tracer, len(tracer.shape(source)))
    if amounts is None:
        opaque(op, tracer, "the amounts of this Pad are computed at run time")
        return
    labels = []
    for axis, (before, after) in enumerate(amounts):
        if (before or after) and op.attr("mode", "constant") != "constant":
            tracer.barrier(op, source, axis, f"padded in mode {op.attr('mode', 'constant')}")
        if before or after:
            tracer.bar_places(op, source, axis, output)
        labels.append(_padded(tracer, source, axis, before, after))
    tracer.set_axes(output, labels)


def _padded(tracer: Tracer, source: str, axis: int, before: int, after: int) -> Labels:
    labels = tracer.axes(source)[axis]
    kept = labels[max(0, -before) : len(labels) - max(0, -after)]
    if not tracer.is_live(source, axis):
        return still(max(0, before) + len(kept) + max(0, after))
    return np.concatenate([_padding(tracer, before), kept, _padding(tracer, after)])


def _padding(tracer: Tracer, amount: int) -> Labels:
    """Fresh units, one for a single position too: a lone padded channel may go."""
    return tracer.classes.fresh(max(2, amount))[:amount] if amount > 0 else still(0)


def opaque(op: Op, tracer: Tracer, reason: str, operands: Sequence[str] | None = None) -> None:
    """Nothing is known of how the outputs' positions arise: bar the inputs."""
    for name in op.inputs if operands is None else operands:
        tracer.barrier_all(op, name, reason)
    for name in op.outputs:
        tracer.set_barred(op, name, reason)
