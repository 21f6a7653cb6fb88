"""Blocks are removed: what read their output reads their input; and the Identity nodes that this leaves go at the end.

An Identity keeps the name of the output, because a refit looks for it beside the dense model's. What only the block
needed is dead then, and `EliminateDead` drops it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name, insert_before, replace_node
from snp_onnx.tracing.blocks import Block


@dataclass(frozen=True, slots=True)
class RemoveBlocks(Pass):
    """Give the output of each block, which can go, as a copy of its input."""

    blocks: tuple[Block, ...]

    def requires(self, graph: gs.Graph) -> str:
        tensors = graph.tensors()
        for block in self.blocks:
            if not block.is_removable:
                return f"block {block.name} can't be removed: {block.reason}"
            missing = [name for name in (block.input, block.output) if name not in tensors]
            if missing:
                return f"block {block.name} isn't in this graph: there is no tensor {missing[0]}"
        return ""

    def __call__(self, graph: gs.Graph) -> Outcome:
        tensors = graph.tensors()
        within = {part for block in self.blocks for part in block.parts}
        whole = [block for block in self.blocks if block.name not in within]
        notes = [Note(block.name, f"{block.kind} block removed") for block in whole if _remove(graph, tensors, block)]
        return Outcome(bool(notes), tuple(notes))


def _remove(graph: gs.Graph, tensors: dict[str, gs.Tensor], block: Block) -> bool:
    source, output = tensors[block.input], tensors[block.output]
    maker = output.inputs[0]
    if maker.op == "Identity" and maker.inputs[0] is source:
        return False
    place = next(index for index, tensor in enumerate(maker.outputs) if tensor is output)
    maker.outputs[place] = gs.Variable(fresh_name(graph, f"{output.name}_removed"), output.dtype)
    insert_before(graph, maker, gs.Node("Identity", f"{block.name}/removed", inputs=[source], outputs=[output]))
    return True


@dataclass(frozen=True, slots=True)
class DropIdentities(Pass):
    """Take out the Identity nodes that give these tensors; one that gives an output of a graph or a body stays."""

    tensors: frozenset[str]

    @classmethod
    def after(cls, blocks: Iterable[Block]) -> DropIdentities:
        """What is left of removed blocks."""
        return cls(frozenset(block.output for block in blocks))

    def __call__(self, graph: gs.Graph) -> Outcome:
        bodies = (graph, *graph.subgraphs(recursive=True))
        shown = {tensor.name for body in bodies for tensor in body.outputs}  # a body's are no objects of the graph
        mine = self.tensors - shown
        found = [node for node in graph.nodes if node.op == "Identity" and node.outputs[0].name in mine]
        for node in found:
            replace_node(graph, node, node.inputs[0])
        return Outcome(bool(found))
