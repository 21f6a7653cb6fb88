"""The one ridge rule: relative to every unit's own variance, with a floor for units that don't vary.

Published methods, whose Gram matrix isn't centred, take the energy in place of the variance.
"""

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import Matrix, Vector, as_gram, as_rho

TOLERANCE = 1e-4
"""Share of the largest eigenvalue below which a negative one counts as rounding: sums in float32 leave 1e-5 at most."""

FLOOR = 1e-3
"""Share of the mean variance of all columns that a column counts as having at least: dead units have none."""

UNDERFLOW = float(np.finfo(np.float32).tiny)
"""Squares below this are rounded to multiples of 1e-45, or to 0: activations of 1e-20 have no Gram matrix to use."""


def ridge_diagonal(gram: ArrayLike, rho: float, floor: float = FLOOR) -> Vector:
    """The diagonal of the ridge Λ.

    Λ_i = rho · max(G_ii, floor · mean(diag G)). Relative to the unit's own energy, because transformers have a few huge
    dimensions: a ridge relative to the mean alone would erase all others.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, activation² units.
    rho : strength rho > 0, a fraction of each unit's energy.
    floor : fraction of the mean energy below which a unit counts as having that much (dead units).

    Returns
    -------
    (C,) strictly positive, activation² units; when G is all zero every entry is rho, as for units of energy 1.

    Examples
    --------
    >>> import numpy as np
    >>> ridge_diagonal(np.diag([2.0, 0.0]), rho=0.5, floor=0.25).tolist()
    [1.0, 0.125]
    """
    return ridge_of(np.diag(as_gram(gram)), rho, floor)


def ridge_of(energy: Vector, rho: float, floor: float = FLOOR) -> Vector:
    """`ridge_diagonal` from the diagonal of a Gram matrix that was checked already.

    >>> ridge_of(np.array([2.0, 0.0]), rho=0.5, floor=0.25).tolist()
    [1.0, 0.125]
    """
    mean = float(energy.mean())
    least = floor * mean if mean > 0.0 else 1.0
    return np.maximum(as_rho(rho) * np.maximum(energy, least), np.finfo(np.float64).tiny)


def with_ridge(gram: Matrix, ridge: Vector, tolerance: float = TOLERANCE) -> tuple[Matrix, Matrix, float]:
    """G + Λ, its lower Cholesky factor, and the share of the trace that was clipped, for G positive but for rounding.

    Sums in float32 can leave redundant units with eigenvalues below -Λ; those are set to 0 in G first. An eigenvalue
    below -`tolerance` times the largest is no rounding, unless it is as small as float32 underflows: ValueError.

    Parameters
    ----------
    gram : (C, C) symmetric, activation² units.
    ridge : (C,) diagonal of Λ, positive, activation² units.

    Returns
    -------
    (C, C), (C, C) and a share of trace G: the sum of the negative eigenvalues, 0 where none had to be set to 0.

    Examples
    --------
    >>> import numpy as np
    >>> ridged, factor, clipped = with_ridge(np.array([[3.0]]), np.array([1.0]))
    >>> ridged.tolist(), factor.tolist(), clipped
    ([[4.0]], [[2.0]], 0.0)
    """
    ridged: Matrix = gram + np.diag(ridge)
    try:
        return ridged, np.asarray(np.linalg.cholesky(ridged), dtype=np.float64), 0.0
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(gram)
    if values[0] < -max(tolerance * values[-1], UNDERFLOW * len(gram)):
        span = f"{values[0]:.3g} to {values[-1]:.3g}"
        raise ValueError(f"gram is not positive semi-definite, its eigenvalues go from {span}: pass XᵀX/n")
    kept = np.maximum(values, 0.0)
    ridged = (vectors * kept) @ vectors.T + np.diag(ridge)
    clipped = float((kept - values).sum()) / max(float(kept.sum()), np.finfo(np.float64).tiny)
    return ridged, np.asarray(np.linalg.cholesky(ridged), dtype=np.float64), clipped
