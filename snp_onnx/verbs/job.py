"""The job of `prune`: trace, measure, decide, rewrite, verify."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import onnx

from snp_onnx import model_io
from snp_onnx.calibration.sessions import Runtime, one_memory
from snp_onnx.passes import Note, summarise
from snp_onnx.planning.architecture import architecture
from snp_onnx.planning.decide import eligible
from snp_onnx.planning.options import Choices, Fold, Target, TargetKind
from snp_onnx.planning.plan import Saved
from snp_onnx.planning.transfer import on_blocks, on_groups
from snp_onnx.sources.examples import Values, check_given, examples
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Part, Samples
from snp_onnx.tracing import PLAIN_KINDS, Group, Kind
from snp_onnx.verbs.bases import change_bases
from snp_onnx.verbs.carry_out import Candidate, Work, candidate_from_plan, carry_out, tidied, zero_filled
from snp_onnx.verbs.clocked import cautions, clocked
from snp_onnx.verbs.deciding import plan_of
from snp_onnx.verbs.depth import Descent
from snp_onnx.verbs.fidelity import Fidelity, remarks
from snp_onnx.verbs.find_plan import find_candidate, growth, require_met
from snp_onnx.verbs.latency import Latency
from snp_onnx.verbs.measure import Calibration, Measured, measure, on_fewer_samples
from snp_onnx.verbs.outlook import outlook
from snp_onnx.verbs.quantised import as_floats, quantised_again
from snp_onnx.verbs.reading import read_samples
from snp_onnx.verbs.result import Outlook, PruneResult, Report, Stopwatch, stop_reports, versions
from snp_onnx.verbs.reuse import BY_NUMBER, chosen_anew, tied
from snp_onnx.verbs.settings import Data, Progress
from snp_onnx.verbs.settle import held_back_fidelity
from snp_onnx.verbs.shallower import by_blocks_alone, jointly
from snp_onnx.verbs.subject import Subject, at_seen, load_subject, opened_for, resolve_shapes, trace_at
from snp_onnx.verbs.verify import verify


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One run of `prune` with its options checked; a plan is made where there is a target, carried out otherwise."""

    choices: Choices
    target: Target | None
    data: Data
    runtime: Runtime
    progress: Progress
    external_as: str | None = None
    is_timed: bool = False
    """Whether the result is timed against the dense model."""
    executor: Executor | None = None
    looks_around: bool = False
    """Whether the report says what other targets would leave."""
    widths_only: bool = False
    """Whether of a plan only the widths count, and units are chosen anew."""

    def run(self, model: str | os.PathLike[str] | onnx.ModelProto, earlier: Saved | None) -> PruneResult:
        with one_memory():
            return self._run(model, earlier)

    def _run(self, model: str | os.PathLike[str] | onnx.ModelProto, earlier: Saved | None) -> PruneResult:
        clock = Stopwatch()
        self.progress("prepare", 0, 0)
        with clock("prepare"):
            loaded = load_subject(model, self.runtime)
        if self.data.source is None:
            return self._carry_out(clock, self._unseen(clock, *loaded, earlier), None, earlier)
        with clock("read samples"):
            samples = read_samples(self.data, loaded[0].proto, self.runtime)
        with samples:
            calibration = Calibration(
                samples, self.data.batch_size, self.runtime, clock, self.progress, executor=self.executor
            )
            example = samples.example()
            with clock("trace"):
                subject = at_seen(
                    loaded[1],
                    self.data.input_shapes,
                    samples,
                    lambda shapes: self._traced(*loaded, shapes, example, calibration, earlier),
                )
            return self._carry_out(clock, subject, calibration, earlier)

    def _unseen(
        self,
        clock: Stopwatch,
        dense: model_io.Model,
        prepared: onnx.ModelProto,
        notes: tuple[Note, ...],
        earlier: Saved | None,
    ) -> Subject:
        """Traced without samples: at the shapes of the plan, with the values that were given."""
        check_given(input_specs(dense.proto), self.data.input_values)
        with clock("trace"):
            seen = earlier.plan.input_shapes if earlier is not None else {}
            shapes = resolve_shapes(prepared, self.data.input_shapes, seen)
            return self._traced(dense, prepared, notes, shapes, self.data.input_values, None, earlier)

    def _traced(
        self,
        dense: model_io.Model,
        prepared: onnx.ModelProto,
        notes: tuple[Note, ...],
        shapes: Mapping[str, tuple[int, ...]],
        example: Values,
        calibration: Calibration | None,
        earlier: Saved | None,
    ) -> Subject:
        """The subject, with the branches opened that the samples take, or that an earlier plan was made with."""
        feeds = None if calibration is None else calibration.all_batches
        given = None if earlier is None else earlier.plan.branches
        quantised, branches, told = opened_for(dense, prepared, shapes, self.runtime, feeds, given, example)
        prepared, notes = as_floats(quantised, (*notes, *told), dense.store, self.choices, self.target)
        caches = self.choices.caches
        found = trace_at(dense, prepared, notes, shapes, self.runtime, PLAIN_KINDS, caches, example, branches)
        return found if prepared is quantised else replace(found, quantised=quantised)

    def _based(self, subject: Subject, calibration: Calibration | None, earlier: Saved | None) -> Subject:
        """The subject in the bases that the kinds of units need: those of an earlier plan for it, or new ones."""
        is_same = earlier is not None and earlier.plan.dense_sha256 == subject.dense.sha256
        given = earlier.bases if earlier is not None and is_same else None
        return change_bases(subject, self.choices.kinds, self.runtime, calibration, given)

    def _carry_out(
        self, clock: Stopwatch, subject: Subject, calibration: Calibration | None, earlier: Saved | None
    ) -> PruneResult:
        """Decide or take the plan over, rewrite, verify, and compare on the samples held back."""
        work, candidate = self._found(clock, subject, calibration, earlier)
        subject, candidate = work.subject, tidied(work, candidate)
        candidate = quantised_again(subject, candidate, self.runtime, self.external_as)
        opened = candidate
        candidate = replace(candidate, model=subject.branches.closed(opened.model))
        if subject.quantised is not None or (self.target is not None and self.target.kind is TargetKind.PARAMS):
            require_met(self.target, subject.dense_cost(), candidate)
        samples = calibration.samples if calibration is not None else None
        self.progress("verify", 0, 0)
        with clock("verify"):
            dense = subject.dense.proto
            feeds = (
                examples(input_specs(dense), subject.input_shapes, subject.example)
                if samples is None
                else samples.batches(self.data.batch_size, Part.HELD_OUT)
            )
            notes = verify(dense, candidate.model, self.runtime, next(feeds), lambda: zero_filled(subject, opened))
            candidate = replace(candidate, notes=(*candidate.notes, *notes))
        with clock("fidelity"):
            fidelity: tuple[Fidelity, ...] = ()
            if calibration is not None:
                fidelity = held_back_fidelity(subject.dense.proto, candidate.model, calibration)
        return self._result(work, candidate, samples, fidelity, clock)

    def _found(
        self, clock: Stopwatch, subject: Subject, calibration: Calibration | None, earlier: Saved | None
    ) -> tuple[Work, Candidate]:
        """The candidate, and the work it came out of: on a subject without blocks, where these may go."""
        is_clocked = self.target is not None and self.target.kind is TargetKind.LATENCY
        descent = Descent(subject, self.choices, self.runtime, calibration, is_clocked)
        if earlier is not None:
            return self._reused(clock, descent, earlier)
        assert self.target is not None  # `prune` asks for one where no plan is given
        target, kinds = self.target, self.choices.kinds
        if kinds == {Kind.BLOCKS}:
            work = self._work(clock, by_blocks_alone(descent, target), (), calibration)
            return work, carry_out(work, plan_of(work, target, ()))

        def found(shallow: Subject, is_trial: bool) -> tuple[Work, Candidate]:
            groups = eligible(shallow.trace, self.choices)
            work = self._work(clock, shallow, groups, calibration, is_trial)
            return work, find_candidate(work, target)

        if Kind.BLOCKS in kinds:
            return jointly(descent, target, found)
        return found(self._based(subject, calibration, None), False)

    def _reused(self, clock: Stopwatch, descent: Descent, earlier: Saved) -> tuple[Work, Candidate]:
        """A plan carried out, on another model too, whose groups are then found by their places."""
        calibration, plan = descent.calibration, earlier.plan
        plan, notes = on_blocks(plan, descent.blocks if plan.removed else ())
        subject = self._based(descent.named(plan.removed), calibration, earlier)
        plan, more = on_groups(plan, subject.flow, subject.prepared)
        plan.alive(subject.trace)  # a plan for another graph is refused before the samples are run
        is_same, is_tied = plan.dense_sha256 == subject.dense.sha256, bool(plan.dense_sha256)
        work = self._work(clock, subject, plan.cut_groups(subject.trace), calibration)
        if self.widths_only:
            plan = chosen_anew(work, plan)
        elif is_tied and not is_same and calibration is not None:
            more = (*more, BY_NUMBER)
        found = candidate_from_plan(work, tied(plan, subject), earlier.folds if is_same else None, is_same)
        return work, replace(found, notes=(*notes, *more))

    def _work(
        self,
        clock: Stopwatch,
        subject: Subject,
        groups: Sequence[Group],
        calibration: Calibration | None,
        is_trial: bool = False,
    ) -> Work:
        """What is needed to decide and to carry out; groups are measured on the samples, in a trial on few."""
        used = calibration
        if is_trial and calibration is not None:  # with joint steps: they help deep and wide networks unlike
            used = replace(on_fewer_samples(calibration), is_trial=False)
        measured = Measured({}, {}, {}, ())
        if used is not None and groups:
            measured = measure(subject, groups, self.choices.fold is Fold.PATCH, used)
        return Work(subject, measured, self.choices, clock, used, self.external_as, is_trial)

    def _result(
        self,
        work: Work,
        candidate: Candidate,
        samples: Samples | None,
        fidelity: tuple[Fidelity, ...],
        clock: Stopwatch,
    ) -> PruneResult:
        subject, latency = work.subject, self._clocked(work, candidate)
        around: tuple[Outlook, ...] = ()
        if self.looks_around:
            self.progress("outlook", 0, 0)
            around = outlook(work)
        notes = [*summarise(subject.notes), *subject.count_notes(), *candidate.notes]
        notes += [subject.unsure] if subject.unsure else []
        left = candidate.cost.macs / max(subject.dense_cost().macs, 1)
        said = cautions(latency, left, self.choices, self.target, subject.quantised is not None)
        floor = self.target.value if self.target is not None and self.target.kind is TargetKind.FIDELITY else None
        chosen = () if samples is None else (samples.part_count(Part.CHOOSING),)
        said = [*growth(subject.dense_cost(), candidate), *remarks(fidelity, floor, *chosen), *said]
        warnings = [*work.measured.warnings, *candidate.warnings, *said]
        if samples is not None:
            notes += [*samples.notes, samples.split]
            warnings += samples.warnings
            if samples.is_random:
                warnings.insert(
                    0, "RANDOM calibration: statistics of noise; expect the accuracy to suffer, use real inputs"
                )
        report = Report(
            subject.dense_cost(),
            candidate.cost,
            candidate.groups(subject, self.choices),
            stop_reports(subject.trace),
            fidelity,
            dict(clock.seconds),
            dict(candidate.plan.target),
            self._options(samples),
            versions(),
            dict(subject.input_shapes),
            tuple(notes),
            tuple(warnings),
            candidate.plan.removed,
            latency,
            around,
        )
        whole = subject.depth.whole.trace if subject.depth is not None else None
        gone = [decision.block for decision in candidate.plan.removed]
        numbers = architecture(subject.trace, candidate.plan.alive(subject.trace), whole, gone)
        return PruneResult(
            candidate.model, report, candidate.plan, candidate.folds, subject.bases, numbers, subject.dense.store
        )

    def _clocked(self, work: Work, candidate: Candidate) -> tuple[Latency, ...]:
        """The latency of the result, of one row and of the batch that was asked for."""
        if not self.is_timed or work.calibration is None:
            return ()
        self.progress("time", 0, 0)
        dense, batches = work.subject.dense.proto, {1, self.choices.latency_batch}
        with work.clock("time"):
            found = [clocked(dense, candidate.model, work.calibration, batch) for batch in sorted(batches)]
        return tuple({entry.batch: entry for entry in found}.values())  # a fixed batch is timed as it is

    def _options(self, samples: Samples | None) -> dict[str, Any]:
        used = self.choices.record()
        used["samples"] = samples.count if samples is not None else 0
        used["batch_size"] = self.data.batch_size
        used["provider"] = self.runtime.provider
        return used
