"""Multiply-accumulates by operator: layers, recurrent layers, attention, and their fused and quantised forms."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from types import MappingProxyType

import onnx

from snp_onnx.cost.terms import DOMAINS, STANDARD, AxisOf, Part, Shapes, Term, input_at

Counter = Callable[[onnx.NodeProto, Shapes], list[Part]]


def mac_terms(model: onnx.ModelProto, shapes: Shapes, shares: Mapping[str, float] = MappingProxyType({})) -> list[Term]:
    """The terms of every node of the main graph that multiplies and accumulates, at the given tensor shapes.

    Conv and ConvTranspose: output (or input) positions times the weight's elements. Gemm, MatMul: rows x inner x
    columns. Einsum: the product of all its indices. LSTM, GRU, RNN: steps times the elements of both weights.
    Attention: logits and weighted values over all positions, masked or not, and the projection where it is inside.
    Fused and quantised forms cost what the plain ones do. What `is_uncounted` costs nothing here.
    `shares` says, by a node's first output, how much of its cost counts, where that isn't all.
    """
    return [
        Term(node_name(node), factors, scale * shares.get(node.output[0], 1.0))
        for node in model.graph.node
        for factors, scale in node_parts(node, shapes) or ()
    ]


def node_name(node: onnx.NodeProto) -> str:
    """The node's name, or its operator and first output where it has none."""
    return node.name or f"{node.op_type}({next(iter(node.output), '')})"


def node_parts(node: onnx.NodeProto, shapes: Shapes) -> list[Part] | None:
    """The multiply-accumulates of a node as (factors, scale); None where its operator or its shapes aren't known."""
    counted = _counter(node)
    names = [name for name in (*node.input, node.output[0] if node.output else "") if name]
    return counted(node, shapes) if counted is not None and all(name in shapes for name in names) else None


def multiplies(node: onnx.NodeProto) -> bool:
    """Whether the node's operator is known to multiply and accumulate."""
    return _counter(node) is not None or (node.domain in DOMAINS and node.op_type in _UNCOUNTED)


def is_uncounted(node: onnx.NodeProto, shapes: Shapes, weights: Container[str]) -> bool:
    """Whether a node may multiply and accumulate, and `mac_terms` can't tell how much.

    So it is with what `multiplies` where the shapes aren't known or the operator has no formula, and with operators
    of other domains that read a weight or hold numbers in their attributes.
    """
    if multiplies(node):
        return node_parts(node, shapes) is None
    if node.domain in STANDARD or (node.domain in DOMAINS and node.op_type in _FREE):
        return False
    has_numbers = any(len(a.floats) > 1 or a.HasField("t") for a in node.attribute)
    return has_numbers or any(name in weights for name in node.input)


def _counter(node: onnx.NodeProto) -> Counter | None:
    return _COUNTERS.get(node.op_type) if node.domain in DOMAINS else None


def _of_conv(place: int) -> Counter:
    """Y positions x all weight elements: W is (M, C/group, k...), Y is (N, M, d...), or (N, d..., M)."""

    def parts(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
        weight, output = node.input[place], node.output[0]
        is_last = node.op_type.startswith("Nhwc") or node.domain.endswith(".nhwc") or _flag(node, "channels_last")
        channels = len(shapes[output]) - 1 if is_last else 1
        positions = [axis for axis in _extents(output, shapes) if axis[1] != channels]
        return [((*positions, *_extents(weight, shapes)), 1.0)]

    return parts


def _of_conv_transpose(place: int) -> Counter:
    """X positions x all weight elements: W is (C, M/group, k...), each input position meets all of them."""

    def parts(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
        source, weight = node.input[0], node.input[place]
        channels = len(shapes[source]) - 1 if node.domain.endswith(".nhwc") else 1
        positions = [axis for axis in _extents(source, shapes) if axis[1] != channels]
        return [((*positions, *_extents(weight, shapes)), 1.0)]

    return parts


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    inner = 0 if _flag(node, "transA") else 1
    return [(((node.input[0], inner), (node.output[0], 0), (node.output[0], 1)), 1.0)]


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    output, rank = node.output[0], len(shapes[node.input[0]])
    swapped = rank > 1 and _flag(node, "transA")
    inner = (node.input[0], rank - (2 if swapped else 1))
    return [((inner, *_extents(output, shapes)), 1.0)]


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """Every index once; the axes that an ellipsis stands for are those of the operand that has most of them."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    seen: dict[str, AxisOf] = {}
    unnamed: list[AxisOf] = []
    for tensor, indices in zip(node.input, equation.split("->")[0].split(","), strict=True):
        before, _, after = indices.partition("...")
        axes = _extents(tensor, shapes)
        ends = len(axes) - len(after)
        for index, axis in zip(before + after, (*axes[: len(before)], *axes[ends:]), strict=True):
            seen.setdefault(index, axis)
        unnamed = max(unnamed, list(axes[len(before) : ends]), key=len)
    return [((*seen.values(), *unnamed), 1.0)]


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """Every step of every row meets all of W (directions, gates x hidden, inputs) and of R (the same, hidden)."""
    steps = ((node.input[0], 0), (node.input[0], 1))
    return [((*steps, *_extents(weight, shapes)), 1.0) for weight in node.input[1:3]]


def _experts(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """Every row meets `k` of the experts, whose weights are (experts, ...); those of QMoE share bytes."""
    k = next((a.i for a in node.attribute if a.name == "k"), 1)
    is_packed = node.op_type == "QMoE"
    bits = next((a.i for a in node.attribute if a.name == "expert_weight_bits"), 4) if is_packed else 8
    places = (2, 5, 8) if is_packed else (2, 4, 6)
    rows = _extents(node.input[0], shapes)[:-1]
    weights = [name for name in (input_at(node, place) for place in places) if name]
    return [((*rows, *_extents(name, shapes)[1:]), k * 8 / bits) for name in weights]


def _flag(node: onnx.NodeProto, name: str) -> bool:
    return any(a.name == name and a.i for a in node.attribute)


def _lengths(node: onnx.NodeProto, shapes: Shapes, keys: AxisOf, past: AxisOf, present: AxisOf) -> list[AxisOf]:
    """Axes whose extents add up to the positions attended to; `past` and `present` may have empty names."""
    if present[0] and present[0] in shapes:
        return [present]
    return [keys, past] if past[0] else [keys]


def _pairs(lengths: list[AxisOf], *products: tuple[AxisOf, ...]) -> list[Part]:
    return [((*product, length), 1.0) for length in lengths for product in products]


def _extents(name: str, shapes: Shapes) -> tuple[AxisOf, ...]:
    return tuple((name, axis) for axis in range(len(shapes[name])))


def _present(node: onnx.NodeProto, axis: int) -> AxisOf:
    return (node.output[1] if len(node.output) > 1 else "", axis)


def _standard(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """Attention of ONNX: (batch, heads, sequence, dims) or (batch, sequence, heads times dims)."""
    if node.domain == "com.microsoft":
        return _fused_projection(node, shapes)
    keys = (node.input[1], len(shapes[node.input[1]]) - 2)
    lengths = _lengths(node, shapes, keys, (input_at(node, 4), 2), _present(node, 2))
    return _pairs(lengths, _extents(node.input[0], shapes), _extents(node.output[0], shapes))


def _fused_projection(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """Attention of onnxruntime: the output has the values' dims, its weight twice the queries' more."""
    source, weight, output = node.input[0], node.input[1], node.output[0]
    rows = ((source, 0), (source, 1))
    parts: list[Part] = [((*rows, (weight, 0), (weight, 1)), 1.0)]
    past = input_at(node, 8 if node.op_type == "QAttention" else 4)
    for length in _lengths(node, shapes, (source, 1), (past, 3), _present(node, 3)):
        parts += [((*rows, length, (weight, 1)), 0.5), ((*rows, length, (output, 2)), 0.5)]
    return parts


def _multi_head(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """MultiHeadAttention: keys may be packed with queries or values, or come as (batch, heads, sequence, dims)."""
    query, keys = node.input[0], input_at(node, 1) or node.input[0]
    rows = tuple(axis for axis in _extents(query, shapes) if len(shapes[query]) == 3 or axis[1] != 3)
    own = (keys, 2 if len(shapes[keys]) == 4 else 1)
    lengths = _lengths(node, shapes, own, (input_at(node, 6), 2), _present(node, 2))
    return _pairs(lengths, rows, _extents(node.output[0], shapes))


def _group_query(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """GroupQueryAttention: queries have the dims of the output, whether keys and values are packed with them or not."""
    keys = (input_at(node, 1) or node.input[0], 1)
    output = _extents(node.output[0], shapes)
    return _pairs(_lengths(node, shapes, keys, (input_at(node, 3), 2), _present(node, 2)), output, output)


RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
"""Layers that run once for every step of their input's first axis, or its second where their `layout` is 1."""

_COUNTERS: Mapping[str, Counter] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvInteger", "DeformConv"), _of_conv(1)),
    "QLinearConv": _of_conv(3),
    **dict.fromkeys(("ConvTranspose", "ConvTransposeWithDynamicPads"), _of_conv_transpose(1)),
    "QLinearConvTranspose": _of_conv_transpose(3),
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm", "GemmFloat8"), _gemm),
    **dict.fromkeys(("MatMul", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "GemmFastGelu"), _matmul),
    **dict.fromkeys(("MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("DynamicQuantizeMatMul", "QOrderedMatMul", "SparseToDenseMatMul"), _matmul),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulFpQ4"), _matmul),
    **dict.fromkeys(("MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight"), _matmul),
    "Einsum": _einsum,
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(("MoE", "QMoE"), _experts),
    "Attention": _standard,
    "QAttention": _fused_projection,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
}
"""How operators multiply and accumulate. In attention a pair of positions costs the dims of all query heads, for the
logit, and those of all values."""

_UNCOUNTED = frozenset(
    (
        *("LinearAttention", "CausalConvWithState", "VarlenCausalConvWithState", "GatedDeltaNet", "AttnLSTM"),
        *("DecoderAttention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "LongformerAttention"),
        *("PackedAttention", "PackedMultiHeadAttention", "PagedAttention", "SparseAttention", "SparsePagedAttention"),
        *("DynamicSparseAttention", "QOrderedAttention", "QOrderedLongformerAttention", "MatMulNBitsMlp"),
        *("MatMulNBitsQkv", "WordConvEmbedding", "EPContext", "DFT", "STFT", "Rfft", "Irfft", "CDist"),
    )
)
"""Operators that multiply and accumulate in ways without a formula here."""

_FREE = frozenset(
    (
        *("BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "FastGelu", "Gelu", "QuickGelu"),
        *("GroupNorm", "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("EmbedLayerNormalization", "QEmbedLayerNormalization", "TorchEmbedding", "GatherBlockQuantized", "GatherND"),
        *("QuantizeLinear", "DequantizeLinear", "RotaryEmbedding", "GemmaRotaryEmbedding", "MRotaryEmbedding"),
        *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearWhere", "MulInteger", "ComplexMul", "Trilu", "Pad"),
        *("RelativePositionBias", "ExpandDims", "Range", "Unique", "NhwcMaxPool", "MaxpoolWithMask", "ReorderInput"),
    )
)
"""Operators of onnxruntime that may read constants of two axes and don't multiply and accumulate."""
