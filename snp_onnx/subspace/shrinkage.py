"""Shrinkage: a Gram matrix of fewer rows than units says more about the sample than about the units."""

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import TILE, Matrix, as_gram


def shrink(gram: ArrayLike, rows: int) -> Matrix:
    """G itself when rows >= C; otherwise G with its off-diagonal entries scaled by 1 - a.

    With fewer rows than units G is singular: some units look like exact combinations of others only because there are
    too few rows to tell them apart, and a fold would reproduce the calibration rows and nothing else. The off-diagonal
    part is shrunk by the oracle approximating weight of the correlations R = D^-1/2 G D^-1/2, which needs no more data:

        a = min(1, ((1 - 2/C) tr R^2 + C^2) / ((n + 1 - 2/C) (tr R^2 - C)))

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, activation² units.
    rows : n, the number of rows of X.

    Source: Chen, Wiesel, Eldar, Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE TSP 58 (2010),
    eq. 23, applied to the correlation matrix, whose trace is C.

    Examples
    --------
    >>> import numpy as np
    >>> shrink(np.array([[1.0, 1.0], [1.0, 1.0]]), rows=2).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    >>> shrink(np.ones((4, 4)), rows=2)[0].round(3).tolist()
    [1.0, 0.2, 0.2, 0.2]
    """
    matrix = as_gram(gram)
    units = len(matrix)
    if rows >= units or units < 2:
        return matrix
    diagonal = np.diag(matrix).copy()
    live = diagonal > 0.0
    inverse = np.divide(1.0, diagonal, out=np.zeros(units), where=live)
    rows_of = (slice(top, top + TILE) for top in range(0, units, TILE))
    # of the correlations, which needn't be there
    energy = sum(float(inverse[part] @ np.square(matrix[part]) @ inverse) for part in rows_of)
    matrix *= 1.0 - shrinkage_weight(energy, int(live.sum()), rows)
    np.fill_diagonal(matrix, diagonal)
    return matrix


def shrinkage_weight(energy: float, units: int, rows: int) -> float:
    """The weight a for tr R² = `energy` and C = `units`."""
    apart = energy - units
    if units < 2 or apart <= 0.0:
        return 1.0
    return min(1.0, ((1.0 - 2.0 / units) * energy + units**2) / ((rows + 1.0 - 2.0 / units) * apart))
