"""The samples of a calibration source: checked, split, in batches, as often as wanted, in constant memory.

One of twenty samples chooses between candidates, one of ten is held out for the figures that are reported, at most 256
each and at places that follow no cycle (`batching`); the others are for the moments. Under ten samples, and where a
fixed batch isn't filled, parts share samples, with a note.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Self

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.arrays import Stored
from snp_onnx.sources.batch_axis import Finding, Runnable, axes_of_one
from snp_onnx.sources.batching import Chunk, Feed, Part, count_grouped, group
from snp_onnx.sources.examples import NO_VALUES, Values
from snp_onnx.sources.feeds import check_beside
from snp_onnx.sources.forms import Request, Source, open_source
from snp_onnx.sources.inputs import Array, InputSpec, fixed_batch, has_batch_axis, repeats_batch_symbol
from snp_onnx.sources.matching import Matcher, with_layout
from snp_onnx.sources.preprocess import Preprocess, check_options
from snp_onnx.sources.reading import Reader
from snp_onnx.sources.row_trial import collect_as, look_ahead, try_rows
from snp_onnx.sources.series import is_series
from snp_onnx.sources.spool import Spool
from snp_onnx.sources.variety import Variety

__all__ = ["Part", "Preprocess", "Runnable", "Samples", "open_samples"]

_PLAIN = Preprocess()
_NO_SHAPES: Mapping[str, tuple[int, ...]] = MappingProxyType({})
LEAST_SPLIT = 10
"""Samples below which every part is all of them."""

OF_ONE_RECORDING = (
    "samples that follow each other are much alike, as parts of one recording are: the first twentieth chooses and the "
    "last tenth is reported; give samples of several recordings"
)

_LABELS_AT_ONCE = 1024


@dataclass(slots=True)
class Samples:
    """Re-iterable samples; a context manager that removes what it spooled.

    `count` is the number of samples, `notes` are one-line remarks for the user, `largest_shapes` the largest dimension
    seen on every axis of every input at batch 1, `is_random` says that the data are made up. `is_whole` says that each
    feed is one sample; otherwise samples are rows of axis 0, and `output_axes` has the axis on which they are in the
    model's outputs, `None` for an output without such an axis. Without a model to try, these axes aren't known.
    """

    count: int
    notes: list[str]
    largest_shapes: Mapping[str, tuple[int, ...]]
    is_random: bool
    is_whole: bool
    output_axes: Mapping[str, int | None] | None
    _reader: Reader = field(repr=False)
    _feeds: Sequence[Feed] = field(repr=False)
    _labels_beside: Stored | None = field(repr=False)
    _spool: Spool = field(repr=False)
    _variety: Variety = field(repr=False)
    _series: int = field(repr=False, default=0)
    """The count, if the samples are of one recording; 0 otherwise."""

    def batches(self, batch_size: int, part: Part) -> Iterator[Mapping[str, Array]]:
        """Feeds of `batch_size` samples in order, fewer at the end and where shapes change.

        A fixed batch of the model replaces `batch_size`, and what doesn't fill one is left out; without a batch axis
        every batch is one sample.
        """
        if batch_size < 1:
            raise CalibrationError(f"--batch-size {batch_size} is less than 1; give a positive number")
        return map(self._read, self._grouped(part, batch_size))

    def _read(self, batch: Sequence[Chunk]) -> Mapping[str, Array]:
        feed = self._reader.read(batch)
        self._variety.see(np.concatenate([chunk.samples for chunk in batch]), feed, self.is_whole)
        return feed

    def example(self) -> Mapping[str, Array]:
        """The largest sample, or as many as the model's fixed batch has: what shapes are observed with."""
        size = 1 if self.is_whole else self.fixed_batch or 1
        largest = max(self._feeds, key=lambda feed: sum(map(prod, feed.sample_shapes())))
        batches = (found for feeds in ([largest], self._feeds) for found in group(feeds, Part.ALL, size, False))
        return self._reader.read(next(batches))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes the samples say little: they repeat, an input never varies, or all are of one recording."""
        return (*self._variety.warnings(), *([OF_ONE_RECORDING] if self._series else []))

    @property
    def split(self) -> str:
        """One line that says how many samples every part has."""
        sizes = [self.part_count(part) for part in (Part.CALIBRATION, Part.CHOOSING, Part.HELD_OUT)]
        what = "feeds" if self.is_whole else "samples"
        return f"of {self.count} {what} {sizes[0]} calibrate, {sizes[1]} choose between ways, {sizes[2]} are reported"

    def labels(self, part: Part) -> Array | None:
        """The labels of what `batches` gives for this part, in the same order; `None` without a label array."""
        chunks = [chunk for batch in self._grouped(part, _LABELS_AT_ONCE) for chunk in batch]
        if self._labels_beside is not None:
            return self._labels_beside.read(np.concatenate([chunk.samples for chunk in chunks]))
        found = [
            place.view.read(place.array, chunk.rows) for chunk in chunks if (place := chunk.feed.labels) is not None
        ]
        if not found:
            return None
        shapes = sorted({labels.shape[1:] for labels in found})
        if len(shapes) > 1:
            name = self._reader.preprocess.label_array
            raise CalibrationError(
                f"label array {name!r} has samples of shape {shapes[0]} and of {shapes[1]}; make them alike"
            )
        return np.concatenate(found)

    @property
    def fixed_batch(self) -> int | None:
        """The number of rows that the model insists on; `None` if it takes any, or samples aren't rows."""
        return None if self.is_whole else fixed_batch(self._reader.specs)

    def part_count(self, part: Part) -> int:
        """How many samples `batches` gives for this part."""
        return count_grouped(self._feeds, self._effective(part), self.fixed_batch, self._series)

    def close(self) -> None:
        """Remove what was spooled; the samples can't be read any more."""
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _effective(self, part: Part) -> Part:
        """The part itself; all samples where they are too few, and those that calibrate where none would choose."""
        if self.count < LEAST_SPLIT:
            return Part.ALL
        if count_grouped(self._feeds, part, self.fixed_batch, self._series):
            return part
        return self._effective(Part.CALIBRATION) if part is Part.CHOOSING else Part.ALL

    def _grouped(self, part: Part, batch_size: int) -> Iterator[list[Chunk]]:
        fixed = self.fixed_batch
        size = 1 if self.is_whole else fixed or batch_size
        return group(self._feeds, self._effective(part), size, fixed is None, self._series)


def open_samples(
    source: object,
    specs: Sequence[InputSpec],
    preprocess: Preprocess = _PLAIN,
    samples: int | None = None,
    seed: int = 0,
    random_shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES,
    random_values: Values = NO_VALUES,
    model: Runnable | None = None,
) -> Samples:
    """The first `samples` samples of any `SOURCE`, every array matched to its input and checked but for its values.

    What can be read only once is spooled here; nothing beyond the last sample asked for is read. With a `model` a few
    rows are run to see whether rows are samples; without, axis 0 of inputs that agree in it is taken for a batch axis.
    """
    specs = tuple(specs)
    if samples is not None and samples < 1:
        raise CalibrationError(f"--samples {samples} is less than 1; give a positive number")
    check_options(preprocess, specs)
    spool = Spool()
    try:
        made_whole = isinstance(source, str) and source == "random" and repeats_batch_symbol(specs, random_shapes)
        batched = has_batch_axis(specs) and not made_whole
        return _open(
            source, Request(specs, preprocess, samples, seed, random_shapes, batched, random_values), spool, model
        )
    except BaseException:
        spool.close()
        raise


def _open(source: object, request: Request, spool: Spool, model: Runnable | None) -> Samples:
    found = open_source(source, request)
    data, specs = request.preprocess, request.specs
    used = Preprocess(label_array=data.label_array) if found.is_random else with_layout(data, found.layout)
    matcher = Matcher(specs, request.batched, used, found.single)
    with ExitStack() as stack:
        stack.callback(found.feeds.close)
        finding = Finding()
        if model is not None and request.batched and fixed_batch(specs) != 1:
            ahead = look_ahead(found, matcher, request.samples)
            finding = try_rows(ahead, matcher, model, request.samples)
            is_drawn_again = found.is_random and finding.why is not None
            found = open_source(source, replace(request, batched=False)) if is_drawn_again else ahead.source
            stack.callback(found.feeds.close)
        feeds, notes = collect_as(finding, found, matcher, request.samples, spool)
    count = sum(feed.count for feed in feeds)
    if not count:
        raise CalibrationError(f"{found.origin} has no samples; give at least one")
    if found.labels is not None:
        check_beside(found.labels, count, is_all=count != request.samples)
    is_whole = feeds[0].whole
    notes = [*found.notes, *notes, *([_of_whole(finding, count)] if is_whole and finding.why is not None else [])]
    if data.resize is not None or data.crop is not None:
        _require_images(found)
    axes = _output_axes(model, finding, is_whole, fixed_batch(specs))
    reader = Reader(specs, used)
    series = count if is_series(reader, feeds, count) else 0
    opened = Samples(
        count, notes, _largest_shapes(specs, feeds), found.is_random, is_whole, axes,
        reader, feeds, found.labels, spool, Variety(count), series,
    )  # fmt: skip
    _check_fixed_batch(opened, found.origin)
    return opened


def _of_whole(finding: Finding, count: int) -> str:
    """One line on feeds that are not cut into rows."""
    more = "; give more feeds, as a loader or a folder of files does" if count == 1 else ""
    feeds = "feed is one sample" if count == 1 else f"of {count} feeds is one sample"
    return f"axis 0 of the inputs is no batch axis ({finding.why}): each {feeds}, fed whole{more}"


def _output_axes(
    model: Runnable | None, finding: Finding, is_whole: bool, fixed: int | None
) -> Mapping[str, int | None] | None:
    """The axis of the rows by output: None for whole feeds, else as found, or axis 0 where nothing was tried."""
    if is_whole:
        return {} if model is None else dict.fromkeys(model.outputs)
    if model is None:
        return None
    first = axes_of_one(model.outputs) if fixed == 1 else dict.fromkeys(model.outputs, 0)
    return {**first, **finding.axes}


def _require_images(found: Source) -> None:
    if not found.notes:
        raise CalibrationError(
            f"--resize and --crop are for folders of images, and {found.origin} is none; prepare its arrays yourself"
        )


def _check_fixed_batch(opened: Samples, origin: str) -> None:
    """No batch at all is an error; what is left over, and parts that fall back to all samples, are noted."""
    fixed = opened.fixed_batch
    if not opened.part_count(Part.ALL):
        raise CalibrationError(
            f"the {opened.count} samples of {origin} fill no batch of the model's fixed size {fixed}; "
            "give more of equal shapes"
        )
    for part in (Part.CALIBRATION, Part.CHOOSING, Part.HELD_OUT):
        if opened._effective(part) is not part:
            those = "all of them" if opened._effective(part) is Part.ALL else "the calibration part"
            opened.notes.append(f"too few samples ({opened.count}) to set any apart: the {part.value} part is {those}")
        dropped = count_grouped(opened._feeds, opened._effective(part), None, opened._series) - opened.part_count(part)
        if dropped:
            opened.notes.append(
                f"{part.value}: {dropped} samples dropped, they do not fill the model's fixed batch of {fixed}"
            )


def _largest_shapes(specs: Sequence[InputSpec], feeds: Sequence[Feed]) -> dict[str, tuple[int, ...]]:
    largest: dict[str, tuple[int, ...]] = {}
    for feed in feeds:
        for spec in specs:
            shape = feed.places[spec.name].shape
            shape = shape if feed.whole else (1, *shape[1:])
            seen = largest.get(spec.name, shape)
            alike = len(seen) == len(shape)
            largest[spec.name] = tuple(map(max, seen, shape)) if alike else max(seen, shape, key=prod)
    return largest
