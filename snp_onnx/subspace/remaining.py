"""What is left of one consumer during elimination: the inverse and the weights on the columns of the units left.

With R Rᵀ = [H⁻¹]_uu, F = [H⁻¹]_:,u R⁻ᵀ and Y = W_u R⁻ᵀ the updates of `elimination` are -F Fᵀ and -Y Fᵀ. They are
collected over a round of removals and applied together: what is read in between includes them, so nothing is
approximated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snp_onnx.subspace.arrays import Indices, Matrix, Vector
from snp_onnx.subspace.in_place import narrow

ROUND = 64
"""Columns eliminated between two full updates: enough for fast matrix products, few enough to stay cheap."""

SHARE_OF_ROUND = 16
"""Of more columns one in so many are eliminated in a round: each full update passes through the whole matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class Remaining:
    """H⁻¹ and W on the columns of the units left at the start of a round, and the updates since (edited in place).

    inverse : (S, S), S = U · B, the columns of a unit side by side. weight : (O, S).
    blocks, grams : (U, B, B) the current [H⁻¹]_uu and W_uᵀ W_u. F : (S, B · removals). Y : (O, B · removals).
    """

    inverse: Matrix
    weight: Matrix
    blocks: Matrix
    grams: Matrix
    F: Matrix
    Y: Matrix

    @property
    def most_removals(self) -> int:
        """How many units a round has room for."""
        return int(self.F.shape[1]) // int(self.blocks.shape[1])

    def costs(self) -> Vector:
        """(U,) tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ); removed units cost 0."""
        if self.blocks.shape[1] == 1:
            return np.asarray(self.grams / self.blocks, dtype=np.float64).ravel()
        return np.asarray(np.einsum("uii->u", np.linalg.solve(self.blocks, self.grams)), dtype=np.float64)

    def remove(self, unit: int, count: int, gone: Sequence[int]) -> float:
        """Eliminate `unit` as number `count` of this round; `gone` are this round's earlier units. Returns its cost."""
        if self.blocks.shape[1] == 1:
            return self._remove_column(unit, count, gone)
        units, width = self.blocks.shape[:2]
        own, done = slice(unit * width, (unit + 1) * width), count * width
        earlier_F, earlier_Y = self.F[:, :done], self.Y[:, :done]
        whiten = _inverse_root(self.blocks[unit])
        f = (self.inverse[own].T - earlier_F @ earlier_F[own].T) @ whiten
        y = (self.weight[:, own] - earlier_Y @ earlier_F[own].T) @ whiten
        products = (y.T @ self.weight - (y.T @ earlier_Y) @ earlier_F.T).T.reshape(units, width, width)  # WᵀY
        by_unit = f.reshape(units, width, width)
        by_unit[[*gone, unit]] = 0.0  # rounding leaves something there
        self.F[:, done : done + width], self.Y[:, done : done + width] = f, y
        transposed = by_unit.transpose(0, 2, 1)
        cross = products @ transposed
        self.grams[...] += by_unit @ (y.T @ y) @ transposed - cross - cross.transpose(0, 2, 1)
        self.blocks[...] -= by_unit @ transposed
        self.grams[unit], self.blocks[unit] = 0.0, np.eye(width)
        return float(np.sum(y * y))

    def _remove_column(self, unit: int, count: int, gone: Sequence[int]) -> float:
        """The same where every unit has one column: no blocks to solve with."""
        blocks, grams = self.blocks.reshape(-1), self.grams.reshape(-1)
        F, Y = self.F[:, :count], self.Y[:, :count]
        shrink = 1.0 / np.sqrt(max(blocks[unit], np.finfo(np.float64).tiny))
        f = (self.inverse[unit] - F @ F[unit]) * shrink
        y = (self.weight[:, unit] - Y @ F[unit]) * shrink
        f[unit] = 0.0  # rounding leaves something there
        f[gone] = 0.0
        products = y @ self.weight - F @ (y @ Y)  # WᵀY
        cost = float(y @ y)
        products *= -2.0
        products += cost * f
        products *= f
        grams += products
        blocks -= np.square(f)
        self.F[:, count], self.Y[:, count] = f, y
        grams[unit], blocks[unit] = 0.0, 1.0
        return cost

    def survivors(self, stay: Indices) -> Remaining:
        """The next round: every update applied, the removed columns dropped."""
        width = self.blocks.shape[1]
        columns = (stay[:, None] * width + np.arange(width)).ravel()
        F = self.F[columns]
        return remaining_of(narrow(self.inverse, columns, F), self.weight[:, columns] - self.Y @ F.T, width)


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """What removed units cost besides: M on the units left, and 2 Σ M_ur over the removed r (edited in place)."""

    matrix: Matrix
    crossed: Vector

    @property
    def most_removals(self) -> int:
        """A round may be as long as there are units."""
        return len(self.matrix)

    def costs(self) -> Vector:
        """(U,) M_uu + 2 Σ_r M_ur; what is said of removed units means nothing."""
        return np.diag(self.matrix) + self.crossed

    def remove(self, unit: int, count: int, gone: Sequence[int]) -> float:
        """Remove `unit`; returns its cost."""
        cost = float(self.matrix[unit, unit] + self.crossed[unit])
        self.crossed[...] += 2.0 * self.matrix[unit]
        return cost

    def survivors(self, stay: Indices) -> Loss:
        """The next round: the removed units dropped."""
        return Loss(self.matrix[np.ix_(stay, stay)], self.crossed[stay])


Part = Remaining | Loss


def remaining_of(inverse: Matrix, weight: Matrix, width: int) -> Remaining:
    if weight.shape[0] > 2 * weight.shape[1]:  # every cost is a function of WᵀW
        weight = np.asarray(np.linalg.qr(weight, mode="r"), dtype=np.float64)
    units = len(inverse) // width
    places = np.arange(units)
    blocks = inverse.reshape(units, width, units, width)[places, :, places, :]
    columns = weight.reshape(len(weight), units, width).transpose(1, 2, 0)
    removals = min(units, max(1, max(ROUND, len(inverse) // SHARE_OF_ROUND) // width)) * width
    F, Y = np.zeros((len(inverse), removals)), np.zeros((len(weight), removals))
    return Remaining(inverse, weight, blocks.copy(), columns @ columns.transpose(0, 2, 1), F, Y)


def _inverse_root(block: Matrix) -> Matrix:
    """R⁻ᵀ with R Rᵀ = `block`, for a block that is positive definite but for rounding."""
    values, vectors = np.linalg.eigh(block)
    least = max(float(np.finfo(np.float64).eps * np.abs(values).max()), float(np.finfo(np.float64).tiny))
    return np.asarray(vectors / np.sqrt(np.maximum(values, least)), dtype=np.float64)
