"""Folding: the kept units take over what the pruned ones contributed, by linear least squares."""

from typing import overload

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from snp_onnx.subspace.arrays import Indices, Matrix, Vector, add_outer, as_finite, as_gram, as_indices
from snp_onnx.subspace.few_rows import FewRows, FewRowsMap, fold_few
from snp_onnx.subspace.in_place import factorise
from snp_onnx.subspace.ridge import UNDERFLOW, ridge_of


@overload
def fold_map(gram: FewRows, keep: ArrayLike, rho: float = ...) -> FewRowsMap: ...


@overload
def fold_map(gram: ArrayLike, keep: ArrayLike, rho: float = ...) -> Matrix: ...


def fold_map(gram: ArrayLike | FewRows, keep: ArrayLike, rho: float = 1e-6) -> Matrix | FewRowsMap:
    """The map A with W' = W A: least squares onto the kept units, anchored at the dense weights.

    (G_KK + Λ_K) Aᵀ = G_{K,:} + Λ_K E_K, with E_K the rows K of the identity: W' solves
    min tr((W - W'E_K) G (W - W'E_K)ᵀ) + Σ_K Λ_i ‖W'_i - W_i‖². For rho → 0 it is the paper's W G_{:,K} (G_KK)^{-1}.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, activation² units; or few rows: then the map comes as its factors, to be used as `W @ A`.
    keep : (K,) indices of the kept units, ascending.
    rho : ridge strength of `ridge_diagonal`.

    Returns
    -------
    (C, K); A[keep] is exactly the identity. Equivalent, for small rho, to `scipy.linalg.lstsq(X[:, keep], X)[0].T`.

    Examples
    --------
    >>> import numpy as np
    >>> fold_map(np.array([[1.0, 1.0], [1.0, 1.0]]), keep=[0], rho=1e-12).round(6).tolist()
    [[1.0], [1.0]]
    """
    if isinstance(gram, FewRows):
        return fold_few(gram, _ascending(keep, len(gram)), rho, affine=False)[0]
    matrix = as_gram(gram, own=False)
    kept = _ascending(keep, len(matrix))
    pruned = np.setdiff1d(np.arange(len(matrix)), kept)
    ridge = ridge_of(np.diag(matrix), rho)[kept]
    mapping = np.zeros((len(matrix), len(kept)))
    mapping[kept] = np.eye(len(kept))
    factor = factorise(matrix[np.ix_(kept, kept)], ridge)
    mapping[pruned] = linalg.cho_solve((factor, True), matrix[np.ix_(kept, pruned)], check_finite=False).T
    return mapping


@overload
def affine_fold(gram: FewRows, mean: ArrayLike, keep: ArrayLike, rho: float = ...) -> tuple[FewRowsMap, Vector]: ...


@overload
def affine_fold(gram: ArrayLike, mean: ArrayLike, keep: ArrayLike, rho: float = ...) -> tuple[Matrix, Vector]: ...


def affine_fold(
    gram: ArrayLike | FewRows, mean: ArrayLike, keep: ArrayLike, rho: float = 1e-3
) -> tuple[Matrix | FewRowsMap, Vector]:
    """The map A and the shift with W' = W A, b' = b + W shift: least squares onto the kept columns and a constant.

    W' and b' solve min E‖W x + b - W'x_K - b'‖² + Σ_K Λ_i ‖W'_i - W_i‖², with no ridge on the constant. With the
    covariance S = G - m mᵀ that is (S_KK + Λ_K) Aᵀ = S_{K,:} + Λ_K E_K and shift = m - A m_K.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, not centred, activation² units; or few rows, as in `fold_map`.
    mean : (C,) m, the mean of X, activation units.
    keep : (K,) indices of the kept columns, ascending; none leaves only the constant.
    rho : ridge strength of `ridge_diagonal`, relative to G.

    Returns
    -------
    (C, K) and (C,); A[keep] is exactly the identity and shift[keep] exactly 0. Equivalent, for small rho, to
    `scipy.linalg.lstsq(np.c_[X[:, keep], np.ones(len(X))], X)[0].T`, whose last column is the shift.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])  # x_1 = 2 x_0 + 1
    >>> mapping, shift = affine_fold(x.T @ x / 2, x.mean(axis=0), keep=[0], rho=1e-12)
    >>> mapping.round(6).tolist(), shift.round(6).tolist()
    ([[1.0], [2.0]], [0.0, 1.0])
    """
    if isinstance(gram, FewRows):
        return fold_few(gram, _ascending(keep, len(gram)), rho, affine=True)
    matrix = as_gram(gram, own=False)
    middle = as_mean(mean, len(matrix))
    kept = _ascending(keep, len(matrix))
    pruned = np.setdiff1d(np.arange(len(matrix)), kept)
    ridge = ridge_of(np.diag(matrix), rho)[kept]
    mapping, shift = np.zeros((len(matrix), len(kept))), np.zeros(len(matrix))
    mapping[kept] = np.eye(len(kept))
    if kept.size and pruned.size:
        covariance = matrix[np.ix_(kept, kept)]
        factor = factorise(covariance, ridge, centre(covariance, middle[kept]))
        target = matrix[np.ix_(kept, pruned)] - np.outer(middle[kept], middle[pruned])
        mapping[pruned] = linalg.cho_solve((factor, True), target, check_finite=False).T
    shift[pruned] = middle[pruned] - mapping[pruned] @ middle[kept]
    return mapping, shift


def centred(gram: Matrix, mean: Vector, tolerance: float = 1e-4) -> tuple[Matrix, float]:
    """The covariance G - m mᵀ, and the tolerance of `with_ridge` that is `tolerance` of G rather than of it.

    Where the mean is large the difference carries the rounding of G, so that is what it must be measured against.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, checked, activation² units. mean : (C,) activation units.
    tolerance : fraction of trace G below which a negative eigenvalue of the covariance counts as rounding.

    Examples
    --------
    >>> import numpy as np
    >>> centred(np.array([[5.0]]), np.array([2.0]), tolerance=0.01)
    (array([[1.]]), 0.05)
    """
    covariance = gram.copy()
    return covariance, centre(covariance, mean, tolerance)


def centre(gram: Matrix, mean: Vector, tolerance: float = 1e-4) -> float:
    """`centred` with the covariance written over G, and the tolerance given back."""
    total = float(np.trace(gram))
    add_outer(gram, mean, -1.0)
    variance = np.diag(gram).copy()
    if np.any(variance < -max(tolerance * total, UNDERFLOW)):
        worst = int(np.argmin(variance))
        raise ValueError(f"mean[{worst}]² exceeds gram[{worst}, {worst}]: pass the mean and XᵀX/n of the same X")
    np.fill_diagonal(gram, np.maximum(variance, 0.0))
    left = float(np.trace(gram))
    return tolerance * total / left if left > 0.0 else float("inf")


def as_mean(mean: ArrayLike, count: int) -> Vector:
    """`mean` as a finite (C,) vector of the columns of a gram."""
    vector = as_finite(mean, "mean")
    if vector.shape != (count,):
        raise ValueError(f"mean must be ({count},) to match the gram; it has shape {vector.shape}")
    return vector


def fold_error(gram: ArrayLike, weight: ArrayLike, keep: ArrayLike, folded: ArrayLike) -> float:
    """Energy of the output error of a fold, relative to the output's own energy.

    tr((W - W'E_K) G (W - W'E_K)ᵀ) / tr(W G Wᵀ), for any W': 0 is a perfect fold, 1 is an output of zero.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, activation² units.
    weight : (O, C) dense weights W.
    keep : (K,) indices of the kept units, ascending.
    folded : (O, K) weights W' on the kept units.

    Returns
    -------
    A fraction, at least 0; when the dense output has no energy, 0 if the error has none either, otherwise infinite.

    Examples
    --------
    >>> import numpy as np
    >>> fold_error(np.eye(2), weight=[[1.0, 1.0]], keep=[0], folded=[[1.0]])
    0.5
    """
    matrix = as_gram(gram, own=False)
    kept = _ascending(keep, len(matrix))
    dense, small = as_finite(weight, "weight"), as_finite(folded, "folded")
    if dense.ndim != 2 or dense.shape[1] != len(matrix):
        raise ValueError(f"weight must be (O, {len(matrix)}) to match the gram; it has shape {dense.shape}")
    if small.shape != (len(dense), len(kept)):
        shape = (len(dense), len(kept))
        raise ValueError(f"folded must be {shape} for this weight and keep; it has shape {small.shape}")
    difference = dense.copy()
    difference[:, kept] -= small
    error, energy = _energy(difference, matrix), _energy(dense, matrix)
    if energy > 0.0:
        return error / energy
    return 0.0 if error == 0.0 else float("inf")


def _energy(weight: Matrix, gram: Matrix) -> float:
    return max(0.0, float(np.einsum("ij,ij->", weight @ gram, weight)))


def _ascending(keep: ArrayLike, count: int) -> Indices:
    kept = as_indices(keep, count, "keep")
    if np.any(np.diff(kept) < 0):
        raise ValueError("keep must be ascending: sort it")
    return kept
