"""`cost(plan)`: what a choice of widths costs, from terms whose factors are widths of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.cost import Term
from snp_onnx.planning.axis_widths import AxisWidths
from snp_onnx.tracing import Group, Trace

Widths = npt.NDArray[np.int64]


class CostTable:
    """Terms as products of axis widths, each width linear in the numbers of units that groups keep.

    A plan's cost depends on its widths alone, and a node's cost follows the widths of all its axes at once.
    """

    def __init__(self, terms: Sequence[Term], trace: Trace, groups: Sequence[Group]) -> None:
        axes = AxisWidths(trace, groups)
        self._sizes = axes.sizes
        places: dict[tuple[str, int], int] = {}
        for term in terms:
            for factor in term.factors:
                places.setdefault(factor, len(places) + 1)
        bases, self._slope = axes.matrix([axes.extent(factor) for factor in places])
        self._base = np.concatenate([np.ones(1, dtype=np.int64), bases])
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
