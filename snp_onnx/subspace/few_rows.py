"""Moments of fewer rows than columns: the covariance as a diagonal and a few rows, never written out.

Shrinkage and ridge leave S = D + FᵀF with D diagonal and F (n, C), so that every inverse goes through an (n, n)
matrix (Woodbury): (D + FᵀF)⁻¹ = D⁻¹ - PᵀK⁻¹P with P = F D⁻¹ and K = I + F D⁻¹ Fᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from snp_onnx.subspace.arrays import Indices, Matrix, Vector, as_finite
from snp_onnx.subspace.centred import CentredGram
from snp_onnx.subspace.ridge import ridge_of
from snp_onnx.subspace.shrinkage import shrinkage_weight


@dataclass(frozen=True, slots=True, eq=False)
class FewRows:
    """S = D + FᵀF and m: `diagonal` (C,), `factor` (n, C) and `mean` (C,), activation units and their squares."""

    diagonal: Vector
    factor: Matrix
    mean: Vector

    def __len__(self) -> int:
        return len(self.diagonal)

    def on(self, columns: Indices) -> FewRows:
        """The moments of some of the columns; itself where these are all in order."""
        if np.array_equal(columns, np.arange(len(self))):
            return self
        return FewRows(self.diagonal[columns], self.factor[:, columns], self.mean[columns])

    @property
    def variance(self) -> Vector:
        """The diagonal of S = D + FᵀF, (C,)."""
        return np.asarray(self.diagonal + np.square(self.factor).sum(axis=0))

    def dense(self) -> CentredGram:
        """The same moments written out, (C, C)."""
        covariance: Matrix = self.factor.T @ self.factor
        covariance[np.diag_indices(len(covariance))] += self.diagonal
        return CentredGram(covariance, self.mean)

    def around_zero(self) -> FewRows:
        """The same moments around 0 instead of the mean, as published methods take them."""
        return FewRows(self.diagonal, np.vstack([self.factor, self.mean]), np.zeros_like(self.mean))

    def output_variance(self, weight: Matrix) -> float:
        """tr(W S Wᵀ) of a weight (O, C): the variance of W x, summed over outputs."""
        return float(self.output_variances(weight).sum())

    def output_variances(self, weight: Matrix) -> Vector:
        """The diagonal of W S Wᵀ, (O,): the variance of every output of W x."""
        own = np.einsum("oc,c,oc->o", weight, self.diagonal, weight)
        return np.asarray(own + np.square(weight @ self.factor.T).sum(axis=1))

    def with_ridge(self, rho: float, is_affine: bool) -> tuple[Vector, Matrix]:
        """D + Λ and F of what a least-squares problem inverts: S, or S + m mᵀ where no bias is free."""
        diagonal = self.diagonal + ridge_of(self.variance, rho)
        return diagonal, self.factor if is_affine else np.vstack([self.factor, self.mean])


def few_rows(rows: Matrix, count: int) -> FewRows:
    """The moments of `rows` (n, C), n < C, their covariance shrunk as by `shrink`.

    Examples
    --------
    >>> import numpy as np
    >>> from snp_onnx.subspace import shrink
    >>> x = np.array([[1.0, 2.0, 0.0], [3.0, 1.0, 1.0]])
    >>> m = x.mean(axis=0)
    >>> np.allclose(few_rows(x, 2).dense().covariance, shrink(x.T @ x / 2 - np.outer(m, m), 2))
    True
    """
    checked = as_finite(rows, "rows")
    mean = checked.sum(axis=0) / count
    centred = (checked - mean) / np.sqrt(count)
    variance = np.square(centred).sum(axis=0)
    live = variance > 0.0
    scaled = centred[:, live] / np.sqrt(variance[live])
    energy = float(np.square(scaled @ scaled.T).sum())
    weight = shrinkage_weight(energy, int(live.sum()), count)
    return FewRows(weight * variance, np.sqrt(1.0 - weight) * centred, mean)


@dataclass(frozen=True, slots=True, eq=False)
class FewRowsMap:
    """The map A of a fold as W ↦ W A = W_K + W_P F_Pᵀ B, with B (n, K): `kept` and `pruned` are K and P."""

    kept: Indices
    pruned: Indices
    left: Matrix
    right: Matrix

    __array_ufunc__ = None

    def __rmatmul__(self, weight: Matrix) -> Matrix:
        folded: Matrix = weight[..., self.kept] + (weight[..., self.pruned] @ self.left) @ self.right
        return folded

    def dense(self, columns: int) -> Matrix:
        """A itself, (C, K)."""
        return np.eye(columns) @ self


def fold_few(gram: FewRows, kept: Indices, rho: float, is_affine: bool) -> tuple[FewRowsMap, Vector]:
    """`affine_fold` by the dual form: nothing of C × C is made.

    H_PK (H_KK + Λ_K)⁻¹ = F_Pᵀ K⁻¹ F_K D_K⁻¹ with K = I + F_K D_K⁻¹ F_Kᵀ, D including the ridge.
    """
    diagonal, factor = gram.with_ridge(rho, is_affine)
    pruned = np.setdiff1d(np.arange(len(gram)), kept)
    scaled = factor[:, kept] / diagonal[kept]
    inner = np.eye(len(factor)) + scaled @ factor[:, kept].T
    right = linalg.solve(inner, scaled, assume_a="pos", check_finite=False)
    mapping = FewRowsMap(kept, pruned, factor[:, pruned].T, right)
    shift = np.zeros(len(gram))
    if is_affine:
        shift[pruned] = gram.mean[pruned] - factor[:, pruned].T @ (right @ gram.mean[kept])
    return mapping, shift
