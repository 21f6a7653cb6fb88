"""Orders of importance: a score per unit, larger is more important; `order_by_importance` turns scores into indices."""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snp_onnx.subspace.arrays import Indices, Vector, as_finite, as_gram
from snp_onnx.subspace.ridge import ridge_of


class Order(StrEnum):
    """By elimination, or by scores: the paper's own (arXiv 2405.17506) and its baselines."""

    OUTPUT = "output"
    ZCA = "zca"
    SAW = "saw"
    MAGNITUDE = "magnitude"
    NATURAL = "natural"
    RANDOM = "random"


def order_by_importance(scores: ArrayLike) -> Indices:
    """Indices of the units, most important first; ties by index.

    Equivalent to `sorted(range(C), key=lambda i: -scores[i])`.

    >>> order_by_importance([1.0, 3.0, 1.0]).tolist()
    [1, 0, 2]
    """
    vector = as_finite(scores, "scores")
    if vector.ndim != 1:
        raise ValueError(f"scores must be a vector, one per unit; they have shape {vector.shape}")
    return np.argsort(-vector, kind="stable")


def zca_importance(gram: ArrayLike, rho: float = 1e-6) -> Vector:
    """Variance of each unit in unnormalised ZCA coordinates (arXiv 2405.17506).

    importance_i = 1 / [((G + Λ)^{-1/2})_ii]². Scaling the rows of G^{-1/2} to a unit diagonal gives every unit's
    coordinates in its own scale; their variance is this. It is not the residual variance given all others, which is
    1 / (G^{-1})_ii and never larger.

    Parameters
    ----------
    gram : (C, C) G = XᵀX/n, activation² units.
    rho : ridge strength of `ridge_diagonal`, for singular G.

    Returns
    -------
    (C,) activation² units; exactly 0 for a unit that never fires (G_ii = 0), positive for every other.

    Examples
    --------
    >>> import numpy as np
    >>> zca_importance(np.diag([4.0, 0.0, 9.0]), rho=1e-12).round(6).tolist()
    [4.0, 0.0, 9.0]
    """
    matrix = as_gram(gram)
    ridge = ridge_of(np.diag(matrix), rho)
    live = np.flatnonzero(np.diag(matrix) > 0.0)  # a dead unit's row is zero: without it no other score changes
    values, vectors = np.linalg.eigh(matrix[np.ix_(live, live)] + np.diag(ridge[live]))
    # G is positive semi-definite but for rounding, so no eigenvalue lies below the smallest ridge
    values = np.maximum(values, ridge.min())
    importance = np.zeros(len(matrix))
    importance[live] = 1.0 / np.square(np.square(vectors) @ (1.0 / np.sqrt(values)))
    return importance


def saw(consumer_weights: NDArray[np.floating] | Sequence[NDArray[np.floating]]) -> Vector:
    """Sum of absolute outgoing weights: score_i = Σ |W[:, i, ...]| over all consumers (units on axis 1).

    >>> import numpy as np
    >>> saw(np.array([[1.0, -2.0], [3.0, 0.0]])).tolist()
    [4.0, 2.0]
    """
    scores: Vector = np.sum([np.abs(_by_unit(weight, 1)).sum(axis=1) for weight in _several(consumer_weights)], axis=0)
    return scores


def magnitude(producer_weights: NDArray[np.floating] | Sequence[NDArray[np.floating]]) -> Vector:
    """L2 norm of incoming weights: score_i = ‖W[i, ...]‖₂ over all producers together (units on axis 0).

    >>> import numpy as np
    >>> magnitude(np.array([[3.0, -4.0], [0.0, 1.0]])).tolist()
    [5.0, 1.0]
    """
    squares = [np.square(_by_unit(weight, 0)).sum(axis=1) for weight in _several(producer_weights)]
    scores: Vector = np.sqrt(np.sum(squares, axis=0))
    return scores


def natural(count: int) -> Vector:
    """Scores that keep the order the units have.

    >>> order_by_importance(natural(3)).tolist()
    [0, 1, 2]
    """
    return -np.arange(count, dtype=np.float64)


def random(count: int, rng: np.random.Generator) -> Vector:
    """Scores without ties, uniformly at random among all orders.

    >>> import numpy as np
    >>> sorted(random(3, np.random.default_rng(0)).tolist())
    [0.0, 1.0, 2.0]
    """
    return rng.permutation(count).astype(np.float64)


def _several(weights: NDArray[np.floating] | Sequence[NDArray[np.floating]]) -> Sequence[NDArray[np.floating]]:
    several = [weights] if isinstance(weights, np.ndarray) else list(weights)
    if not several:
        raise ValueError("weights are empty: give at least one array")
    return several


def _by_unit(weight: NDArray[np.floating], axis: int) -> NDArray[np.float64]:
    array = as_finite(weight, "weight")
    if array.ndim <= axis:
        raise ValueError(f"a weight of shape {array.shape} has no axis {axis} for its units")
    units = np.moveaxis(array, axis, 0)
    return units.reshape(len(units), -1)
