"""Scarcity: how many rows and samples each estimate wants, and what is done where there are fewer."""

from __future__ import annotations

from dataclasses import dataclass

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


SCARCITY = Scarcity()
"""The rules in use."""
