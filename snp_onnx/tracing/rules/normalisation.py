"""Normalisations: per channel (followed), per group of channels (a group is one unit), over an axis (a barrier)."""

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
    if op.type == "InstanceNormalization":
        for axis in range(2, len(axes)):
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
    _bar_axes(op, tracer, range(start, rank))


def softmax(op: Op, tracer: Tracer) -> None:
    """Softmax, LogSoftmax, Hardmax: over one axis since opset 13, over all trailing ones before."""
    if op.version < 13:
        over_trailing_axes(op, tracer)
    else:
        _bar_axes(op, tracer, [int(op.attr("axis", -1)) % len(tracer.shape(op.input(0)))])


def over_one_axis(op: Op, tracer: Tracer) -> None:
    """LRN over channels, LpNormalization and CumSum over their axis, MeanVarianceNormalization over its axes."""
    rank = len(tracer.shape(op.input(0)))
    if op.type == "CumSum":
        value = tracer.value(op.input(1))
        axes = range(rank) if value is None else [int(value.reshape(-1)[0]) % rank]
    elif op.type == "MeanVarianceNormalization":
        axes = [int(axis) % rank for axis in op.attr("axes", [0, 2, 3])]
    else:
        axes = [1 if op.type == "LRN" else int(op.attr("axis", -1)) % rank]
    _bar_axes(op, tracer, axes)


_SOFTMAX = ("Softmax", "LogSoftmax", "Hardmax")


def _bar_axes(op: Op, tracer: Tracer, axes: range | list[int]) -> None:
    source = op.input(0)
    for axis in axes:
        tracer.barrier(op, source, axis, f"{op.type} works over this axis")
    labels = tracer.axes(source)
    if op.type in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        for name in op.inputs[1:]:
            if name:
                tracer.barrier_all(op, name, f"{op.type} works over this axis")
    tracer.set_axes(op.outputs[0], labels)
    for name in op.outputs[1:]:
        if name:
            tracer.set_axes(name, [still(1) if axis in axes else part for axis, part in enumerate(labels)])
