"""Budget: widths of all groups from one global dial, up to a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.paths import Path

Widths = npt.NDArray[np.int64]
Ladders = Sequence[tuple[int, ...]]
"""The widths that every group may have, rising, the dense one last."""


class Costs(Protocol):
    """What widths cost, and what one more unit of each group would."""

    def cost(self, widths: Widths) -> float: ...

    def marginal(self, widths: Widths) -> npt.NDArray[np.float64]: ...


@dataclass(frozen=True, slots=True)
class _Step:
    """One legal widening: from a group's rung to the next, wanted once the dial passes `threshold`."""

    threshold: float
    path: int
    width: int


def legal_widths(units: int, min_units: int, round_to: int) -> tuple[int, ...]:
    """Widths a group may have: multiples of `round_to` not below `min_units`, and the dense width.

    >>> legal_widths(20, 5, 8), legal_widths(3, 1, 1), legal_widths(4, 6, 1)
    ((8, 16, 20), (1, 2, 3), (4,))
    """
    lowest = max(min_units, 1)
    first = -(-lowest // round_to) * round_to
    return (*range(first, units, round_to), units)


def smallest(ladders: Ladders) -> Widths:
    """The narrowest legal widths."""
    return np.array([ladder[0] for ladder in ladders], dtype=np.int64)


def widths_at(paths: Sequence[Path], dial: float, ladders: Ladders) -> Widths:
    """The paper's rule: every group keeps the shortest legal prefix that captures a share `dial` of its ΣD."""
    widths = smallest(ladders)
    for step in _steps(paths, ladders):
        if step.threshold < dial:
            widths[step.path] = max(widths[step.path], step.width)
    return widths


def widths_within(
    paths: Sequence[Path], cost: Callable[[Widths], float], limit: float, ladders: Ladders
) -> Widths | None:
    """The widest widths along the dial that cost at most `limit`, filled up until no single step fits; None if none do.

    The dial is bisected over the sorted steps of all groups; then the steps beyond it are tried once each, in order.
    A refused step can't fit later, because widening another group never makes it cheaper.
    """
    lowest = smallest(ladders)
    if cost(lowest) > limit:
        return None
    steps = _steps(paths, ladders)
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(_apply(lowest, steps[:middle])) <= limit else (low, middle - 1)
    widths = _apply(lowest, steps[:low])
    refused: set[int] = set()
    for step in steps[low:]:
        if step.path in refused:
            continue
        wider = widths.copy()
        wider[step.path] = step.width
        if cost(wider) <= limit:
            widths = wider
        else:
            refused.add(step.path)
    return widths


def _apply(lowest: Widths, steps: Sequence[_Step]) -> Widths:
    widths = lowest.copy()
    for step in steps:
        widths[step.path] = step.width
    return widths


def _steps(paths: Sequence[Path], ladders: Ladders) -> list[_Step]:
    """All steps by threshold; a group's own stay in order because thresholds never fall along a path."""
    steps = []
    for number, (path, rungs) in enumerate(zip(paths, ladders, strict=True)):
        thresholds = np.maximum.accumulate(path.threshold)
        steps += [_Step(float(thresholds[a]), number, b) for a, b in pairwise(rungs)]
    return sorted(steps, key=lambda step: (step.threshold, step.path, step.width))


def widths_by_error(
    paths: Sequence[Path],
    costs: Costs,
    limit: float,
    legal: Ladders,
) -> Widths | None:
    """The widths that buy the least error for the cost, within `limit`, filled up until no step fits; None if none do.

    Narrows, from the dense widths, whichever group loses least error for each unit of cost it frees. Errors are taken
    on their lower convex hull, so the ratio at which it stops is the one multiplier of the Lagrangian; marginal costs
    are those at the current widths, because a node's cost follows both of its widths. Where the last step overshoots
    (heads are large), the group that made it is also tried at the width before, with others narrowed instead.
    """
    ladders = [_Ladder.of(path, widths) for path, widths in zip(paths, legal, strict=True)]
    dense = np.array([len(ladder.widths) - 1 for ladder in ladders], dtype=np.int64)
    floors = np.zeros_like(dense)
    if costs.cost(_at(ladders, floors)) > limit:
        return None
    best: tuple[float, Widths] | None = None
    for _ in range(_ALTERNATIVES):
        rungs, last = _narrowed(ladders, dense, floors, costs, limit)
        if rungs is None:
            break
        slack = (limit - costs.cost(_at(ladders, rungs))) / limit
        widths = _filled(ladders, rungs, costs, limit)
        error = sum(
            float(ladder.errors[ladder.widths.index(int(w))]) for ladder, w in zip(ladders, widths, strict=True)
        )
        if best is None or error < best[0]:
            best = error, widths
        if slack < _FINE or last is None:
            break
        floors[last] = rungs[last] + 1
    return None if best is None else best[1]


_ALTERNATIVES = 8
_FINE = 5e-3
"""Overshooting the target by a smaller share than this isn't worth a second try."""


def _narrowed(
    ladders: Sequence[_Ladder], dense: Widths, floors: Widths, costs: Costs, limit: float
) -> tuple[Widths | None, int | None]:
    """Rungs within the limit, none below its floor, and the group that was narrowed last; None where that can't be.

    About `_MARGINAL_UPDATES` times on the way what a unit frees is computed anew, and the cost with it; where that is
    within the limit, the last steps are gone through one by one for the first that was.
    """
    rungs = dense.copy()
    refresh = max(1, int(rungs.sum()) // _MARGINAL_UPDATES)
    slopes = np.array([ladder.slope(rung, low) for ladder, rung, low in zip(ladders, rungs, floors, strict=True)])
    widths, chosen = _at(ladders, rungs), None
    while costs.cost(widths) > limit:
        price = np.maximum(costs.marginal(widths), np.finfo(np.float64).tiny)
        steps: list[int] = []
        while len(steps) < refresh:
            chosen = int(np.argmin(slopes / price))
            if np.isinf(slopes[chosen]):
                break
            steps.append(chosen)
            rungs[chosen] -= 1
            slopes[chosen] = ladders[chosen].slope(int(rungs[chosen]), int(floors[chosen]))
        if not steps:
            return None, chosen
        before, widths = widths, _at(ladders, rungs)
        if costs.cost(widths) <= limit:
            return _first_within(ladders, rungs, steps, before, costs, limit)
    return rungs, chosen


def _first_within(
    ladders: Sequence[_Ladder], rungs: Widths, steps: Sequence[int], widths: Widths, costs: Costs, limit: float
) -> tuple[Widths, int]:
    """Of steps down that led to `rungs` from these widths, no more than it takes."""
    rungs = rungs + np.bincount(steps, minlength=len(rungs))
    for chosen in steps:
        rungs[chosen] -= 1
        widths[chosen] = ladders[chosen].widths[rungs[chosen]]
        if costs.cost(widths) <= limit:
            break
    return rungs, chosen


_MARGINAL_UPDATES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class _Ladder:
    """A group's legal widths, the narrowest first, and the convex error at each."""

    widths: tuple[int, ...]
    errors: npt.NDArray[np.float64]

    @classmethod
    def of(cls, path: Path, widths: tuple[int, ...]) -> _Ladder:
        return cls(widths, _convex(np.array(widths, dtype=np.float64), path.errors[np.array(widths) - 1]))

    def slope(self, rung: int, lowest: int = 0) -> float:
        """Error per unit that the step down from a rung costs; infinite on the lowest."""
        if rung <= lowest:
            return float("inf")
        rise = self.errors[rung - 1] - self.errors[rung]
        return float(rise) / (self.widths[rung] - self.widths[rung - 1])

    def rise(self, rung: int) -> float:
        """Error per unit that the step up from a rung saves; minus infinity on the highest."""
        return self.slope(rung + 1) if rung < len(self.widths) - 1 else float("-inf")


def _convex(places: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The lower convex hull of points in order of place, at every place.

    >>> _convex(np.array([1.0, 2.0, 3.0]), np.array([4.0, 3.0, 0.0])).tolist()
    [4.0, 2.0, 0.0]
    """
    hull: list[int] = []
    for new in range(len(places)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            chord = values[a] + (values[new] - values[a]) * (places[b] - places[a]) / (places[new] - places[a])
            if values[b] < chord:
                break
            hull.pop()
        hull.append(new)
    return np.asarray(np.interp(places, places[hull], values[hull]), dtype=np.float64)


def _at(ladders: Sequence[_Ladder], rungs: Widths) -> Widths:
    return np.array([ladder.widths[rung] for ladder, rung in zip(ladders, rungs, strict=True)], dtype=np.int64)


def _filled(ladders: Sequence[_Ladder], rungs: Widths, costs: Costs, limit: float) -> Widths:
    """Steps up again, the best error for its cost first, until none fits; a refused group stays refused."""
    widths = _at(ladders, rungs)
    slopes = np.array([ladder.rise(int(rung)) for ladder, rung in zip(ladders, rungs, strict=True)])
    while not np.isneginf(slopes).all():
        price = np.maximum(costs.marginal(widths), np.finfo(np.float64).tiny)
        best = int(np.argmax(slopes / price))
        wider = widths.copy()
        wider[best] = ladders[best].widths[rungs[best] + 1]
        if costs.cost(wider) <= limit:
            widths = wider
            rungs[best] += 1
            slopes[best] = ladders[best].rise(int(rungs[best]))
        else:
            slopes[best] = -np.inf
    return widths
