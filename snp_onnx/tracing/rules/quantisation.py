"""QuantizeLinear and DequantizeLinear: scales per tensor pass, scales along an axis are sliced with it."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Tracer


def quantise(op: Op, tracer: Tracer) -> None:
    source = op.input(0)
    axes = tracer.axes(source)
    scales = [name for name in op.inputs[1:] if name and max(tracer.shape(name), default=1) > 1]
    if op.attr("block_size", 0):
        tracer.barrier_all(op, source, "quantised in blocks")
    elif scales:
        axis = int(op.attr("axis", 1)) % len(axes)
        for name in scales:
            tracer.classes.unite(tracer.axes(name)[0], axes[axis])
    tracer.set_axes(op.outputs[0], axes)
