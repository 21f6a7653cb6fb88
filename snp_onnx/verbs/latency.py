"""Latency: two sessions timed in turn, so that a drifting machine slows both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.sessions import run


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians in milliseconds and the ratio pruned/dense, run by run: its median and its quartiles.

    `undisturbed` is the ratio of the first quintiles, each model's own: other work on the machine only ever adds time.
    """

    batch: int
    rounds: int
    dense_ms: float
    pruned_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    undisturbed: float


def measure_latency(
    dense: Any,
    pruned: Any,
    feed: Mapping[str, npt.NDArray[Any]],
    pruned_feed: Mapping[str, npt.NDArray[Any]] | None = None,
    rounds: int = 50,
    seconds: float = 10.0,
) -> Latency:
    """Up to `rounds` interleaved runs of one batch within about `seconds`, after a warm-up of both.

    `pruned_feed` is the pruned model's, where that takes less than the dense one.
    """
    other = feed if pruned_feed is None else pruned_feed
    for _ in range(3):
        run(dense, feed)
        run(pruned, other)
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < rounds and (len(times) < 5 or time.perf_counter() - start < seconds):
        times.append((_timed(dense, feed), _timed(pruned, other)))
    pairs = np.array(times)
    ratios = pairs[:, 1] / pairs[:, 0]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    medians = np.median(pairs, axis=0) * 1000
    first = next(iter(feed.values()))
    batch = first.shape[0] if first.ndim else 1
    quick = np.percentile(pairs, 20, axis=0)
    middles = float(medians[0]), float(medians[1]), float(middle)
    return Latency(batch, len(times), *middles, float(low), float(high), float(quick[1] / quick[0]))


def _timed(session: Any, feed: Mapping[str, npt.NDArray[Any]]) -> float:
    start = time.perf_counter()
    run(session, feed)
    return time.perf_counter() - start
