"""Nodes and initialisers that no output needs are dropped."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Outcome, Pass
from snp_onnx.passes.name_sums import drop_unread_sums


@dataclass(frozen=True, slots=True)
class EliminateDead(Pass):
    """Remove what doesn't reach a graph output; inputs stay, used or not."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        before = len(graph.nodes), len(graph.tensors())
        graph.cleanup(remove_unused_graph_inputs=False)
        dropped = drop_unread_sums(graph)
        return Outcome(dropped or before != (len(graph.nodes), len(graph.tensors())))

    def ensures(self, graph: gs.Graph) -> str:
        shown = {tensor.name for body in (graph, *graph.subgraphs(recursive=True)) for tensor in body.outputs}
        for node in graph.nodes:
            if not any(tensor.outputs or tensor.name in shown for tensor in node.outputs):
                return f"nothing reads what node {node.name or node.op} gives"
        return ""
