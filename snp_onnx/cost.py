"""Costs: MACs, parameters and bytes, as sums of products of axis extents.

Every cost is a list of terms, `scale * product of the extents of some (tensor, axis)`. The same terms give the cost of
the model as it is and, with the extents a plan leaves, of the pruned one: a node's cost follows both of its widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

AxisOf = tuple[str, int]
Shapes = Mapping[str, tuple[int, ...]]
Part = tuple[tuple[AxisOf, ...], float]

FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
)


@dataclass(frozen=True, slots=True)
class Term:
    """`scale` times the extents of `factors`; `name` is the node or initialiser it belongs to."""

    name: str
    factors: tuple[AxisOf, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs: multiply-accumulates at the recorded input shapes, floating-point elements, bytes on disk."""

    macs: int
    params: int
    bytes: int


def total(terms: Iterable[Term], extent: Callable[[str, int], int]) -> int:
    """The sum of the terms for given extents.

    >>> total([Term("a", (("w", 0), ("w", 1)), 2.0)], lambda tensor, axis: 3)
    18
    """
    result = 0.0
    for term in terms:
        product = term.scale
        for tensor, axis in term.factors:
            product *= extent(tensor, axis)
        result += product
    return round(result)


def mac_terms(model: onnx.ModelProto, shapes: Shapes) -> list[Term]:
    """One term for each node that multiplies and accumulates, at the given tensor shapes.

    Conv and ConvTranspose: output (or input) positions times the weight's elements. Gemm, MatMul: rows x inner x
    columns. Einsum: the product of all its indices. Attention: logits and weighted values over all positions, masked
    or not, and the projection where it is inside. Nodes with unknown shapes cost nothing here.
    """
    terms = []
    for node in model.graph.node:
        is_known = node.domain in ("", "ai.onnx", "com.microsoft")
        names = [name for name in (*node.input, node.output[0] if node.output else "") if name]
        if not is_known or not all(name in shapes for name in names):
            continue
        name = node.name or f"{node.op_type}({next(iter(node.output), '')})"
        if node.op_type in _FACTORS:
            terms.append(Term(name, tuple(_FACTORS[node.op_type](node, shapes))))
        elif node.op_type in _PARTS:
            terms += [Term(name, factors, scale) for factors, scale in _PARTS[node.op_type](node, shapes)]
    return terms


def _conv(node: onnx.NodeProto, shapes: Shapes) -> list[AxisOf]:
    """Y positions x all weight elements: W is (M, C/group, k...), Y is (N, M, d...)."""
    weight, output = node.input[1], node.output[0]
    positions = [(output, axis) for axis in range(len(shapes[output])) if axis != 1]
    return positions + [(weight, axis) for axis in range(len(shapes[weight]))]


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> list[AxisOf]:
    """X positions x all weight elements: W is (C, M/group, k...), each input position meets all of them."""
    source, weight = node.input[0], node.input[1]
    positions = [(source, axis) for axis in range(len(shapes[source])) if axis != 1]
    return positions + [(weight, axis) for axis in range(len(shapes[weight]))]


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> list[AxisOf]:
    flags = {a.name: a.i for a in node.attribute}
    inner = 0 if flags.get("transA") else 1
    return [(node.input[0], inner), (node.output[0], 0), (node.output[0], 1)]


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> list[AxisOf]:
    output, rank = node.output[0], len(shapes[node.input[0]])
    swapped = rank > 1 and any(a.name == "transA" and a.i for a in node.attribute)
    inner = (node.input[0], rank - (2 if swapped else 1))
    return [inner, *((output, axis) for axis in range(len(shapes[output])))]


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> list[AxisOf]:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    seen: dict[str, AxisOf] = {}
    for tensor, indices in zip(node.input, equation.split("->")[0].split(","), strict=True):
        if "." in indices:
            continue
        for axis, index in enumerate(indices):
            seen.setdefault(index, (tensor, axis))
    return list(seen.values())


_FACTORS: Mapping[str, Callable[[onnx.NodeProto, Shapes], list[AxisOf]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "Einsum": _einsum,
}


def _input(node: onnx.NodeProto, place: int) -> str:
    return node.input[place] if place < len(node.input) else ""


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
    lengths = _lengths(node, shapes, keys, (_input(node, 4), 2), _present(node, 2))
    return _pairs(lengths, _extents(node.input[0], shapes), _extents(node.output[0], shapes))


def _fused_projection(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """Attention of onnxruntime: the output has the values' dims, its weight twice the queries' more."""
    source, weight, output = node.input[0], node.input[1], node.output[0]
    rows = ((source, 0), (source, 1))
    parts: list[Part] = [((*rows, (weight, 0), (weight, 1)), 1.0)]
    for length in _lengths(node, shapes, (source, 1), (_input(node, 4), 3), _present(node, 3)):
        parts += [((*rows, length, (weight, 1)), 0.5), ((*rows, length, (output, 2)), 0.5)]
    return parts


def _multi_head(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """MultiHeadAttention: keys may be packed with queries or values, or come as (batch, heads, sequence, dims)."""
    query, keys = node.input[0], _input(node, 1) or node.input[0]
    rows = tuple(axis for axis in _extents(query, shapes) if len(shapes[query]) == 3 or axis[1] != 3)
    own = (keys, 2 if len(shapes[keys]) == 4 else 1)
    lengths = _lengths(node, shapes, own, (_input(node, 6), 2), _present(node, 2))
    return _pairs(lengths, rows, _extents(node.output[0], shapes))


def _group_query(node: onnx.NodeProto, shapes: Shapes) -> list[Part]:
    """GroupQueryAttention: queries have the dims of the output, whether keys and values are packed with them or not."""
    keys = (_input(node, 1) or node.input[0], 1)
    output = _extents(node.output[0], shapes)
    return _pairs(_lengths(node, shapes, keys, (_input(node, 3), 2), _present(node, 2)), output, output)


_PARTS: Mapping[str, Callable[[onnx.NodeProto, Shapes], list[Part]]] = {
    "Attention": _standard,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
}
"""Attention in one node, as (factors, scale): a pair of positions costs the dims of all query heads, for the logit, and
those of all values."""


def param_terms(model: onnx.ModelProto) -> list[Term]:
    """Elements of every floating-point initialiser, also those of Constant nodes.

    A quantised weight counts like the floats it stands for, and the scales of a quantiser don't.
    """
    quantisers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    stored = {node.input[0] for node in quantisers}
    scales = {name for node in quantisers for name in node.input[1:]}
    return [
        Term(name, _all_axes(name, t), 1.0)
        for name, t in weights(model)
        if (t.data_type in FLOATS or name in stored) and name not in scales
    ]


def byte_terms(model: onnx.ModelProto) -> list[Term]:
    """Bytes of the weights whose axes could shrink; the rest of the file is a constant that the caller measures."""
    return [Term(name, _all_axes(name, t), item_bytes(t.data_type)) for name, t in weights(model)]


def weights(model: onnx.ModelProto) -> Sequence[tuple[str, onnx.TensorProto]]:
    """Initialisers and tensors of Constant nodes, by name."""
    found = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            found += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    return found


def item_bytes(data_type: int) -> float:
    """Bytes of one element as stored; 4-bit types take half a byte."""
    if data_type in (onnx.TensorProto.UINT4, onnx.TensorProto.INT4):
        return 0.5
    return float(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _all_axes(name: str, tensor: onnx.TensorProto) -> tuple[AxisOf, ...]:
    return tuple((name, axis) for axis in range(len(tensor.dims)))
