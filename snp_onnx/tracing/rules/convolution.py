"""Conv and ConvTranspose of any spatial rank, grouped and depthwise."""

from __future__ import annotations

from snp_onnx.tracing.labels import Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Linear, Tracer


def conv(op: Op, tracer: Tracer) -> None:
    """Input channels are weight axis 1, output channels weight axis 0; of a grouped one, a whole group is one unit."""
    _convolve(op, tracer, in_axis=1, out_axis=0)


def conv_transpose(op: Op, tracer: Tracer) -> None:
    """Input channels are weight axis 0, output channels (of one group) weight axis 1."""
    _convolve(op, tracer, in_axis=0, out_axis=1)


def _convolve(op: Op, tracer: Tracer, in_axis: int, out_axis: int) -> None:
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
    channels = _ungrouped(op, tracer, in_axis, out_axis) if groups == 1 else _grouped(op, tracer, groups)
    if op.input(2):
        tracer.classes.unite(tracer.axes(op.input(2))[0], channels)
    shape = tracer.shape(output)
    tracer.set_axes(output, [tracer.axes(source)[0], channels, *(still(n) for n in shape[2:])])
    tracer.linears.append(Linear(op, source, 1, weight, in_axis, out_axis, output, 1, groups))


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
