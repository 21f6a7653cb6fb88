"""Groups: removable units that live on the same set of producers and consumers; and the trace, the stage's value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from snp_onnx.tracing.bodies import Counted
from snp_onnx.tracing.facts import Facts, Shape
from snp_onnx.tracing.heads import Attention
from snp_onnx.tracing.labels import FIXED, HEAD, INSIDE, STREAM, SUMMED, Labels
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.padding import has_rows_of
from snp_onnx.tracing.tracer import Axes, Barrier, Linear, Product, Tracer

Mask = npt.NDArray[np.bool_]
T = TypeVar("T")


class Kind(StrEnum):
    """What one unit of a group is; blocks, which go whole, are in no group."""

    CHANNELS = "channels"
    HEADS = "heads"
    HEAD_DIMS = "head-dims"
    STREAM = "stream"
    BLOCKS = "blocks"


PLAIN_KINDS = frozenset((Kind.CHANNELS, Kind.HEADS))
"""The kinds of units that a network has as it is, and that may go unless others are asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that stand or fall one by one, but share every producer and consumer."""

    id: str
    kind: Kind
    labels: Labels
    """One label for each unit, in the order of the first producer's output axis."""
    producers: tuple[Linear, ...]
    consumers: tuple[Linear, ...]
    is_stream: bool
    """Whether outputs of different layers are summed into the units: a residual stream."""
    products: tuple[Product, ...] = ()
    """Products of two activations that sum over the units: the logits of an attention."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Stop:
    """A producer's output axis that stays whole, and the barrier that holds it (no node where none does)."""

    weight: str
    axis: int
    extent: int
    barrier: Barrier


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """A model's axes as labels, the groups of removable units, and the barriers that stopped a producer."""

    facts: Facts
    ops: tuple[Op, ...]
    axes: Mapping[str, Axes]
    groups: tuple[Group, ...]
    barriers: tuple[Barrier, ...]
    stops: tuple[Stop, ...]
    linears: tuple[Linear, ...]
    products: tuple[Product, ...]
    label_count: int
    bodies: Counted
    """What bodies of If, Loop and Scan cost, and what can't be counted."""
    mask: str | None = None
    """The (batch, sequence) input that is 0 where a position is padding."""
    attention: Attention | None = None
    """Where dimensions inside heads may go; None where they weren't asked for."""
    gates: Mapping[str, str] = field(default_factory=dict)
    """For tensors of opened branches of which the samples take several: what says whether theirs is taken."""
    open_norms: frozenset[str] = frozenset()
    """Means of squares whose axis may be cut; see `tracing.norms`."""

    def alive(self, removed: Iterable[npt.NDArray[np.int64]]) -> Mask:
        """Which labels stay when the given labels go, shape (label_count,)."""
        alive = np.ones(self.label_count, dtype=np.bool_)
        for labels in removed:
            alive[labels] = False
        return alive

    def group(self, identifier: str) -> Group:
        return next(group for group in self.groups if group.id == identifier)

    def row_mask(self, tensor: str, axis: int) -> str | None:
        """What says which rows of the tensor count: whether its branch is taken at all, or the padding."""
        return self.gates.get(tensor) or self.padding(tensor, axis)

    def padding(self, tensor: str, axis: int, head_axis: int | None = None) -> str | None:
        """The mask, if it says which rows of the tensor count: all axes but the unit axis are its positions.

        With a `head_axis` the rows are those of one head. Two sequences can have one length here: elsewhere they don't.
        """
        if self.mask is None:
            return None
        for shapes in (self.facts.shapes, self.facts.elsewhere):
            if self.mask in shapes and tensor in shapes and not _has_rows(shapes, self.mask, tensor, axis, head_axis):
                return None
        return self.mask

    def shape_after(self, tensor: str, alive: Mask) -> Shape:
        """The tensor's shape when only `alive` labels stay."""
        if tensor not in self.axes:
            return self.facts.shapes[tensor]
        return tuple(int(np.count_nonzero(alive[labels])) for labels in self.axes[tensor])


def _has_rows(shapes: Mapping[str, Shape], mask: str, tensor: str, axis: int, head_axis: int | None) -> bool:
    rest = tuple(extent for place, extent in enumerate(shapes[tensor]) if place != head_axis)
    return has_rows_of(shapes[mask], rest, axis - (head_axis is not None and head_axis < axis))


def conclude(
    tracer: Tracer,
    ops: Sequence[Op],
    bodies: Counted,
    mask: str | None = None,
    attention: Attention | None = None,
) -> Trace:
    """Resolve all labels to their classes and collect the groups."""
    axes = {name: tuple(tracer.classes.find(part) for part in parts) for name, parts in tracer.traced().items()}
    removable = _removable(tracer, axes)
    groups = _groups(tracer, axes, removable)
    return Trace(
        tracer.facts,
        tuple(ops),
        axes,
        groups,
        _telling(tracer, axes),
        _stops(tracer, axes, groups),
        tuple(tracer.linears),
        tuple(tracer.activation_products),
        len(tracer.classes),
        bodies,
        mask if mask in tracer.facts.shapes else None,
        attention,
        open_norms=tracer.open_norms,
    )


def _removable(tracer: Tracer, axes: Mapping[str, Axes]) -> Mask:
    """Labels of classes that nothing bars and that some weight produces and some weight or open product consumes."""
    count = len(tracer.classes)
    produced, consumed = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
    for linear in tracer.linears:
        produced[axes[linear.weight][linear.out_axis]] = True
        if linear.mixes:
            consumed[axes[linear.weight][linear.in_axis]] = True
    for product in tracer.activation_products:
        for tensor, axis in product.contracted if product.is_open else ():
            consumed[axes[tensor][axis]] = True
    every = np.arange(count, dtype=np.int64)
    return produced & consumed & ~tracer.classes.has(every, FIXED)


def _groups(tracer: Tracer, axes: Mapping[str, Axes], removable: Mask) -> tuple[Group, ...]:
    found = _classed(tracer, axes, removable)
    lead = np.full(len(removable), -1, dtype=np.int64)  # the group that a label is the first of
    lead[[labels[0] for _, labels in found]] = np.arange(len(found))
    open_products = [product for product in tracer.activation_products if product.is_open]
    mixing = [linear for linear in tracer.linears if linear.mixes]
    producers = _on_each(lead, len(found), tracer.linears, (axes[x.weight][x.out_axis] for x in tracer.linears))
    consumers = _on_each(lead, len(found), mixing, (axes[x.weight][x.in_axis] for x in mixing))
    contracted = (axes[tensor][axis] for tensor, axis in (x.contracted[0] for x in open_products))
    products = _on_each(lead, len(found), open_products, contracted)
    groups = [
        Group(
            f"{tracer.root(first.weight)}:{first.out_axis}",
            _kind(tracer, labels),
            labels,
            producers[number],
            consumers[number],
            bool(tracer.classes.has(labels, SUMMED).any()),
            products[number],
        )
        for number, (first, labels) in enumerate(found)
    ]
    return _with_unique_ids(groups)


def _classed(tracer: Tracer, axes: Mapping[str, Axes], removable: Mask) -> list[tuple[Linear, Labels]]:
    """The labels of every group, with its first producer."""
    signature = _signatures(axes, removable)
    found: list[tuple[Linear, Labels]] = []
    taken: set[int] = set()
    for linear in tracer.linears:
        labels = axes[linear.weight][linear.out_axis]
        _, first = np.unique(labels, return_index=True)
        ordered = labels[np.sort(first)]
        ordered = ordered[removable[ordered]]
        for key in dict.fromkeys(signature[ordered].tolist()):
            if key not in taken:
                taken.add(key)
                if np.count_nonzero(signature[ordered] == key) < 2:
                    continue
                found.append((linear, ordered[signature[ordered] == key]))
    return found


def _on_each(lead: Labels, count: int, things: Sequence[T], on: Iterable[Labels]) -> list[tuple[T, ...]]:
    """For each of `count` groups, the things whose axis has its first label: all groups in one go over the axes."""
    places: list[list[T]] = [[] for _ in range(count)]
    for thing, labels in zip(things, on, strict=True):
        numbers = lead[labels]
        for number in np.unique(numbers[numbers >= 0]).tolist():
            places[number].append(thing)
    return [tuple(listed) for listed in places]


def _signatures(axes: Mapping[str, Axes], removable: Mask) -> npt.NDArray[np.uint64]:
    """One number per label: equal where the labels appear on the same axes of the same tensors, equally often."""
    rng = np.random.default_rng(20240517)
    signature = np.zeros(len(removable), dtype=np.uint64)
    for parts in axes.values():
        for labels in parts:
            key = rng.integers(1, 2**63, dtype=np.uint64)
            if len(labels) > 1:
                np.add.at(signature, labels[removable[labels]], key)
    return signature


def _kind(tracer: Tracer, labels: Labels) -> Kind:
    if tracer.classes.has(labels, HEAD).any():
        return Kind.HEADS
    if tracer.classes.has(labels, STREAM).any():
        return Kind.STREAM
    return Kind.HEAD_DIMS if tracer.classes.has(labels, INSIDE).any() else Kind.CHANNELS


def _with_unique_ids(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Several groups can share a first producer (the parts of a Split): number the later ones."""
    seen: dict[str, int] = {}
    named = []
    for group in groups:
        seen[group.id] = count = seen.get(group.id, 0) + 1
        name = group.id if count == 1 else f"{group.id}/{count}"
        named.append(replace(group, id=name))
    return tuple(named)


def _telling(tracer: Tracer, axes: Mapping[str, Axes]) -> tuple[Barrier, ...]:
    """The barriers that stop a producer's output axis, each once."""
    produced = np.zeros(len(tracer.classes), dtype=np.bool_)
    for linear in tracer.linears:
        produced[axes[linear.weight][linear.out_axis]] = True
    produced[0] = False
    telling = [b for b, labels in tracer.barriers if produced[tracer.classes.find(labels)].any()]
    return tuple(dict.fromkeys(telling))


def _stops(tracer: Tracer, axes: Mapping[str, Axes], groups: Iterable[Group]) -> tuple[Stop, ...]:
    """Why each producer that is in no group is in none: the first barrier on its output axis, or what it lacks."""
    grouped = {id(linear) for group in groups for linear in group.producers}
    first = np.full(len(tracer.classes), -1, dtype=np.int64)
    for number in reversed(range(len(tracer.barriers))):
        first[tracer.classes.find(tracer.barriers[number][1])] = number
    first[0] = -1
    _spread_reasons(tracer, first)
    stops = []
    for linear in tracer.linears:
        labels = axes[linear.weight][linear.out_axis]
        if id(linear) in grouped:
            continue
        held = first[labels]
        if (held >= 0).any():
            barrier = tracer.barriers[int(held[held >= 0].min())][0]
        else:
            reason = "a single position" if len(labels) == 1 else _lacking(tracer, labels)
            barrier = Barrier(linear.output, linear.output_axis, "", reason)
        stops.append(Stop(tracer.stored(linear.weight), linear.out_axis, len(labels), barrier))
    stops += [Stop(*declined) for declined in tracer.declined]
    return tuple(dict.fromkeys(stops))


def _spread_reasons(tracer: Tracer, first: npt.NDArray[np.int64]) -> None:
    """An axis that no barrier holds, but that has to stay whole with its factors, has the reason of one of these."""
    for whole, factors in tracer.products.stuck:
        known = [
            held[held >= 0].min() for held in (first[tracer.classes.find(f)] for f in factors) if (held >= 0).any()
        ]
        roots = tracer.classes.find(whole)
        if known:
            first[roots[(first[roots] < 0) & (roots > 0)]] = known[0]


def _lacking(tracer: Tracer, labels: Labels) -> str:
    if bool(tracer.classes.has(labels, FIXED).any()):
        return "tied to an axis that must stay whole"
    if len(np.unique(tracer.classes.find(labels))) == 1:
        return "all positions are one unit"
    return "no weight consumes it, so nothing could take over what is removed"
