"""Constant nodes become initialisers, and Identity nodes of initialisers go, so that one mechanism cuts all weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Outcome, Pass, replace_node


@dataclass(frozen=True, slots=True)
class LiftConstants(Pass):
    """Replace Constant nodes of the main graph by initialisers of the same name, and Identity nodes by what they copy.

    Exporters write equal parameters once and reach them through Identity; the initialiser is then shared openly.
    """

    def __call__(self, graph: gs.Graph) -> Outcome:
        lifted = 0
        for node, constant in _liftable(graph):  # an Identity of a Constant node comes after it
            replace_node(graph, node, constant)
            lifted += 1
        return Outcome(lifted > 0)

    def ensures(self, graph: gs.Graph) -> str:
        node, _ = next(_liftable(graph), (None, None))
        return "" if node is None else f"{node.op} node {node.name} can still become an initialiser"


def _liftable(graph: gs.Graph) -> Iterator[tuple[gs.Node, gs.Constant]]:
    """The nodes that initialisers can stand for, with these; what an output of a graph or a body shows stays."""
    kept_as_output = {id(tensor) for g in (graph, *graph.subgraphs(recursive=True)) for tensor in g.outputs}
    for node in [node for node in graph.nodes if node.domain in (None, "", "ai.onnx")]:
        constant = _constant(node)
        if constant is not None and id(node.outputs[0]) not in kept_as_output:
            yield node, constant


def _constant(node: gs.Node) -> gs.Constant | None:
    """The initialiser that can stand for the node's output."""
    if node.op == "Identity" and isinstance(node.inputs[0], gs.Constant):
        return node.inputs[0]
    values = _held(node) if node.op == "Constant" else None
    return None if values is None else gs.Constant(node.outputs[0].name, values)


def _held(node: gs.Node) -> np.ndarray | None:
    attrs = node.attrs
    if isinstance(attrs.get("value"), gs.Constant):
        return np.asarray(attrs["value"].values)
    if "value_int" in attrs or "value_ints" in attrs:
        return np.asarray(attrs.get("value_int", attrs.get("value_ints")), dtype=np.int64)
    if "value_float" in attrs or "value_floats" in attrs:
        return np.asarray(attrs.get("value_float", attrs.get("value_floats")), dtype=np.float32)
    return None
