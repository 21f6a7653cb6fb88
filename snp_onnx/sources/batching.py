"""How samples are split between calibration and fidelity, and grouped to batches: plain index arithmetic."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import numpy as np

from snp_onnx.sources.arrays import Readable
from snp_onnx.sources.inputs import Array
from snp_onnx.sources.matching import View

_MOST = 256


class Part(Enum):
    """Which samples: those for the moments, those that choose between candidates, those that are reported, or all."""

    CALIBRATION = "calibration"
    CHOOSING = "choosing"
    HELD_OUT = "held-out"
    ALL = "all"

    def choose(self, samples: Array) -> Array:
        """The indices of this part among `samples`, at most 256 each of those that choose and that are held out.

        >>> [part.choose(np.arange(20)).tolist() for part in (Part.CHOOSING, Part.HELD_OUT)]
        [[4], [9, 19]]
        """
        if self is Part.ALL:
            return samples
        taken = [
            (samples % every == place) & (samples // every < _MOST)
            for part, (every, place) in _TAKEN.items()
            if self in (part, Part.CALIBRATION)
        ]
        return np.asarray(samples[np.any(taken, axis=0) != (self is Part.CALIBRATION)])


_TAKEN: Mapping[Part, tuple[int, int]] = MappingProxyType({Part.CHOOSING: (20, 4), Part.HELD_OUT: (10, 9)})
"""A part takes one of so many samples, at this place; CALIBRATION is what none takes. Few choose: it costs samples."""


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


def group(feeds: Sequence[Feed], part: Part, batch_size: int, keep_partial: bool) -> Iterator[list[Chunk]]:
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
        rows = part.choose(np.arange(feed.start, feed.start + feed.count)) - feed.start
        while len(rows):
            taken, rows = np.split(rows, [batch_size - filled])
            pending.append(Chunk(feed, taken))
            filled += len(taken)
            if filled == batch_size:
                yield pending
                pending, filled = [], 0
    if pending and keep_partial:
        yield pending


def count_grouped(feeds: Sequence[Feed], part: Part, fixed_batch: int | None) -> int:
    """How many samples of the part get into batches: all, but for what a fixed batch size leaves over."""
    if fixed_batch is None:
        return sum(len(part.choose(np.arange(feed.start, feed.start + feed.count))) for feed in feeds)
    return fixed_batch * sum(1 for _ in group(feeds, part, fixed_batch, keep_partial=False))
