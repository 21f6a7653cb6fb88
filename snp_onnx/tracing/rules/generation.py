"""Operators that make tensors: constants, and tensors of a computed shape."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer


def constant(op: Op, tracer: Tracer) -> None:
    """A Constant node is a weight like an initialiser."""
    tracer.mark_constant(op.outputs)
    tracer.axes(op.outputs[0])


def constant_of_shape(op: Op, tracer: Tracer) -> None:
    """Fresh units on every axis: whatever reads them decides how many are needed."""
    output = op.outputs[0]
    if tracer.value(op.input(0)) is None:
        tracer.set_still(output)
        return
    tracer.set_axes(output, [tracer.classes.fresh(n) for n in tracer.shape(output)])


def extent(op: Op, tracer: Tracer) -> None:
    """Shape and Size: the value is followed as a fact; its own positions stay."""
    tracer.set_still(op.outputs[0])


def sequence(op: Op, tracer: Tracer) -> None:
    """Range and EyeLike: positions that stay."""
    for name in op.outputs:
        tracer.set_still(name)
    for name in op.inputs:
        tracer.barrier_all(op, name, f"{op.type} takes its shape from this")
