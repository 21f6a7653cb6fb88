"""Refit: a layer's weights solved anew on the inputs it really gets, towards the outputs it ought to give."""

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import Matrix, Vector, as_finite
from snp_onnx.subspace.centred import CentredGram


def refit(
    inputs: CentredGram,
    cross: ArrayLike,
    aim_mean: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    rho: float = 1e-2,
) -> tuple[Matrix, Vector]:
    """Weights and bias that bring W x + b closest to an aim t, anchored at the present weights.

    min E‖W' x + b' - t‖² + Σ_i Λ_i ‖W'_i - W_i‖². With a free bias and the covariances S and T = E[(x - m)(t - t̄)ᵀ]:
    (S + Λ)(W' - W)ᵀ = T - S Wᵀ and b' = t̄ - W' m. With a given bias S + m mᵀ takes the place of S, but not in Λ, and
    T + m (t̄ - b)ᵀ that of T.

    Parameters
    ----------
    inputs : the moments S and m of x, (C, C) and (C,). cross : (C, O) T. aim_mean : (O,) t̄, the mean of the aims.
    weight : (O, C) the present weights W. bias : (O,) a bias that must stay, or None for a free one.
    rho : ridge strength of `ridge_diagonal`, relative to S.

    Returns
    -------
    (O, C) and (O,). Equivalent, for small rho and a free bias, to `scipy.linalg.lstsq(np.c_[X, np.ones(len(X))], T)`.

    Examples
    --------
    >>> import numpy as np
    >>> x, t = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    >>> inputs, cross = CentredGram.of(x.T @ x / 2, x.mean(0)), x.T @ (t - t.mean(0)) / 2
    >>> w, b = refit(inputs, cross, t.mean(0), weight=[[0.0]], bias=None, rho=1e-12)
    >>> w.round(6).tolist(), b.round(6).tolist()
    ([[2.0]], [1.0])
    """
    given = inputs.checked()
    aims, present, sought = as_finite(aim_mean, "aim_mean"), as_finite(weight, "weight"), as_finite(cross, "cross")
    if present.ndim != 2 or present.shape[1] != len(given):
        raise ValueError(f"weight must be (O, {len(given)}) to match the gram; it has shape {present.shape}")
    if sought.shape != present.T.shape or aims.shape != (len(present),):
        raise ValueError(f"cross must be {present.T.shape} and aim_mean ({len(present)},), not {sought.shape}")
    normal = given.with_ridge(rho, is_affine=bias is None)
    if bias is not None:
        kept = as_finite(bias, "bias")
        sought = sought + np.outer(given.mean, aims - kept)
    solved: Matrix = present + normal.factor_on().solve(sought - normal.matrix @ present.T).T
    return solved, kept if bias is not None else aims - solved @ given.mean


def refit_error(
    inputs: CentredGram,
    cross: ArrayLike,
    aim_mean: ArrayLike,
    aim_variance: float,
    weight: ArrayLike,
    bias: ArrayLike,
) -> float:
    """E‖W x + b - t‖² as a share of the variance of the aims E‖t - t̄‖², never below 0.

    It is tr(W S Wᵀ) - 2 tr(W T) + ‖W m + b - t̄‖² + E‖t - t̄‖². Where the aims don't vary it isn't divided by anything.

    Examples
    --------
    >>> import numpy as np
    >>> x, t = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    >>> inputs, cross = CentredGram.of(x.T @ x / 2, x.mean(0)), x.T @ (t - t.mean(0)) / 2
    >>> refit_error(inputs, cross, t.mean(0), 4.0, weight=[[2.0]], bias=[0.0])
    0.25
    """
    W, b = np.asarray(weight, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    off = W @ inputs.mean + b - np.asarray(aim_mean)
    varying = inputs.output_variance(W) - 2.0 * float(np.einsum("oc,co->", W, np.asarray(cross))) + aim_variance
    error = max(0.0, varying) + float(off @ off)
    return error / aim_variance if aim_variance > 0.0 else error
