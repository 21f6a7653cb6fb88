"""Freeze: numbers that a graph computes from the length of an axis are written out, so that they don't follow a cut.

The scale of an attention, 1 / sqrt(d), must not change with the dimensions that are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name


@dataclass(frozen=True, slots=True, eq=False)
class FreezeNumbers(Pass):
    """Give nodes constants for operands: values by the node's first output and the operand's place."""

    values: Mapping[tuple[str, int], npt.NDArray[np.generic]]

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        nodes = {next((t.name for t in node.outputs if t.name), ""): node for node in graph.nodes}
        for (output, place), value in self.values.items():
            node = nodes.get(output)
            if node is None or not isinstance(node.inputs[place], gs.Variable):
                continue
            name = fresh_name(graph, f"{node.inputs[place].name}_frozen")
            node.inputs[place] = gs.Constant(name, np.asarray(value))
            notes.append(Note(node.name or output, "a scale computed from the dimensions of a head is written out"))
        return Outcome(bool(notes), tuple(notes))

    def requires(self, graph: gs.Graph) -> str:
        given = {tensor.name for node in graph.nodes for tensor in node.outputs}
        missing = sorted({output for output, _ in self.values} - given)
        return f"no node gives {missing[0]}" if missing else ""
