"""Rotations of a residual stream: the axes, and how a weight takes one up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


FLOOR = 1e-12
"""Eigenvalues below this share of the largest count as zero."""


def principal_axes(gram: Matrix, sensitivity: Matrix | None = None) -> Matrix:
    """Q (d, d), orthogonal: its first k columns span the best k directions of rows with Gram matrix G (d, d).

    Without M they are the eigenvectors of G, the largest eigenvalue first (SliceGPT, arXiv 2401.15024, section 3.3).
    With the sensitivity M (d, d) of what reads the rows, an error e costs eᵀ M e: reduced-rank regression then keeps
    G^{1/2} U_k, U the eigenvectors of G^{1/2} M G^{1/2}, made orthogonal one after the other (QR). M = I gives the
    first case. Signs: the largest entry of each column is positive.

    >>> principal_axes(np.diag([1.0, 3.0]))
    array([[0., 1.],
           [1., 0.]])
    >>> principal_axes(np.diag([1.0, 3.0]), np.diag([9.0, 1.0]))
    array([[1., 0.],
           [0., 1.]])
    """
    energies, vectors = np.linalg.eigh(gram)
    energies = np.maximum(energies, FLOOR * energies[-1])
    root = (vectors * np.sqrt(energies)) @ vectors.T
    weighed = root @ (np.eye(len(gram)) if sensitivity is None else sensitivity) @ root
    columns = np.linalg.qr(root @ np.linalg.eigh(weighed)[1][:, ::-1])[0]
    largest = np.abs(columns).argmax(axis=0)
    signs = np.sign(columns[largest, np.arange(columns.shape[1])])
    return np.ascontiguousarray(columns * signs) + 0.0


def sensitivity(readers: Iterable[tuple[Matrix, Matrix]], power: float) -> Matrix:
    """M = Σ_c W_c W_cᵀ / (tr W_cᵀ G_c W_c)^p (d, d) over readers (G_c (d, d), W_c (d, O)).

    eᵀ M e is what an error e of the rows does to all outputs, each relative to its energy to the power p.

    >>> sensitivity([(np.eye(1), np.array([[2.0]]))], power=0.5).tolist()
    [[2.0]]
    """
    total: Matrix = np.zeros(())
    for gram, weight in readers:
        square = weight @ weight.T
        energy = float(np.einsum("ij,ij->", gram, square))
        total = total + (square / energy**power if energy > 0.0 else 0.0 * square)
    return total


def centring(width: int) -> Matrix:
    """I - 11ᵀ/d (d, d): takes the mean of a row vector's entries away.

    >>> bool(np.allclose(np.array([1.0, 3.0]) @ centring(2), [-1.0, 1.0]))
    True
    """
    return np.eye(width) - 1.0 / width


def turned(array: npt.NDArray[Any], axis: int, matrix: Matrix) -> npt.NDArray[np.float64]:
    """Every vector along `axis`, as a row, times `matrix` (d, k); float64.

    >>> turned(np.array([[1.0, 2.0]]), 1, np.array([[0.0, 1.0], [1.0, 0.0]]))
    array([[2., 1.]])
    """
    moved = np.moveaxis(np.asarray(array, dtype=np.float64), axis, -1)
    return np.moveaxis(moved @ matrix, -1, axis)
