"""Measuring: one pass over the calibration samples for the moments that deciding and folding need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from itertools import islice

import onnx

from snp_onnx.calibration.blocks import collect_in_blocks
from snp_onnx.calibration.moments import MomentRequest, Moments, View
from snp_onnx.calibration.runner import collect
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.calibration.single_heads import with_single_heads
from snp_onnx.planning.head_statistics import (
    HeadReading,
    HeadStatistics,
    head_readings,
    logits_of,
    output_request,
    single_heads,
)
from snp_onnx.planning.rations import joined_rows
from snp_onnx.planning.readings import Reading, losing, readings, shows_spread, total_requests
from snp_onnx.planning.statistics import Statistics
from snp_onnx.planning.sums import find_sums, with_inputs_beside
from snp_onnx.sources.samples import Part, Samples
from snp_onnx.tracing import Group, Linear
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.heads import Operand
from snp_onnx.verbs.result import Stopwatch
from snp_onnx.verbs.settings import Feed, Progress
from snp_onnx.verbs.subject import Subject

PROBE_SAMPLES = 256
"""Samples that a trial is refitted on; the model given back sees all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Readings, their moments, and what the user should be warned of."""

    readings: Mapping[Linear, Reading]
    moments: Mapping[str, Moments]
    totals: Mapping[Linear, MomentRequest]
    warnings: tuple[str, ...]
    outputs: Mapping[Linear, MomentRequest] = field(default_factory=dict)
    heads: Mapping[Operand, tuple[HeadReading, ...]] = field(default_factory=dict)

    @property
    def statistics(self) -> Statistics:
        heads = HeadStatistics(self.heads, self.moments)
        return Statistics(self.readings, self.moments, self.totals, self.outputs, heads)


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The samples and where they run; `progress` hears how far each stage is.

    Only one in `every` batches of those that decide is used. Passes that send batches out and take sums back run in the
    `executor`, if there is one: measuring, and the moments that streams and heads are turned by. What keeps activations
    from one step to the next stays here, where they are: the refit, the blocks of a large model, the ranking of blocks.
    """

    samples: Samples
    batch_size: int
    runtime: Runtime
    clock: Stopwatch
    progress: Progress
    every: int = 1
    is_trial: bool = False
    """Whether what is found with it is only compared, and found again on all samples."""
    executor: Executor | None = None

    def batches(self, part: Part) -> Iterator[Feed]:
        step = self.every if part is Part.CALIBRATION else 1
        return islice(self.samples.batches(self.batch_size, part), 0, None, step)

    def unused(self) -> Iterator[Feed]:
        """The batches that no moments are of: those that choose and, in a trial, those that it does without."""
        for place, batch in enumerate(self.samples.batches(self.batch_size, Part.CALIBRATION)):
            if place % self.every:
                yield batch
        yield from self.samples.batches(self.batch_size, Part.CHOOSING)

    def all_batches(self) -> Iterator[tuple[int, Feed]]:
        """The batches of every part, each with how many samples it has."""
        for part in (Part.CALIBRATION, Part.CHOOSING, Part.HELD_OUT):
            for batch in self.samples.batches(self.batch_size, part):
                rows = next((len(array) for array in batch.values() if array.ndim), 1)
                yield 1 if self.samples.is_whole else rows, batch

    @property
    def count(self) -> int:
        """How many samples the moments are of; the others are set apart."""
        return self.samples.part_count(Part.CALIBRATION) // self.every


def on_fewer_samples(calibration: Calibration) -> Calibration:
    """The samples of a trial: as many batches as hold about `PROBE_SAMPLES`."""
    every = max(1, calibration.count * calibration.every // PROBE_SAMPLES)
    return replace(calibration, every=every, is_trial=True)


def in_larger_batches(calibration: Calibration, flow: Flow) -> Calibration:
    """The same samples, more a batch where activations are small; a trial's batches are chosen by number and stay."""
    if calibration.every > 1:
        return calibration
    return replace(calibration, batch_size=joined_rows(flow, calibration.batch_size, calibration.count))


def measure(subject: Subject, groups: Sequence[Group], patches: bool, calibration: Calibration) -> Measured:
    """One pass over the calibration samples: moments at every consumer's input, of whole windows if `patches`."""
    flow, logits = subject.flow, logits_of(subject.trace, groups)
    sums = find_sums(flow, losing(subject.trace, groups)) if patches else ()
    wanted = readings(subject.trace, groups, calibration.count, patches, sums)
    outputs = {part.output: output_request(flow, part.output, calibration.count) for part in logits}
    sides = [side.operand for part in logits for side in (part.queries, part.keys)]
    heads = {operand: head_readings(flow, operand, calibration.count) for operand in sides}
    parts = [*(linear for linear, reading in wanted.items() if not shows_spread(flow, linear, reading)), *outputs]
    totals = total_requests(flow, parts, calibration.count, sums) if patches else {}
    requests = {reading.key: reading.request for reading in wanted.values()}
    requests |= {request.key: request for request in (*totals.values(), *outputs.values())}
    requests |= {reading.request.key: reading.request for several in heads.values() for reading in several}
    calibration = in_larger_batches(calibration, flow)
    batches = -(-calibration.count // calibration.batch_size)

    def heard(done: int) -> None:
        if done == 0:
            calibration.clock.split("open session", "calibrate")
        calibration.progress("calibrate", done, batches)

    with calibration.clock("calibrate"):
        model = with_inputs_beside(with_single_heads(subject.prepared, single_heads(heads)), sums)
        if subject.dense.store is not None:
            moments = _in_blocks(subject, model, list(requests.values()), calibration)
        else:
            moments = collect(
                model,
                list(requests.values()),
                calibration.batches(Part.CALIBRATION),
                calibration.runtime,
                calibration.executor,
                heard,
            )
    warnings = _warnings(wanted, moments)
    if calibration.executor is not None and subject.dense.store is not None:
        warnings = (*warnings, "the model is measured block by block, on this machine: the executor was not used")
    found = Measured(wanted, moments, totals, warnings, outputs, heads)
    return replace(found, warnings=(*warnings, *found.statistics.warnings(subject.trace, groups)))


def _in_blocks(
    subject: Subject, model: onnx.ModelProto, requests: Sequence[MomentRequest], calibration: Calibration
) -> dict[str, Moments]:
    """The moments of a model that is too large to be run at once."""
    return collect_in_blocks(
        model,
        requests,
        subject.trace.facts.shapes,
        calibration.count,
        calibration.batches(Part.CALIBRATION),
        calibration.runtime,
        subject.dense.keep,
        lambda done, every: calibration.progress("calibrate", done, every),
    )


def _warnings(wanted: Mapping[Linear, Reading], moments: Mapping[str, Moments]) -> tuple[str, ...]:
    lines: dict[str, None] = {}
    for linear, reading in wanted.items():
        found = moments[reading.key]
        what = "units" if reading.request.view is View.CHANNELS else "inputs of a window"
        if not found.is_finite:
            lines[
                f"layer {linear.op.name}: its input {linear.input} is not finite on the calibration samples: not cut"
            ] = None
        elif found.count < len(reading.columns):
            lines[
                f"layer {linear.op.name}: {found.count} calibration positions for {len(reading.columns)} {what}: "
                "give more samples"
            ] = None
    return tuple(lines)
