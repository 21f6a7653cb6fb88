"""Whether samples come from one recording: windows of a signal, frames of a film, steps of a simulation.

Samples that follow each other are then much alike. If they were set apart here and there, the figures would be those of
samples that calibration has all but seen.
"""

from collections.abc import Sequence

import numpy as np

from snp_onnx.sources.batching import Chunk, Feed
from snp_onnx.sources.inputs import Array
from snp_onnx.sources.reading import Reader

LEAST = 20
"""Samples below which nothing is tried."""

PAIRS = 16
"""Pairs of neighbours that are looked at, spread over all samples."""

LEAST_VALUES = 16
"""Values of a sample below which an input isn't looked at: few numbers are alike by chance."""

ALIKE = 0.25
"""Mean square difference of neighbours, as a share of that of samples far apart, below which they make a series."""


def is_series(reader: Reader, feeds: Sequence[Feed], count: int) -> bool:
    """Whether an input of floats is much more alike in neighbouring samples than in those half the samples apart."""
    if count < LEAST:
        return False
    near: dict[str, float] = {}
    far: dict[str, float] = {}
    for place in np.unique(np.linspace(0, count - 2, PAIRS).astype(np.int64)).tolist():
        sample, following, other = (_read(reader, feeds, at) for at in (place, place + 1, (place + count // 2) % count))
        for name, values in sample.items():
            shapes = {values.shape, following[name].shape, other[name].shape}
            if values.dtype.kind == "f" and values.size >= LEAST_VALUES and len(shapes) == 1:
                near[name] = near.get(name, 0.0) + _difference(values, following[name])
                far[name] = far.get(name, 0.0) + _difference(values, other[name])
    return any(far[name] > 0.0 and near[name] < ALIKE * far[name] for name in far)


def _read(reader: Reader, feeds: Sequence[Feed], sample: int) -> dict[str, Array]:
    """One sample by its number."""
    feed = next(feed for feed in feeds if feed.start <= sample < feed.start + feed.count)
    return reader.read([Chunk(feed, np.array([sample - feed.start]))])


def _difference(one: Array, other: Array) -> float:
    return float(np.square(one.astype(np.float64) - other.astype(np.float64)).mean())
