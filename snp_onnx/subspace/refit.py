"""Refit: a layer's weights solved anew on the inputs it really gets, towards the outputs it ought to give."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from snp_onnx.subspace.arrays import Matrix, Vector, as_finite, as_gram
from snp_onnx.subspace.folding import as_mean, centred
from snp_onnx.subspace.ridge import ridge_of, with_ridge


def refit(
    gram: ArrayLike,
    mean: ArrayLike,
    cross: ArrayLike,
    aim_mean: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    rho: float = 1e-2,
) -> tuple[Matrix, Vector]:
    """Weights and bias that bring W x + b closest to an aim t, anchored at the present weights.

    min E‖W' x + b' - t‖² + Σ_i Λ_i ‖W'_i - W_i‖². With a free bias, S = G - m mᵀ and T = E[x tᵀ] - m t̄ᵀ:
    (S + Λ)(W' - W)ᵀ = T - S Wᵀ and b' = t̄ - W' m. With a given bias S is G itself and T is E[x tᵀ] - m bᵀ.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, activation² units. mean : (C,) m, the mean of X.
    cross : (C, O) XᵀT/n. aim_mean : (O,) t̄, the mean of the aims.
    weight : (O, C) the present weights W. bias : (O,) a bias that must stay, or None for a free one.
    rho : ridge strength of `ridge_diagonal`, relative to G.

    Returns
    -------
    (O, C) and (O,). Equivalent, for small rho and a free bias, to `scipy.linalg.lstsq(np.c_[X, np.ones(len(X))], T)`.

    Examples
    --------
    >>> import numpy as np
    >>> x, t = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    >>> w, b = refit(x.T @ x / 2, x.mean(0), x.T @ t / 2, t.mean(0), weight=[[0.0]], bias=None, rho=1e-12)
    >>> w.round(6).tolist(), b.round(6).tolist()
    ([[2.0]], [1.0])
    """
    matrix = as_gram(gram)
    centre = as_mean(mean, len(matrix))
    aims, present = as_finite(aim_mean, "aim_mean"), as_finite(weight, "weight")
    products = as_finite(cross, "cross")
    if present.ndim != 2 or present.shape[1] != len(matrix):
        raise ValueError(f"weight must be (O, {len(matrix)}) to match the gram; it has shape {present.shape}")
    if products.shape != present.T.shape or aims.shape != (len(present),):
        raise ValueError(f"cross must be {present.T.shape} and aim_mean ({len(present)},), not {products.shape}")
    ridge = ridge_of(np.diag(matrix), rho)
    if bias is not None:
        kept = as_finite(bias, "bias")
        covariance, tolerance, sought = matrix, 1e-4, products - np.outer(centre, kept)
    else:
        covariance, tolerance = centred(matrix, centre)
        sought = products - np.outer(centre, aims)
    _, factor = with_ridge(covariance, ridge, tolerance)
    change = linalg.cho_solve((factor, True), sought - covariance @ present.T, check_finite=False).T
    solved: Matrix = present + change
    return solved, kept if bias is not None else aims - solved @ centre


def refit_error(
    gram: ArrayLike,
    mean: ArrayLike,
    cross: ArrayLike,
    aim_mean: ArrayLike,
    aim_energy: float,
    weight: ArrayLike,
    bias: ArrayLike,
) -> float:
    """E‖W x + b - t‖² from the moments that `refit` takes and the aims' energy E‖t‖², never below 0.

    Examples
    --------
    >>> import numpy as np
    >>> x, t = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    >>> refit_error(x.T @ x / 2, x.mean(0), x.T @ t / 2, t.mean(0), 13.0, weight=[[2.0]], bias=[0.0])
    1.0
    """
    W, b = np.asarray(weight, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    own = np.einsum("oc,oc->", W @ np.asarray(gram), W) + 2.0 * b @ (W @ np.asarray(mean)) + b @ b
    both = np.einsum("oc,co->", W, np.asarray(cross)) + b @ np.asarray(aim_mean)
    return max(0.0, float(own - 2.0 * both + aim_energy))
