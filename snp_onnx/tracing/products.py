"""Products: an axis split into several, `n -> (a, b)`, must stay rectangular.

A Reshape that splits an axis, or merges several that could shrink, ties every position of the whole to one position of
each factor. Removing units must then go along exactly one factor: whole heads, or the same index in every head. The
products are recorded while the graph is walked and settled at its end, when all barriers are known: along heads, except
where the dimensions inside them were marked as the ones to go and may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.tracing.labels import FIXED, HEAD, INSIDE, REPEATED, DisjointSet, Labels, still

Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Tie:
    """Whole labels, shape (n1, n2, ...), and one label vector for each of its axes."""

    whole: Whole
    factors: tuple[Labels, ...]


class Products:
    """Merging and splitting of axes over one set of classes."""

    def __init__(self, classes: DisjointSet) -> None:
        self._classes = classes
        self._ties: list[_Tie] = []
        self.stuck: list[tuple[Labels, tuple[Labels, ...]]] = []
        """Labels of an axis that had to stay whole when all was settled, and of its factors, those of heads first."""

    def merge(self, axes: Sequence[Labels]) -> Labels:
        """Labels of the axis that the given axes, the slowest first, are flattened to."""
        extents = tuple(len(labels) for labels in axes)
        count = int(np.prod(extents))
        live = [place for place, labels in enumerate(axes) if self._classes.is_live(labels)]
        if not live:
            return self._merge_fixed(axes, extents)
        if len(live) == 1:
            return np.broadcast_to(_along(axes[live[0]], live[0], len(axes)), extents).reshape(count)
        factors = tuple(axes[place] for place in live)
        whole = self._find_whole(factors)
        if whole is None:
            whole = self._classes.fresh(int(np.prod([len(f) for f in factors]))).reshape([len(f) for f in factors])
            self._ties.append(_Tie(whole, factors))
        spread = whole.reshape([n if place in live else 1 for place, n in enumerate(extents)])
        return np.broadcast_to(spread, extents).reshape(count)

    def _merge_fixed(self, axes: Sequence[Labels], extents: tuple[int, ...]) -> Labels:
        """Nothing can shrink; keep the classes of one barred axis, so that reports still know why."""
        barred = [place for place, labels in enumerate(axes) if self._classes.find(labels).any()]
        if not barred:
            return still(int(np.prod(extents)))
        spread = _along(axes[barred[0]], barred[0], len(axes))
        return np.broadcast_to(spread, extents).reshape(int(np.prod(extents)))

    def split(self, labels: Labels, extents: Sequence[int]) -> tuple[Labels, ...]:
        """Labels of the axes, the slowest first, that an axis is unflattened to."""
        whole = self._classes.find(labels).reshape(tuple(extents))
        moving = [axis for axis in range(whole.ndim) if not (whole == whole.take([0], axis)).all()]
        if not moving:  # one unit or none: the whole axis stays
            self._classes.flag(labels, FIXED)
            return tuple(still(n) for n in extents)
        core = whole[tuple(slice(None) if axis in moving else 0 for axis in range(whole.ndim))]
        factors = (core,) if len(moving) == 1 else self._factors_of(core)
        found = dict(zip(moving, factors, strict=True))
        return tuple(found.get(axis, still(n)) for axis, n in enumerate(extents))

    def _factors_of(self, core: Whole) -> tuple[Labels, ...]:
        for tie in self._ties:
            if tie.whole.shape == core.shape and np.array_equal(self._classes.find(tie.whole), core):
                return tie.factors
        factors = tuple(self._classes.fresh(n) for n in core.shape)
        self._ties.append(_Tie(core, factors))
        return factors

    def _find_whole(self, factors: tuple[Labels, ...]) -> Whole | None:
        roots = [self._classes.find(f) for f in factors]
        for tie in self._ties:
            known = [self._classes.find(f) for f in tie.factors]
            order = [next((k for k, f in enumerate(known) if np.array_equal(f, r)), -1) for r in roots]
            if len(known) == len(roots) and sorted(order) == list(range(len(roots))):
                return tie.whole.transpose(order)
        return None

    def settle(self) -> None:
        """Choose the factor that carries each product's units: marked dimensions first, then forced ones, then heads,
        then the longest.
        """
        waiting = list(self._ties)
        while waiting:
            inside = [tie for tie in waiting if any(self._is_inside(tie.factors[place]) for place in self._live(tie))]
            forced = [tie for tie in waiting if len(self._live(tie)) <= 1]
            chosen = inside or forced or [next((tie for tie in waiting if self._counts_heads(tie)), waiting[0])]
            for tie in chosen:
                self._settle(tie)
            waiting = [tie for tie in waiting if not any(tie is done for done in chosen)]

    def _live(self, tie: _Tie) -> list[int]:
        """The factors that may carry the units: if the whole is known to be alike along one, only the others."""
        if not self._classes.is_live(tie.whole.reshape(-1)):
            return []
        live = [place for place, labels in enumerate(tie.factors) if self._classes.is_live(labels)]
        if len(live) < 2:
            return live
        whole = self._classes.find(tie.whole)
        return [place for place in live if (whole != whole.take([0], place)).any()] or live

    def _settle(self, tie: _Tie) -> None:
        live = self._live(tie)
        if not live:
            self.stuck.append((tie.whole.reshape(-1), tuple(sorted(tie.factors, key=lambda f: not self._is_head(f)))))
            self._classes.flag(tie.whole.reshape(-1), FIXED)
            for labels in tie.factors:
                self._classes.flag(labels, FIXED)
            return
        carrier = max(live, key=lambda place: self._preference(tie, place))
        for place, labels in enumerate(tie.factors):
            if place == carrier:
                self._classes.unite(tie.whole, _along(labels, place, tie.whole.ndim))
            else:
                self._classes.flag(labels, FIXED)

    def _preference(self, tie: _Tie, place: int) -> tuple[bool, bool, bool, int, int]:
        labels = tie.factors[place]
        is_copy = bool(self._classes.has(labels, REPEATED).any())
        return self._is_inside(labels), self._is_head(labels), not is_copy, len(labels), place

    def _counts_heads(self, tie: _Tie) -> bool:
        return any(self._is_head(labels) for labels in (tie.whole.reshape(-1), *tie.factors))

    def _is_inside(self, labels: Labels) -> bool:
        return bool(self._classes.has(labels, INSIDE).any())

    def _is_head(self, labels: Labels) -> bool:
        return bool(self._classes.has(labels, HEAD).any())


def _along(labels: Labels, place: int, rank: int) -> Whole:
    """Labels as an array of the given rank that varies along one axis only."""
    return np.asarray(labels).reshape([-1 if axis == place else 1 for axis in range(rank)])
