"""Operators that rearrange axes: Transpose, Reshape and its kin, Expand, Tile, DepthToSpace, SpaceToDepth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.labels import REPEATED, Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Tracer


def transpose(op: Op, tracer: Tracer) -> None:
    axes = tracer.axes(op.input(0))
    order = op.attr("perm", list(range(len(axes)))[::-1])
    tracer.set_axes(op.outputs[0], [axes[axis] for axis in order])


def reshape(op: Op, tracer: Tracer) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: runs of axes with equal products are merged and split again."""
    source, output = op.input(0), op.outputs[0]
    before, after = tracer.shape(source), tracer.shape(output)
    if op.type == "Reshape" and tracer.value(op.input(1)) is None:
        opaque(op, tracer, "the shape of this Reshape is computed at run time", [source])
        return
    axes = tracer.axes(source)
    labels: list[Labels] = [still(n) for n in after]
    for inner, outer in _segments(before, after):
        parts = [axes[place] for place in inner]
        if len(inner) == len(outer) == 1:
            labels[outer[0]] = parts[0]
            continue
        flat = parts[0] if len(parts) == 1 else tracer.products.merge(parts)
        split = [flat] if len(outer) == 1 else tracer.products.split(flat, [after[place] for place in outer])
        for place, part in zip(outer, split, strict=True):
            labels[place] = part
    tracer.set_axes(output, labels)


def _segments(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Shortest runs of axes with equal products; axes of extent one belong to none."""
    left = [place for place, n in enumerate(before) if n != 1]
    right = [place for place, n in enumerate(after) if n != 1]
    while left and right:
        inner, outer = [left.pop(0)], [right.pop(0)]
        sizes = [before[inner[0]], after[outer[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                inner.append(left.pop(0))
                sizes[0] *= before[inner[-1]]
            else:
                outer.append(right.pop(0))
                sizes[1] *= after[outer[-1]]
        yield inner, outer


def expand(op: Op, tracer: Tracer) -> None:
    """Axes of extent one that are repeated get fresh units: whatever reads them decides how many are needed."""
    source, output = op.input(0), op.outputs[0]
    if tracer.value(op.input(1)) is None:
        opaque(op, tracer, "the shape of this Expand is computed at run time", [source])
        return
    axes, after = tracer.axes(source), tracer.shape(output)
    offset = len(after) - len(axes)
    labels = []
    for axis, extent in enumerate(after):
        if axis >= offset and len(axes[axis - offset]) == extent:
            labels.append(axes[axis - offset])
        else:
            labels.append(_copies(tracer, extent))
    tracer.set_axes(output, labels)


def tile(op: Op, tracer: Tracer) -> None:
    """Repeats carry the repeated labels; of an axis that stays each copy is a unit, as those of an Expand."""
    repeats = tracer.value(op.input(1))
    if repeats is None:
        opaque(op, tracer, "the repeats of this Tile are computed at run time")
        return
    labels = [
        _copies(tracer, count).repeat(len(part))
        if count > 1 and not tracer.classes.is_live(part)
        else np.tile(part, count)
        for part, count in zip(tracer.axes(op.input(0)), repeats.reshape(-1).tolist(), strict=True)
    ]
    tracer.set_axes(op.outputs[0], labels)


def _copies(tracer: Tracer, extent: int) -> Labels:
    """Fresh units for the copies of one position."""
    labels = tracer.classes.fresh(extent)
    if extent > 1:
        tracer.classes.flag(labels, REPEATED)
    return labels


def depth_to_space(op: Op, tracer: Tracer) -> None:
    """The block positions of one output channel are one unit: `blocksize`² input channels."""
    area = int(op.attr("blocksize", 1)) ** 2
    channels = tracer.axes(op.input(0))[1]
    columns_first = op.attr("mode", "DCR") == "CRD"
    blocks = channels.reshape(-1, area).T if columns_first else channels.reshape(area, -1)
    tracer.classes.unite(blocks, blocks[:1])
    _keep_batch(op, tracer, blocks[0])


def space_to_depth(op: Op, tracer: Tracer) -> None:
    """Each input channel appears `blocksize`² times, the block position being the slower index."""
    channels = tracer.axes(op.input(0))[1]
    _keep_batch(op, tracer, np.tile(channels, int(op.attr("blocksize", 1)) ** 2))


def _keep_batch(op: Op, tracer: Tracer, channels: Labels) -> None:
    source, output = op.input(0), op.outputs[0]
    for axis in (2, 3):
        tracer.barrier(op, source, axis, f"spatial axis of {op.type}")
    spatial = [still(n) for n in tracer.shape(output)[2:]]
    tracer.set_axes(output, [tracer.axes(source)[0], channels, *spatial])


def squeeze_axes(op: Op, tracer: Tracer) -> Sequence[int] | None:
    """The axes a Squeeze names, as an attribute (before opset 13) or a constant input."""
    if op.input(1):
        value = tracer.value(op.input(1))
        return None if value is None else [int(axis) for axis in value.reshape(-1)]
    given: Sequence[int] | None = op.attr("axes", None)
    return given


def squeeze(op: Op, tracer: Tracer) -> None:
    """A Squeeze that names no axes would also drop an axis that pruning leaves one position of."""
    source = op.input(0)
    if squeeze_axes(op, tracer) is None:
        for axis in range(len(tracer.shape(source))):
            tracer.barrier(op, source, axis, "Squeeze without axes")
    reshape(op, tracer)
