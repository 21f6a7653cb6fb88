"""Backward elimination where there are fewer rows than columns: the same path from n × n matrices.

With H = D + FᵀF, P = F D⁻¹ and K = I + F D⁻¹Fᵀ the inverse is D⁻¹ - PᵀK⁻¹P, and stays of that form when columns go:
only K changes. The weights, too, only move within the rows: W = W₀ + B P. So with q = K⁻¹P_J for the columns J that go,
E = ([H⁻¹]_JJ)⁻¹ and T = BᵀW₀, N = BᵀB

    K⁻¹ ← K⁻¹ + q E qᵀ        B ← B + W_J E qᵀ        T ← T + q E W_JᵀW₀
    [H⁻¹]_vv ← [H⁻¹]_vv - (E^½ qᵀp_v)²                ‖W_v‖² ← ‖W_v + W_J E qᵀp_v‖²

and B itself is never needed. Several units go in one step, taken one by one from the cheapest candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg

from snp_onnx.subspace.arrays import Indices, Matrix, Vector
from snp_onnx.subspace.few_rows import FewRows
from snp_onnx.subspace.turns import Tally

STEPS = 128
"""Steps that a path is taken in: with more units several go in a step."""

CANDIDATES = 4
"""Units that are compared, for each that goes in a step; costs within a step are updated among them alone."""

ROUNDING = 1e-12
"""Share of the largest possible entry, 1/D, below which one of the inverse is rounding."""

CLEARED = 0.9
"""Columns that went are dropped when no more than this share of them is left: dropping copies."""


@dataclass(slots=True)
class _Dual:
    """One consumer: what is above, on the columns that are left; `energy` is ‖W_v‖² and `inverse` [H⁻¹]_vv.

    Of the weights only `squares` W₀ᵀW₀ is needed, (U, U); `places` says where in it the columns are that are left.
    """

    squares: Matrix
    places: Indices
    diagonal: Vector
    P: Matrix
    K: Matrix
    T: Matrix
    N: Matrix
    energy: Vector
    inverse: Vector

    @classmethod
    def of(cls, inputs: FewRows, weight: Matrix, columns: Indices, is_affine: bool, rho: float) -> _Dual:
        """The start; columns of no unit are eliminated from the problem at once, for they always stay."""
        diagonal, factor = inputs.with_ridge(rho, is_affine)
        rows = len(factor)
        K = linalg.inv(np.eye(rows) + (factor / diagonal) @ factor.T, check_finite=False)
        P = factor[:, columns] / diagonal[columns]
        own = weight[:, columns]
        squares: Matrix = own.T @ own
        places = np.arange(len(columns))
        inverse = 1.0 / diagonal[columns] - np.einsum("nc,nc->c", P, K @ P)
        T, N, energy = np.zeros_like(P), np.zeros((rows, rows)), np.diag(squares).copy()
        return cls(squares, places, diagonal[columns], P, K, T, N, energy, inverse)

    def costs(self) -> Vector:
        with np.errstate(divide="ignore", invalid="ignore"):  # of columns that went already
            return np.asarray(self.energy / self.inverse)

    def block(self, columns: Indices) -> tuple[Matrix, Matrix]:
        """[H⁻¹] and WᵀW on a few columns."""
        p, t = self.P[:, columns], self.T[:, columns]
        inverse = np.diag(1.0 / self.diagonal[columns]) - p.T @ self.K @ p
        cross = t.T @ p
        own = self.places[columns]
        return inverse, self.squares[np.ix_(own, own)] + cross + cross.T + p.T @ self.N @ p

    def remove(self, gone: Indices) -> None:
        """Eliminate columns; `keep` is to drop them, and what they hold until then means nothing."""
        p = self.P[:, gone]
        inverse, squares = self.block(gone)
        q = self.K @ p
        root = _root(inverse)
        q_root = linalg.solve_triangular(root, q.T, lower=True, check_finite=False).T  # q E^½
        cross = self.squares[self.places[gone]][:, self.places] + p.T @ self.T  # W_JᵀW₀
        moved = self.T[:, gone] + self.N @ p  # BᵀW_J
        now = cross + moved.T @ self.P  # W_JᵀW
        steps = q_root.T @ self.P
        self.inverse -= np.square(steps).sum(axis=0)
        np.maximum(self.inverse, ROUNDING / self.diagonal, out=self.inverse)
        white = linalg.solve_triangular(root, now, lower=True, check_finite=False)
        inner = linalg.solve_triangular(root, squares, lower=True, check_finite=False)
        inner = linalg.solve_triangular(root, inner.T, lower=True, check_finite=False)
        self.energy += 2.0 * np.einsum("jc,jc->c", steps, white) + np.einsum("jc,jc->c", steps, inner @ steps)
        self.T += q_root @ linalg.solve_triangular(root, cross, lower=True, check_finite=False)
        step = linalg.solve_triangular(root, moved.T, lower=True, check_finite=False).T @ q_root.T
        self.N += step + step.T + q_root @ inner @ q_root.T
        self.K += q_root @ q_root.T

    def keep(self, stay: Indices) -> None:
        self.places, self.P, self.T = self.places[stay], self.P[:, stay], self.T[:, stay]
        self.diagonal, self.energy, self.inverse = self.diagonal[stay], self.energy[stay], self.inverse[stay]


def _root(inverse: Matrix) -> Matrix:
    """The lower Cholesky factor of a matrix that is positive definite but for rounding."""
    jitter = ROUNDING * float(np.diag(inverse).max())
    for _ in range(8):
        try:
            return np.asarray(linalg.cholesky(inverse, lower=True, check_finite=False))
        except linalg.LinAlgError:
            inverse, jitter = inverse + jitter * np.eye(len(inverse)), 100.0 * jitter
    raise ValueError("the inverse of the Gram matrix is not positive definite: give more samples, or a larger ridge")


def eliminate_few(
    inputs: Sequence[FewRows],
    weights: Sequence[Matrix],
    columns: Sequence[Indices],
    units: Sequence[Indices],
    rho: float,
    are_affine: Sequence[bool],
    tally: Tally,
    steps: int = STEPS,
) -> tuple[list[int], list[float]]:
    """Units in the order they go, each when its turn comes, and what each adds to the error; costs of consumers add.

    Of every consumer its inputs, weights (O, C), the units that it reads (u,) and their columns (u,), one each, and
    whether a bias is free. Up to `steps` units the path is that of `eliminate` on the matrices written out. Of more,
    several go in a step: every added error is exact for the order that comes out, which is greedy among the first
    candidates of a step.
    """
    given = zip(inputs, weights, columns, are_affine, strict=True)
    duals = [_Share(_Dual.of(*one, rho), own) for one, own in zip(given, units, strict=True)]
    count = len(tally.turns.groups)
    gone = np.zeros(count)  # infinite for a unit that went
    together = -(-count // steps)
    removed: list[int] = []
    added: list[float] = []
    while len(removed) < count:
        number = min(together, count - len(removed))
        wanted = number if number == 1 else min(CANDIDATES * number, count - len(removed))
        costs = gone.copy()
        for dual in duals:
            dual.add_costs(costs)
        costs[np.isposinf(gone)] = np.inf  # not what is computed of columns that went
        candidates = np.sort(np.argsort(tally.scores(costs), kind="stable")[:wanted])
        candidates = candidates[np.isfinite(costs[candidates])]
        number = min(number, tally.room(candidates))
        picks, errors = _pick([dual.block(candidates) for dual in duals], candidates, count, number, tally)
        removed.extend(picks)
        added.extend(errors)
        gone[picks] = np.inf
        for dual in duals:
            dual.remove(np.array(picks))
    return removed, added


@dataclass(slots=True)
class _Share:
    """A consumer and the numbers of the units that its columns are of, those that went since it was narrowed too."""

    dual: _Dual
    units: Indices
    went: set[int] = field(default_factory=set)

    def add_costs(self, costs: Vector) -> None:
        """Its part of the costs of all units, (U,)."""
        costs[self.units] += self.dual.costs()

    def block(self, candidates: Indices) -> tuple[Matrix, Matrix]:
        """[H⁻¹] and WᵀW on some units; those that it doesn't read cost nothing."""
        own = np.flatnonzero(np.isin(candidates, self.units))
        inverse, squares = np.eye(len(candidates)), np.zeros((len(candidates), len(candidates)))
        if own.size:
            places = np.searchsorted(self.units, candidates[own])
            inverse[np.ix_(own, own)], squares[np.ix_(own, own)] = self.dual.block(places)
        return inverse, squares

    def remove(self, units: Indices) -> None:
        """Eliminate units, and drop what is left of them when that is worth a copy."""
        own = np.sort(units[np.isin(units, self.units)])
        if not own.size:
            return
        self.went.update(own.tolist())
        if len(self.went) < len(self.units):
            self.dual.remove(np.searchsorted(self.units, own))
        if len(self.units) - len(self.went) <= CLEARED * len(self.units):
            stay = np.flatnonzero(~np.isin(self.units, list(self.went)))
            self.units, self.went = self.units[stay], set()
            self.dual.keep(stay)


def _pick(
    blocks: Sequence[tuple[Matrix, Matrix]], candidates: Indices, units: int, count: int, tally: Tally
) -> tuple[list[int], list[float]]:
    """Take `count` of a few of all `units` one by one, each when its turn comes: their numbers and what each adds."""
    states = [(inverse.copy(), squares.copy()) for inverse, squares in blocks]
    picks: list[int] = []
    added: list[float] = []
    for _ in range(count):
        costs = np.full(units, np.inf)
        costs[candidates] = np.sum([np.diag(squares) / np.diag(inverse) for inverse, squares in states], axis=0)
        costs[picks] = np.inf
        unit = tally.pick(costs)
        pick = int(np.searchsorted(candidates, unit))
        added.append(max(0.0, float(costs[unit])))
        picks.append(unit)
        tally.add(unit, added[-1])
        for inverse, squares in states:
            row = inverse[pick] / inverse[pick, pick]
            own = squares[pick, pick]
            outer = np.outer(squares[:, pick], row)
            squares -= outer + outer.T - own * np.outer(row, row)
            inverse -= np.outer(inverse[:, pick], row)
            for matrix in (inverse, squares):
                matrix[pick], matrix[:, pick] = 0.0, 0.0
            inverse[pick, pick] = 1.0
    return picks, added
