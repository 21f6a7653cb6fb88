"""Moments of a large model, block by block: no more of it is in memory at a time than a few layers.

The samples walk through the graph; what one block leaves is what the next starts from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx.calibration.moments import MomentRequest, Moments, Squares, View
from snp_onnx.calibration.segments import Frontier
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.calibration.walk import Walk
from snp_onnx.external import byte_count, release
from snp_onnx.tracing.op import read_by

Array = NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

BLOCK = 256 * 2**20
"""Bytes of weights and Gram matrices that a block may have, unless one layer has more."""

FLOATS = 3
"""A Gram matrix is there in float32, as the runtime gives it, and in float64."""


def collect_in_blocks(
    model: onnx.ModelProto,
    requests: Sequence[MomentRequest],
    shapes: Shapes,
    samples: int,
    feeds: Iterable[Mapping[str, Array]],
    runtime: Runtime,
    keep: Callable[[Array], Array],
    progress: Callable[[int, int], None],
) -> dict[str, Moments]:
    """What `collect` gives, of a model whose weights lie in files; `keep` puts each Gram matrix where it stays.

    `shapes` are those of one sample's tensors, as far as they are known: where `samples` of them have fewer rows than
    columns, rows are kept in place of the Gram matrix. `progress` hears how many requests are answered, of how many.
    """
    unique = list({request.key: request for request in requests}.values())
    few = frozenset(request.key for request in unique if _is_few(request, shapes, samples))
    found: dict[str, Moments] = {}
    with Walk(model, feeds, runtime) as walk:
        ordered = _in_graph_order(model.graph, unique)
        progress(0, len(ordered))
        for block in _blocks(model.graph, ordered, shapes, few):
            later = [name for r in ordered[len(found) + len(block) :] for name in _wanted(r)]
            for key, moments in walk.run(block, later, as_rows=few).items():
                found[key] = _kept(moments, keep)
            progress(len(found), len(ordered))
    return found


def _wanted(request: MomentRequest) -> list[str]:
    return [name for name in (request.tensor, request.cross_with, request.row_mask) if name is not None]


def _is_few(request: MomentRequest, shapes: Shapes, samples: int) -> bool:
    """Whether the rows take less room than the Gram matrix and the dual form can be used."""
    if request.view is not View.CHANNELS or request.slots or request.cross_with or request.squares is not Squares.GRAM:
        return False
    if request.tensor not in shapes:
        return False
    shape = shapes[request.tensor]
    positions = int(np.prod([extent for axis, extent in enumerate(shape) if axis not in (0, request.axis)]))
    return samples * positions < shape[request.axis]


def _in_graph_order(graph: onnx.GraphProto, requests: Sequence[MomentRequest]) -> list[MomentRequest]:
    made = {name: index for index, node in enumerate(graph.node) for name in node.output}
    return sorted(requests, key=lambda request: max(made.get(name, -1) for name in _wanted(request)))


def _blocks(
    graph: onnx.GraphProto, requests: Sequence[MomentRequest], shapes: Shapes, few: frozenset[str]
) -> Iterator[list[MomentRequest]]:
    """Requests in order, as many at a time as a block may have."""
    frontier = Frontier(graph)
    sizes = {tensor.name: byte_count(tensor) for tensor in graph.initializer}
    block: list[MomentRequest] = []
    taken = 0
    for request in requests:
        stretch = frontier.needed(_wanted(request))
        read = {name for index in stretch.nodes for name in read_by(graph.node[index])}
        columns = shapes[request.tensor][request.axis] * request.taps if request.tensor in shapes else 0
        own = sum(sizes.get(name, 0) for name in read)
        own += 0 if request.key in few or request.squares is not Squares.GRAM else FLOATS * 4 * columns * columns
        if block and taken + own > BLOCK:
            yield block
            block, taken = [], 0
        block.append(request)
        taken += own
        frontier.advance(stretch)
    if block:
        yield block


def _kept(moments: Moments, keep: Callable[[Array], Array]) -> Moments:
    """The moments with their largest part in a file; whether it is finite is known from now on, without reading it."""
    finite = moments.is_finite
    if moments.gram_sum is None:
        return moments if moments.rows is None else replace(moments, rows=keep(moments.rows), was_finite=finite)
    gram = keep(moments.gram_sum)
    release(gram)
    return replace(moments, gram_sum=gram, was_finite=finite)
