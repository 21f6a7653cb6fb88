"""Pooling, resizing, sampling and cropping of maps: channels pass, spatial axes stay."""

from __future__ import annotations

from snp_onnx.tracing.labels import still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Tracer


def pool(op: Op, tracer: Tracer) -> None:
    """Batch and channels pass; MaxPool's indices count positions of the whole tensor, so they bar its axes."""
    source = op.input(0)
    axes = tracer.axes(source)
    for axis in range(2, len(axes)):
        tracer.barrier(op, source, axis, "spatial axis of a pooling")
    if any(op.outputs[1:]):
        tracer.barrier_all(op, source, f"the indices of this {op.type} count its channels")
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


def max_unpool(op: Op, tracer: Tracer) -> None:
    """MaxUnpool: indices name places in the whole tensor, channels counted."""
    opaque(op, tracer, f"the indices of this {op.type} count its channels")


def grid_sample(op: Op, tracer: Tracer) -> None:
    """GridSample: a grid (N, D..., r) says where every output position (N, C, D...) reads the map."""
    source, grid = op.input(0), op.input(1)
    axes, places = tracer.axes(source), tracer.axes(grid)
    for axis in range(2, len(axes)):
        tracer.barrier(op, source, axis, "resampled axis")
    tracer.barrier(op, grid, len(places) - 1, "a place on a map")
    tracer.classes.unite(axes[0], places[0])
    tracer.set_axes(op.outputs[0], [*axes[:2], *places[1:-1]])


def affine_grid(op: Op, tracer: Tracer) -> None:
    """AffineGrid: every matrix (N, r, r + 1) gives a grid (N, D..., r) of a given size."""
    opaque(op, tracer, "a place on a map")


def pool_regions(op: Op, tracer: Tracer) -> None:
    """MaxRoiPool and RoiAlign: regions (R, 4 or 5) of a map (N, C, H, W) become maps (R, C, h, w) of one size."""
    source, regions, output = op.input(0), op.input(1), op.outputs[0]
    for axis in (0, 2, 3):
        tracer.barrier(op, source, axis, "regions of a map are picked at run time")
    tracer.barrier(op, regions, 1, "a place on a map")
    rows = tracer.axes(regions)[0]
    if op.input(2):
        tracer.classes.unite(rows, tracer.axes(op.input(2))[0])
    spatial = [still(n) for n in tracer.shape(output)[2:]]
    tracer.set_axes(output, [rows, tracer.axes(source)[1], *spatial])


def center_crop_pad(op: Op, tracer: Tracer) -> None:
    """CenterCropPad: the axes that are named get a given extent, the others pass."""
    source, output = op.input(0), op.outputs[0]
    labels, reason = list(tracer.axes(source)), "cropped or padded at both ends"
    tracer.barrier_all(op, op.input(1), reason)
    for axis in op.attr("axes", range(len(labels))):
        place = int(axis) % len(labels)
        tracer.barrier(op, source, place, reason)
        labels[place] = still(tracer.shape(output)[place])
    tracer.set_axes(output, labels)


def column_to_image(op: Op, tracer: Tracer) -> None:
    """Col2Im: (N, C times block, L) becomes (N, C, D...); the block positions of one channel are one unit."""
    source, output = op.input(0), op.outputs[0]
    axes, channels = tracer.axes(source), tracer.shape(output)[1]
    blocks = axes[1].reshape(channels, -1)
    tracer.classes.unite(blocks, blocks[:, :1])
    tracer.barrier(op, source, 2, f"spatial axis of {op.type}")
    for name in op.inputs[1:]:
        tracer.barrier_all(op, name, f"spatial axis of {op.type}")
    tracer.set_axes(output, [axes[0], blocks[:, 0], *(still(n) for n in tracer.shape(output)[2:])])
