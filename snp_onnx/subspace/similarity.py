"""How alike two representations of the same samples are: centred kernel alignment, cosine, Euclidean."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import Matrix, as_finite

FEWEST_SAMPLES = 4
"""The unbiased estimate of HSIC divides by n (n - 3)."""


class Similarity(StrEnum):
    """The measures by name; each is at most 1, up to rounding, and larger for representations that are more alike."""

    CKA = "cka"
    DEBIASED_CKA = "debiased-cka"
    COSINE = "cosine"
    EUCLIDEAN = "euclidean"


def similarity(dense: ArrayLike, pruned: ArrayLike, measure: Similarity = Similarity.CKA) -> float:
    """How alike two representations are; see the function of each measure.

    Parameters
    ----------
    dense : (n, d) finite features of n samples.
    pruned : (n, e) features of the same samples; e = d but for the kernel alignments.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [-1.0, 1.0]])
    >>> [round(similarity(X, 3.0 * X, measure), 6) for measure in Similarity]
    [1.0, 1.0, 1.0, -1.0]
    """
    return _MEASURES[Similarity(measure)](dense, pruned)


def linear_cka(dense: ArrayLike, pruned: ArrayLike) -> float:
    """CKA = ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) of centred X (n, d) and Y (n, e), Frobenius norms; between 0 and 1.

    Orthogonal maps and isotropic scalings of either side don't change it. Computed from (d, e) products or, where n is
    smaller than these, from the n x n kernels XXᵀ and YYᵀ: the numerator is their inner product. Constant features
    have no alignment: with one such side it is 0, with two it is 1. With few samples and many features even
    independent noise comes out near 1: see `debiased_cka`.

    Source: Kornblith et al., arXiv 1905.00414, section 3; as the score of layer pruning arXiv 2405.17081.

    Examples
    --------
    >>> import numpy as np
    >>> round(linear_cka(np.array([[1.0], [0.0], [-1.0]]), np.array([[1.0], [1.0], [-2.0]])), 4)
    0.75
    """
    X, Y = _centred_pair(dense, pruned)
    return _quotient(_inner(X, Y), _inner(X, X), _inner(Y, Y))


def debiased_cka(dense: ArrayLike, pruned: ArrayLike) -> float:
    """CKA with the unbiased estimate of HSIC in place of the biased one; near 0 for independent features of any width.

        HSIC(K, L) = [tr(K L) + 1ᵀK1 1ᵀL1 / ((n-1)(n-2)) - 2/(n-2) 1ᵀK L1] / (n (n-3))

    with the diagonals of K = XXᵀ and L = YYᵀ set to zero; CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)). It can be below
    0. ValueError for fewer than four samples.

    Source: Song et al., "Feature selection via dependence maximization", JMLR 13 (2012), eq. 5; Nguyen, Raghu,
    Kornblith, arXiv 2010.15327, eq. 3.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.standard_normal((2, 20, 200))
    >>> bool(linear_cka(X, Y) > 0.8), bool(abs(debiased_cka(X, Y)) < 0.15)
    (True, True)
    """
    X, Y = _centred_pair(dense, pruned)
    if len(X) < FEWEST_SAMPLES:
        raise ValueError(f"debiased CKA needs at least {FEWEST_SAMPLES} samples, there are {len(X)}")
    return _quotient(_unbiased(X, Y), _unbiased(X, X), _unbiased(Y, Y))


def mean_cosine(dense: ArrayLike, pruned: ArrayLike) -> float:
    """The mean over samples of cos(x_i, y_i), not centred; a zero row is like a zero row alone.

    Examples
    --------
    >>> import numpy as np
    >>> mean_cosine(np.eye(2), np.array([[2.0, 0.0], [1.0, 0.0]]))
    0.5
    """
    X, Y = _alike(dense, pruned)
    norms = np.linalg.norm(X, axis=1), np.linalg.norm(Y, axis=1)
    scale = norms[0] * norms[1]
    cosines = np.where((norms[0] == 0.0) & (norms[1] == 0.0), 1.0, 0.0)
    np.divide(np.einsum("ij,ij->i", X, Y), scale, out=cosines, where=scale > 0.0)
    return float(cosines.mean())


def euclidean(dense: ArrayLike, pruned: ArrayLike) -> float:
    """1 - ‖X - Y‖ / ‖X‖, Frobenius norms: 1 for equal, 0 for Y = 0, without a lower bound.

    Against X = 0 it is -inf, unless Y is zero too.

    Examples
    --------
    >>> import numpy as np
    >>> euclidean(np.array([[3.0, 4.0]]), np.array([[3.0, 0.0]])).__round__(3)
    0.2
    """
    X, Y = _alike(dense, pruned)
    distance, norm = float(np.linalg.norm(X - Y)), float(np.linalg.norm(X))
    if distance == 0.0:
        return 1.0
    return 1.0 - distance / norm if norm > 0.0 else -np.inf


_MEASURES: Mapping[Similarity, Callable[[ArrayLike, ArrayLike], float]] = MappingProxyType(
    {
        Similarity.CKA: linear_cka,
        Similarity.DEBIASED_CKA: debiased_cka,
        Similarity.COSINE: mean_cosine,
        Similarity.EUCLIDEAN: euclidean,
    }
)


def _pair(dense: ArrayLike, pruned: ArrayLike) -> tuple[Matrix, Matrix]:
    X, Y = as_finite(dense, "dense"), as_finite(pruned, "pruned")
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y) or not len(X):
        raise ValueError(f"representations must be (n, d) and (n, e) with n above 0; they are {X.shape} and {Y.shape}")
    return X, Y


def _alike(dense: ArrayLike, pruned: ArrayLike) -> tuple[Matrix, Matrix]:
    X, Y = _pair(dense, pruned)
    if X.shape != Y.shape:
        raise ValueError(f"representations must have one shape here; they have {X.shape} and {Y.shape}")
    return X, Y


def _centred_pair(dense: ArrayLike, pruned: ArrayLike) -> tuple[Matrix, Matrix]:
    """Centred, each of norm 1 where it isn't zero: alignment ignores scale, and fourth powers stay in range."""
    X, Y = (_centred(values) for values in _pair(dense, pruned))
    return X, Y


def _centred(values: Matrix) -> Matrix:
    """Columns that are constant up to the rounding of their mean become exactly zero."""
    centred: Matrix = values - values.mean(axis=0)
    rounding = np.finfo(np.float64).eps * len(values) * np.abs(values).max(axis=0, initial=0.0)
    centred[:, np.abs(centred).max(axis=0, initial=0.0) <= rounding] = 0.0
    largest = float(np.abs(centred).max(initial=0.0))
    if largest == 0.0:
        return centred
    centred /= largest
    centred /= np.linalg.norm(centred)
    return centred


def _inner(X: Matrix, Y: Matrix) -> float:
    """tr(XXᵀ YYᵀ) = ‖XᵀY‖², from whichever products are smaller."""
    if len(X) < max(X.shape[1], Y.shape[1]):
        return float(np.einsum("ij,ij->", X @ X.T, Y @ Y.T))
    return float(np.square(X.T @ Y).sum())


def _unbiased(X: Matrix, Y: Matrix) -> float:
    """The unbiased HSIC; with rows x_i, y_i and sums s, t, K1 without diagonal is x_i·s - ‖x_i‖², and so on."""
    n = len(X)
    own_x, own_y = np.einsum("ij,ij->i", X, X), np.einsum("ij,ij->i", Y, Y)
    rows_x, rows_y = X @ X.sum(axis=0) - own_x, Y @ Y.sum(axis=0) - own_y
    trace = _inner(X, Y) - float(own_x @ own_y)
    corner = float(rows_x.sum()) * float(rows_y.sum()) / ((n - 1) * (n - 2))
    return (trace + corner - 2.0 / (n - 2) * float(rows_x @ rows_y)) / (n * (n - 3))


def _quotient(cross: float, first: float, second: float) -> float:
    if first <= 0.0 or second <= 0.0:
        return float(first <= 0.0 and second <= 0.0)
    return cross / float(np.sqrt(first) * np.sqrt(second))
