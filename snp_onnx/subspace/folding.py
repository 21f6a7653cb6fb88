"""Folding: the kept units take over what the pruned ones contributed, by linear least squares."""

from typing import overload

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import Indices, Matrix, Vector, as_finite, as_gram, as_indices
from snp_onnx.subspace.centred import CentredGram
from snp_onnx.subspace.few_rows import FewRows, FewRowsMap, fold_few


def fold_map(gram: ArrayLike, keep: ArrayLike, rho: float = 1e-6) -> Matrix:
    """The published map A with W' = W A: `affine_fold` around 0 instead of the mean, without a free bias.

    (G_KK + Λ_K) Aᵀ = G_{K,:} + Λ_K E_K, with E_K the rows K of the identity: W' solves
    min tr((W - W'E_K) G (W - W'E_K)ᵀ) + Σ_K Λ_i ‖W'_i - W_i‖². For rho → 0 it is the paper's W G_{:,K} (G_KK)^{-1}.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, not centred, activation² units.
    keep : (K,) indices of the kept units, ascending.
    rho : ridge strength of `ridge_diagonal`, relative to G.

    Returns
    -------
    (C, K); A[keep] is exactly the identity. Equivalent, for small rho, to `scipy.linalg.lstsq(X[:, keep], X)[0].T`.

    Examples
    --------
    >>> import numpy as np
    >>> fold_map(np.array([[1.0, 1.0], [1.0, 1.0]]), keep=[0], rho=1e-12).round(6).tolist()
    [[1.0], [1.0]]
    """
    matrix = as_gram(gram, own=False)
    return affine_fold(CentredGram(matrix, np.zeros(len(matrix))), keep, rho, is_affine=False)[0]


@overload
def affine_fold(
    inputs: CentredGram, keep: ArrayLike, rho: float = ..., is_affine: bool = ...
) -> tuple[Matrix, Vector]: ...


@overload
def affine_fold(
    inputs: FewRows, keep: ArrayLike, rho: float = ..., is_affine: bool = ...
) -> tuple[FewRowsMap, Vector]: ...


def affine_fold(
    inputs: CentredGram | FewRows, keep: ArrayLike, rho: float = 1e-3, is_affine: bool = True
) -> tuple[Matrix | FewRowsMap, Vector]:
    """The map A and the shift with W' = W A, b' = b + W shift: least squares onto the kept columns and a constant.

    W' and b' solve min E‖W x + b - W'x_K - b'‖² + Σ_K Λ_i ‖W'_i - W_i‖², with no ridge on the constant. With the
    covariance S that is (S_KK + Λ_K) Aᵀ = S_{K,:} + Λ_K E_K and shift = m - A m_K. Without a free bias S + m mᵀ takes
    the place of S, but not in Λ, and the shift is 0.

    Parameters
    ----------
    inputs : the moments of the C input columns; of few rows the map comes as its factors, to be used as `W @ A`.
    keep : (K,) indices of the kept columns, ascending; none leaves only the constant.
    rho : ridge strength of `ridge_diagonal`, relative to S.
    is_affine : whether a bias is free.

    Returns
    -------
    (C, K) and (C,); A[keep] is exactly the identity and shift[keep] exactly 0. Equivalent, for small rho, to
    `scipy.linalg.lstsq(np.c_[X[:, keep], np.ones(len(X))], X)[0].T`, whose last column is the shift.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])  # x_1 = 2 x_0 + 1
    >>> mapping, shift = affine_fold(CentredGram.of(x.T @ x / 2, x.mean(axis=0)), keep=[0], rho=1e-12)
    >>> mapping.round(6).tolist(), shift.round(6).tolist()
    ([[1.0], [2.0]], [0.0, 1.0])
    """
    kept = _ascending(keep, len(inputs))
    if isinstance(inputs, FewRows):
        return fold_few(inputs, kept, rho, is_affine)
    given = inputs.checked()
    pruned = np.setdiff1d(np.arange(len(given)), kept)
    mapping, shift = np.zeros((len(given), len(kept))), np.zeros(len(given))
    mapping[kept] = np.eye(len(kept))
    if kept.size and pruned.size:
        normal = given.with_ridge(rho, is_affine)
        mapping[pruned] = normal.factor_on(kept).solve(normal.matrix[np.ix_(kept, pruned)]).T
    if is_affine:
        shift[pruned] = given.mean[pruned] - mapping[pruned] @ given.mean[kept]
    return mapping, shift


def fold_error(gram: ArrayLike, weight: ArrayLike, keep: ArrayLike, folded: ArrayLike) -> float:
    """The output error of a fold, relative to the output: tr((W - W'E_K) G (W - W'E_K)ᵀ) / tr(W G Wᵀ), for any W'.

    0 is a perfect fold, 1 is an output of zero; with the covariance for G it is a share of the output's variance.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, or the covariance, activation² units.
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
