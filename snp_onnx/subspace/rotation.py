"""Rotations of a residual stream: the axes, and how a weight takes one up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def principal_axes(grams: Iterable[Matrix]) -> Matrix:
    """Q (d, d), orthogonal: eigenvectors of Σ G_c / tr G_c as columns, the largest eigenvalue first.

    Every G_c (d, d) is the Gram matrix of one norm's output; scaled to unit trace, no layer counts for more than
    another. In the basis Q a prefix of the entries holds as much of the summed energy as any subspace of that width can
    (SliceGPT, arXiv 2401.15024, section 3.3). Signs: the largest entry of each column is positive.

    >>> principal_axes([np.diag([1.0, 3.0])])
    array([[0., 1.],
           [1., 0.]])
    """
    total = sum(gram / trace for gram in grams if (trace := float(np.trace(gram))) > 0.0)
    _, vectors = np.linalg.eigh(np.atleast_2d(np.asarray(total, dtype=np.float64)))
    columns = vectors[:, ::-1]
    largest = np.abs(columns).argmax(axis=0)
    signs = np.sign(columns[largest, np.arange(columns.shape[1])])
    return np.ascontiguousarray(columns * signs) + 0.0


def centring(width: int) -> Matrix:
    """I - 11ᵀ/d (d, d): takes the mean of a row vector's entries away.

    >>> bool(np.allclose(np.array([1.0, 3.0]) @ centring(2), [-1.0, 1.0]))
    True
    """
    return np.eye(width) - 1.0 / width


def turned(array: npt.NDArray[Any], axis: int, matrix: Matrix) -> npt.NDArray[np.float64]:
    """Every vector along `axis`, as a row, times `matrix` (d, k); float64.

    >>> turned(np.array([[1.0, 2.0]]), 1, np.array([[0.0, 1.0], [1.0, 0.0]]))
    array([[2., 1.]])
    """
    moved = np.moveaxis(np.asarray(array, dtype=np.float64), axis, -1)
    return np.moveaxis(moved @ matrix, -1, axis)
