"""Latency: two sessions timed in turn, so that a drifting machine slows both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.calibration.binding import bind
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.sources.inputs import is_text
from snp_onnx.tracing.surface import Surface

Feed = Mapping[str, npt.NDArray[Any]]
Run = Callable[[], object]
Clock = Callable[[], float]

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
    dense: Run,
    pruned: Run,
    batch: int = 1,
    rounds: int = 50,
    seconds: float = 10.0,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Up to `rounds` runs of each model, in turn, within about `seconds`, after a warm-up of both.

    A model that is quick runs several times before it is the other's turn, and the first of these runs doesn't count:
    it finds the caches and the threads as the other model left them, which no user's does.
    """
    slowest = max(_timed(dense, clock), _timed(pruned, clock))
    for _ in range(3 if slowest < LONG else 1):
        slowest = min(slowest, max(_timed(dense, clock), _timed(pruned, clock)))
    count = BURST if slowest < LONG else 1
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < rounds and (len(times) < FEWEST or time.perf_counter() - start < seconds):
        times += zip(_burst(dense, count, clock), _burst(pruned, count, clock), strict=True)
    pairs = np.array(times)
    ratios = pairs[:, 1] / pairs[:, 0]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    medians = np.median(pairs, axis=0) * 1000
    quick = np.percentile(pairs, 20, axis=0)
    middles = float(medians[0]), float(medians[1]), float(middle)
    quickest = float(quick[1] / quick[0]), float(quick[0]) * 1000
    return Latency(batch, len(times), *middles, float(low), float(high), *quickest)


def latency_of(
    dense: onnx.ModelProto,
    pruned: onnx.ModelProto,
    runtime: Runtime,
    feed: Feed,
    surface: Surface | None = None,
    rounds: int = 50,
    seconds: float = 10.0,
) -> Latency:
    """Both models on one feed that is bound once; the pruned one takes the part of it that `surface` says."""
    first = next(iter(feed.values()))
    fed = (feed, feed if surface is None else surface.cut(feed))
    sessions = [open_session(_undeclared(model), runtime, stays=True, timed=True) for model in (dense, pruned)]
    runs = [_ready(session, own) for session, own in zip(sessions, fed, strict=True)]
    batch = first.shape[0] if first.ndim else 1
    return measure_latency(runs[0], runs[1], batch, rounds, seconds, _clock_of(runtime))


def _ready(session: Any, feed: Feed) -> Run:
    """One run on a feed, bound where the runtime can bind it: strings it takes with the call alone."""
    return (
        partial(run, session, feed) if any(is_text(each.dtype) for each in feed.values()) else bind(session, feed).run
    )


def _undeclared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the shapes of its outputs: the runtime only warns of a wrong rank, but doesn't bind to it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return copy


def _clock_of(runtime: Runtime) -> Clock:
    """One thread on the CPU is timed while it runs: what other work takes from it says nothing of the model."""
    return time.thread_time if runtime.threads == 1 and runtime.provider == "cpu" else time.perf_counter


def _burst(run: Run, count: int, clock: Clock) -> list[float]:
    """Seconds of `count` runs; where there are several, one more comes before them."""
    if count > 1:
        _timed(run, clock)
    return [_timed(run, clock) for _ in range(count)]


def _timed(run: Run, clock: Clock) -> float:
    start = clock()
    run()
    return clock() - start
