"""Operator rules: one table, `{(domain, operator): rule}`. An operator that isn't here is a barrier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules import (
    convolution,
    elementwise,
    generation,
    joining,
    layout,
    lookup,
    matmul,
    normalisation,
    quantisation,
    reduction,
    spatial,
)
from snp_onnx.tracing.tracer import Tracer

Rule = Callable[[Op, Tracer], None]

RULES: Mapping[tuple[str, str], Rule] = MappingProxyType(
    {
        **{("", name): elementwise.unary for name in elementwise.UNARY},
        **{("", name): elementwise.broadcasting for name in elementwise.BROADCASTING},
        ("", "Conv"): convolution.conv,
        ("", "ConvTranspose"): convolution.conv_transpose,
        ("", "Gemm"): matmul.gemm,
        ("", "MatMul"): matmul.matmul,
        ("", "BatchNormalization"): normalisation.per_channel,
        ("", "InstanceNormalization"): normalisation.per_channel,
        ("", "GroupNormalization"): normalisation.group_norm,
        ("", "LayerNormalization"): normalisation.over_trailing_axes,
        ("", "RMSNormalization"): normalisation.over_trailing_axes,
        ("", "Softmax"): normalisation.softmax,
        ("", "LogSoftmax"): normalisation.softmax,
        ("", "Hardmax"): normalisation.softmax,
        ("", "LRN"): normalisation.over_one_axis,
        ("", "LpNormalization"): normalisation.over_one_axis,
        ("", "CumSum"): normalisation.over_one_axis,
        ("", "MeanVarianceNormalization"): normalisation.over_one_axis,
        ("", "MaxPool"): spatial.pool,
        ("", "AveragePool"): spatial.pool,
        ("", "LpPool"): spatial.pool,
        ("", "GlobalMaxPool"): spatial.pool,
        ("", "GlobalAveragePool"): spatial.pool,
        ("", "GlobalLpPool"): spatial.pool,
        ("", "Resize"): spatial.resize,
        ("", "Upsample"): spatial.resize,
        **{("", name): reduction.reduction for name in reduction.REDUCTIONS},
        ("", "ArgMax"): reduction.arg_reduction,
        ("", "ArgMin"): reduction.arg_reduction,
        ("", "TopK"): reduction.top_k,
        ("", "Concat"): joining.concat,
        ("", "Split"): joining.split,
        ("", "Slice"): joining.slice_,
        ("", "Pad"): joining.pad,
        ("", "Gather"): lookup.gather,
        ("", "Transpose"): layout.transpose,
        ("", "Reshape"): layout.reshape,
        ("", "Flatten"): layout.reshape,
        ("", "Squeeze"): layout.squeeze,
        ("", "Unsqueeze"): layout.reshape,
        ("", "Expand"): layout.expand,
        ("", "Tile"): layout.tile,
        ("", "DepthToSpace"): layout.depth_to_space,
        ("", "SpaceToDepth"): layout.space_to_depth,
        ("", "Constant"): generation.constant,
        ("", "ConstantOfShape"): generation.constant_of_shape,
        ("", "Shape"): generation.extent,
        ("", "Size"): generation.extent,
        ("", "Range"): generation.sequence,
        ("", "QuantizeLinear"): quantisation.quantise,
        ("", "DequantizeLinear"): quantisation.quantise,
    }
)
