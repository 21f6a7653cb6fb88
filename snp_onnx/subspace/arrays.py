"""The border of this package: what comes in is checked once and becomes float64."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Indices = NDArray[np.intp]

TILE = 512
"""Rows and columns of the pieces that large matrices are worked on in, so that no second one is needed beside them."""

ASYMMETRY = 1e-3  # of the largest entry: far above rounding of float32 sums, far below a transposed or mixed-up matrix


def as_finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """`values` as float64; ValueError naming the first entry that is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))
        where = tuple(int(i) for i in bad[0])
        raise ValueError(f"{name} has {len(bad)} non-finite entries, the first at {where}: check the calibration data")
    return array


def as_gram(gram: ArrayLike, own: bool = True) -> Matrix:
    """`gram` as a finite symmetric float64 (C, C) matrix; rounding asymmetry is averaged out.

    Unless it is to be the caller's `own`, what is so already is given back as it is, not to be written to.
    """
    matrix = as_finite(gram, "gram")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"gram must be square, (C, C); it has shape {matrix.shape}")
    if not matrix.size:
        raise ValueError("gram is empty, shape (0, 0): give it at least one unit")
    if not own and all(
        np.array_equal(matrix[rows, columns], matrix[columns, rows].T) for rows, columns in tiles(len(matrix))
    ):
        return matrix
    symmetric, skew = np.empty_like(matrix), 0.0
    for rows, columns in tiles(len(matrix)):
        above, below = matrix[rows, columns], matrix[columns, rows].T
        skew = max(skew, float(np.abs(above - below).max()))
        symmetric[rows, columns] = (above + below) / 2.0
        symmetric[columns, rows] = symmetric[rows, columns].T
    if skew > ASYMMETRY * max(float(matrix.max()), -float(matrix.min())):
        raise ValueError(f"gram of shape {matrix.shape} is not symmetric: pass XᵀX/n")
    return symmetric


def tiles(size: int) -> Iterator[tuple[slice, slice]]:
    """The upper half of a (size, size) matrix, diagonal included, piece by piece: rows and columns of each.

    >>> [(rows.start, columns.start) for rows, columns in tiles(2 * TILE)] == [(0, 0), (0, TILE), (TILE, TILE)]
    True
    """
    for top in range(0, size, TILE):
        for left in range(top, size, TILE):
            yield slice(top, min(size, top + TILE)), slice(left, min(size, left + TILE))


def add_outer(matrix: Matrix, vector: Vector, times: float) -> Matrix:
    """M + times · v vᵀ, written over M, and M.

    >>> add_outer(np.eye(2), np.array([1.0, 2.0]), -1.0).tolist()
    [[0.0, -2.0], [-2.0, -3.0]]
    """
    for top in range(0, len(matrix), TILE):
        matrix[top : top + TILE] += times * np.outer(vector[top : top + TILE], vector)
    return matrix


def as_indices(indices: ArrayLike, count: int, name: str) -> Indices:
    """Distinct positions in `range(count)`; ValueError says which are not."""
    array = np.asarray(indices)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a vector of integers; it has shape {array.shape} and type {array.dtype}")
    array = array.astype(np.intp)
    outside = array[(array < 0) | (array >= count)]
    if outside.size:
        raise ValueError(f"{name} holds {int(outside[0])}, outside the {count} units of the gram")
    if np.unique(array).size != array.size:
        raise ValueError(f"{name} holds a unit twice")
    return array


def as_rho(rho: float) -> float:
    """A finite ridge above 0."""
    if not (np.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be finite and above 0, not {rho}")
    return float(rho)
