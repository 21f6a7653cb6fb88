"""Clocked: widths for a share of the measured latency.

A table of the layers' times at many widths says what each width saves. The plan it leads to is cut and timed in turn
with the dense model (the values of weights don't change the time), the prediction learns from that, and decides again
until the clock agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from snp_onnx.calibration.kernel_times import KernelTimes
from snp_onnx.calibration.kernels import Kernel
from snp_onnx.cost import mac_terms
from snp_onnx.errors import TargetError
from snp_onnx.planning.budget import smallest
from snp_onnx.planning.decide import decisions_at
from snp_onnx.planning.latency import LatencyCosts
from snp_onnx.planning.layer_times import LayerTimes, Timer, time_layers, timed_widths
from snp_onnx.planning.layers import dense_kernels, layers_of
from snp_onnx.planning.options import Choices, Target, TargetKind
from snp_onnx.planning.paths import Path
from snp_onnx.planning.plan import Plan, widths
from snp_onnx.sources.samples import Part
from snp_onnx.tracing import Group
from snp_onnx.tracing.blocks import Block
from snp_onnx.tracing.surface import surface_between
from snp_onnx.verbs.carry_out import Work, cut_only
from snp_onnx.verbs.deciding import Deciding, plan_of
from snp_onnx.verbs.latency import Latency, latency_of
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.subject import Subject, retraced

TABLE_SECONDS = 60.0
"""About how long the layers' times may take to measure, once on a machine."""
TRIES = 8
CLOSE = 0.02
"""A measured share so far below the target is near enough."""
MISSED = 0.05
"""A share so far above the target is worth a warning."""
FELT = 0.2
"""Of the share of the MACs that went: where less time is saved than that, a user should hear of it."""
LEAST_MS = 0.05
"""Models that are quicker spend their time outside of kernels, and no width helps."""
STEP_DOWN = 0.01
"""How much less is aimed at, for every model more that took too long."""
ROUNDS, SECONDS = 200, 2.0
"""Of each measurement: runs of both models, and about how long they may take."""


def clocked(dense: onnx.ModelProto, pruned: onnx.ModelProto, calibration: Calibration, batch: int) -> Latency:
    """Both models in turn on `batch` calibration samples, where the model's batch is dynamic."""
    feed, surface = _feed(calibration, batch), surface_between(dense, pruned)
    return latency_of(dense, pruned, calibration.runtime, feed, surface, ROUNDS, SECONDS)


def cautions(
    latency: Sequence[Latency], macs: float, choices: Choices, target: Target | None, is_quantised: bool
) -> list[str]:
    """What to say of a result with this share of the MACs whose time isn't what was asked for, or hardly less."""
    if not latency:
        return []
    ratio, is_tiny = latency[-1].undisturbed, latency[-1].undisturbed_ms < LEAST_MS
    if target is not None and target.kind is TargetKind.LATENCY:
        said = (
            f"the result takes {ratio:.3f} of the dense time, {target.value:g} was asked for: the machine is busy or "
            "its clock varies; try again when it is quiet"
        )
        return [said] if ratio > target.value + MISSED else []
    if is_tiny or choices.is_rounded_by_clock or 1.0 - ratio >= FELT * (1.0 - macs):
        return []
    return [
        f"the result takes {ratio:.3f} of the dense time with {macs:.3f} of the MACs: kernels want whole blocks of "
        f"channels; try --round-to {'8 or 16' if is_quantised else 'auto'}"
    ]


def _feed(calibration: Calibration, batch: int) -> Mapping[str, Any]:
    return next(iter(calibration.samples.batches(batch, Part.CALIBRATION)))


@dataclass(frozen=True, slots=True, eq=False)
class TimedLayers:
    """The layers' times at the batch that latencies are of, and the trace and the groups there."""

    times: LayerTimes
    subject: Subject
    groups: tuple[Group, ...]

    def costs(self, dense_ms: float) -> LatencyCosts:
        """What widths cost, in shares of the dense model's time."""
        trace = self.subject.trace
        terms = mac_terms(self.subject.prepared, trace.facts.shapes)
        return LatencyCosts(self.times, trace, self.groups, terms, dense_ms)


def timed_layers(work: Work, groups: Sequence[Group]) -> TimedLayers:
    """The times of the layers of these groups: from the user's cache, or measured now and put there."""
    chosen, calibration = work.choices, work.calibration
    assert calibration is not None
    subject = _at_batch(work.subject, calibration, chosen.latency_batch)
    by_id = {group.id: group for group in subject.trace.groups}
    if not all(group.id in by_id for group in groups):  # an axis that the batch ties to others: as it was decided
        subject, by_id = work.subject, {group.id: group for group in groups}
    there = tuple(by_id[group.id] for group in groups)
    timer = _timer(calibration)
    with work.clock("time layers"):
        layers = list(layers_of(subject.prepared, subject.trace, there))
        ladders = [timed_widths(len(group), chosen.min_units, chosen.step) for group in groups]
        return TimedLayers(time_layers(layers, there, ladders, timer, TABLE_SECONDS), subject, there)


def block_times(subject: Subject, blocks: Sequence[Block], calibration: Calibration, batch: int) -> dict[str, float]:
    """Milliseconds of the nodes of each block that multiply, by the block's name."""
    there = _at_batch(subject, calibration, batch)
    kernels = dense_kernels(there.prepared, there.trace)
    wanted = sorted({index for block in blocks for index in block.nodes} & kernels.keys())
    with calibration.clock("time layers"):
        times = _timer(calibration)([kernels[index] for index in wanted], TABLE_SECONDS)
    found = {index: ms for index in wanted if np.isfinite(ms := times[kernels[index]])}
    return {block.name: sum(found.get(index, 0.0) for index in block.nodes) for block in blocks}


def _timer(calibration: Calibration) -> Timer:
    """Times from the user's cache, measured where they aren't in it."""
    store = KernelTimes(calibration.runtime)

    def timer(kernels: Sequence[Kernel], seconds: float) -> Mapping[Kernel, float]:
        return store.of(kernels, seconds, lambda done, all_: calibration.progress("time layers", done, all_))

    return timer


def _at_batch(subject: Subject, calibration: Calibration, batch: int) -> Subject:
    found = {name: tuple(np.shape(array)) for name, array in _feed(calibration, batch).items()}
    shapes = {name: found[name] for name in subject.input_shapes}
    if shapes == dict(subject.input_shapes):
        return subject
    return retraced(subject, calibration.runtime, shapes=shapes, kinds=subject.kinds)


def within_latency(work: Work, target: Target, paths: Sequence[Path]) -> Plan:
    """The plan whose measured share of the dense latency is at most the target's value, and close to it."""
    groups = [path.group for path in paths]
    timed = timed_layers(work, groups)
    ladders = timed.times.ladders
    narrowest = smallest(ladders)
    least = _timed(work, plan_of(work, target, decisions_at(paths, narrowest)))
    if least.undisturbed > target.value:
        raise TargetError(
            f"--{target.option} {target.value:g} can't be reached: the smallest model takes {least.undisturbed:.3f} "
            "of the dense time: allow more (--units channels,heads,blocks, --streams, --round-to)"
        )
    costs = timed.costs(least.undisturbed_ms)
    costs.learn(narrowest, least.undisturbed)
    deciding = Deciding(work, paths, costs, 1.0, ladders)
    tried = {tuple(narrowest.tolist()): least.undisturbed}
    misses = 0
    for _ in range(TRIES):
        try:
            decided = deciding.plan(replace(target, value=aimed_at(target.value, misses)))
        except TargetError:  # the prediction may be wrong where nothing was measured
            break
        found = widths(decided.decisions, groups)
        place = tuple(found.tolist())
        if place in tried:
            break
        tried[place] = _timed(work, decided).undisturbed
        costs.learn(found, tried[place])
        if target.value - CLOSE <= tried[place] <= target.value:
            break
        misses += tried[place] > target.value
    return deciding.plan_at(target, np.array(nearest(tried, target.value)))


def aimed_at(share: float, misses: int) -> float:
    """What to decide for after so many models took more than this share of the time: less, from the third on.

    The prediction is exact where it was measured last; where models miss in spite of that, the clock varies.

    >>> [aimed_at(0.6, misses) for misses in (0, 2, 3, 5)]
    [0.6, 0.6, 0.59, 0.57]
    """
    return round(share - STEP_DOWN * max(0, misses - 2), 12)


def nearest(tried: Mapping[tuple[int, ...], float], share: float) -> tuple[int, ...]:
    """Of widths with the share of the time that they took: the slowest that keeps the target.

    Where all that do lie far below it, one that just misses it, by less than a warning is worth, is the better model.

    >>> nearest({(8,): 0.4, (9,): 0.58, (10,): 0.62}, 0.6), nearest({(8,): 0.4, (9,): 0.62, (10,): 0.64}, 0.6)
    ((9,), (9,))
    """
    meeting = max((place for place in tried if tried[place] <= share), key=lambda place: tried[place])
    above = min((place for place in tried if tried[place] > share), key=lambda place: tried[place], default=meeting)
    is_near = tried[above] <= share + MISSED and share - tried[meeting] > tried[above] - share + MISSED
    return above if is_near else meeting


def _timed(work: Work, plan: Plan) -> Latency:
    assert work.calibration is not None
    with work.clock("time"):
        model = cut_only(work, plan).model
        return clocked(work.subject.dense.proto, model, work.calibration, work.choices.latency_batch)
