"""Extents of axes as linear functions of the numbers of units that groups keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from snp_onnx.tracing import Group, Trace

Widths = npt.NDArray[np.int64]
AxisOf = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Extent:
    """`base` positions that no group owns, and `slopes[g]` for every unit of group g."""

    base: int
    slopes: Mapping[int, float]


class AxisWidths:
    """How wide every axis of a traced model is for one width a group.

    All units of a group appear on the same axes equally often, so an extent depends on the widths alone.
    """

    def __init__(self, trace: Trace, groups: Sequence[Group]) -> None:
        self._trace = trace
        self._owner = np.full(trace.label_count, -1, dtype=np.int64)
        for number, group in enumerate(groups):
            self._owner[group.labels] = number
        self.sizes: Widths = np.array([len(group) for group in groups], dtype=np.int64)

    def extent(self, axis: AxisOf) -> Extent:
        """Of one axis of a tensor."""
        tensor, place = axis
        if tensor not in self._trace.axes:
            return Extent(self._trace.facts.shapes[tensor][place], {})
        owners = self._owner[self._trace.axes[tensor][place]]
        numbers, totals = np.unique(owners[owners >= 0], return_counts=True)
        slopes = {int(n): float(total / self.sizes[n]) for n, total in zip(numbers, totals, strict=True)}
        return Extent(int(np.count_nonzero(owners < 0)), slopes)

    def matrix(self, extents: Sequence[Extent]) -> tuple[Widths, sparse.csr_array]:
        """Bases (A,) and slopes (A, G) of several axes."""
        place = [(r, c, value) for r, extent in enumerate(extents) for c, value in extent.slopes.items()]
        r, c, v = zip(*place, strict=True) if place else ((), (), ())
        slopes = sparse.csr_array((v, (r, c)), shape=(len(extents), len(self.sizes)), dtype=np.float64)
        return np.array([extent.base for extent in extents], dtype=np.int64), slopes
