"""How far one array follows another: the share of the variation that is lost, 1 - R², element by element of a sample.

A cosine of raw values hides what matters where values have a large constant part (pixel coordinates, biases, a single
probability). Here the squared error is compared with what varies:

    1 - R² = Σ (b - a)² / Σ (a - ā)²,    ā the mean of a over the samples

Sums are kept for every element of a sample, so that any of its axes can be looked at afterwards, channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CONSTANT = 1e-9
"""Variation below this share of the energy is rounding of float32: the channel is constant."""

ENOUGH = 8
"""Samples from which on the mean is taken element by element; of fewer it is taken over positions too."""

HALF = 0.5
"""The threshold at which probabilities are compared as decisions."""


@dataclass(frozen=True, slots=True, eq=False)
class Variation:
    """Sums over samples for every element of a sample, all of the sample's shape.

    count : entries that were compared. mean, spread : of the dense array its mean and Σ (a - mean)².
    error : Σ (b - a)². energy : Σ a². low, high : the least and the largest dense entry.
    both, either : entries above a half in both arrays, and in each of them added up (twice `both` where they agree).
    """

    count: Floats
    mean: Floats
    spread: Floats
    error: Floats
    energy: Floats
    low: Floats
    high: Floats
    both: Floats
    either: Floats

    @classmethod
    def of(cls, dense: Floats, other: Floats, counted: Bools | None = None) -> Self:
        """The sums of some samples, (n, ...) both; where `counted` is False an entry is left out.

        Examples
        --------
        >>> found = Variation.of(np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]]))
        >>> found.spread.tolist(), found.error.tolist()
        ([2.0], [1.0])
        """
        known = np.ones(dense.shape, dtype=np.bool_) if counted is None else counted
        a, b = np.where(known, dense, 0.0), np.where(known, other, 0.0)
        count = known.sum(axis=0).astype(np.float64)
        mean = a.sum(axis=0) / np.maximum(count, 1.0)
        spread = np.square(np.where(known, a - mean, 0.0)).sum(axis=0)
        low = np.where(known, dense, np.inf).min(axis=0, initial=np.inf)
        high = np.where(known, dense, -np.inf).max(axis=0, initial=-np.inf)
        above, other_above = a > HALF, b > HALF
        both, either = (above & other_above).sum(axis=0), above.sum(axis=0) + other_above.sum(axis=0)
        error, energy = np.square(b - a).sum(axis=0), np.square(a).sum(axis=0)
        return cls(count, mean, spread, error, energy, low, high, both * 1.0, either * 1.0)

    def __add__(self, other: Self) -> Self:
        """The sums of both, of samples of one shape."""
        pairs = {name: np.stack([getattr(self, name), getattr(other, name)]) for name in self.__slots__}
        return type(self)(**pairs)._pooled(between=True)

    def along(self, axes: Sequence[int] = (), by_element: bool = True) -> Self:
        """The sums for every position of some axes of a sample, in their order; of all elements together without any.

        `by_element` counts only what varies at each element; without it differences between elements count too.

        Examples
        --------
        >>> found = Variation.of(np.array([[0.0, 9.0], [2.0, 9.0]]), np.zeros((2, 2)))
        >>> found.along([0]).spread.tolist(), found.along().spread.tolist(), found.along(by_element=False).spread.item()
        ([2.0, 0.0], 2.0, 66.0)
        """
        others = [axis for axis in range(self.count.ndim) if axis not in axes]
        kept = tuple(self.count.shape[axis] for axis in axes)
        laid = {name: np.transpose(getattr(self, name), (*others, *axes)).reshape(-1, *kept) for name in self.__slots__}
        return type(self)(**laid)._pooled(between=not by_element)

    def _pooled(self, between: bool) -> Self:
        """The sums of all entries of the first axis; `between` says whether their means vary too."""
        count = self.count.sum(axis=0)
        mean = (self.count * self.mean).sum(axis=0) / np.maximum(count, 1.0)
        spread = self.spread.sum(axis=0)
        if between:
            spread = spread + (self.count * np.square(self.mean - mean)).sum(axis=0)
        sums = {name: getattr(self, name).sum(axis=0) for name in ("error", "energy", "both", "either")}
        low, high = self.low.min(axis=0, initial=np.inf), self.high.max(axis=0, initial=-np.inf)
        return type(self)(count=count, mean=mean, spread=spread, low=low, high=high, **sums)

    @property
    def lost(self) -> Floats:
        """1 - R² of every element, at least 0: 0 is exact, 1 no better than a constant.

        A constant is measured against the mean variance of the elements that vary, or the rounding of its own size.
        Not a number where fewer than two entries were compared, infinite where the other array isn't finite.

        Examples
        --------
        >>> Variation.of(np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([[0.5, 1.0], [0.5, 3.0]])).lost.tolist()
        [0.25, 0.0]
        """
        least = np.maximum(CONSTANT * self.energy, np.finfo(np.float64).tiny)
        varies, count = self.spread > least, np.maximum(self.count, 1.0)
        usual = float((self.spread / count)[varies].mean()) if varies.any() else 0.0
        with np.errstate(over="ignore"):
            found = self.error / np.where(varies, self.spread, np.maximum(least, usual * count))
        found = np.where(np.isfinite(self.error), found, np.inf)
        return np.asarray(np.where(self.count < 2.0, np.nan, found))

    @property
    def are_probabilities(self) -> Bools:
        """Whether all dense entries lie between 0 and 1."""
        return np.asarray((self.low >= 0.0) & (self.high <= 1.0) & (self.count > 0.0))
