"""Vectors that several nodes share get one copy for each, so that unrelated layers aren't cut together.

Exporters merge equal constants: the zero biases of thirty layers can be one initialiser. A true weight of two or more
axes that is shared is tied by intent, and stays shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, constants, fresh_name, holds_floats, values_of


@dataclass(frozen=True, slots=True)
class SeparateShared(Pass):
    """Copy floating-point constants with at most one axis longer than one that several nodes use."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        outputs = {id(tensor) for tensor in graph.outputs}
        inner = {id(t) for g in graph.subgraphs(recursive=True) for node in g.nodes for t in node.inputs}
        for constant in list(constants(graph)):
            users = list({id(node): node for node in constant.outputs}.values())
            if len(users) < 2 or id(constant) in outputs or id(constant) in inner or not _is_vector(constant):
                continue
            for user in users[1:]:
                copy = gs.Constant(fresh_name(graph, f"{constant.name}_copy"), np.array(values_of(constant)))
                for place, tensor in enumerate(user.inputs):
                    if tensor is constant:
                        user.inputs[place] = copy
            notes.append(Note(constant.name, "shared by several nodes: each has its own copy now"))
        return Outcome(bool(notes), tuple(notes))


def _is_vector(constant: gs.Constant) -> bool:
    long_axes = [extent for extent in constant.shape if extent > 1]
    return len(long_axes) == 1 and holds_floats(constant)
