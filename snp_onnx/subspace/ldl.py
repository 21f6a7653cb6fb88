"""Gram-Schmidt without normalisation, from moments alone: what each unit adds beyond the units before it."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import lapack

from snp_onnx.subspace.arrays import Matrix, Vector, as_finite, as_gram, as_indices
from snp_onnx.subspace.ridge import ridge_of, with_ridge


def ldl(gram: ArrayLike, order: ArrayLike, rho: float = 1e-6) -> tuple[Matrix, Vector]:
    """Factor G = L D Lᵀ in the given order (arXiv 2405.17506).

    L is the unit lower triangular factor of P(G + Λ)Pᵀ. d_i = [L^{-1} P G Pᵀ L^{-T}]_ii is the energy of unit i's
    residual after regression on the units before it: the ridge steadies the regression but is not counted as energy,
    so an exact linear combination gets d of order rho², not rho.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, activation² units.
    order : (C,) a permutation, most important first.
    rho : ridge strength of `ridge_diagonal`.

    Returns
    -------
    L : (C, C) unit lower triangular; rows and columns in that order.
    d : (C,) at least 0, activation² units, in that order. Equivalent, for small rho, to `diag(R)² / n` with R from
        `scipy.linalg.qr(X[:, order])`.

    Examples
    --------
    >>> import numpy as np
    >>> L, d = ldl(np.array([[4.0, 2.0], [2.0, 2.0]]), order=[0, 1], rho=1e-12)
    >>> L.round(6).tolist(), d.round(6).tolist()
    ([[1.0, 0.0], [0.5, 1.0]], [4.0, 1.0])
    """
    matrix = as_gram(gram)
    count = len(matrix)
    permutation = as_indices(order, count, "order")
    if len(permutation) != count:
        raise ValueError(f"order has {len(permutation)} units and the gram {count}: give every unit once")
    permuted = matrix[np.ix_(permutation, permutation)]
    ridge = ridge_of(np.diag(permuted), rho)
    _, factor, _ = with_ridge(permuted, ridge)
    lower = np.tril(factor / np.diag(factor))
    np.fill_diagonal(lower, 1.0)
    inverse, _ = lapack.dtrtri(lower, lower=1, unitdiag=1)
    # diag(L^-1 (G + Λ) L^-T) is the factor's squared diagonal; Λ's own part of it is taken off
    energy = np.square(np.diag(factor)) - np.square(inverse) @ ridge
    return lower, np.maximum(energy, 0.0)


def cumulative_variance(d: ArrayLike) -> Vector:
    """Fraction of Σd reached when the first 1 … C units of the order are kept; all 1 when Σd is 0.

    Parameters
    ----------
    d : (C,) energies from `ldl`, none negative.

    Examples
    --------
    >>> cumulative_variance([3.0, 1.0, 0.0]).tolist()
    [0.75, 1.0, 1.0]
    """
    energy = as_finite(d, "d")
    if energy.ndim != 1 or not energy.size or energy.min() < 0.0:
        raise ValueError(f"d must be a vector of energies, none negative; it has shape {energy.shape}")
    reached = np.cumsum(energy)
    return reached / reached[-1] if reached[-1] > 0.0 else np.ones_like(energy)
