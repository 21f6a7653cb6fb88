"""LSTM, GRU and RNN: what they read at a step may be cut; steps, rows and hidden units stay whole."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Linear, Tracer


def recurrent(op: Op, tracer: Tracer) -> None:
    """X (steps, rows, inputs) meets W (directions, gates x hidden, inputs); the next step reads all hidden units."""
    source, weight, reason = op.input(0), op.input(1), f"{op.type} carries a state from step to step"
    if not tracer.is_constant(weight) or tracer.is_constant(source):
        opaque(op, tracer, reason)
        return
    tracer.classes.unite(tracer.axes(source)[2], tracer.axes(weight)[2])
    for name in op.inputs:
        tracer.barrier_all(op, name, reason, but=((source, 2), (weight, 2)))
    for name in op.outputs:
        tracer.set_still(name)
    output = next(name for name in op.outputs if name)
    tracer.linears.append(Linear(op, source, 2, weight, 2, 1, output, len(tracer.shape(output)) - 1))


def linear_attention(op: Op, tracer: Tracer) -> None:
    """LinearAttention: what was read is summed up in a state (heads, dims, dims)."""
    opaque(op, tracer, f"{op.type} carries a state from step to step")
