"""Bases for the dimensions of an attention head, in which the last ones matter least and can be cut."""

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import Matrix, Vector, as_finite, as_gram
from snp_onnx.subspace.ridge import ridge_of


def square_roots(gram: ArrayLike, rho: float = 1e-6) -> tuple[Matrix, Matrix]:
    """The symmetric roots (G + Λ)^{1/2} and (G + Λ)^{-1/2}, Λ of `ridge_diagonal`.

    Parameters
    ----------
    gram : (d, d) G = XᵀX/n, activation² units; eigenvalues below 0, which rounding leaves, count as 0.
    rho : ridge strength of `ridge_diagonal`.

    Equivalent, for small rho, to `scipy.linalg.sqrtm(gram)` and its inverse.

    Examples
    --------
    >>> import numpy as np
    >>> root, inverse = square_roots(np.diag([4.0, 9.0]), rho=1e-12)
    >>> root.round(6).tolist(), inverse.round(6).tolist()
    ([[2.0, 0.0], [0.0, 3.0]], [[0.5, 0.0], [0.0, 0.333333]])
    """
    matrix = as_gram(gram)
    values, vectors = np.linalg.eigh(matrix)
    ridged = (vectors * np.maximum(values, 0.0)) @ vectors.T + np.diag(ridge_of(np.diag(matrix).clip(0.0), rho))
    values, vectors = np.linalg.eigh(ridged)
    roots = np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def balanced_bases(queries: ArrayLike, keys: ArrayLike, rho: float = 1e-6) -> tuple[Matrix, Matrix, Vector]:
    """Bases of queries and keys that leave the logits q kᵀ as they are and sort the dimensions by what they add.

    With Q = (G_q + Λ_q)^{1/2}, K = (G_k + Λ_k)^{1/2} and the singular values Q K = U S Vᵀ

        A = Q^{-1} U S^{1/2},   B = K^{-1} V S^{1/2},   A Bᵀ = I:

    q A and k B both have the moments S, so that the first r dimensions make the best logits of rank r: the error
    E|q kᵀ - (q A_r)(k B_r)ᵀ|² = Σ_{j ≥ r} S_j², for q and k that are independent, is the least that any rank r has
    (Eckart and Young, Psychometrika 1936).

    Parameters
    ----------
    queries, keys : (d, d) moments of the rows q and k, activation² units. Softmax ignores what all keys have in common,
        so those of the keys are best taken around their mean.
    rho : ridge strength of `ridge_diagonal`, for dimensions that never vary.

    Returns
    -------
    A, B : (d, d). S : (d,) descending, activation² units. Equivalent to `scipy.linalg.svd(sqrtm(G_q) @ sqrtm(G_k))`.

    Examples
    --------
    >>> import numpy as np
    >>> A, B, S = balanced_bases(np.diag([1.0, 4.0]), np.diag([1.0, 1.0]), rho=1e-12)
    >>> S.round(6).tolist(), (A @ B.T).round(6).tolist()
    ([2.0, 1.0], [[1.0, 0.0], [0.0, 1.0]])
    """
    left, left_inverse = square_roots(queries, rho)
    right, right_inverse = square_roots(keys, rho)
    if left.shape != right.shape:
        raise ValueError(f"queries have {len(left)} dimensions and keys {len(right)}: give moments of one head")
    U, S, Vt = np.linalg.svd(left @ right)
    S = np.maximum(S, np.finfo(np.float64).tiny)
    scale = np.sqrt(S)
    return left_inverse @ U * scale, right_inverse @ Vt.T * scale, S


def principal_basis(gram: ArrayLike, weight: ArrayLike, rho: float = 1e-6) -> tuple[Matrix, Matrix, Vector]:
    """The basis of a linear layer's inputs in which dropping the last ones loses least of its output.

    With R = (G + Λ)^{1/2} and the singular values R W = U S Vᵀ

        T = R^{-1} U,   T^{-1} = Uᵀ R:

    x T has the moments 1, the layer reads it with T^{-1} W = S Vᵀ, and without the dimensions from r on its output
    loses E‖x W - (x T)_r (T^{-1} W)_r‖² = Σ_{j ≥ r} S_j², the least that any r directions of x lose.

    Parameters
    ----------
    gram : (d, d) moments of the rows x, activation² units; around their mean where a bias takes up the mean.
    weight : (d, O) W, for y = x W.
    rho : ridge strength of `ridge_diagonal`.

    Returns
    -------
    T, T^{-1} : (d, d). S : (d,) descending, output units. S² are the eigenvalues of Wᵀ G W, as far as there are any.

    Examples
    --------
    >>> import numpy as np
    >>> T, inverse, S = principal_basis(np.eye(2), np.diag([1.0, 3.0]), rho=1e-12)
    >>> S.round(6).tolist(), np.abs(T).round(6).tolist()
    ([3.0, 1.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    root, inverse = square_roots(gram, rho)
    matrix = as_finite(weight, "weight")
    if matrix.ndim != 2 or len(matrix) != len(root):
        raise ValueError(f"weight must be ({len(root)}, O) to match the gram; it has shape {matrix.shape}")
    U, found, _ = np.linalg.svd(root @ matrix, full_matrices=matrix.shape[1] < len(root))
    S = np.zeros(len(root))
    S[: len(found)] = found
    return inverse @ U, U.T @ root, S
