"""Budget: widths of all groups from one global dial, up to a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.paths import Path

Widths = npt.NDArray[np.int64]


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


def smallest(paths: Sequence[Path], min_units: int, round_to: int) -> Widths:
    """The narrowest legal widths."""
    return np.array([legal_widths(len(path.group), min_units, round_to)[0] for path in paths], dtype=np.int64)


def widths_at(paths: Sequence[Path], dial: float, min_units: int, round_to: int) -> Widths:
    """The paper's rule: every group keeps the shortest legal prefix that captures a share `dial` of its ΣD."""
    widths = smallest(paths, min_units, round_to)
    for step in _steps(paths, min_units, round_to):
        if step.threshold < dial:
            widths[step.path] = max(widths[step.path], step.width)
    return widths


def widths_within(
    paths: Sequence[Path], cost: Callable[[Widths], float], limit: float, min_units: int, round_to: int
) -> Widths | None:
    """The widest widths along the dial that cost at most `limit`, filled up until no single step fits; None if none do.

    The dial is bisected over the sorted steps of all groups; then the steps beyond it are tried once each, in order.
    A refused step can't fit later, because widening another group never makes it cheaper.
    """
    lowest = smallest(paths, min_units, round_to)
    if cost(lowest) > limit:
        return None
    steps = _steps(paths, min_units, round_to)
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


def _steps(paths: Sequence[Path], min_units: int, round_to: int) -> list[_Step]:
    """All steps by threshold; a group's own stay in order because thresholds never fall along a path."""
    steps = []
    for number, path in enumerate(paths):
        rungs = legal_widths(len(path.group), min_units, round_to)
        thresholds = np.maximum.accumulate(path.threshold)
        steps += [_Step(float(thresholds[a]), number, b) for a, b in pairwise(rungs)]
    return sorted(steps, key=lambda step: (step.threshold, step.path, step.width))
