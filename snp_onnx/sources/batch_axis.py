"""Whether axis 0 of the inputs is a batch axis: an experiment with the model on a few real rows.

It is one if what the model gives for a row doesn't depend on the other rows: a few rows are run together, then some of
them without the others. Where the model fixes the number of rows, the others are replaced by other rows instead.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array, is_floating

Outputs = Mapping[str, Array]

MOST_ROWS = 5
"""Rows that are run together: an odd number, so that what halves them isn't taken for following them."""

AT_MOST = 0.01
"""The error up to which values are alike: root mean square, in standard deviations of the output (or a share of the
entries that aren't floating point). Rounding leaves below 1e-4 in float32, a mixture of rows 0.1 and more."""

AT_MOST_COARSE = 0.3
"""The same where values are rounded to 8 bits by the extremes of a batch: other rows, another rounding (.01 to .06 in
networks quantised by onnxruntime)."""

AT_MOST_TURNED = 0.05
"""The same for rows in another order, which leaves the extremes alone (up to .002 in the same networks)."""

_FLOOR = 1e-3
"""The least standard deviation that is distinguished from rounding, as a share of an output's largest value."""

_NONE = "no output has entries for every row"


@dataclass(frozen=True, slots=True, eq=False)
class Runnable:
    """The dense model: runs a feed, or raises `CalibrationError` where the runtime refuses it; its declared outputs.

    `is_coarse` says that it rounds by the extremes of a whole batch (DynamicQuantizeLinear); `sized_by_data` are
    outputs that may have another size with other values, such as boxes found. At most `most_rows` are run together.
    """

    run: Callable[[Mapping[str, Array]], Outputs]
    outputs: Mapping[str, tuple[int | None, ...] | None]
    is_coarse: bool = False
    sized_by_data: frozenset[str] = frozenset()
    most_rows: int = MOST_ROWS

    def attempt(self, feed: Mapping[str, Array]) -> Outputs | None:
        """The outputs, or `None` where the runtime refuses the feed."""
        try:
            return self.run(feed)
        except CalibrationError:
            return None


def axes_of_one(outputs: Mapping[str, tuple[int | None, ...] | None]) -> dict[str, int | None]:
    """Where the single row is of a model with a fixed batch of 1, by declared shapes: not first of (T, 1, C).

    >>> axes_of_one({"logits": (1, 10), "steps": (None, 1, 37), "boxes": (8, 4), "any": None})
    {'logits': 0, 'steps': 1, 'boxes': None, 'any': 0}
    """
    return {
        name: 0 if shape is None else next((axis for axis, size in enumerate(shape) if size == 1), None)
        for name, shape in outputs.items()
    }


@dataclass(frozen=True, slots=True)
class Finding:
    """Why axis 0 is no batch axis (`None`: nothing speaks against it), and the axis of the rows by output.

    `is_refusal` says that this is only because the runtime refused to run some rows; `in_blocks` that feeds are longer
    than the length that the model fixes, and are cut into blocks of it.
    """

    why: str | None = None
    axes: Mapping[str, int | None] = field(default_factory=dict)
    is_refusal: bool = False
    in_blocks: bool = False


def by_subset(model: Runnable, feed: Mapping[str, Array]) -> Finding:
    """Run n rows, then every second of them; n >= 2."""
    count = len(next(iter(feed.values())))
    kept = np.arange(count)[1::2]
    before = model.attempt(feed)
    if before is None:
        alone = model.attempt(_rows(feed, kept[:1]))
        return Finding() if alone is not None else Finding("the runtime refuses its rows", is_refusal=True)
    if model.is_coarse:
        found = _turned(model, feed, before)
        if found.why is not None:
            return found
    after = model.attempt(_rows(feed, kept))
    if after is None:
        return Finding("the runtime refuses some of its rows without the others", is_refusal=True)
    compared = {name: compare_rows(before[name], after[name], kept, count) for name in before if name in after}
    return _verdict(model, feed, compared, before, _most(model))


def by_others(model: Runnable, feed: Mapping[str, Array], others: Mapping[str, Array]) -> Finding:
    """Run a batch of fixed size, then again with every second row replaced by that of `others`."""
    count = len(next(iter(feed.values())))
    kept = np.arange(count)[1::2]
    mixed = {name: values.copy() for name, values in others.items()}
    for name, values in feed.items():
        mixed[name][kept] = values[kept]
    before, after = model.attempt(feed), model.attempt(mixed)
    if before is None or after is None:
        return Finding()
    compared = {name: _compare_fixed(before[name], after[name], kept, count) for name in before if name in after}
    return _verdict(model, feed, compared, before, _most(model))


@dataclass(frozen=True, slots=True)
class Compared:
    """The axis of an output that has as many entries as rows, or a multiple, and the error of the rows kept.

    `is_known` is False where the size changed otherwise: with the data, or with the rows but not in proportion.
    """

    axis: int | None = None
    error: float = 0.0
    is_known: bool = True


def _most(model: Runnable) -> float:
    return AT_MOST_COARSE if model.is_coarse else AT_MOST


def _verdict(
    model: Runnable, feed: Mapping[str, Array], compared: Mapping[str, Compared], before: Outputs, most: float
) -> Finding:
    free = Compared(is_known=False)
    compared = {name: free if name in model.sized_by_data else found for name, found in compared.items()}
    axes = {name: found.axis for name, found in compared.items()}
    differing = [name for name, found in compared.items() if found.error > most]
    if differing:  # what differs from run to run says nothing
        again = model.attempt(feed) or {}
        differing = [name for name in differing if name in again and difference(before[name], again[name]) <= most]
    if differing:
        return Finding(f"what output {differing[0]!r} has for a row depends on the other rows")
    if not compared or any(axis is not None for axis in axes.values()):
        return Finding(None, axes)
    if all(found.is_known for found in compared.values()):
        return Finding(_NONE)
    return _by_copies(model, feed, axes)


def _by_copies(model: Runnable, feed: Mapping[str, Array], axes: Mapping[str, int | None]) -> Finding:
    """For outputs whose size depends on the data: n copies of a row give n times as much, or nothing."""
    count = len(next(iter(feed.values())))
    many, few = (model.attempt(_rows(feed, np.zeros(n, np.int64))) for n in (count, count - 1))
    if many is None or few is None:  # the number of rows is fixed
        return Finding(None, axes)
    for name in many:
        pairs = [(a, b) for a, b in zip(many[name].shape, few[name].shape, strict=False) if a != b]
        if all(a % count == 0 and a * (count - 1) == b * count for a, b in pairs) and (pairs or not many[name].size):
            return Finding(None, axes)
    return Finding(_NONE)


def _turned(model: Runnable, feed: Mapping[str, Array], before: Outputs) -> Finding:
    """The rows in another order: the extremes of a batch stay what they are, and so do values that are rounded."""
    count = len(next(iter(feed.values())))
    order = np.concatenate([np.arange(count)[1::2], np.arange(count)[::2]])
    after = model.attempt(_rows(feed, order))
    if after is None:
        return Finding("the runtime refuses its rows in another order", is_refusal=True)
    compared = {
        name: _compare_fixed(before[name], after[name], order, count, np.arange(count))
        for name in before
        if name in after
    }
    return _verdict(model, feed, compared, before, AT_MOST_TURNED)


def _rows(feed: Mapping[str, Array], rows: Array) -> dict[str, Array]:
    return {name: values[rows] for name, values in feed.items()}


def compare_rows(before: Array, after: Array, kept: Array, count: int) -> Compared:
    """An output of all rows beside that of the rows `kept` alone."""
    if before.ndim != after.ndim:
        return Compared(is_known=False)
    pairs = list(zip(before.shape, after.shape, strict=True))
    changed = [axis for axis, (a, b) in enumerate(pairs) if a != b]
    if not changed:
        return Compared()
    if any(a % count or a * len(kept) != b * count for a, b in (pairs[axis] for axis in changed)):
        return Compared(is_known=False)
    errors = []
    for is_outer in (True, False) if any(before.shape[axis] != count for axis in changed) else (True,):
        expected = before
        for axis in changed:
            expected = expected.take(_entries(kept, count, before.shape[axis] // count, is_outer), axis)
        errors.append(difference(expected, after))
    return Compared(changed[0], min(errors))


def _compare_fixed(before: Array, after: Array, kept: Array, count: int, now: Array | None = None) -> Compared:
    """An output before and after the rows other than `kept` were replaced; `now` is where the kept ones are then."""
    found = [Compared()]
    if before.shape != after.shape:
        return Compared(is_known=False)
    now = kept if now is None else now
    for axis, size in enumerate(before.shape):
        if size == count or (axis == 0 and size and size % count == 0):
            for is_outer in (True, False):
                old, new = (_entries(rows, count, size // count, is_outer) for rows in (kept, now))
                found.append(Compared(axis, difference(before.take(old, axis), after.take(new, axis))))
    return min(found[1:] or found, key=lambda one: one.error)


def _entries(rows: Array, count: int, each: int, is_outer: bool) -> Array:
    """Where the entries of `rows` are along an axis with `each` a row, row by row (`is_outer`) or entry by entry.

    >>> _entries(np.array([1]), 3, 2, True).tolist(), _entries(np.array([1]), 3, 2, False).tolist()
    ([2, 3], [1, 4])
    """
    if is_outer:
        return np.asarray((rows[:, None] * each + np.arange(each)).ravel())
    return np.asarray((np.arange(each)[:, None] * count + rows).ravel())


def difference(expected: Array, found: Array, least: float = 0.0) -> float:
    """Root mean square of the difference, in standard deviations of what is expected; NaN equals NaN.

    Of values that aren't floating point it is the share that differs. Infinite where shapes or what is finite differ.
    `least` is the smallest standard deviation that is divided by.

    >>> round(difference(np.array([0.0, 2.0]), np.array([0.0, 3.0])), 3)
    0.706
    >>> difference(np.array([1, 2]), np.array([1, 3]))
    0.5
    """
    if expected.shape != found.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    if not is_floating(expected.dtype):
        return float(np.mean(expected != found))
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return float("inf")
    a, b = a[finite], b[finite]
    error = float(np.sqrt(np.mean(np.square(a - b)))) if a.size else 0.0
    scale = max(spread(a), least)
    return error / scale if scale else float(error > 0.0 and np.inf)


def spread(values: Array) -> float:
    """The standard deviation of what is finite, at least what rounding makes of it."""
    known = values[np.isfinite(values)].astype(np.float64)
    return float(known.std() + _FLOOR * np.abs(known).max()) if known.size else 0.0
