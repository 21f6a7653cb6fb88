"""A dense and a pruned model at several sizes: other numbers of rows, longer and shorter dynamic axes.

A model can be right for the samples and wrong at any other size: a number that was written into it when it was traced
is one only there. What the dense model takes the pruned one must take, and give outputs of the same types and shapes,
finite where the dense ones are. As to the values:

- What a row gives doesn't depend on the other rows, no more than in the dense model.
- The pruned weights in the dense shapes with zeros elsewhere compute the same as the pruned model, unless something is
  computed over units that are gone (the norm of a stream). Where they do at the samples' size they must at others.
- Without them outputs that are near the dense ones at the samples' size may not be far off at others.

A size that the dense model refuses says nothing, and another is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.sessions import output_of, run
from snp_onnx.errors import PassError, SnpError
from snp_onnx.sources.batch_axis import AT_MOST, AT_MOST_COARSE, compare_rows, difference, spread
from snp_onnx.sources.inputs import InputSpec
from snp_onnx.sources.other_sizes import longer, open_axes, row_axes, several_rows, shorter, with_rows
from snp_onnx.tracing.surface import Surface

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Outputs = Mapping[str, Array]

MOST_TRIED = 8
"""Sizes that the dense model may refuse before no other is tried."""

FEW = 3
"""Rows of a second batch size."""

WORSE = 10.0
"""How many times the error at the samples' size an error elsewhere may be."""

FAR_OFF = 0.5
"""The error up to which outputs at another size may be those of a model that is pruned much: root mean square of the
difference, in standard deviations. Outputs that have nothing to do with the dense ones have 1.4."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Sessions of both models, what the pruned one keeps of inputs and outputs, and the outputs of `free` size."""

    dense: Any
    pruned: Any
    surface: Surface
    free: frozenset[str]

    def at(self, feed: Feed) -> tuple[Outputs, Outputs] | None:
        """The outputs of both for a feed, alike in form; None where the dense model refuses it."""
        try:
            expected = self.surface.cut(run(self.dense, feed))
        except SnpError:
            return None
        try:
            found = run(self.pruned, self.surface.cut(feed))
        except SnpError as error:
            raise _broken(f"the pruned model can't be run: {error}") from error
        for name, values in expected.items():
            if name not in found and self.is_free(name):
                continue
            if name not in found:
                raise _broken(f"the pruned model gives no array for output {name}", feed)
            require_alike(name, values, found[name], feed, self.is_free(name))
        return expected, found

    def cut_outputs(self, session: Any, feed: Feed) -> Outputs:
        """What the pruned model keeps of the outputs of a dense form; none without a session or where it can't run."""
        try:
            return {} if session is None else self.surface.cut(run(session, feed))
        except SnpError:
            return {}

    def compared(self, outputs: Outputs) -> Iterator[str]:
        """The outputs that can be compared by place: of floating point, and of a size that no data decide."""
        return (name for name, values in outputs.items() if values.dtype.kind == "f" and not self.is_free(name))

    def is_free(self, name: str) -> bool:
        """Whether data decide the size of an output, or of the sequence that it is an element of."""
        return output_of(name, self.free) in self.free


def _broken(what: str, feed: Feed | None = None) -> PassError:
    size = "" if feed is None else f" (for {', '.join(f'{name} {values.shape}' for name, values in feed.items())})"
    return PassError(f"{what}{size}: nothing was written, please report this")


def require_alike(name: str, expected: Array, found: Array, feed: Feed, is_free: bool) -> None:
    """PassError where an output has another type or shape (only another rank if it `is_free`), or stops being finite.

    Where some of the dense model's entries aren't finite, others may be so in the pruned one, but no more of them.
    """
    if expected.dtype != found.dtype:
        raise _broken(f"output {name} changed its type from {expected.dtype} to {found.dtype}", feed)
    if expected.ndim != found.ndim or (expected.shape != found.shape and not is_free):
        raise _broken(f"output {name} changed its shape from {expected.shape} to {found.shape}", feed)
    if expected.dtype.kind != "f":
        return
    before, after = (np.count_nonzero(~np.isfinite(values)) for values in (expected, found))
    if after > before and (not before or expected.shape == found.shape):
        raise _broken(f"output {name} of the pruned model is not finite", feed)


def try_sizes(pair: Pair, feed: Feed, specs: Sequence[InputSpec], zero_filled: Callable[[], Any]) -> tuple[str, ...]:
    """Run both at the feed's size and at others; PassError where the pruned model is wrong, notes on what wasn't tried.

    `zero_filled` opens a session of the pruned weights in the dense shapes; it gives None where there is none.
    """
    answers = pair.at(feed)
    if answers is None:
        return ("not verified by a run: the dense model refuses the inputs that were made up for it",)
    has_rows = bool(row_axes(specs, feed)) and _rows_are_apart(pair, several_rows(feed))
    sides = [places for places in open_axes(specs, feed) if not has_rows or any(axis != 0 for _, axis in places)]
    if not sides:
        return ()
    if has_rows:
        feed = with_rows(feed, np.arange(min(2, _count(feed))))
        answers = pair.at(feed)
    if answers is None:
        return ()
    near = _near(pair, feed, *answers, zero_filled())
    refused = [
        which
        for which, sizes in (("longer", longer(feed, sides)), ("shorter", shorter(feed, sides)))
        if not _is_tried(pair, islice(sizes, MOST_TRIED), near)
    ]
    if not refused:
        return ()
    return (f"not verified with {' or '.join(refused)} axes: the dense model refuses those that were tried",)


def _count(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _rows_are_apart(pair: Pair, feed: Feed) -> bool:
    """Whether axis 0 is a batch axis in the dense model; PassError where it is and isn't one in the pruned model."""
    count, whole = _count(feed), pair.at(feed)
    if whole is None:
        return False
    has_rows, is_mixed = False, False
    for kept in (np.arange(count)[1::2][:FEW], np.arange(1)):
        part = pair.at(with_rows(feed, kept))
        if part is None:
            continue
        for name in (name for name in whole[0].keys() & part[0].keys() if not pair.is_free(name)):
            before, after = (compare_rows(a[name], b[name], kept, count) for a, b in zip(whole, part, strict=True))
            if not before.is_known or before.axis is None:
                continue
            has_rows, is_mixed = True, is_mixed or before.error > AT_MOST_COARSE
            if after.error > max(AT_MOST, WORSE * before.error):
                what = f"what output {name} of the pruned model has for a row depends on the other rows"
                raise _broken(f"{what} of a batch of {count}")
    return has_rows and not is_mixed


@dataclass(frozen=True, slots=True, eq=False)
class _Near:
    """How far outputs are from the dense ones at the samples' size, and from those with zeros where these are alike.

    Errors are by output, in standard deviations; `least` are the dense outputs' own, for sizes where less varies.
    """

    errors: Mapping[str, float]
    least: Mapping[str, float]
    filled: Any
    exact: Mapping[str, float]


def _near(pair: Pair, feed: Feed, expected: Outputs, found: Outputs, filled: Any) -> _Near:
    names = list(pair.compared(expected))
    errors = {name: difference(expected[name], found[name]) for name in names}
    least = {name: spread(expected[name]) for name in names}
    alike = pair.cut_outputs(filled, feed)
    exact = {name: difference(alike[name], found[name]) for name in names if name in alike}
    return _Near(errors, least, filled, {name: error for name, error in exact.items() if error <= AT_MOST})


def _is_tried(pair: Pair, sizes: Iterator[Feed], near: _Near) -> bool:
    """Compare at the first size that the dense model takes; False where it takes none."""
    for feed in sizes:
        answers = pair.at(feed)
        if answers is not None:
            _compare(pair, feed, *answers, near)
            return True
    return False


def _compare(pair: Pair, feed: Feed, expected: Outputs, found: Outputs, near: _Near) -> None:
    """PassError where outputs at another size aren't what they are at the samples'."""
    alike = pair.cut_outputs(near.filled if near.exact else None, feed)
    for name in (name for name in pair.compared(expected) if name in near.errors):
        is_exact = name in near.exact and name in alike
        wanted, own, least = (alike, near.exact, AT_MOST) if is_exact else (expected, near.errors, FAR_OFF)
        error = difference(wanted[name], found[name], near.least[name])
        if error > max(least, WORSE * own[name]):
            what = f"output {name} of the pruned model is wrong by {error:.2g} standard deviations"
            raise _broken(f"{what} ({own[name]:.2g} at the samples' size)", feed)
