"""Turns: of units of several groups that are eliminated together, which one goes next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import numpy as np

from snp_onnx.subspace.arrays import Indices, Vector

TINY = float(np.finfo(np.float64).tiny)
"""In place of a price of 0: what frees nothing goes last."""


class Rule(StrEnum):
    """How groups take turns. With each rule a budget of the same kind stops at a prefix of the path."""

    PRICE = "price"
    """The unit with the least cost for the price of its group: what a Lagrangian budget removes next."""
    LEVEL = "level"
    """The unit with which its group has lost the least error for its energy: equal shares of variance."""
    EVEN = "even"
    """The cheapest unit of the group that has lost the least share of its units: equal shares of widths."""


@dataclass(frozen=True, slots=True, eq=False)
class Turns:
    """Units divided into groups, and whose turn it is.

    groups : (U,) the number of each unit's group. prices : (G,) what a unit frees, or the group's energy.
    least : (G,) widths that groups keep as long as another one has more than its own.
    """

    groups: Indices
    prices: Vector
    least: Indices
    rule: Rule = Rule.PRICE

    @classmethod
    def free(cls, units: int) -> Self:
        """One group: always the cheapest unit."""
        return cls(np.zeros(units, dtype=np.intp), np.ones(1), np.zeros(1, dtype=np.intp))

    def with_energies(self, energies: Vector) -> Self:
        """With the rule of levels the prices are the groups' energies, those of their units (U,)."""
        if self.rule is not Rule.LEVEL:
            return self
        prices = np.zeros(len(self.prices))
        np.maximum.at(prices, self.groups, energies)
        return replace(self, prices=prices)


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """What is left of every group, (G,) units, and what error it has lost, (G,) (edited in place).

    Examples
    --------
    >>> tally = Tally.of(Turns(np.array([0, 0, 1, 1]), np.array([1.0, 4.0]), np.array([1, 1])))
    >>> costs, gone = np.array([2.0, 3.0, 9.0, 9.5]), []
    >>> for _ in range(4):
    ...     gone.append(tally.pick(np.where(np.isin(np.arange(4), gone), np.inf, costs)))
    ...     tally.add(gone[-1], costs[gone[-1]])
    >>> gone
    [0, 2, 3, 1]
    """

    turns: Turns
    left: Indices
    lost: Vector

    @classmethod
    def of(cls, turns: Turns) -> Self:
        """Nothing removed yet."""
        count = len(turns.prices)
        return cls(turns, np.bincount(turns.groups, minlength=count), np.zeros(count))

    def add(self, unit: int, cost: float) -> None:
        """A unit goes, and the error grows by its cost."""
        self.left[self.turns.groups[unit]] -= 1
        self.lost[self.turns.groups[unit]] += cost

    def pick(self, costs: Vector) -> int:
        """The unit that goes next, from the costs of all (U,), infinite for those that went; ties by index."""
        return int(np.argmin(self.scores(costs)))

    def room(self, units: Indices) -> int:
        """How many of some units may go before their groups are at their least widths; all where they are already."""
        groups = np.unique(self.turns.groups[units])
        return int(np.maximum(self.left - self.turns.least, 0)[groups].sum()) or len(units)

    def scores(self, costs: Vector) -> Vector:
        """The least is the next to go, (U,); infinite for those that can't."""
        turns, groups = self.turns, self.turns.groups
        may = np.isfinite(costs) & (self.left > turns.least)[groups]
        if not may.any():
            may = np.isfinite(costs)
        if turns.rule is Rule.EVEN:
            share = 1.0 - (self.left - 1) / np.bincount(groups, minlength=len(self.left))
            level = share[groups]
            may &= level <= level[may].min()
            return np.where(may, costs, np.inf)
        spent = self.lost[groups] if turns.rule is Rule.LEVEL else 0.0
        return np.where(may, (spent + costs) / np.maximum(turns.prices, TINY)[groups], np.inf)
