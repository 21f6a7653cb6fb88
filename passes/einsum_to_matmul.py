"""An Einsum that is a matrix product with a weight becomes a MatMul, so that folds and refits treat it as one.

The last indices of the activation are contracted and those that the weight adds come last:

    ...ij, ijkl -> ...kl      is      Reshape(...i j -> ...(ij)), MatMul by (ij)(kl), Reshape(...(kl) -> ...k l)

Keras writes its projections like this, per head: abc,cde->abde for queries, abcd,cde->abe for the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name, holds_floats, insert_before, replace_values, values_of
from snp_onnx.tracing.rules.einsum import parse


@dataclass(frozen=True, slots=True)
class _Product:
    """Places of the operands, and the axes of the weight in the order (contracted, added)."""

    source: int
    weight: int
    order: tuple[int, ...]
    contracted: int

    @property
    def added(self) -> int:
        return len(self.order) - self.contracted


@dataclass(frozen=True, slots=True)
class EinsumToMatMul(Pass):
    """Rewrite every Einsum of an activation and a weight of its own that is a plain matrix product."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        outputs = {id(tensor) for tensor in graph.outputs}
        for node in [node for node in graph.nodes if node.op == "Einsum" and node.domain in (None, "", "ai.onnx")]:
            product = _product(node)
            if product is None or id(node.inputs[product.weight]) in outputs:
                continue
            _rewrite(graph, node, product)
            notes.append(Note(node.name, "an Einsum written as MatMul"))
        return Outcome(bool(notes), tuple(notes))


def _product(node: gs.Node) -> _Product | None:
    """The product that an equation is; None where it is something else, or the weight isn't this node's alone."""
    terms, result = parse(node.attrs.get("equation", ""))
    constant = [isinstance(tensor, gs.Constant) for tensor in node.inputs]
    if len(terms) != 2 or sorted(constant) != [False, True] or "." in "".join(terms):
        return None
    source, weight = constant.index(False), constant.index(True)
    if not holds_floats(node.inputs[weight]):
        return None
    inner = [index for index in terms[source] if index in terms[weight]]
    rest = terms[source][: len(terms[source]) - len(inner)]
    added = result[len(rest) :]
    plain = terms[source] == rest + "".join(inner) and result == rest + added and inner and added and rest
    distinct = len(set(terms[source] + added)) == len(terms[source] + added)
    if not plain or not distinct or sorted([*inner, *added]) != sorted(terms[weight]):
        return None
    order = tuple(terms[weight].index(index) for index in [*inner, *added])
    if len(node.inputs[weight].outputs) > 1 and (order != (0, 1) or len(order) > 2):
        return None
    return _Product(source, weight, order, len(inner))


def _rewrite(graph: gs.Graph, node: gs.Node, product: _Product) -> None:
    """The node becomes the MatMul; what reshapes its input and output stands around it."""
    source, weight, output = node.inputs[product.source], node.inputs[product.weight], node.outputs[0]
    rest = len(parse(node.attrs["equation"])[1]) - product.added
    extents = [weight.shape[axis] for axis in product.order]
    added = extents[product.contracted :]
    if product.order != (0, 1):
        values = np.asarray(values_of(weight)).transpose(product.order)
        replace_values(weight, values.reshape(int(np.prod(extents[: product.contracted])), -1))
    if product.contracted > 1:
        joined = gs.Variable(fresh_name(graph, f"{output.name}_joined"), output.dtype)
        insert_before(graph, node, _reshape(graph, source, joined, [0] * rest + [-1]))
        source = joined
    multiplied = output
    if product.added > 1:
        multiplied = gs.Variable(fresh_name(graph, f"{output.name}_product"), output.dtype)
    matmul = gs.Node("MatMul", f"{node.name or output.name}_matmul", {}, [source, weight], [multiplied])
    insert_before(graph, node, matmul)
    node.inputs.clear()
    node.outputs.clear()
    if product.added > 1:
        insert_before(graph, node, _reshape(graph, multiplied, output, [0] * rest + added))
    else:
        matmul.outputs[0] = output
    graph.nodes.remove(node)


def _reshape(graph: gs.Graph, source: gs.Tensor, output: gs.Tensor, shape: list[int]) -> gs.Node:
    vector = gs.Constant(fresh_name(graph, f"{output.name}_shape"), np.array(shape, dtype=np.int64))
    return gs.Node("Reshape", f"{output.name}_reshape", {}, [source, vector], [output])
