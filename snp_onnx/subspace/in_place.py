"""The inverse that elimination works on, in the memory of the Gram matrix that it is made of.

Of U columns with 16,384 units one float64 matrix has 2 GiB. Here it is centred, factorised, inverted and narrowed piece
by piece where it lies, and nothing beside it is larger than a few of its rows.
"""

import numpy as np
from scipy.linalg import lapack

from snp_onnx.subspace.arrays import TILE, Indices, Matrix, Vector, tiles
from snp_onnx.subspace.ridge import TOLERANCE, with_ridge


def factorise(matrix: Matrix, ridge: Vector, tolerance: float = TOLERANCE) -> tuple[Matrix, float]:
    """The factor of `with_ridge` and the share it clipped; what is above the factor's diagonal means nothing.

    The factor is written over the matrix, unless eigenvalues had to be clipped.

    Parameters
    ----------
    matrix : (C, C) symmetric, contiguous, activation² units; its values are lost.
    ridge, tolerance : of `with_ridge`.

    Examples
    --------
    >>> np.tril(factorise(np.array([[3.0, 2.0], [2.0, 1.0]]), np.array([1.0, 1.0]))[0]).tolist()
    [[2.0, 0.0], [1.0, 1.0]]
    """
    diagonal = np.diag(matrix).copy()
    np.fill_diagonal(matrix, diagonal + ridge)
    # a transposed array is in the order of LAPACK's; half of it stays untouched, and holds what failed
    upper, failed = lapack.dpotrf(matrix.T, lower=0, clean=0, overwrite_a=1)
    if not failed:
        return np.asarray(upper.T, dtype=np.float64), 0.0
    for rows, columns in tiles(len(matrix)):
        tile = matrix[rows, columns]
        matrix[columns, rows] = tile.T if rows != columns else np.triu(tile, 1).T + np.triu(tile)
    np.fill_diagonal(matrix, diagonal)
    return with_ridge(matrix, ridge, tolerance)[1:]


def inverse_of(factor: Matrix) -> Matrix:
    """(R Rᵀ)⁻¹ from a lower triangular R with a positive diagonal, written over R where that is contiguous.

    >>> inverse_of(np.array([[2.0, 0.0], [1.0, 1.0]])).tolist()
    [[0.5, -0.5], [-0.5, 1.0]]
    """
    upper, _ = lapack.dpotri(np.ascontiguousarray(factor).T, lower=0, overwrite_c=1)
    inverse: Matrix = upper.T
    for rows, columns in tiles(len(inverse)):
        below = inverse[columns, rows]
        inverse[rows, columns] = below.T if rows != columns else np.tril(below) + np.tril(below, -1).T
    return inverse


def narrow(matrix: Matrix, columns: Indices, F: Matrix) -> Matrix:
    """M - F Fᵀ on the rows and columns that stay, moved to the corner of M; a view of it.

    Parameters
    ----------
    matrix : (S, S) symmetric; its values are lost.
    columns : increasing, those that stay. F : (columns, k).

    Examples
    --------
    >>> narrow(np.diag([5.0, 6.0, 7.0]), np.array([0, 2]), np.array([[1.0], [2.0]])).tolist()
    [[4.0, -2.0], [-2.0, 3.0]]
    """
    size = len(columns)
    for start in range(0, size, TILE):
        rows = columns[start : start + TILE]  # none of them was written over: they only move up
        piece = matrix[np.ix_(rows, columns)]
        piece -= F[start : start + TILE] @ F.T
        matrix[start : start + len(rows), :size] = piece
    return matrix[:size, :size]
