"""Operators that make tensors: constants, and tensors of a computed shape."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.elementwise import unary
from snp_onnx.tracing.tracer import Tracer

SEQUENCES = ("Range", "EyeLike", "BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix")


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
    """Range, EyeLike, windows of a signal: positions that stay."""
    for name in op.inputs:
        tracer.barrier_all(op, name, f"{op.type} takes its shape from this")
    for name in op.outputs:
        tracer.set_barred(op, name, f"all positions are made by {op.type}")


def random_numbers(op: Op, tracer: Tracer) -> None:
    """Random tensors: fewer positions would get other numbers."""
    reason = f"{op.type} draws a number for every position"
    for name in op.inputs:
        tracer.barrier_all(op, name, reason)
    for name in op.outputs:
        tracer.set_barred(op, name, reason)


def dropout(op: Op, tracer: Tracer) -> None:
    """Dropout: nothing happens to positions, unless its third input has it train."""
    trains = tracer.value(op.input(2))
    if op.input(2) and (trains is None or trains.any()):
        random_numbers(op, tracer)
    else:
        unary(op, tracer)
