"""QuantizeLinear and DequantizeLinear: scales per tensor pass, scales along an axis are sliced with it.

Operators that compute in integers keep their weights in forms that nothing can be folded into: they are declined.
"""

from __future__ import annotations

import onnx

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Tracer, output_axis

INSTEAD = "prune the float model, then quantise it"

PACKED = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
    if hasattr(onnx.TensorProto, name)  # older versions of onnx lack some
)

INTEGER = (
    *(("", name) for name in ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")),
    *(
        ("com.microsoft", name)
        for name in (
            *("QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearWhere", "QLinearSigmoid"),
            *("QLinearLeakyRelu", "QLinearSoftmax", "QLinearAveragePool", "QLinearGlobalAveragePool"),
            *("QLinearReduceMean", "QGemm", "QAttention", "QEmbedLayerNormalization", "QMoE"),
            *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulInteger16"),
            *("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized"),
        )
    ),
)
"""Operators of ONNX and of onnxruntime that read quantised values."""


def quantise(op: Op, tracer: Tracer) -> None:
    source = op.input(0)
    axes = tracer.axes(source)
    scales = [name for name in op.inputs[1:] if name and max(tracer.shape(name), default=1) > 1]
    block = int(op.attr("block_size", 0))
    if block:
        tracer.barrier_all(op, source, f"quantised in blocks of {block}: {INSTEAD}")
    elif tracer.facts.types[source] in PACKED:
        tracer.barrier_all(op, source, f"stored with several values in a byte: {INSTEAD}")
    elif scales:
        axis = int(op.attr("axis", 1)) % len(axes)
        for name in scales:
            tracer.classes.unite(tracer.axes(name)[0], axes[axis])
    tracer.set_axes(op.outputs[0], axes)


def integer(op: Op, tracer: Tracer) -> None:
    """Declined as a whole; the weight, if there is one, is told of like any other that stays whole."""
    reason = f"{op.type} works on quantised values: {INSTEAD}"
    opaque(op, tracer, reason)
    for name in op.inputs:
        if name and tracer.is_constant(name) and len(tracer.shape(name)) > 1:
            shape = tracer.shape(name)
            tracer.decline(op, name, output_axis(op, len(shape)), shape, reason)
