"""Carrying a plan out: fold, cut, and count what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from snp_onnx._version import __version__
from snp_onnx.cost import Cost, param_terms, total, weights
from snp_onnx.errors import PlanError
from snp_onnx.model_io import bytes_on_disk, with_provenance
from snp_onnx.passes import EliminateDead, FoldWeights, Pass, SliceUnits, rewrite
from snp_onnx.planning.decide import left_out
from snp_onnx.planning.folding import Folding, fold
from snp_onnx.planning.options import Choices, Fold
from snp_onnx.planning.plan import Folds, Plan
from snp_onnx.tracing.groups import Mask
from snp_onnx.verbs.measure import Measured
from snp_onnx.verbs.result import GroupReport, Stopwatch
from snp_onnx.verbs.subject import Subject


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a plan is found with and carried out on; `external_as`: the output's name, if its weights lie beside it."""

    subject: Subject
    measured: Measured
    choices: Choices
    clock: Stopwatch
    external_as: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A pruned model not yet verified, the plan behind it, and what it costs."""

    model: onnx.ModelProto
    plan: Plan
    folds: Folds
    cost: Cost
    warnings: tuple[str, ...] = ()

    def groups(self, subject: Subject, chosen: Choices) -> tuple[GroupReport, ...]:
        """Every group of the trace, decided or left alone."""
        decisions = {decision.group: decision for decision in self.plan.decisions}
        reports = []
        for group in subject.trace.groups:
            decision = decisions.get(group.id)
            after = decision.after if decision else len(group)
            error = decision.error if decision else None
            note = "" if decision else left_out(group, chosen) or "not measured"
            reports.append(GroupReport(group.id, str(group.kind), len(group), after, error, group.is_stream, note))
        return tuple(reports)


def carry_out(work: Work, plan: Plan) -> Candidate:
    """Fold with the statistics (unless folding is off) and cut."""
    subject = work.subject
    alive = plan.alive(subject.trace)
    folding = Folding({}, ())
    if work.choices.fold is not Fold.NONE:
        with work.clock("fold"):
            affine = work.choices.fold is Fold.PATCH
            statistics = work.measured.statistics
            folding = fold(subject.prepared, subject.trace, alive, statistics, work.choices.ridge, affine)
    return _cut(work, plan, alive, folding)


def cut_only(work: Work, plan: Plan) -> Candidate:
    """Cut without folding: what the result will cost, known sooner."""
    return _cut(work, plan, plan.alive(work.subject.trace), Folding({}, ()))


def candidate_from_plan(work: Work, plan: Plan, saved: Folds | None) -> Candidate:
    """A plan made earlier: folded anew with calibration, else with its sidecar's weights, else not at all."""
    subject = work.subject
    alive = plan.alive(subject.trace)
    if work.measured.moments:
        return carry_out(work, plan)
    same = plan.dense_sha256 == subject.dense.sha256
    if saved and same:
        return _cut(work, plan, alive, Folding(_fitting(subject, saved), ()))
    if alive.all() or (same and plan.options.get("fold") == Fold.NONE):
        return _cut(work, plan, alive, Folding({}, ()))
    why = "its folded weights are missing or another plan's" if same else "the plan was made for another model"
    warning = f"cut without folding, because no calibration was given and {why}: the accuracy will suffer"
    return replace(_cut(work, plan, alive, Folding({}, ())), warnings=(warning,))


def _fitting(subject: Subject, saved: Folds) -> Folds:
    shapes = {name: tuple(tensor.dims) for name, tensor in weights(subject.prepared)}
    for name, values in saved.items():
        if shapes.get(name) != tuple(values.shape):
            raise PlanError(f"the plan's folded weights don't fit the model at {name}: make the plan anew")
    return saved


def _cut(work: Work, plan: Plan, alive: Mask, folding: Folding) -> Candidate:
    subject = work.subject
    with work.clock("rewrite"):
        passes: list[Pass] = [FoldWeights(folding.values), SliceUnits(subject.trace, alive), EliminateDead()]
        model = rewrite(subject.prepared, passes).model
        with_provenance(model, _provenance(subject, plan))
    return Candidate(model, plan, folding.values, _cost(work, model, alive), folding.unfolded)


def _provenance(subject: Subject, plan: Plan) -> dict[str, str]:
    return {
        "snp_onnx.version": __version__,
        "snp_onnx.plan": plan.summary(),
        "snp_onnx.dense_sha256": subject.dense.sha256,
    }


def _cost(work: Work, model: onnx.ModelProto, alive: Mask) -> Cost:
    subject, trace = work.subject, work.subject.trace
    after = {name: trace.shape_after(name, alive) for name in trace.facts.shapes}
    macs = total(subject.mac_terms(), lambda tensor, axis: after[tensor][axis])
    sizes = {name: tuple(tensor.dims) for name, tensor in weights(model)}
    params = total(param_terms(model), lambda tensor, axis: sizes[tensor][axis])
    return Cost(macs, params, bytes_on_disk(model, work.external_as))
