"""Paths: for every group, the order in which units are kept and what each prefix of it captures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.options import Choices, Ratios
from snp_onnx.planning.parallel import side_by_side
from snp_onnx.planning.statistics import Statistics, unit_columns
from snp_onnx.subspace import (
    Order,
    cumulative_variance,
    ldl,
    magnitude,
    natural,
    order_by_importance,
    random,
    saw,
    zca_importance,
)
from snp_onnx.tracing import Group, Linear, Trace

Vector = npt.NDArray[np.float64]
Reader = Callable[[str], npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A group's way from all units to one: `order[:k]` are the units kept at width k.

    `variance[k-1]` is the share of ΣD that the first k units capture; `threshold[k]` is the value of the one global
    dial from which on unit `order[k]` stays.
    """

    group: Group
    order: npt.NDArray[np.int64]
    variance: Vector
    threshold: Vector

    def kept(self, width: int) -> npt.NDArray[np.int64]:
        """Unit numbers that stay at a width, ascending."""
        return np.sort(self.order[:width])


def find_paths(
    trace: Trace, groups: Sequence[Group], statistics: Statistics, choices: Choices, read: Reader
) -> tuple[Path, ...]:
    """The path of every group that was measured."""

    def find(numbered: tuple[int, Group]) -> Path | None:
        number, group = numbered
        gram = statistics.group_gram(group)
        if gram is None:
            return None
        order = order_by_importance(_scores(trace, group, gram, choices, read, number))
        _, added = ldl(gram, order, choices.ridge)
        variance = cumulative_variance(added)
        return Path(group, order, variance, _threshold(variance, choices.ratios))

    return tuple(
        path for path in side_by_side(find, enumerate(groups), lambda numbered: len(numbered[1])) if path is not None
    )


def _threshold(variance: Vector, ratios: Ratios) -> Vector:
    """Variance: unit k stays while the k units before it capture less than τ. Uniform: equal shares of every width."""
    if ratios is Ratios.UNIFORM:
        return np.arange(len(variance), dtype=np.float64) / len(variance)
    return np.concatenate([[0.0], variance[:-1]])


def _scores(
    trace: Trace, group: Group, gram: npt.NDArray[np.float64], choices: Choices, read: Reader, number: int
) -> Vector:
    """Importance of every unit, (U,), by the chosen order."""
    if choices.order is Order.ZCA:
        return zca_importance(gram, choices.ridge)
    if choices.order is Order.NATURAL:
        return natural(len(group))
    if choices.order is Order.RANDOM:
        return random(len(group), np.random.default_rng([choices.seed, number]))
    if choices.order is Order.SAW:
        return saw([_by_unit(trace, group, linear, linear.in_axis, read).swapaxes(0, 1) for linear in group.consumers])
    producers = [linear for linear in group.producers if linear.mixes] or list(group.producers)
    return magnitude([_by_unit(trace, group, linear, linear.out_axis, read) for linear in producers])


def _by_unit(trace: Trace, group: Group, linear: Linear, axis: int, read: Reader) -> npt.NDArray[np.float64]:
    """A weight as (U, rest): all entries of each unit along one axis."""
    columns = unit_columns(trace.axes[linear.weight][axis], group.labels)
    weight = np.moveaxis(np.asarray(read(linear.weight), dtype=np.float64), axis, 0)
    return np.concatenate([weight[row].reshape(len(group), -1) for row in columns], axis=1)
