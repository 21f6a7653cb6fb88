"""Scarcity: how many rows and samples each estimate wants, and what is done where there are fewer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from snp_onnx.calibration.moments import Moments
from snp_onnx.subspace import CentredGram, FewRows, few_rows, shrink


@dataclass(frozen=True, slots=True)
class Scarcity:
    """The rules; rows are positions of samples, columns are inputs of a layer. ResNet-56 and MiniLM chose the numbers.

    whole_rows : rows a column from which on a flattened axis is measured position by position, and a wide window whole.
    wide_window : columns from which on a window counts as wide: its Gram matrix costs more than the layer itself.
    pixel_rows, token_rows : rows a column that sub-sampling for decisions and folds aims at; tokens differ more from
        their neighbours than pixels do.
    refit_rows : the same for a refit; refit_tokens : tokens a column with which its anchor is no stronger than usual.
    least_refit_rows : rows a column below which a layer keeps its weights: it would learn the samples by heart.
    enough_samples : samples with which the anchor of a refit is no stronger than usual: positions of one sample are
        much alike, so samples count besides rows.
    refit_ridge : the anchor of a refit in units of the fold's ridge: it learns from errors, not only from redundancy.
    most : by how much the ridge of a fold grows at most.
    least_rank : share of the rank that inputs could have below which a layer sees samples that hardly vary.
    """

    whole_rows: int = 4
    wide_window: int = 1024
    pixel_rows: int = 16
    token_rows: int = 64
    refit_rows: int = 64
    refit_tokens: int = 256
    least_refit_rows: int = 4
    enough_samples: int = 1000
    refit_ridge: float = 10.0
    most: float = 100.0
    least_rank: float = 0.25

    def caution(self, wanted: int, columns: int, rows: int) -> float:
        """By how much the ridge of a fold grows where rows are fewer than `wanted` a column.

        >>> Scarcity().caution(wanted=64, columns=10, rows=320), Scarcity().caution(wanted=0, columns=10, rows=1)
        (2.0, 1.0)
        """
        return min(self.most, max(1.0, wanted * columns / max(rows, 1)))

    def anchor(self, ridge: float, samples: int, wanted: int, columns: int, rows: int) -> float:
        """The ridge of a refit.

        >>> round(Scarcity().anchor(1e-3, samples=500, wanted=0, columns=10, rows=9), 9)
        0.02
        """
        return self.refit_ridge * ridge * max(1.0, self.enough_samples / samples, wanted * columns / rows)

    def is_whole(self, columns: int, rows: int) -> bool:
        """Whether a flattened axis has rows enough to be measured position by position."""
        return rows >= self.whole_rows * columns

    def settled(self, moments: Moments) -> CentredGram | FewRows:
        """The moments as least squares take them: with fewer rows than columns the covariance is shrunk."""
        columns = len(moments.sum)
        if moments.count >= columns:
            return moments.centred
        if moments.rows is not None:
            return few_rows(moments.rows, moments.count)
        found = moments.centred
        return CentredGram(shrink(found.covariance, moments.count), found.mean, found.tolerance)

    def warnings(self, seen: Collection[tuple[Moments, int]]) -> tuple[str, ...]:
        """What to say of samples that hardly vary: for most layers, the moments of inputs and the largest rank of each.

        The largest rank is how many inputs the layers before have: an exact combination of few is no lack of samples.
        """
        few = sum(_rank(moments) < self.least_rank * _most(moments, most) for moments, most in seen)
        if 2 * few <= len(seen):
            return ()
        return (
            f"the calibration samples hardly vary: {few} of {len(seen)} layers see inputs of less than "
            f"{self.least_rank:g} of the rank they could have: give samples as different as those in use",
        )


LOOKED_AT = 256
"""Columns of a layer whose rank is taken, evenly spaced; their covariance is a matter of milliseconds."""

NOISE = 1e-6
"""Share of its squared mean, and of the largest variance, above which a column varies: float32 leaves 1e-7."""

INDEPENDENT = 1e-5
"""Eigenvalue of the correlations from which a direction counts: real networks have many that are small, none is 0."""


def _rank(moments: Moments) -> int:
    """The numerical rank of the inputs' correlations, of at most `LOOKED_AT` columns that vary."""
    columns = _places(len(moments.sum))
    covariance = moments.block(columns)
    variance = np.diag(covariance)
    live = variance > NOISE * np.maximum(np.square(moments.mean[columns]), variance.max())
    if not live.any():
        return 0
    scale = 1.0 / np.sqrt(variance[live])
    return int((np.linalg.eigvalsh(covariance[np.ix_(live, live)] * np.outer(scale, scale)) > INDEPENDENT).sum())


def _most(moments: Moments, most: int) -> int:
    """The largest rank that rows, columns and the layers before allow."""
    return min(len(_places(len(moments.sum))), moments.count - 1, most)


def _places(columns: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.unique(np.linspace(0, columns - 1, min(columns, LOOKED_AT)).astype(np.int64))


SCARCITY = Scarcity()
"""The rules in use."""
