"""Sums inside a fused normalisation get a name, so that a refit can aim at them; unread ones lose it at the end.

SkipLayerNormalization adds a layer's output, the residual stream and a bias before it normalises. Its fourth output is
that sum; onnxruntime's optimiser asks for it only where something else reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Outcome, Pass, fresh_name

_SUMMING = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_SUM = 3


@dataclass(frozen=True, slots=True)
class NameSums(Pass):
    """Ask every normalisation of a sum for the sum."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        named = 0
        for node in _summing(graph):
            if len(node.outputs) <= _SUM or not node.outputs[_SUM].name:
                outputs = list(node.outputs)[:_SUM]
                outputs += [gs.Variable.empty() for _ in range(_SUM - len(outputs))]
                outputs.append(gs.Variable(fresh_name(graph, f"{outputs[0].name}_sum"), outputs[0].dtype))
                node.outputs = outputs
                named += 1
        return Outcome(named > 0)


def drop_unread_sums(graph: gs.Graph) -> bool:
    """Take back what nothing reads: outputs at the end of a normalisation of a sum."""
    kept = {id(tensor) for g in (graph, *graph.subgraphs(recursive=True)) for tensor in g.outputs}
    dropped = False
    for node in _summing(graph):
        while len(node.outputs) > 1 and not node.outputs[-1].outputs and id(node.outputs[-1]) not in kept:
            dropped = dropped or bool(node.outputs[-1].name)
            node.outputs.pop()
    return dropped


def _summing(graph: gs.Graph) -> list[gs.Node]:
    return [node for node in graph.nodes if node.domain == "com.microsoft" and node.op in _SUMMING]
