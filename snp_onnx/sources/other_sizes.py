"""Feeds of other sizes, made of a given one: fewer rows, and longer or shorter axes where the model fixes no extent.

Values are those of the given feed: entries are left out, or come again from the start. So token numbers, masks and
pixels stay what they can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import gcd

import numpy as np

from snp_onnx.sources.examples import fitted
from snp_onnx.sources.inputs import Array, InputSpec, fixed_batch, has_batch_axis

Feed = Mapping[str, Array]
Places = tuple[tuple[str, int], ...]
"""Axes of inputs that have one extent together: names of inputs, each with its axis."""

MOST_STEP = 32
"""Entries by which an axis grows or shrinks at most where it can do with less: total strides are 32 or a divisor."""

FEWEST_MADE = 4
"""Entries of an axis that has none in the given feed (the past of a cache)."""


def open_axes(specs: Sequence[InputSpec], feed: Feed) -> tuple[Places, ...]:
    """The axes whose extent the model doesn't fix; those with one symbol and one extent in the feed go together."""
    found: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for spec in specs:
        shape = np.shape(feed[spec.name])
        declared = spec.shape if spec.shape is not None and len(spec.shape) == len(shape) else (None,) * len(shape)
        symbols = spec.symbols if len(spec.symbols) == len(shape) else ("",) * len(shape)
        for axis, (number, symbol) in enumerate(zip(declared, symbols, strict=True)):
            if number is None:
                key = (f"symbol {symbol}", shape[axis]) if symbol else (spec.name, axis)
                found.setdefault(key, []).append((spec.name, axis))
    return tuple(tuple(places) for places in found.values())


def row_axes(specs: Sequence[InputSpec], feed: Feed) -> Places:
    """Axis 0 of all inputs, where it may be a batch axis of any extent; empty otherwise."""
    is_open = has_batch_axis(specs) and fixed_batch(specs) is None
    lengths = {np.shape(feed[spec.name])[:1] for spec in specs}
    return tuple((spec.name, 0) for spec in specs) if is_open and len(lengths) == 1 else ()


def with_rows(feed: Feed, rows: Array) -> dict[str, Array]:
    """Some rows of every input."""
    return {name: values[rows] for name, values in feed.items()}


def several_rows(feed: Feed, least: int = 2) -> dict[str, Array]:
    """The feed with `least` rows or more; missing ones are earlier ones, their entries moved along the last axis."""
    count = len(next(iter(feed.values())))
    rows = {name: [values] for name, values in feed.items()}
    for turn in range(1, -(-least // count)):
        for name, values in feed.items():
            rows[name].append(np.roll(values, turn, axis=-1) if values.ndim > 1 else values)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def longer(feed: Feed, sides: Sequence[Places]) -> Iterator[dict[str, Array]]:
    """Feeds in which sides have more entries: all of them by different numbers first, single ones last.

    What a model takes can't be known: sides may have to be alike, multiples of a stride, or the sum of two others.
    """
    extents = [_extent(feed, places) for places in sides]
    wide = _step(gcd(*extents))
    yield from _resized(
        feed,
        sides,
        [
            {place: extent + (place + 1) * wide for place, extent in enumerate(extents)},
            *({place: extents[place] + wide for place in chosen} for chosen in _choices(len(sides))),
            {place: 2 * extent for place, extent in enumerate(extents)},
        ],
    )


def shorter(feed: Feed, sides: Sequence[Places]) -> Iterator[dict[str, Array]]:
    """Feeds in which sides have fewer entries: all of them first, single ones last."""
    extents = [_extent(feed, places) for places in sides]
    wide = _step(gcd(*extents))
    fewer = [extent - wide if extent > wide else extent // 2 for extent in extents]
    yield from _resized(feed, sides, [{place: fewer[place] for place in chosen} for chosen in _choices(len(sides))])


def _extent(feed: Feed, places: Places) -> int:
    name, axis = places[0]
    return int(np.shape(feed[name])[axis])


def _step(extent: int) -> int:
    return gcd(extent, MOST_STEP) if extent else FEWEST_MADE


def _choices(count: int) -> Iterator[tuple[int, ...]]:
    """All sides, each alone, and two together."""
    yield tuple(range(count))
    if count > 1:
        yield from combinations(range(count), 1)
    if count > 2:
        yield from combinations(range(count), 2)


def _resized(feed: Feed, sides: Sequence[Places], several: Iterable[Mapping[int, int]]) -> Iterator[dict[str, Array]]:
    """The feed with sides of other extents, by the side's place; each set of extents once."""
    seen = [{place: _extent(feed, places) for place, places in enumerate(sides)}]
    for extents in several:
        whole = {**seen[0], **extents}
        if whole in seen or min(whole.values()) < 0 or not all(extents.values()):
            continue
        seen.append(whole)
        found = dict(feed)
        for place, extent in extents.items():
            for name, axis in sides[place]:
                shape = found[name].shape
                found[name] = fitted(found[name], (*shape[:axis], extent, *shape[axis + 1 :]))
        yield found
