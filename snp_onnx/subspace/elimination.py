"""Output-aware backward elimination (block OBS): remove the cheapest unit, let the others take over, repeat.

For one consumer y = W x + b with H the matrix of `centred`, ridge included, removing units means minimising
tr((W' - W) H (W' - W)ᵀ) with their columns of W' at 0. The next unit u adds tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ) to that minimum,
and afterwards

    W   ← W   - W_u       ([H⁻¹]_uu)⁻¹ [H⁻¹]_u,:
    H⁻¹ ← H⁻¹ - [H⁻¹]_:,u ([H⁻¹]_uu)⁻¹ [H⁻¹]_u,:

Columns that always stay only enter through [H⁻¹] of the others, so they are dropped at the start; a free bias is one
that H is already without. With R Rᵀ = [H⁻¹]_uu, F = [H⁻¹]_:,u R⁻ᵀ and Y = W_u R⁻ᵀ the updates are -Y Fᵀ and -F Fᵀ. They
are collected over a round of removals and applied together: what is read in between includes them, so nothing is
approximated.

Of U columns this takes about 2 U³ multiply-accumulates, and beside the caller's matrix the memory of one more
(`in_place`) and of a round's F, a sixteenth of that; of few rows the dual form takes far less (`dual`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from snp_onnx.subspace.arrays import Indices, Matrix, Vector, as_finite, as_gram, as_indices
from snp_onnx.subspace.centred import CentredGram
from snp_onnx.subspace.dual import eliminate_few
from snp_onnx.subspace.few_rows import FewRows
from snp_onnx.subspace.in_place import inverse_of, narrow

ROUND = 64
"""Columns eliminated between two full updates: enough for fast matrix products, few enough to stay cheap."""

SHARE_OF_ROUND = 16
"""Of more columns one in so many are eliminated in a round: each full update passes through the whole matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """One linear consumer of the units: the moments of its input columns, its weights, and whose each column is.

    inputs : the covariance and the mean of the C input columns, written out or as few rows.
    weight : (O, C) dense weights W.
    columns : (U, B) the B columns of every unit; a column of no unit always stays.
    is_affine : whether its bias is free to take up a constant; otherwise it stays as it is.
    """

    inputs: CentredGram | FewRows
    weight: Matrix
    columns: Indices
    is_affine: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Elimination:
    """The whole path of one elimination.

    order : (U,) units, the most important first: the reverse of removal.
    errors : (U + 1,) output error, ridge included, when only the first k units of the order are kept; never increasing.
    energy : Σ tr(W S Wᵀ) over the consumers, the variance of what they give, output² units like the errors.
    clipped : the largest share of a consumer's trace H that negative eigenvalues had, which were set to 0.
    """

    order: Indices
    errors: Vector
    energy: float
    clipped: float = 0.0


def eliminate(consumers: Sequence[Consumer], rho: float = 1e-3, alone: ArrayLike | None = None) -> Elimination:
    """Remove the units one at a time, the cheapest first, ties by index; costs of several consumers add.

    errors[k] = Σ tr((W' - W) (H + Λ) (W' - W)ᵀ) at its minimum over W' on the first k units of the order, with H + Λ of
    `centred`. It includes the ridge: only so is it the quantity the order is greedy in, and sure never to increase with
    k. The minimiser is W' = W A of `affine_fold`.
    Nothing is approximated but by rounding; of more than 128 units with few rows several go in a step, see `dual`.

    Parameters
    ----------
    consumers : at least one (unless `alone` is given), all with the same number of units U; O, C and B are each
        consumer's own.
    rho : ridge strength of `ridge_diagonal`.
    alone : (U, U) positive semi-definite M: removed units R cost Σ_{i, j in R} M_ij besides, which nothing takes over
        (the logits of an attention lose it). With it there need be no consumer; energy counts Σ_ij M_ij.

    Returns
    -------
    The order, the errors and the energy. Equivalent, for small rho, to the residuals of
    `scipy.linalg.lstsq(np.c_[X[:, kept], 1], X @ W.T)` for every kept set on the path.

    Examples
    --------
    >>> import numpy as np
    >>> inputs = CentredGram(np.eye(2), np.zeros(2))
    >>> path = eliminate([Consumer(inputs, np.array([[1.0, 3.0]]), np.array([[0], [1]]))], rho=1e-12)
    >>> path.order.tolist(), path.errors.round(6).tolist(), path.energy
    ([1, 0], [10.0, 1.0, 0.0], 10.0)
    """
    checked = [_checked(consumer) for consumer in consumers]
    losses = [] if alone is None else [_loss(alone)]
    counts = sorted({*(len(consumer.columns) for consumer in checked), *(len(loss.matrix) for loss in losses)})
    if len(counts) != 1:
        raise ValueError(f"consumers must be at least one and agree on the number of units, not have {counts}")
    if checked and not losses and all(isinstance(c.inputs, FewRows) and c.columns.shape[1] == 1 for c in checked):
        return _eliminated_few(checked, rho)
    variance = sum(consumer.inputs.output_variance(consumer.weight) for consumer in checked)
    variance += sum(float(loss.matrix.sum()) for loss in losses)
    started = [_start(consumer, rho) for consumer in checked]
    remaining: list[_Part] = [*(part for part, _ in started), *losses]
    units: Indices = np.arange(counts[0])
    removed, costs = [], []
    while units.size:
        picks, added = _round(remaining, min([units.size, *(part.most_removals for part in remaining)]))
        removed.extend(units[picks].tolist())
        costs.extend(added)
        stay = np.setdiff1d(np.arange(units.size), picks)
        units, remaining = units[stay], [part.survivors(stay) for part in remaining]
    return _path(removed, costs, variance, max([0.0, *(clipped for _, clipped in started)]))


def _path(removed: Sequence[int], costs: Sequence[float], energy: float, clipped: float = 0.0) -> Elimination:
    errors = np.concatenate([np.cumsum(costs)[::-1], [0.0]])
    return Elimination(np.array(removed[::-1], dtype=np.intp), errors, max(0.0, energy), clipped)


def _eliminated_few(consumers: Sequence[Consumer], rho: float) -> Elimination:
    """The dual form; every consumer has few rows and one column a unit."""
    few = [consumer.inputs for consumer in consumers if isinstance(consumer.inputs, FewRows)]
    weights, columns = [c.weight for c in consumers], [c.columns.ravel() for c in consumers]
    removed, costs = eliminate_few(few, weights, columns, rho, [c.is_affine for c in consumers])
    variance = sum(inputs.output_variance(weight) for inputs, weight in zip(few, weights, strict=True))
    return _path(removed, costs, variance)


@dataclass(frozen=True, slots=True, eq=False)
class _Remaining:
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

    def survivors(self, stay: Indices) -> "_Remaining":
        """The next round: every update applied, the removed columns dropped."""
        width = self.blocks.shape[1]
        columns = (stay[:, None] * width + np.arange(width)).ravel()
        F = self.F[columns]
        return _remaining(narrow(self.inverse, columns, F), self.weight[:, columns] - self.Y @ F.T, width)


@dataclass(frozen=True, slots=True, eq=False)
class _Loss:
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

    def survivors(self, stay: Indices) -> "_Loss":
        """The next round: the removed units dropped."""
        return _Loss(self.matrix[np.ix_(stay, stay)], self.crossed[stay])


_Part = _Remaining | _Loss


def _round(remaining: Sequence[_Part], count: int) -> tuple[list[int], list[float]]:
    """Remove `count` units, the cheapest at its time first; positions among the remaining, and what each added."""
    picks: list[int] = []
    added: list[float] = []
    for number in range(count):
        costs = np.sum([part.costs() for part in remaining], axis=0)
        costs[picks] = np.inf
        unit = int(np.argmin(costs))
        added.append(sum(part.remove(unit, number, picks) for part in remaining))
        picks.append(unit)
    return picks, added


def _checked(consumer: Consumer) -> Consumer:
    inputs = consumer.inputs if isinstance(consumer.inputs, FewRows) else consumer.inputs.checked()
    weight = as_finite(consumer.weight, "weight")
    if weight.ndim != 2 or weight.shape[1] != len(inputs):
        raise ValueError(f"weight must be (O, {len(inputs)}) to match the gram; it has shape {weight.shape}")
    columns = np.asarray(consumer.columns)
    if columns.ndim != 2 or not columns.size:
        raise ValueError(f"columns must be (U, B), at least one for every unit; it has shape {columns.shape}")
    numbers = as_indices(columns.ravel(), len(inputs), "columns").reshape(columns.shape)
    return Consumer(inputs, weight, numbers, consumer.is_affine)


def _loss(alone: ArrayLike) -> _Loss:
    matrix = as_gram(alone)
    return _Loss(matrix, np.zeros(len(matrix)))


def _start(consumer: Consumer, rho: float) -> tuple[_Remaining, float]:
    """The first round, and the share that was clipped; a copy of the covariance becomes the inverse."""
    own = consumer.inputs.dense() if isinstance(consumer.inputs, FewRows) else consumer.inputs.checked(own=True)
    owned = consumer.columns.ravel()
    ordered = np.concatenate([np.setdiff1d(np.arange(len(own)), owned), owned])
    factor = own.with_ridge(rho, consumer.is_affine, in_place=True).factor_on(ordered, in_place=True)
    # The corner of the factor is that of the Schur complement, whose inverse is [H⁻¹] on the columns of the units.
    corner = factor.lower[-owned.size :, -owned.size :]
    return _remaining(inverse_of(corner), consumer.weight[:, owned], consumer.columns.shape[1]), factor.clipped


def _remaining(inverse: Matrix, weight: Matrix, width: int) -> _Remaining:
    if weight.shape[0] > 2 * weight.shape[1]:  # every cost is a function of WᵀW
        weight = np.asarray(np.linalg.qr(weight, mode="r"), dtype=np.float64)
    units = len(inverse) // width
    places = np.arange(units)
    blocks = inverse.reshape(units, width, units, width)[places, :, places, :]
    columns = weight.reshape(len(weight), units, width).transpose(1, 2, 0)
    removals = min(units, max(1, max(ROUND, len(inverse) // SHARE_OF_ROUND) // width)) * width
    F, Y = np.zeros((len(inverse), removals)), np.zeros((len(weight), removals))
    return _Remaining(inverse, weight, blocks.copy(), columns @ columns.transpose(0, 2, 1), F, Y)


def _inverse_root(block: Matrix) -> Matrix:
    """R⁻ᵀ with R Rᵀ = `block`, for a block that is positive definite but for rounding."""
    values, vectors = np.linalg.eigh(block)
    least = max(float(np.finfo(np.float64).eps * np.abs(values).max()), float(np.finfo(np.float64).tiny))
    return np.asarray(vectors / np.sqrt(np.maximum(values, least)), dtype=np.float64)
