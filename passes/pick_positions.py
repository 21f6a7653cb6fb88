"""A bias that the scores of several layers share stays whole: each layer picks the heads that it still has."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import fresh_name, insert_before
from snp_onnx.passes.resize import Resizing
from snp_onnx.tracing.op import Op


def pick_positions(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """Where an operand of an Add is longer than what is left of the sum, gather the positions that stay."""
    output = op.outputs[0]
    wanted = resizing.after(output)
    for place, name in enumerate(op.inputs):
        extents, after = resizing.shape(name), resizing.after(name)
        for axis, extent in enumerate(extents):
            aligned = axis + len(wanted) - len(extents)
            if extent > 1 and after[axis] != wanted[aligned]:
                kept = np.flatnonzero(resizing.places(resizing.labels(output, aligned)) >= 0)
                _gather(node, place, axis, kept, resizing.graph)


def _gather(
    node: gs.Node, place: int, axis: int, kept: np.ndarray[tuple[int], np.dtype[np.int64]], graph: gs.Graph
) -> None:
    whole = node.inputs[place]
    picked = gs.Variable(fresh_name(graph, f"{node.outputs[0].name}_{place}_pruned"), whole.dtype)
    indices = gs.Constant(fresh_name(graph, f"{picked.name}_positions"), kept.astype(np.int64))
    insert_before(graph, node, gs.Node("Gather", picked.name, {"axis": axis}, [whole, indices], [picked]))
    node.inputs[place] = picked
