"""The one ridge rule: relative to every unit's own energy, with a floor for dead units."""

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import Matrix, Vector, as_gram, as_rho

UNDERFLOW = float(np.finfo(np.float32).tiny)
"""Squares below this are rounded to multiples of 1e-45, or to 0: activations of 1e-20 have no Gram matrix to use."""


def ridge_diagonal(gram: ArrayLike, rho: float, floor: float = 1e-3) -> Vector:
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


def ridge_of(energy: Vector, rho: float, floor: float = 1e-3) -> Vector:
    """`ridge_diagonal` from the diagonal of a Gram matrix that was checked already.

    >>> ridge_of(np.array([2.0, 0.0]), rho=0.5, floor=0.25).tolist()
    [1.0, 0.125]
    """
    mean = float(energy.mean())
    least = floor * mean if mean > 0.0 else 1.0
    return np.maximum(as_rho(rho) * np.maximum(energy, least), np.finfo(np.float64).tiny)


def with_ridge(gram: Matrix, ridge: Vector, tolerance: float = 1e-4) -> tuple[Matrix, Matrix]:
    """G + Λ and its lower Cholesky factor, for a G that is positive semi-definite but for rounding.

    Sums in float32 can leave redundant units with eigenvalues below -Λ; those are set to 0 in G first. An eigenvalue
    below -`tolerance` times the largest is no rounding, unless it is as small as float32 underflows: ValueError.

    Parameters
    ----------
    gram : (C, C) symmetric, activation² units.
    ridge : (C,) diagonal of Λ, positive, activation² units.

    Examples
    --------
    >>> import numpy as np
    >>> ridged, factor = with_ridge(np.array([[3.0]]), np.array([1.0]))
    >>> ridged.tolist(), factor.tolist()
    ([[4.0]], [[2.0]])
    """
    ridged: Matrix = gram + np.diag(ridge)
    try:
        return ridged, np.asarray(np.linalg.cholesky(ridged), dtype=np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(gram)
    if values[0] < -max(tolerance * values[-1], UNDERFLOW * len(gram)):
        span = f"{values[0]:.3g} to {values[-1]:.3g}"
        raise ValueError(f"gram is not positive semi-definite, its eigenvalues go from {span}: pass XᵀX/n")
    ridged = (vectors * np.maximum(values, 0.0)) @ vectors.T + np.diag(ridge)
    return ridged, np.asarray(np.linalg.cholesky(ridged), dtype=np.float64)
