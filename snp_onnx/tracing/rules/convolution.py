"""Conv and ConvTranspose of any spatial rank, grouped and depthwise; DeformConv and CausalConvWithState."""

from __future__ import annotations

import numpy as np

from snp_onnx.tracing.labels import Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Linear, Tracer


def conv(op: Op, tracer: Tracer) -> None:
    """Input channels are weight axis 1, output channels weight axis 0."""
    _convolve(op, tracer, in_axis=1, out_axis=0)


def conv_transpose(op: Op, tracer: Tracer) -> None:
    """Input channels are weight axis 0, output channels (of one group) weight axis 1."""
    _convolve(op, tracer, in_axis=0, out_axis=1)


def deform_conv(op: Op, tracer: Tracer) -> None:
    """DeformConv: a convolution that reads every channel at the places which offsets say, and a mask weighs.

    Where channels in groups have offsets of their own, the groups count channels, and channels stay.
    """
    _convolve(op, tracer, in_axis=1, out_axis=0, bias=3)
    axes = tracer.axes(op.input(0))
    if int(op.attr("offset_group", 1)) > 1:
        tracer.barrier(op, op.input(0), 1, "channels in groups share the offsets of this DeformConv")
    for name in filter(None, (op.input(2), op.input(4))):
        tracer.classes.unite(axes[0], tracer.axes(name)[0])
        for axis in range(1, len(axes)):
            tracer.barrier(op, name, axis, "offsets or mask of a DeformConv")


def causal_conv(op: Op, tracer: Tracer) -> None:
    """CausalConvWithState: depthwise, over what came before; the state has the same channels."""
    source, weight, channels = op.input(0), op.input(1), tracer.axes(op.input(0))[1]
    batch, past = tracer.axes(source)[0], op.input(3)
    for name, axis in ((weight, 0), (op.input(2), 0), (past, 1)):
        if name:
            tracer.classes.unite(tracer.axes(name)[axis], channels)
    if past:
        tracer.classes.unite(tracer.axes(past)[0], batch)
    for name in filter(None, (source, weight, past)):
        tracer.barrier(op, name, 2, "spatial axis of a convolution")
    for name in filter(None, op.outputs):
        tracer.set_axes(name, [batch, channels, still(tracer.shape(name)[2])])
    if tracer.is_constant(weight):
        tracer.linears.append(Linear(op, source, 1, weight, 1, 0, op.outputs[0], 1, len(channels)))


def _convolve(op: Op, tracer: Tracer, in_axis: int, out_axis: int, bias: int = 2) -> None:
    source, weight, output = op.input(0), op.input(1), op.outputs[0]
    groups = int(op.attr("group", 1))
    if not tracer.is_constant(weight):
        for name in (source, weight):
            tracer.barrier_all(op, name, f"the weight of this {op.type} is computed at run time")
        tracer.set_still(output)
        return
    for axis in range(2, len(tracer.shape(source))):
        tracer.barrier(op, source, axis, "spatial axis of a convolution")
        tracer.barrier(op, weight, axis, "kernel axis of a convolution")
    is_equal = op.index in tracer.equal
    if groups == 1:
        channels = _ungrouped(op, tracer, in_axis, out_axis)
    else:
        channels = _equal(op, tracer, groups, in_axis) if is_equal else _grouped(op, tracer, groups)
    if op.input(bias):
        tracer.classes.unite(tracer.axes(op.input(bias))[0], channels)
    shape = tracer.shape(output)
    tracer.set_axes(output, [tracer.axes(source)[0], channels, *(still(n) for n in shape[2:])])
    tracer.linears.append(Linear(op, source, 1, weight, in_axis, out_axis, output, 1, groups, is_equal))


def _ungrouped(op: Op, tracer: Tracer, in_axis: int, out_axis: int) -> Labels:
    weight = tracer.axes(op.input(1))
    tracer.classes.unite(tracer.axes(op.input(0))[1], weight[in_axis])
    return weight[out_axis]


def _grouped(op: Op, tracer: Tracer, groups: int) -> Labels:
    """All of a group's input and output channels are one unit: rows `[group, position]` of labels united."""
    weight = tracer.axes(op.input(1))
    by_group = tracer.axes(op.input(0))[1].reshape(groups, -1)
    unit = by_group[:, :1]
    tracer.classes.unite(by_group, unit)
    tracer.classes.unite(weight[0].reshape(groups, -1), unit)
    tracer.barrier(op, op.input(1), 1, "position inside a group of a grouped convolution")
    return unit.repeat(tracer.shape(op.outputs[0])[1] // groups, axis=1).reshape(-1)


def _equal(op: Op, tracer: Tracer, groups: int, in_axis: int) -> Labels:
    """The same input position of all groups is one unit, and so is the same output position."""
    weight, unite = tracer.axes(op.input(1)), tracer.classes.unite
    by_group = tracer.axes(op.input(0))[1].reshape(groups, -1)
    unite(by_group, by_group[:1])
    if in_axis == 0:
        unite(weight[0].reshape(groups, -1), by_group)
        return np.tile(weight[1], groups)
    unite(weight[1], by_group[0])
    outputs = weight[0].reshape(groups, -1)
    unite(outputs, outputs[:1])
    return weight[0]
