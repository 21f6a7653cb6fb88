"""How samples are split between calibration and fidelity, and grouped to batches: plain index arithmetic."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from snp_onnx.sources.arrays import Readable
from snp_onnx.sources.inputs import Array
from snp_onnx.sources.matching import View

_MOST = 256
_BLOCK = 20


class Part(Enum):
    """Which samples: those for the moments, those that choose between candidates, those that are reported, or all."""

    CALIBRATION = "calibration"
    CHOOSING = "choosing"
    HELD_OUT = "held-out"
    ALL = "all"

    def choose(self, samples: Array, series: int = 0) -> Array:
        """The indices of this part among `samples`, at most 256 each of those that choose and that are held out.

        In every block of twenty samples one chooses and two are held out, at places that differ from block to block:
        samples that come in cycles, class by class, would else leave one class for a part. Where all `series` samples
        are of one recording, the first twentieth chooses and the last tenth is held out.

        >>> [part.choose(np.arange(40)).tolist() for part in (Part.CHOOSING, Part.HELD_OUT)]
        [[1, 29], [7, 13, 28, 37]]
        """
        if self is Part.ALL:
            return samples
        if series:
            start, end = min(_MOST, -(-series // _BLOCK)), series - min(_MOST, -(-2 * series // _BLOCK))
            bounds = {Part.CHOOSING: (0, start), Part.CALIBRATION: (start, end), Part.HELD_OUT: (end, series)}[self]
            return np.asarray(samples[(samples >= bounds[0]) & (samples < bounds[1])])
        blocks, places = samples // _BLOCK, samples % _BLOCK
        first, second, third = _places_taken(blocks)
        chooses = (places == third) & (blocks < _MOST)
        is_held_out = ((places == first) | (places == second)) & (blocks < _MOST // 2)
        if self is Part.CALIBRATION:
            return np.asarray(samples[~chooses & ~is_held_out])
        return np.asarray(samples[chooses if self is Part.CHOOSING else is_held_out])


def _places_taken(blocks: Array) -> tuple[Array, Array, Array]:
    """For every block of twenty samples one place in each half that is held out, and another one that chooses.

    A hash of the block's number draws them. In the first block the first half chooses: ten samples are enough to split.
    """
    mixed = (blocks.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    first, second, third, half = (
        ((mixed >> np.uint64(shift)) % np.uint64(count)).astype(np.int64)
        for shift, count in ((8, 10), (20, 10), (32, 9), (44, 2))
    )
    half[blocks == 0] = 0
    third += third >= np.where(half == 0, first, second)
    return first, second + 10, third + 10 * half


@dataclass(frozen=True, slots=True)
class Place:
    """An array of a feed, for one input: `name` is the array's own."""

    name: str
    array: Readable
    view: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape(self.array.shape)


@dataclass(frozen=True, slots=True)
class Feed:
    """`count` samples from index `start` on; without a batch axis (`whole`) the feed is one sample."""

    start: int
    count: int
    whole: bool
    places: Mapping[str, Place]
    labels: Place | None

    def sample_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of one sample, input by input: samples that agree in them fit in one batch."""
        return tuple(place.shape if self.whole else place.shape[1:] for place in self.places.values())


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one feed."""

    feed: Feed
    rows: Array

    @property
    def samples(self) -> Array:
        """The indices of the samples over the whole source."""
        return self.rows + self.feed.start


def group(
    feeds: Sequence[Feed], part: Part, batch_size: int, keep_partial: bool, series: int = 0
) -> Iterator[list[Chunk]]:
    """Batches of `batch_size` consecutive samples of equal shapes, fewer at the end or where the shapes change.

    Without `keep_partial` these smaller ones are left out.
    """
    pending: list[Chunk] = []
    filled = 0
    for feed in feeds:
        if pending and (feed.whole or feed.sample_shapes() != pending[0].feed.sample_shapes()):
            if keep_partial:
                yield pending
            pending, filled = [], 0
        rows = part.choose(np.arange(feed.start, feed.start + feed.count), series) - feed.start
        while len(rows):
            taken, rows = np.split(rows, [batch_size - filled])
            pending.append(Chunk(feed, taken))
            filled += len(taken)
            if filled == batch_size:
                yield pending
                pending, filled = [], 0
    if pending and keep_partial:
        yield pending


def count_grouped(feeds: Sequence[Feed], part: Part, fixed_batch: int | None, series: int = 0) -> int:
    """How many samples of the part get into batches: all, but for what a fixed batch size leaves over."""
    if fixed_batch is None:
        return sum(len(part.choose(np.arange(feed.start, feed.start + feed.count), series)) for feed in feeds)
    return fixed_batch * sum(1 for _ in group(feeds, part, fixed_batch, keep_partial=False, series=series))
