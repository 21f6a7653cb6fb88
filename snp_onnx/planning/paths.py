"""Paths: for every group, the order in which units are kept and what each prefix of it captures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.folding import free_bias
from snp_onnx.planning.heads import logits_loss
from snp_onnx.planning.kinship import Cluster, clusters
from snp_onnx.planning.options import Choices, Ratios
from snp_onnx.planning.parallel import side_by_side
from snp_onnx.planning.scales import Scales
from snp_onnx.planning.statistics import Statistics, unit_columns
from snp_onnx.planning.systems import systems, together
from snp_onnx.subspace import (
    Consumer,
    Elimination,
    Order,
    Rule,
    Turns,
    cumulative_variance,
    eliminate,
    ldl,
    magnitude,
    natural,
    order_by_importance,
    random,
    saw,
    zca_importance,
)
from snp_onnx.subspace.elimination import NONE
from snp_onnx.tracing import Group, Linear, Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.labels import Labels

Vector = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Reader = Callable[[str], npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """A group's way from all units to one: `order[:k]` are the units kept at width k.

    `variance[k-1]` is the share that the first k units capture, of ΣD or, after elimination, of the variance of the
    consumers' outputs; `energy` is that variance on a scale on which groups can be compared; `threshold[k]` is the
    value of the one global dial from which on unit `order[k]` stays; `clipped` is that of `Elimination`.
    """

    group: Group
    order: npt.NDArray[np.int64]
    variance: Vector
    threshold: Vector
    energy: float = 1.0
    clipped: float = 0.0

    @property
    def errors(self) -> Vector:
        """The output error at every width 1..U, comparable between groups."""
        lost: Vector = np.maximum(1.0 - self.variance, 0.0) * self.energy
        return np.minimum.accumulate(lost)

    def kept(self, width: int) -> npt.NDArray[np.int64]:
        """Unit numbers that stay at a width, ascending."""
        return np.sort(self.order[:width])


MOST_CLIPPED = 0.01
"""Share of a trace that may be rounding without a warning: sums of rows have no negative eigenvalues."""


def clipping(paths: Iterable[Path]) -> tuple[str, ...]:
    """What to say where eigenvalues that were set to 0 had more than `MOST_CLIPPED` of the trace."""
    shares = [path.clipped for path in paths if path.clipped > MOST_CLIPPED]
    if not shares:
        return ()
    return (
        f"the moments of {len(shares)} group(s) have negative eigenvalues of up to {max(shares):.1%} of their trace, "
        "which count as 0: check the provider's precision, and give more samples",
    )


def find_paths(
    flow: Flow,
    groups: Sequence[Group],
    statistics: Statistics,
    choices: Choices,
    prices: Vector | None = None,
    least: Sequence[int] | None = None,
) -> tuple[Path, ...]:
    """The path of every group that was measured.

    Groups that share consumers lose units in turn, so that each path counts with what the others have lost by then.
    `prices` are what a unit of each group frees of the target's cost (unless given the same of all), by which groups
    take turns for a budget; `least` the widths that they keep (unless given none).
    """
    scales = Scales.of(flow, [linear for group in groups for linear in group.consumers], choices.repair)
    of_units = np.ones(len(groups)) if prices is None else prices
    floors = [0] * len(groups) if least is None else least
    shares = [_Share(*given) for given in zip(groups, of_units.tolist(), floors, strict=True)]

    def find(numbers: Cluster) -> list[Path | None]:
        first = groups[numbers[0]]
        if choices.order is not Order.OUTPUT and not first.products:  # no score of units says what logits lose
            return [_scored(flow, first, statistics, choices, numbers[0])]
        return _eliminated(flow, [shares[number] for number in numbers], statistics, choices, scales)

    together = clusters(groups, statistics) if choices.order is Order.OUTPUT else [(n,) for n in range(len(groups))]
    found = side_by_side(find, together, lambda numbers: sum(len(groups[number]) for number in numbers))
    numbered = zip(chain.from_iterable(together), chain.from_iterable(found), strict=True)
    return tuple(path for _, path in sorted(numbered, key=lambda pair: pair[0]) if path is not None)


_RULES: Mapping[Ratios, Rule] = MappingProxyType(
    {Ratios.BUDGET: Rule.PRICE, Ratios.VARIANCE: Rule.LEVEL, Ratios.UNIFORM: Rule.EVEN}
)
"""In which turn groups lose units, so that the widths that these ratios share out are on the way."""


def _scored(flow: Flow, group: Group, statistics: Statistics, choices: Choices, number: int) -> Path | None:
    gram = statistics.group_gram(group)
    if gram is None:
        return None
    order = order_by_importance(_scores(flow.trace, group, gram, choices, flow.weights.array, number))
    _, added = ldl(gram, order, choices.ridge)
    variance = cumulative_variance(added)
    return Path(group, order, variance, _threshold(variance, choices.ratios))


@dataclass(frozen=True, slots=True, eq=False)
class _Share:
    """A group, what a unit of it frees of the target's cost, and the width that it keeps."""

    group: Group
    price: float
    least: int


def _eliminated(
    flow: Flow, shares: Sequence[_Share], statistics: Statistics, choices: Choices, scales: Scales
) -> list[Path | None]:
    """Backward elimination on the consumers' outputs: one run gives the order and the error at every width.

    Errors of different layers are compared as `Scales` says: relative to the variance of the sum that the layer's
    output goes into, so that what a residual stream drowns counts for little. Dimensions of queries and keys have no
    consumer that could make up for them: `logits_loss` says what goes with them.
    """
    groups = [share.group for share in shares]
    read = [linear for group in groups for linear in group.consumers if statistics.is_measured(linear)]
    consumers = [
        consumer
        for linears in together(read, statistics.readings)
        for consumer in _consumers(flow, groups, linears, statistics, scales)
    ]
    products = [product for group in groups for product in group.products]
    measured = [logits_loss(flow, groups[0], product, statistics, scales) for product in products]
    losses = [loss for loss in measured if loss is not None]
    if len(losses) < len(measured) or not (consumers or losses):
        return [None] * len(groups)
    ridge = choices.ridge * statistics.caution(linear for group in groups for linear in group.consumers)
    numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    prices, least = np.array([share.price for share in shares]), np.array([share.least for share in shares])
    turns = Turns(numbers, prices, least, _RULES[choices.ratios])
    found = eliminate(consumers, ridge, np.sum(losses, axis=0) if losses else None, turns)
    parts = [found.of(np.flatnonzero(numbers == number)) for number in range(len(groups))]
    return [_path(group, part, choices.ratios) for group, part in zip(groups, parts, strict=True)]


def _path(group: Group, part: Elimination, ratios: Ratios) -> Path:
    # of a layer that gives nothing the ridge alone has an error; without a free bias a mean may be lost besides
    scale = part.energy if part.energy > 0.0 else max(float(part.errors[0]), np.finfo(np.float64).tiny)
    variance = 1.0 - part.errors[1:] / scale
    return Path(group, part.order, variance, _threshold(variance, ratios), scale, part.clipped)


def _consumers(
    flow: Flow, groups: Sequence[Group], linears: Sequence[Linear], statistics: Statistics, scales: Scales
) -> list[Consumer]:
    """Layers as elimination sees them: positions that share a column are rows of their weight."""
    linear, reading, shapes = linears[0], statistics.readings[linears[0]], flow.trace.facts.shapes
    parts = systems(linear, reading, shapes)
    own = {piece.linear for part in parts for piece in part.pieces}
    read = {one: np.asarray(flow.weights.array(one.weight), dtype=np.float64) for one in own}
    unfolded = {one: reading.unfold(weight, one) for one, weight in read.items()}
    whole, slots = statistics.inputs(linears), len(reading.slots)
    inputs = [whole.on(part.columns) for part in parts]
    weights = [np.concatenate(list(part.matrices(unfolded))) for part in parts]
    spread = statistics.spread(linear)
    if scales.is_by_channel(linear, sum(map(len, weights)) // slots):
        found = [x.output_variances(weight).reshape(slots, -1) for x, weight in zip(inputs, weights, strict=True)]
        factors = scales.factors(linear, np.concatenate(found, axis=1).sum(axis=0))
        ends = np.cumsum([each.shape[1] for each in found])
        scale = [np.tile(each, slots)[:, None] for each in np.split(factors, ends[:-1])]
    else:
        if spread is None:
            spread = sum(x.output_variance(weight) for x, weight in zip(inputs, weights, strict=True))
        scale = [np.full((1, 1), scales.factor(linear, spread))] * len(parts)
    is_affine = free_bias(flow, linears, statistics) is not None
    consumers = []
    for part, x, weight, factor in zip(parts, inputs, weights, scale, strict=True):
        columns, units = _columns(groups, part.labels)
        consumers.append(Consumer(x, factor * weight, columns, is_affine, units))
    return consumers


def _columns(groups: Sequence[Group], labels: Labels) -> tuple[Indices, Indices]:
    """The columns (U, B) and numbers (U,) of the units that appear, of all groups one after the other."""
    starts = np.cumsum([0, *(len(group) for group in groups)])
    there = [number for number, group in enumerate(groups) if np.isin(group.labels[0], labels)]
    columns = [unit_columns(labels, groups[number].labels).T for number in there]
    widest = max(part.shape[1] for part in columns)
    padded = [np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=NONE) for part in columns]
    units = [np.arange(starts[number], starts[number + 1]) for number in there]
    return np.concatenate(padded), np.concatenate(units)


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
