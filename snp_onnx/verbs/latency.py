"""Latency: two sessions timed in turn, so that a drifting machine slows both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.sessions import run

BURST = 4
"""Runs of one model that count before it is the other's turn."""
LONG = 0.02
"""Seconds from which on a run doesn't feel what ran before it: its caches and its threads."""
FEWEST = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians in milliseconds and the ratio pruned/dense, run by run: its median and its quartiles.

    `undisturbed` is the ratio of the first quintiles, each model's own: other work on the machine only ever adds time;
    `undisturbed_ms` is the dense model's.
    """

    batch: int
    rounds: int
    dense_ms: float
    pruned_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    undisturbed: float
    undisturbed_ms: float


def measure_latency(
    dense: Any,
    pruned: Any,
    feed: Mapping[str, npt.NDArray[Any]],
    pruned_feed: Mapping[str, npt.NDArray[Any]] | None = None,
    rounds: int = 50,
    seconds: float = 10.0,
) -> Latency:
    """Up to `rounds` runs of each model, in turn, within about `seconds`, after a warm-up of both.

    A model that is quick runs several times before it is the other's turn, and the first of these runs doesn't count:
    it finds the caches and the threads as the other model left them, which no user's does. `pruned_feed` is the pruned
    model's, where that takes less than the dense one.
    """
    other = feed if pruned_feed is None else pruned_feed
    slowest = max(_timed(dense, feed), _timed(pruned, other))
    for _ in range(3 if slowest < LONG else 1):
        slowest = min(slowest, max(_timed(dense, feed), _timed(pruned, other)))
    count = BURST if slowest < LONG else 1
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < rounds and (len(times) < FEWEST or time.perf_counter() - start < seconds):
        times += zip(_burst(dense, feed, count), _burst(pruned, other, count), strict=True)
    pairs = np.array(times)
    ratios = pairs[:, 1] / pairs[:, 0]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    medians = np.median(pairs, axis=0) * 1000
    first = next(iter(feed.values()))
    batch = first.shape[0] if first.ndim else 1
    quick = np.percentile(pairs, 20, axis=0)
    middles = float(medians[0]), float(medians[1]), float(middle)
    quickest = float(quick[1] / quick[0]), float(quick[0]) * 1000
    return Latency(batch, len(times), *middles, float(low), float(high), *quickest)


def _burst(session: Any, feed: Mapping[str, npt.NDArray[Any]], count: int) -> list[float]:
    """Seconds of `count` runs; where there are several, one more comes before them."""
    if count > 1:
        _timed(session, feed)
    return [_timed(session, feed) for _ in range(count)]


def _timed(session: Any, feed: Mapping[str, npt.NDArray[Any]]) -> float:
    start = time.perf_counter()
    run(session, feed)
    return time.perf_counter() - start
