"""Constant nodes that hold a tensor become initialisers, so that one mechanism cuts both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Outcome


@dataclass(frozen=True, slots=True)
class LiftConstants:
    """Replace Constant nodes of the main graph by initialisers of the same name."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        lifted = 0
        kept_as_output = {id(tensor) for tensor in graph.outputs}
        for node in [node for node in graph.nodes if node.op == "Constant" and node.domain in (None, "", "ai.onnx")]:
            values = _held(node)
            output = node.outputs[0]
            if values is None or id(output) in kept_as_output:
                continue
            constant = gs.Constant(output.name, values)
            for consumer in list(output.outputs):
                for place, tensor in enumerate(consumer.inputs):
                    if tensor is output:
                        consumer.inputs[place] = constant
            if not _read_in_subgraph(graph, output.name):
                node.outputs.clear()
                graph.nodes.remove(node)
                lifted += 1
        return Outcome(lifted > 0)


def _held(node: gs.Node) -> np.ndarray | None:
    attrs = node.attrs
    if isinstance(attrs.get("value"), gs.Constant):
        return np.asarray(attrs["value"].values)
    if "value_int" in attrs or "value_ints" in attrs:
        return np.asarray(attrs.get("value_int", attrs.get("value_ints")), dtype=np.int64)
    if "value_float" in attrs or "value_floats" in attrs:
        return np.asarray(attrs.get("value_float", attrs.get("value_floats")), dtype=np.float32)
    return None


def _read_in_subgraph(graph: gs.Graph, name: str) -> bool:
    return any(
        tensor.name == name
        for subgraph in graph.subgraphs(recursive=True)
        for node in subgraph.nodes
        for tensor in node.inputs
    )
