"""A walk through a graph: it is run segment by segment, and weights may change before the rest of it is run."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Self

import onnx
from numpy.typing import NDArray

from snp_onnx.calibration.boundaries import IN_MEMORY, Boundaries
from snp_onnx.calibration.cut import Sizes, to_run_again
from snp_onnx.calibration.moments import MomentRequest, Moments
from snp_onnx.calibration.runner import collect
from snp_onnx.calibration.segments import Frontier, Stretch, piece
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.external import tensor_of
from snp_onnx.tracing.op import read_by

Array = NDArray[Any]


class Walk:
    """One way through `model`, whose initialisers change in place; a context manager that removes what it stored.

    Every run starts from the tensors that earlier ones kept, so that a node is run once, or as often as it is asked
    for anew; or again where `sizes` say that it costs less than to keep what it gives. `feeds` are read once, at the
    start; one in `every` of them takes part until `rejoin`.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        feeds: Iterable[Mapping[str, Array]],
        runtime: Runtime,
        sizes: Mapping[str, float] | None = None,
        every: int = 1,
    ) -> None:
        self._model, self._runtime = model, runtime
        self._sizes = Sizes(sizes or {}, {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
        self._frontier = Frontier(model.graph)
        self._initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._boundaries = Boundaries()
        self._behind = {offset: Boundaries(IN_MEMORY // every) for offset in range(1, every)}
        names = {value.name for value in model.graph.input}
        try:
            for number, feed in enumerate(feeds):
                batch, offset = divmod(number, every)
                place = self._behind[offset] if offset else self._boundaries
                place.add(batch, {name: values for name, values in feed.items() if name in names})
        except BaseException:
            self._close()
            raise

    def run(
        self,
        requests: Sequence[MomentRequest],
        later: Iterable[str] = (),
        hold: Iterable[int] = (),
        every: int = 1,
        as_rows: Container[str] = (),
    ) -> dict[str, Moments]:
        """The moments of the requests by key, from every so many batches.

        `later` are the tensors that later runs will ask for: what they start from is kept and everything else dropped.
        Without it nothing is kept or dropped. Nodes of `hold` will be run again, because their weights may change.
        """
        wanted = [name for r in requests for name in (r.tensor, r.cross_with, r.row_mask) if name is not None]
        stretch = self._frontier.needed(wanted)
        fresh: list[str] = []
        later = tuple(later)
        if later:
            self._frontier.advance(stretch, self._again(stretch, hold, later))
            made = {name for index in stretch.nodes for name in self._model.graph.node[index].output}
            live = self._frontier.needed(later).sources
            fresh = [name for name in live if name in made]
        moments = collect(
            self._segment(stretch, self._boundaries),
            requests,
            self._boundaries.feeds(stretch.sources, every),
            self._runtime,
            keep=fresh,
            kept=self._boundaries.add,
            as_rows=as_rows,
        )
        if later:
            self._boundaries.retain(live)
        return moments

    def _again(self, stretch: Stretch, hold: Iterable[int], later: Sequence[str]) -> list[int]:
        """The nodes of a stretch that run again: those of `hold`, and where keeping their results would cost more."""
        nodes = {index: self._model.graph.node[index] for index in self._frontier.lasting(stretch)}
        rest = set(self._frontier.needed(later).nodes) - nodes.keys()
        read = {name for index in rest for name in read_by(self._model.graph.node[index])}
        return to_run_again(nodes, set(hold), set(later), read, self._sizes)

    def redo(self, nodes: Iterable[int]) -> None:
        """What these nodes gave no longer holds: it is dropped, and they run again where it is needed.

        So do the nodes before them whose results weren't kept.
        """
        nodes = tuple(nodes)
        given = [name for index in nodes for name in self._model.graph.node[index].output if name]
        self._frontier.undo(nodes)
        self._boundaries.drop(given)
        while lost := [name for name in self._frontier.needed(given).sources if name not in self._boundaries]:
            self._frontier.undo(self._frontier.makers(lost))

    def rejoin(self, every: int = 1) -> None:
        """Let one in so many of all batches take part, a divisor of how few did; those that join catch up at once.

        What they catch up through must not change any more.
        """
        joining = [self._behind.pop(offset) for offset in sorted(self._behind) if offset % every == 0]
        joining = [group for group in joining if group.count]
        if not joining:
            return
        kept = self._boundaries.names
        stretch = Frontier(self._model.graph).needed(kept)
        start = self._boundaries.count
        try:
            collect(
                self._segment(stretch, joining[0]),
                [],
                chain.from_iterable(group.feeds(stretch.sources) for group in joining),
                self._runtime,
                keep=[name for name in kept if name not in stretch.sources],
                kept=lambda batch, tensors: self._boundaries.add(start + batch, tensors),
            )
            inputs = [name for name in kept if name in stretch.sources]
            for batch, tensors in enumerate(chain.from_iterable(group.feeds(inputs) for group in joining)):
                self._boundaries.add(start + batch, tensors)
        finally:
            for group in joining:
                group.close()

    def write(self, values: Mapping[str, Array]) -> None:
        """Give initialisers other values."""
        for name, array in values.items():
            self._initialisers[name].CopyFrom(tensor_of(name, array))

    def _segment(self, stretch: Stretch, boundaries: Boundaries) -> onnx.ModelProto:
        """The nodes of a stretch as a model of its own, without outputs; weights as they are now."""
        nodes = [self._model.graph.node[index] for index in stretch.nodes]
        return piece(self._model, nodes, {name: boundaries.dtype(name) for name in stretch.sources})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for group in (self._boundaries, *self._behind.values()):
            group.close()
