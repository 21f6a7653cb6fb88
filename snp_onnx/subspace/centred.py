"""The normal equations of every layer: the covariance of its inputs, the ridge on it, and their factor.

With the mean m and the covariance S of a layer's inputs, least squares inverts H + Λ:

    H = S where a bias is free,   H = S + m mᵀ where none is,   Λ_i = rho · max(S_ii, floor · mean diag S).

The ridge is relative to what varies, so an offset that one layer adds and the next bias takes out changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from snp_onnx.subspace.arrays import Indices, Matrix, Vector, add_outer, as_finite, as_gram
from snp_onnx.subspace.in_place import factorise
from snp_onnx.subspace.ridge import TOLERANCE, UNDERFLOW, ridge_of


@dataclass(frozen=True, slots=True, eq=False)
class CentredGram:
    """S = E[(x - m)(x - m)ᵀ] (C, C), activation² units, and m (C,), activation units.

    `tolerance` : share of the largest eigenvalue of S below which a negative one counts as rounding.
    """

    covariance: Matrix
    mean: Vector
    tolerance: float = TOLERANCE

    @classmethod
    def of(cls, gram: ArrayLike, mean: ArrayLike) -> CentredGram:
        """S = G - m mᵀ from G = XᵀX/n (C, C) and the mean of the same X; the rounding of G is tolerated in S.

        Examples
        --------
        >>> import numpy as np
        >>> CentredGram.of(np.array([[5.0]]), np.array([2.0])).covariance.tolist()
        [[1.0]]
        """
        matrix = as_gram(gram)
        middle = as_mean(mean, len(matrix))
        total = float(np.trace(matrix))
        add_outer(matrix, middle, -1.0)
        variance = np.diag(matrix).copy()
        if np.any(variance < -max(TOLERANCE * total, UNDERFLOW)):
            worst = int(np.argmin(variance))
            raise ValueError(f"mean[{worst}]² exceeds gram[{worst}, {worst}]: pass the mean and XᵀX/n of the same X")
        np.fill_diagonal(matrix, np.maximum(variance, 0.0))
        left = float(np.trace(matrix))
        return cls(matrix, middle, TOLERANCE * total / left if left > 0.0 else float("inf"))

    def __len__(self) -> int:
        return len(self.covariance)

    def checked(self, own: bool = False) -> CentredGram:
        """Finite, float64 and symmetric; unless it is to be the caller's `own`, what is so already isn't copied."""
        covariance = as_gram(self.covariance, own)
        return CentredGram(covariance, as_mean(self.mean, len(covariance)), self.tolerance)

    def on(self, columns: Indices) -> CentredGram:
        """The moments of some of the columns; itself where these are all in order."""
        if np.array_equal(columns, np.arange(len(self))):
            return self
        return CentredGram(self.covariance[np.ix_(columns, columns)], self.mean[columns], self.tolerance)

    @property
    def variance(self) -> Vector:
        """The diagonal of S, (C,)."""
        return np.diag(self.covariance).copy()

    def gram(self) -> Matrix:
        """G = S + m mᵀ, (C, C)."""
        return add_outer(self.covariance.copy(), self.mean, 1.0)

    def around_zero(self) -> CentredGram:
        """The same moments around 0 instead of the mean, as published methods take them."""
        return CentredGram(self.gram(), np.zeros_like(self.mean), self.tolerance)

    def output_variance(self, weight: Matrix) -> float:
        """tr(W S Wᵀ) of a weight (O, C): the variance of W x, summed over outputs."""
        return float(self.output_variances(weight).sum())

    def output_variances(self, weight: Matrix) -> Vector:
        """The diagonal of W S Wᵀ, (O,): the variance of every output of W x."""
        return np.asarray(np.einsum("oc,oc->o", weight @ self.covariance, weight))

    def with_ridge(self, rho: float, is_affine: bool = True, in_place: bool = False) -> NormalMatrix:
        """H + Λ; `in_place` lets it take the memory of the covariance."""
        ridge = ridge_of(self.variance, rho)
        if is_affine:
            return NormalMatrix(self.covariance, ridge, self.tolerance)
        matrix = self.covariance if in_place else self.covariance.copy()
        return NormalMatrix(add_outer(matrix, self.mean, 1.0), ridge, self.tolerance)


@dataclass(frozen=True, slots=True, eq=False)
class NormalMatrix:
    """H + Λ: `matrix` H (C, C), `ridge` the diagonal of Λ (C,), activation² units.

    Examples
    --------
    >>> import numpy as np
    >>> normal = CentredGram(np.diag([2.0, 4.0]), np.zeros(2)).with_ridge(0.5)
    >>> normal.factor_on().solve(np.array([3.0, 12.0])).round(12).tolist(), normal.error_of(np.array([[1.0, 0.0]]))
    ([1.0, 2.0], 3.0)
    """

    matrix: Matrix
    ridge: Vector
    tolerance: float = TOLERANCE

    def factor_on(self, kept: Indices | None = None, in_place: bool = False) -> Factor:
        """The factor of the rows and columns `kept`, in their order; `in_place` lets it take the matrix's memory."""
        if kept is not None and not np.array_equal(kept, np.arange(len(self.matrix))):
            lower, clipped = factorise(self.matrix[np.ix_(kept, kept)], self.ridge[kept], self.tolerance)
        else:
            matrix = self.matrix if in_place else self.matrix.copy()
            lower, clipped = factorise(matrix, self.ridge, self.tolerance)
        return Factor(lower, clipped)

    def error_of(self, change: Matrix) -> float:
        """tr(D (H + Λ) Dᵀ) of a change D (O, C) of weights: the error that it makes and what the ridge adds."""
        return float(np.einsum("oc,oc->", change @ self.matrix + change * self.ridge, change))


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """R with R Rᵀ = H + Λ: `lower` (C, C), of which what is above the diagonal means nothing.

    `clipped` is the share of H's trace that negative eigenvalues had, which were set to 0.
    """

    lower: Matrix
    clipped: float = 0.0

    def solve(self, right: ArrayLike) -> Matrix:
        """(H + Λ)⁻¹ of a vector (C,) or of the columns of a matrix (C, ...)."""
        return np.asarray(linalg.cho_solve((self.lower, True), right, check_finite=False))


def as_mean(mean: ArrayLike, count: int) -> Vector:
    """`mean` as a finite (C,) vector of the columns of a gram."""
    vector = as_finite(mean, "mean")
    if vector.shape != (count,):
        raise ValueError(f"mean must be ({count},) to match the gram; it has shape {vector.shape}")
    return vector
