"""LSTM, GRU and RNN: steps, rows, inputs and hidden units stay whole."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Tracer


def recurrent(op: Op, tracer: Tracer) -> None:
    """Hidden units are read again by every gate in the next step: nothing is cut in front, inside or behind."""
    opaque(op, tracer, f"{op.type} carries a state from step to step")
