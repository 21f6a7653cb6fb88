"""`cost(plan)`: what a choice of widths costs, from terms whose factors are widths of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from snp_onnx.cost import Term
from snp_onnx.tracing import Group, Trace

Widths = npt.NDArray[np.int64]


class CostTable:
    """Terms as products of axis widths, each width linear in the numbers of units that groups keep.

    All units of a group appear on the same axes equally often, so a plan's cost depends on its widths alone, and a
    node's cost follows the widths of all its axes at once.
    """

    def __init__(self, terms: Sequence[Term], trace: Trace, groups: Sequence[Group]) -> None:
        owner = np.full(trace.label_count, -1, dtype=np.int64)
        for number, group in enumerate(groups):
            owner[group.labels] = number
        self._sizes = np.array([len(group) for group in groups], dtype=np.int64)
        places: dict[tuple[str, int], int] = {}
        for term in terms:
            for factor in term.factors:
                places.setdefault(factor, len(places) + 1)
        counts = [_counts(trace, factor, owner, self._sizes) for factor in places]
        self._base = np.array([1, *(base for base, _ in counts)], dtype=np.int64)
        self._slope = _matrix([slope for _, slope in counts], len(groups))
        self._scale = np.array([term.scale for term in terms], dtype=np.float64)
        depth = max((len(term.factors) for term in terms), default=0)
        self._factors = np.zeros((len(terms), depth), dtype=np.int64)
        for row, term in enumerate(terms):
            self._factors[row, : len(term.factors)] = [places[factor] for factor in term.factors]

    def cost(self, widths: Widths) -> float:
        """The total for one width a group, (G,)."""
        extents = self._base.astype(np.float64)
        extents[1:] += self._slope @ widths.astype(np.float64)
        return float((self._scale * np.prod(extents[self._factors], axis=1)).sum())

    def marginal(self, widths: Widths) -> npt.NDArray[np.float64]:
        """What one more unit of every group costs at these widths, (G,): a gradient, both widths of a node counted."""
        extents = self._base.astype(np.float64)
        extents[1:] += self._slope @ widths.astype(np.float64)
        values = extents[self._factors]
        weight = np.zeros(len(self._base))
        for place in range(values.shape[1]):
            others = np.prod(np.delete(values, place, axis=1), axis=1)
            np.add.at(weight, self._factors[:, place], self._scale * others)
        return np.asarray(self._slope.T @ weight[1:], dtype=np.float64)

    def dense(self) -> float:
        """The total with every unit kept."""
        return self.cost(self._sizes)


@dataclass(frozen=True, slots=True)
class WithRemainder:
    """A table and a constant beside it: bytes of a file that no width changes."""

    table: CostTable
    remainder: float

    def cost(self, widths: Widths) -> float:
        return self.table.cost(widths) + self.remainder

    def marginal(self, widths: Widths) -> npt.NDArray[np.float64]:
        return self.table.marginal(widths)


def _counts(trace: Trace, factor: tuple[str, int], owner: Widths, sizes: Widths) -> tuple[int, Mapping[int, float]]:
    """Positions of an axis that no group owns, and positions per unit of every group that owns some."""
    tensor, axis = factor
    if tensor not in trace.axes:
        return trace.facts.shapes[tensor][axis], {}
    owners = owner[trace.axes[tensor][axis]]
    numbers, totals = np.unique(owners[owners >= 0], return_counts=True)
    slopes = {int(n): float(total / sizes[n]) for n, total in zip(numbers, totals, strict=True)}
    return int(np.count_nonzero(owners < 0)), slopes


def _matrix(rows: Sequence[Mapping[int, float]], columns: int) -> sparse.csr_array:
    place = [(r, c, value) for r, row in enumerate(rows) for c, value in row.items()]
    r, c, v = zip(*place, strict=True) if place else ((), (), ())
    return sparse.csr_array((v, (r, c)), shape=(len(rows), columns), dtype=np.float64)
