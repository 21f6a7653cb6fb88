"""Output-aware backward elimination (block OBS): remove the cheapest unit, let the others take over, repeat.

For one consumer y = W x + b with H the matrix of `centred`, ridge included, removing units means minimising
tr((W' - W) H (W' - W)ᵀ) with their columns of W' at 0. The next unit u adds tr(W_u ([H⁻¹]_uu)⁻¹ W_uᵀ) to that minimum,
and afterwards

    W   ← W   - W_u       ([H⁻¹]_uu)⁻¹ [H⁻¹]_u,:
    H⁻¹ ← H⁻¹ - [H⁻¹]_:,u ([H⁻¹]_uu)⁻¹ [H⁻¹]_u,:

Columns that always stay only enter through [H⁻¹] of the others, so they are dropped at the start; a free bias is one
that H is already without. How the updates are collected is told in `remaining`.

Units of several groups that share a consumer go together: what one copy of a feature costs depends on whether the other
one is still there. A consumer that has no column of a unit isn't touched when it goes.

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
from snp_onnx.subspace.in_place import inverse_of
from snp_onnx.subspace.remaining import Loss, Part, remaining_of
from snp_onnx.subspace.turns import Tally, Turns

NONE = -1
"""The column of a unit that has fewer of them than others."""


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """One linear consumer of the units: the moments of its input columns, its weights, and whose each column is.

    inputs : the covariance and the mean of the C input columns, written out or as few rows.
    weight : (O, C) dense weights W.
    columns : (U, B) the B columns of every unit, -1 where it has fewer; a column of no unit always stays.
    is_affine : whether its bias is free to take up a constant; otherwise it stays as it is.
    units : (U,) ascending numbers of the units that it reads; None: all of them.
    """

    inputs: CentredGram | FewRows
    weight: Matrix
    columns: Indices
    is_affine: bool = True
    units: Indices | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Elimination:
    """The whole path of one elimination.

    order : (U,) units, the most important first: the reverse of removal.
    costs : (U,) by how much the output error, ridge included, grew when each unit of the order went; none negative.
    energies : (U,) by unit, Σ tr(W S Wᵀ) over the consumers that read it: the variance of what they give, output² units
        like the errors.
    clipped : the largest share of a consumer's trace H that negative eigenvalues had, which were set to 0.
    """

    order: Indices
    costs: Vector
    energies: Vector
    clipped: float = 0.0

    @property
    def energy(self) -> float:
        """The variance of what all consumers give, of units that share them all."""
        return float(self.energies.max())

    @property
    def errors(self) -> Vector:
        """(U + 1,) the error when only the first k units of the order are kept; never increasing."""
        return np.concatenate([np.cumsum(self.costs[::-1])[::-1], [0.0]])

    def of(self, units: Indices) -> "Elimination":
        """The part of some units, numbered by their places in `units`: their order, and what each added when it went.

        Costs of all parts sum to those of the whole. Clipping is that of the whole.
        """
        place = np.full(len(self.order), -1, dtype=np.intp)
        place[units] = np.arange(len(units))
        own = place[self.order] >= 0
        return Elimination(place[self.order[own]], self.costs[own], self.energies[units], self.clipped)


def eliminate(
    consumers: Sequence[Consumer], rho: float = 1e-3, alone: ArrayLike | None = None, turns: Turns | None = None
) -> Elimination:
    """Remove the units one at a time, the cheapest first, ties by index; costs of several consumers add.

    errors[k] = Σ tr((W' - W) (H + Λ) (W' - W)ᵀ) at its minimum over W' on the first k units of the order, with H + Λ of
    `centred`. It includes the ridge: only so is it the quantity the order is greedy in, and sure never to increase with
    k. The minimiser is W' = W A of `affine_fold`.
    Nothing is approximated but by rounding; of more than 128 units with few rows several go in a step, see `dual`.

    Parameters
    ----------
    consumers : at least one (unless `alone` is given); O, C and B are each consumer's own, and U where it has `units`.
    rho : ridge strength of `ridge_diagonal`.
    alone : (U, U) positive semi-definite M: removed units R cost Σ_{i, j in R} M_ij besides, which nothing takes over
        (the logits of an attention lose it). With it there need be no consumer; energy counts Σ_ij M_ij.
    turns : the groups that the units are of, and in which turn these lose units; None: one group.

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
    losses = [] if alone is None else [_loss(alone)]
    count = _unit_count(consumers, losses, turns)
    checked = [_checked(consumer, count) for consumer in consumers]
    energies = _energies(checked, losses, count)
    tally = Tally.of(Turns.free(count) if turns is None else turns.with_energies(energies))
    if checked and not losses and all(isinstance(c.inputs, FewRows) and c.columns.shape[1] == 1 for c in checked):
        removed, costs = _removed_of_few(checked, rho, tally)
        return _path(removed, costs, energies)
    started = [_start(consumer, rho) for consumer in checked]
    members = [_Member.of(part, units) for part, units, _ in started]
    members += [_Member.of(loss, np.arange(count)) for loss in losses]
    removed, costs = _removed(members, count, tally)
    return _path(removed, costs, energies, max([0.0, *(clipped for *_, clipped in started)]))


def _unit_count(consumers: Sequence[Consumer], losses: Sequence[Loss], turns: Turns | None) -> int:
    """U, on which everything that counts all units has to agree."""
    counts = {*(len(consumer.columns) for consumer in consumers if consumer.units is None)}
    counts |= {*(len(loss.matrix) for loss in losses)} | ({len(turns.groups)} if turns is not None else set())
    if len(counts) != 1:
        raise ValueError(f"consumers must be at least one and agree on the number of units, not have {sorted(counts)}")
    return counts.pop()


def _energies(consumers: Sequence[Consumer], losses: Sequence[Loss], count: int) -> Vector:
    """By unit, (U,): the variance of what its consumers give, and what is lost with all units."""
    found = np.zeros(count)
    for consumer in consumers:
        found[consumer.units] += consumer.inputs.output_variance(consumer.weight)
    for loss in losses:
        found += float(loss.matrix.sum())
    return np.maximum(found, 0.0)


def _path(removed: Sequence[int], costs: Sequence[float], energies: Vector, clipped: float = 0.0) -> Elimination:
    return Elimination(np.array(removed[::-1], dtype=np.intp), np.array(costs[::-1]), energies, clipped)


def _removed_of_few(consumers: Sequence[Consumer], rho: float, tally: Tally) -> tuple[list[int], list[float]]:
    """The dual form; every consumer has few rows and one column a unit."""
    few = [consumer.inputs for consumer in consumers if isinstance(consumer.inputs, FewRows)]
    weights, columns = [c.weight for c in consumers], [c.columns.ravel() for c in consumers]
    units = [consumer.units for consumer in consumers if consumer.units is not None]
    return eliminate_few(few, weights, columns, units, rho, [c.is_affine for c in consumers], tally)


@dataclass(slots=True)
class _Member:
    """What is left of one consumer or loss: the numbers of its units (ascending), and what went in its round."""

    part: Part
    units: Indices
    gone: list[int]
    costs: Vector

    @classmethod
    def of(cls, part: Part, units: Indices) -> "_Member":
        return cls(part, units, [], part.costs())

    def remove(self, unit: int) -> float:
        """What it costs that a unit goes; nothing where it isn't read."""
        place = int(np.searchsorted(self.units, unit))
        if place == len(self.units) or self.units[place] != unit:
            return 0.0
        cost = self.part.remove(place, len(self.gone), self.gone)
        self.gone.append(place)
        if len(self.gone) == min(self.part.most_removals, len(self.units)):
            stay = np.setdiff1d(np.arange(len(self.units)), self.gone)
            self.units, self.part, self.gone = self.units[stay], self.part.survivors(stay), []
        self.costs = self.part.costs()
        return cost


def _removed(members: Sequence[_Member], count: int, tally: Tally) -> tuple[list[int], list[float]]:
    """All units in the order they go, each when its turn comes, and what each adds."""
    removed: list[int] = []
    added: list[float] = []
    gone = np.zeros(count)  # infinite for a unit that went
    for _ in range(count):
        costs = gone.copy()
        for member in members:
            costs[member.units] += member.costs
        unit = tally.pick(costs)
        added.append(sum(member.remove(unit) for member in members))
        removed.append(unit)
        tally.add(unit, added[-1])
        gone[unit] = np.inf
    return removed, added


def _checked(consumer: Consumer, count: int) -> Consumer:
    inputs = consumer.inputs if isinstance(consumer.inputs, FewRows) else consumer.inputs.checked()
    weight = as_finite(consumer.weight, "weight")
    if weight.ndim != 2 or weight.shape[1] != len(inputs):
        raise ValueError(f"weight must be (O, {len(inputs)}) to match the gram; it has shape {weight.shape}")
    columns = np.asarray(consumer.columns)
    if columns.ndim != 2 or not columns.size:
        raise ValueError(f"columns must be (U, B), at least one for every unit; it has shape {columns.shape}")
    as_indices(columns[columns != NONE], len(inputs), "columns")
    units = np.arange(count) if consumer.units is None else as_indices(consumer.units, count, "units")
    if len(units) != len(columns) or np.any(np.diff(units) < 0):
        raise ValueError(f"units must be ascending, one for each of {len(columns)} rows of columns; they are {units}")
    return Consumer(inputs, weight, columns.astype(np.intp), consumer.is_affine, units)


def _loss(alone: ArrayLike) -> Loss:
    matrix = as_gram(alone)
    return Loss(matrix, np.zeros(len(matrix)))


def _start(consumer: Consumer, rho: float) -> tuple[Part, Indices, float]:
    """The first round, its units, and the share that was clipped; a copy of the covariance becomes the inverse.

    A column that a unit lacks is one of variance 1 that nothing reads: it changes no cost.
    """
    assert consumer.units is not None
    own = consumer.inputs.dense() if isinstance(consumer.inputs, FewRows) else consumer.inputs.checked(own=True)
    there = np.flatnonzero(consumer.columns.ravel() != NONE)
    owned = consumer.columns.ravel()[there]
    ordered = np.concatenate([np.setdiff1d(np.arange(len(own)), owned), owned])
    factor = own.with_ridge(rho, consumer.is_affine, in_place=True).factor_on(ordered, in_place=True)
    # The corner of the factor is that of the Schur complement, whose inverse is [H⁻¹] on the columns of the units.
    inverse, weight = inverse_of(factor.lower[-owned.size :, -owned.size :]), consumer.weight[:, owned]
    if owned.size < consumer.columns.size:
        whole = np.eye(consumer.columns.size)
        whole[np.ix_(there, there)] = inverse
        inverse, weight = whole, np.zeros((len(weight), len(whole)))
        weight[:, there] = consumer.weight[:, owned]
    return remaining_of(inverse, weight, consumer.columns.shape[1]), consumer.units, factor.clipped
