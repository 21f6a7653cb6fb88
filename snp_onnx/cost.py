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
    columns. Einsum: the product of all its indices. Nodes with unknown shapes cost nothing here.
    """
    terms = []
    for node in model.graph.node:
        rule = _FACTORS.get(node.op_type) if node.domain in ("", "ai.onnx", "com.microsoft") else None
        names = [name for name in (*node.input, node.output[0] if node.output else "") if name]
        if rule is not None and all(name in shapes for name in names):
            name = node.name or f"{node.op_type}({node.output[0]})"
            terms.append(Term(name, tuple(rule(node, shapes))))
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
    output = node.output[0]
    inner = (node.input[0], len(shapes[node.input[0]]) - 1)
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


def param_terms(model: onnx.ModelProto) -> list[Term]:
    """Elements of every floating-point initialiser, and of Constant nodes that hold more than a scalar."""
    return [Term(name, _all_axes(name, t), 1.0) for name, t in weights(model) if t.data_type in FLOATS]


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
