"""Where a walk is cut: which tensors are kept for the rest of it, and which nodes are rather run again.

A minimum cut: to keep a tensor costs its writing and reading, to run a node again its work; what the rest needs must
follow from what is kept. So a narrow tensor is kept in place of the wide one that a cheap layer makes of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import onnx
from scipy import sparse
from scipy.sparse import csgraph

from snp_onnx.tracing.op import read_by

KEPT_ELEMENT = 4.0
"""What it costs to write and read an element, in nanoseconds: between memory and a disk."""

MADE_ELEMENT, MULTIPLICATION = 0.6, 0.008
"""What it costs to make an element again, and each multiplication for it."""

ENDLESS = 2**30
MOST = 2.0**28
"""Of all finite capacities together: the runtime of the flow counts in 32 bits."""

START, END = 0, 1


@dataclass(frozen=True, slots=True)
class Sizes:
    """Elements of one sample's tensors, as far as they are known, and the weights' shapes."""

    elements: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def keeping(self, tensor: str) -> float:
        """What it costs to keep a tensor; nothing where its size isn't known."""
        return KEPT_ELEMENT * self.elements.get(tensor, 0.0)

    def making(self, node: onnx.NodeProto) -> float:
        """What it costs to run a node again."""
        made = sum(self.elements.get(name, 0.0) for name in node.output)
        shape = self.weights.get(node.input[1], ()) if len(node.input) > 1 else ()
        if node.op_type == "Conv" and shape:
            return made * (MADE_ELEMENT + MULTIPLICATION * float(np.prod(shape[1:])))
        if node.op_type in ("Gemm", "MatMul") and shape:
            return made * (MADE_ELEMENT + MULTIPLICATION * float(min(shape)))
        return made * MADE_ELEMENT


def to_run_again(
    nodes: Mapping[int, onnx.NodeProto],
    held: Collection[int],
    asked: Set[str],
    read: Collection[str],
    sizes: Sizes,
) -> list[int]:
    """Which of these nodes, just run, had better be run again: all of `held`, and what is cheaper so.

    Among their outputs, others read those of `read` later. Those of `asked` are wanted themselves, and often: they are
    kept, unless they change.
    """
    if not sizes.elements:
        return sorted(held)
    place = {index: number for number, index in enumerate(nodes, 2)}
    tensors = {name: len(place) + 2 + number for number, name in enumerate(_outputs(nodes))}
    edges: list[tuple[int, int, float]] = []
    for index, node in nodes.items():
        is_kept = index not in held and not asked.isdisjoint(node.output)
        edges.append((START, place[index], np.inf if is_kept else max(1.0, sizes.making(node))))
        edges += [(place[index], tensors[name], max(1.0, sizes.keeping(name))) for name in node.output if name]
        edges += [(tensors[name], place[index], np.inf) for name in read_by(node) if name in tensors]
    edges += [(place[index], END, np.inf) for index in held if index in place]
    edges += [(tensors[name], END, np.inf) for name in {*asked, *read} if name in tensors]
    after = _before_the_end(edges, len(place) + len(tensors) + 2)
    return sorted({*held, *(index for index in nodes if place[index] in after)})


def _outputs(nodes: Mapping[int, onnx.NodeProto]) -> list[str]:
    return [name for node in nodes.values() for name in node.output if name]


def _before_the_end(edges: Sequence[tuple[int, int, float]], count: int) -> set[int]:
    """The smaller side of a minimum cut that has `END`."""
    source, sink, cost = (np.array(column) for column in zip(*edges, strict=True))
    finite = np.isfinite(cost)
    scale = min(1.0, MOST / float(cost[finite].sum()))
    capacity = np.where(finite, np.maximum(np.where(finite, cost, 0.0) * scale, 1.0), ENDLESS).astype(np.int32)
    graph = sparse.csr_array((capacity, (source, sink)), shape=(count, count), dtype=np.int32)
    left = graph - csgraph.maximum_flow(graph, START, END).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = csgraph.breadth_first_order(left.T.tocsr(), END, return_predecessors=False)
    return set(reached.tolist())
