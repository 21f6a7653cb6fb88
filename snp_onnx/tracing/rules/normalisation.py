"""Normalisations: per channel (followed), per group of channels (a group is one unit), over an axis (a barrier).

So are other operators whose output has its input's shape, and that mix the positions of some axes.
"""

from __future__ import annotations

from snp_onnx.tracing.labels import still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer


def per_channel(op: Op, tracer: Tracer) -> None:
    """BatchNormalization and InstanceNormalization: every parameter has one entry per channel (axis 1)."""
    axes = tracer.axes(op.input(0))
    channels = axes[1] if len(axes) > 1 else still(1)
    for name in op.inputs[1:]:
        tracer.classes.unite(tracer.axes(name)[0], channels)
    is_training = bool(op.attr("training_mode", 0)) or any(op.outputs[1:])  # statistics of the batch
    if op.type == "InstanceNormalization" or is_training:
        for axis in range(0 if is_training else 2, len(axes)):
            if axis != 1:
                tracer.barrier(op, op.input(0), axis, "normalised over this axis")
    tracer.set_axes(op.outputs[0], axes)
    for name in op.outputs[1:]:
        if name:
            tracer.set_axes(name, [channels])


def group_norm(op: Op, tracer: Tracer) -> None:
    """GroupNormalization: channels normalised together are one unit; scale and bias are per group or per channel."""
    axes = tracer.axes(op.input(0))
    groups = int(op.attr("num_groups", 1))
    by_group = axes[1].reshape(groups, -1)
    tracer.classes.unite(by_group, by_group[:, :1])
    for name in op.inputs[1:]:
        labels = tracer.axes(name)[0]
        tracer.classes.unite(labels, axes[1] if len(labels) == len(axes[1]) else by_group[:, 0])
    for axis in range(2, len(axes)):
        tracer.barrier(op, op.input(0), axis, "normalised over this axis")
    if groups == 1:
        tracer.barrier(op, op.input(0), 1, "normalised over all channels")
    tracer.set_axes(op.outputs[0], axes)


def over_trailing_axes(op: Op, tracer: Tracer) -> None:
    """LayerNormalization, RMSNormalization and the old Softmax: everything from `axis` on is normalised together."""
    rank = len(tracer.shape(op.input(0)))
    default = 1 if op.type in _SOFTMAX else -1
    start = int(op.attr("axis", default)) % rank
    bar_axes(op, tracer, range(start, rank))


def softmax(op: Op, tracer: Tracer) -> None:
    """Softmax, LogSoftmax, Hardmax: over one axis since opset 13, over all trailing ones before."""
    if op.version < 13:
        over_trailing_axes(op, tracer)
    else:
        bar_axes(op, tracer, [int(op.attr("axis", -1)) % len(tracer.shape(op.input(0)))])


def over_some_axes(op: Op, tracer: Tracer) -> None:
    """LRN over channels, LpNormalization and ReverseSequence over one axis, Trilu over the last two."""
    rank = len(tracer.shape(op.input(0)))
    if op.type == "MeanVarianceNormalization":
        axes = [int(axis) % rank for axis in op.attr("axes", [0, 2, 3])]
    elif op.type == "Trilu":
        axes = [rank - 2, rank - 1]
    elif op.type == "ReverseSequence":
        axes = [int(op.attr("time_axis", 0))]
        tracer.classes.unite(tracer.axes(op.input(1))[0], tracer.axes(op.input(0))[int(op.attr("batch_axis", 1))])
    else:
        axes = [1 if op.type == "LRN" else int(op.attr("axis", -1)) % rank]
    bar_axes(op, tracer, axes)


def cumulation(op: Op, tracer: Tracer) -> None:
    """CumSum and CumProd: over the axis that their second input names, over any where that isn't constant."""
    rank, value = len(tracer.shape(op.input(0))), tracer.value(op.input(1))
    bar_axes(op, tracer, range(rank) if value is None else [int(value.reshape(-1)[0]) % rank])


_SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")


def bar_axes(op: Op, tracer: Tracer, axes: range | list[int]) -> None:
    """Keep axes of the input whole, with the parameters of a norm; the others pass. Later outputs are one a norm."""
    source, reason = op.input(0), f"{op.type} works over this axis"
    for axis in axes:
        tracer.barrier(op, source, axis, reason)
    labels = list(tracer.axes(source))
    if op.type in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        for name in op.inputs[1:]:
            if name:
                tracer.barrier_all(op, name, reason)
    for axis, extent in enumerate(tracer.shape(op.outputs[0])):
        if axis in axes and extent != len(labels[axis]):
            labels[axis] = tracer.whole(op, op.outputs[0], axis, reason)
    tracer.set_axes(op.outputs[0], labels)
    for name in op.outputs[1:]:
        if name:
            tracer.set_axes(name, [still(1) if axis in axes else part for axis, part in enumerate(labels)])
