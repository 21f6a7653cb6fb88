"""Ranking blocks: how alike the representation stays when one block is removed.

The network is walked once. Where a block starts, the activations that lie there are kept, and without the block only
what comes after it is run from them: of n equal blocks half of n passes altogether, and the walk itself gives the
representation of the dense network. Score of layer pruning: arXiv 2405.17081, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx.calibration.boundaries import Boundaries
from snp_onnx.calibration.segments import Frontier, Stretch, piece
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.errors import CalibrationError
from snp_onnx.subspace.similarity import Similarity, similarity
from snp_onnx.tracing.blocks import Block
from snp_onnx.tracing.padding import has_rows_of
from snp_onnx.tracing.representation import Representation

Array = NDArray[Any]
Feed = Mapping[str, Array]

RANKING_SAMPLES = 256
MOST_ROWS = 2**14
"""Positions that are compared, spread evenly: far more than there are features."""
MOST_FEATURES = 2**16
"""Features of a sample that are compared, spread evenly."""
LAST = -np.inf
"""The similarity of what can't be judged: it ranks behind everything else."""

_DENSE = "dense"


def ranking_batches(batches: Iterable[Feed], samples: int = RANKING_SAMPLES) -> Iterator[Feed]:
    """The first whole batches that hold at least so many samples."""
    count = 0
    for batch in batches:
        yield batch
        count += max((len(values) for values in batch.values() if np.ndim(values)), default=1)
        if count >= samples:
            return


def block_similarities(
    model: onnx.ModelProto,
    blocks: Sequence[Block],
    representation: Representation,
    feeds: Iterable[Feed],
    runtime: Runtime,
    measure: Similarity = Similarity.CKA,
    mask: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    reference: Array | None = None,
) -> dict[str, float]:
    """By name of each removable block, how alike the representation without it is to a reference.

    The reference is the model's own representation unless that of another model is given (`represented`).
    `blocks` are the model's; those that can't go are left out. Where the representation has positions, those that are 0
    in the input `mask` don't count. -inf for a block that the representation doesn't depend on, or without which it
    isn't finite. `progress` hears how many blocks of how many are done. CalibrationError if the model's own
    representation isn't finite or there are too few samples.
    """
    blocks = [block for block in blocks if block.is_removable]
    with Boundaries() as held, Boundaries() as shown:
        ranking = _Ranking(model, representation, runtime, held, shown, mask)
        ranking.read(feeds)
        reaching = [block for block in blocks if ranking.depends_on(block)]
        waiting = sorted(reaching, key=ranking.start)
        done = 0
        for start, group in groupby(waiting, key=ranking.start):
            ranking.advance(start, [block.input for block in waiting[done:]])
            for block in group:
                ranking.show(block)
                done += 1
                if progress is not None:
                    progress(done, len(waiting))
        if reference is None:
            reference = ranking.shown()
        found = ranking.compare([block.name for block in reaching], measure, reference)
    return {block.name: found.get(block.name, LAST) for block in blocks}


def represented(
    model: onnx.ModelProto,
    representation: Representation,
    feeds: Iterable[Feed],
    runtime: Runtime,
    mask: str | None = None,
) -> Array:
    """A model's representation of the samples, (rows, features), as `block_similarities` compares it."""
    with Boundaries() as held, Boundaries() as shown:
        ranking = _Ranking(model, representation, runtime, held, shown, mask)
        ranking.read(feeds)
        return ranking.shown()


class _Ranking:
    """A walk that runs each part of a model once, and from where it stands the rest without a block."""

    def __init__(
        self,
        model: onnx.ModelProto,
        representation: Representation,
        runtime: Runtime,
        held: Boundaries,
        shown: Boundaries,
        mask: str | None,
    ) -> None:
        self._model, self._representation, self._runtime = model, representation, runtime
        self._held, self._shown, self._mask = held, shown, mask
        self._graph = _skeleton(model.graph)
        self._makers = {name: index for index, node in enumerate(model.graph.node) for name in node.output if name}
        self._start = 0
        self._masks: list[Array | None] = []
        needed = Frontier(self._graph).needed([representation.tensor])
        self._way = frozenset(needed.nodes)
        self._sources = needed.sources

    def read(self, feeds: Iterable[Feed]) -> None:
        """Keep the inputs that the representation depends on, and the mask."""
        for batch, feed in enumerate(feeds):
            missing = [name for name in self._sources if name not in feed]
            if missing:
                raise CalibrationError(f"the batch lacks the input {missing[0]!r}: it has {sorted(feed)}")
            self._held.add(batch, {name: feed[name] for name in self._sources})
            self._masks.append(None if self._mask is None else feed.get(self._mask))
        if not self._masks or not self._sources:
            raise CalibrationError("there is nothing to rank blocks with: no batch, or no input that they depend on")

    def depends_on(self, block: Block) -> bool:
        return self._makers.get(block.output) in self._way

    def start(self, block: Block) -> int:
        """The first node that may be run when the block's input is there."""
        return self._makers.get(block.input, -1) + 1

    def advance(self, start: int, inputs: Sequence[str]) -> None:
        """Run up to a node; what the rest and these inputs of blocks need is kept, and nothing else."""
        live = self._from(start, self._graph).needed([self._representation.tensor, *inputs]).sources
        stretch = self._from(self._start, self._graph).needed(live)
        fresh = [name for name in live if name not in self._held]
        if fresh:
            for batch, found in enumerate(self._run(self._graph, stretch, fresh)):
                self._held.add(batch, found)
        self._held.retain(live)
        self._start = start

    def show(self, block: Block | None = None) -> None:
        """Keep the representation, without a block if one is given."""
        graph = self._graph if block is None else self._without(block)
        tensor = self._representation.tensor
        stretch = self._from(self._start, graph).needed([tensor])
        batches = self._run(graph, stretch, [tensor]) if stretch.nodes else self._held.feeds([tensor])
        name = _DENSE if block is None else f"-{block.name}"
        for batch, found in enumerate(batches):
            self._shown.add(batch, {name: self._rows(batch, found[tensor])})

    def shown(self) -> Array:
        """The model's own representation."""
        self.show()
        return self._gathered(_DENSE)

    def compare(self, names: Iterable[str], measure: Similarity, dense: Array) -> dict[str, float]:
        """The similarity to `dense` for each name of a block that was shown."""
        if not np.isfinite(dense).all():
            raise CalibrationError(
                f"the representation {self._representation.tensor} is not finite on the calibration samples: "
                "name another tensor or check the samples"
            )
        found = {}
        for name in names:
            values = self._gathered(f"-{name}")
            found[name] = _judge(dense, values, measure) if np.isfinite(values).all() else LAST
        return found

    def _gathered(self, name: str) -> Array:
        return np.concatenate([found[name] for found in self._shown.feeds([name])])

    def _from(self, start: int, graph: onnx.GraphProto) -> Frontier:
        frontier = Frontier(graph)
        frontier.advance(Stretch(tuple(range(start)), ()))
        return frontier

    def _without(self, block: Block) -> onnx.GraphProto:
        """The graph with the last node of a block in another form: it hands on the block's input."""
        graph = onnx.GraphProto()
        graph.CopyFrom(self._graph)
        node = graph.node[self._makers[block.output]]
        node.CopyFrom(onnx.helper.make_node("Identity", [block.input], [block.output]))
        return graph

    def _run(self, graph: onnx.GraphProto, stretch: Stretch, wanted: Sequence[str]) -> Iterator[dict[str, Array]]:
        """These tensors, batch by batch."""
        sources = {name: self._held.dtype(name) for name in stretch.sources}
        part = piece(self._model, [graph.node[index] for index in stretch.nodes], sources)
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        session = open_session(part, self._runtime, for_one_pass=True)
        for feed in self._held.feeds(stretch.sources):
            yield run(session, feed)

    def _rows(self, batch: int, values: Array) -> Array:
        """The representation of a batch as (rows, features), thinned where there are very many."""
        mask = self._masks[batch]
        if not self._representation.has_positions:
            rows = values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
        else:
            rows = values.reshape(-1, values.shape[-1])
        if mask is not None and has_rows_of(mask.shape, values.shape, values.ndim - 1):
            rows = rows[mask.reshape(-1) != 0]
        most = max(1, MOST_ROWS // len(self._masks))
        across = -(-rows.shape[1] // MOST_FEATURES) | 1  # odd, so that no position is always left out
        return rows[:: max(1, -(-len(rows) // most)), ::across]


def _judge(dense: Array, values: Array, measure: Similarity) -> float:
    try:
        found = similarity(dense, values, measure)
    except ValueError as error:
        raise CalibrationError(f"blocks can't be ranked: {error}; give more samples") from error
    return found if np.isfinite(found) else LAST


def _skeleton(graph: onnx.GraphProto) -> onnx.GraphProto:
    """A graph's nodes and names, without its weights."""
    result = onnx.GraphProto()
    result.node.extend(graph.node)
    result.input.extend(graph.input)
    result.initializer.extend(onnx.TensorProto(name=tensor.name) for tensor in graph.initializer)
    result.sparse_initializer.extend(
        onnx.SparseTensorProto(values=onnx.TensorProto(name=t.values.name)) for t in graph.sparse_initializer
    )
    return result
