"""Parameters and bytes: the weights of a model, wherever they stand and however they are stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import onnx

from snp_onnx.cost.terms import DOMAINS, STANDARD, AxisOf, Term, input_at
from snp_onnx.external import bodies_of

FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
)

NARROW = frozenset(
    number
    for name, number in onnx.TensorProto.DataType.items()
    if name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2") or name.startswith(("FLOAT8", "FLOAT4"))
)
"""Element types that quantised weights are stored in."""


def param_terms(model: onnx.ModelProto) -> list[Term]:
    """Elements of every floating-point weight: initialisers, Constant nodes, and those of bodies of If, Loop and Scan.

    A quantised weight counts like the floats it stands for, and scales and zero points don't. Weights of bodies and
    sparse ones keep their sizes.
    """
    terms = [Term(name, _all_axes(name, t), share) for name, t, share in _parameters(model.graph)]
    for graph in (model.graph, *_bodies_below(model.graph)):
        still = list(_parameters(graph)) if graph is not model.graph else []
        still += [(s.values.name, s.values, 1.0) for s in graph.sparse_initializer if s.values.data_type in FLOATS]
        terms += [Term(name, (), share * math.prod(t.dims)) for name, t, share in still]
    return terms


def _bodies_below(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for _, body in bodies_of(node):
            yield body
            yield from _bodies_below(body)


def _parameters(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto, float]]:
    """The parameters of one graph, bodies apart: name, tensor, and parameters in one element."""
    stored, scales, packed = _quantised(graph)
    for name, tensor in constants_of(graph):
        is_code = name in stored or (tensor.data_type in NARROW and len(tensor.dims) > 1)
        if (tensor.data_type in FLOATS or is_code) and name not in scales:
            yield name, tensor, packed.get(name, 1.0)


def _quantised(graph: onnx.GraphProto) -> tuple[set[str], set[str], dict[str, float]]:
    """Tensors that hold codes, tensors that hold scales or zero points, and how many codes an element holds."""
    stored: set[str] = set()
    scales = _scales_of_casts(graph)
    packed: dict[str, float] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            stored.add(node.input[0])
            scales.update(node.input[1:])
        elif node.domain in DOMAINS and node.op_type in _CODES:
            codes, others = _CODES[node.op_type]
            stored.update(input_at(node, place) for place in codes)
            scales.update(input_at(node, place) for place in others)
            packed.update({input_at(node, place): _codes_in_one(node) for place in codes})
    return stored, scales - {""}, packed


def _scales_of_casts(graph: onnx.GraphProto) -> set[str]:
    """Scales and zero points, in (codes - zero point) * scale, of codes that a Cast makes floats."""
    sizes = {name: math.prod(tensor.dims) for name, tensor in constants_of(graph)}
    codes = {name: sizes[name] for name, tensor in constants_of(graph) if tensor.data_type in NARROW}
    held: dict[str, str] = {}  # by what Casts make of a constant
    scales: set[str] = set()
    for node in graph.node:
        known = [name for name in node.input if name in codes]
        if node.op_type == "Cast" and not known:
            held[node.output[0]] = held.get(node.input[0], node.input[0])
        if node.op_type not in ("Cast", "Identity", "Sub", "Mul") or not known:
            continue
        size = max(codes[name] for name in known)
        operands = [held.get(name, name) for name in node.input if len(node.input) == 2]
        scales.update(name for name in operands if sizes.get(name, size) < size)
        if node.op_type != "Mul":
            codes[node.output[0]] = size
    return scales


def _codes_in_one(node: onnx.NodeProto) -> float:
    """How many codes an element of a packed weight holds."""
    if node.op_type in ("MatMulBnb4", "MatMulFpQ4"):
        return 2.0
    bits = next((a.i for a in node.attribute if a.name in ("bits", "expert_weight_bits")), 4)
    return 8 / bits if node.op_type in ("MatMulNBits", "QMoE") else 1.0


_CODES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "QLinearConv": ((3, 8), (1, 2, 4, 5, 6, 7)),
    "QLinearConvTranspose": ((3, 8), (1, 2, 4, 5, 6, 7)),
    "QLinearMatMul": ((3,), (1, 2, 4, 5, 6, 7)),
    "QGemm": ((3, 6), (1, 2, 4, 5, 7, 8)),
    "ConvInteger": ((1,), (2, 3)),
    "MatMulInteger": ((1,), (2, 3)),
    "MatMulInteger16": ((1,), ()),
    "MatMulIntegerToFloat": ((1,), (2, 3, 4, 5)),
    "DynamicQuantizeMatMul": ((1,), (2, 3)),
    "DynamicQuantizeLSTM": ((1, 2), (8, 9, 10, 11)),
    "QAttention": ((1,), (3, 4, 6, 7)),
    "QEmbedLayerNormalization": ((2, 3, 4, 5, 6), tuple(range(8, 18))),
    "MatMulNBits": ((1,), (2, 3)),
    "MatMulBnb4": ((1,), (2,)),
    "MatMulFpQ4": ((1,), ()),
    "QMoE": ((2, 5, 8), (3, 6, 9, 11, 12, 13)),
    "GatherBlockQuantized": ((0,), (2, 3)),
}
"""The inputs of operators that read quantised weights: places of codes, and of scales and zero points."""


def byte_terms(model: onnx.ModelProto) -> list[Term]:
    """Bytes of the weights whose axes could shrink; the rest of the file is a constant that the caller measures."""
    return [Term(name, _all_axes(name, t), item_bytes(t.data_type)) for name, t in weights(model)]


def weights(model: onnx.ModelProto) -> Sequence[tuple[str, onnx.TensorProto]]:
    """Initialisers and tensors of Constant nodes of the main graph, by name."""
    return list(constants_of(model.graph))


def constants_of(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initialisers and tensors of Constant nodes of one graph, bodies apart, by name."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in STANDARD:
            continue
        for a in node.attribute:
            if a.name == "value":
                yield node.output[0], a.t
            elif a.name == "value_floats":
                kind = onnx.TensorProto.FLOAT
                yield node.output[0], onnx.TensorProto(data_type=kind, dims=[len(a.floats)], float_data=a.floats)


def is_matrix(tensor: onnx.TensorProto) -> bool:
    """Whether a constant may be a layer's weight: floats or codes of quantised ones, along two axes or more."""
    return tensor.data_type in FLOATS | NARROW and sum(extent > 1 for extent in tensor.dims) > 1


def item_bytes(data_type: int) -> float:
    """Bytes of one element as stored; 4-bit types take half a byte."""
    if data_type in (onnx.TensorProto.UINT4, onnx.TensorProto.INT4):
        return 0.5
    return float(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _all_axes(name: str, tensor: onnx.TensorProto) -> tuple[AxisOf, ...]:
    return tuple((name, axis) for axis in range(len(tensor.dims)))
