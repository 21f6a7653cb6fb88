"""Carrying a plan out: fold, cut, and count what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from snp_onnx._version import __version__
from snp_onnx.cost import FLOATS, Cost, param_terms, total, weights
from snp_onnx.errors import PlanError
from snp_onnx.external import array_of
from snp_onnx.model_io import bytes_on_disk, with_provenance
from snp_onnx.passes import DropIdentities, EliminateDead, FoldWeights, Pass, SliceUnits, rewrite
from snp_onnx.planning.decide import left_out, producer_names
from snp_onnx.planning.folding import Folding, fold
from snp_onnx.planning.options import Choices, Fold, Refine
from snp_onnx.planning.plan import Folds, Plan
from snp_onnx.sources.samples import Part
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.surface import KEPT, surface_after, surface_of
from snp_onnx.verbs.measure import Calibration, Measured
from snp_onnx.verbs.refit import refit_layers
from snp_onnx.verbs.result import GroupReport, Stopwatch
from snp_onnx.verbs.settle import Errors, errors_of, first_harmless
from snp_onnx.verbs.subject import Subject


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """What a plan is found with and carried out on; `external_as`: the output's name, if its weights lie beside it."""

    subject: Subject
    measured: Measured
    choices: Choices
    clock: Stopwatch
    calibration: Calibration | None = None
    external_as: str | None = None
    is_trial: bool = False
    """Whether what comes out is only compared with other depths, all solved anew on few samples."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A pruned model not yet verified, the plan behind it, and what it costs."""

    model: onnx.ModelProto
    plan: Plan
    folds: Folds
    cost: Cost
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def groups(self, subject: Subject, chosen: Choices) -> tuple[GroupReport, ...]:
        """Every group of the trace, decided or left alone."""
        decisions = {decision.group: decision for decision in self.plan.decisions}
        reports = []
        for group in subject.trace.groups:
            decision = decisions.get(group.id)
            after = decision.after if decision else len(group)
            error = decision.error if decision else None
            note = "" if decision else left_out(group, chosen) or "not measured"
            names = producer_names(group)
            reports.append(
                GroupReport(group.id, str(group.kind), len(group), after, error, group.is_stream, note, names)
            )
        return tuple(reports)


def carry_out(work: Work, plan: Plan) -> Candidate:
    """Fold with the statistics (unless folding is off), cut, and refit (if told to).

    Where that surely makes the outputs worse than doing less would, on the samples set apart for choosing, less is done
    and a warning says so; not so with `fallback` off.
    """
    alive = plan.alive(work.subject.trace)
    if alive.all() and (work.subject.depth is None or not work.is_trial):
        return cut_only(work, plan)
    ways = [("cut", cut_only(work, plan))]
    if work.choices.fold is not Fold.NONE:
        ways.insert(0, ("fold", folded(work, plan)))
    if work.choices.refine is not Refine.NONE and work.calibration is not None:
        refitted = _refitted(work, ways[0][1], alive)
        if refitted is not ways[0][1]:
            ways.insert(0, ("refit", refitted))
    if work.calibration is None or len(ways) == 1 or not work.choices.fallback:
        return ways[0][1]
    with work.clock("settle"):
        feeds = work.calibration.batches(Part.CHOOSING)
        errors = errors_of(work.subject.dense.proto, [way.model for _, way in ways], work.calibration, feeds)
    chosen = first_harmless(errors)
    return ways[0][1] if chosen == 0 else _fallen_back(work, ways, errors, chosen)


def _fallen_back(work: Work, ways: Sequence[tuple[str, Candidate]], errors: Errors, chosen: int) -> Candidate:
    """A simpler way than was asked for; the plan records it as the one to be carried out again."""
    name, candidate = ways[chosen]
    left_out = [ways[place][0] for place in range(chosen)]
    lost = errors.mean(axis=1)
    warning = (
        f"without {' and '.join(left_out)}: on {errors.shape[1]} samples set apart for choosing it lost more of the "
        f"outputs' variation ({lost[0]:.4f} against {lost[chosen]:.4f}): give more samples, like those in use, or "
        "--no-fallback"
    )
    options = dict(candidate.plan.options) | {"refine": str(Refine.NONE)}
    if name == "cut":
        options["fold"] = str(Fold.NONE)
    plan = replace(candidate.plan, options=options)
    model = onnx.ModelProto()
    model.CopyFrom(candidate.model)
    with_provenance(model, _provenance(work.subject, plan, candidate.cost))
    cost = replace(candidate.cost, bytes=bytes_on_disk(work.subject.branches.closed(model), work.external_as))
    return replace(candidate, model=model, plan=plan, cost=cost, warnings=(*candidate.warnings, warning))


def folded(work: Work, plan: Plan) -> Candidate:
    """Fold with the statistics and cut; no refit."""
    alive = plan.alive(work.subject.trace)
    with work.clock("fold"):
        affine, statistics = work.choices.fold is Fold.PATCH, work.measured.statistics
        keep = work.subject.dense.keep
        folding = fold(work.subject.flow, alive, statistics, work.choices.ridge, affine, keep)
    return _cut(work, plan, alive, folding)


def _refitted(work: Work, candidate: Candidate, alive: Mask) -> Candidate:
    """The candidate with every layer solved anew that can be; the very same one where none is."""
    assert work.calibration is not None
    with work.clock("refit"):
        subject, ridge = work.subject, work.choices.ridge
        keep = subject.dense.keep
        values = refit_layers(
            subject.flow, subject.aim, candidate.model, alive, ridge, work.calibration, keep, subject.gone
        )
        found = rewrite(candidate.model, [FoldWeights(values)], subject.dense.store)
    if not found.changed:
        return candidate
    folds = {**candidate.folds, **_in_dense_shape(work.subject, alive, values)}
    return replace(candidate, model=found.model, folds=folds)


def _in_dense_shape(subject: Subject, alive: Mask, values: Folds) -> Folds:
    """Values of cut initialisers at their places in the dense ones, zero elsewhere."""
    shapes = {name: tuple(tensor.dims) for name, tensor in weights(subject.prepared)}
    found = {}
    for name, cut in values.items():
        whole = np.zeros(shapes[name], dtype=cut.dtype)
        if whole.shape == cut.shape:
            whole = cut
        else:
            whole[np.ix_(*(alive[labels] for labels in subject.trace.axes[name]))] = cut
        found[name] = subject.dense.keep(whole)
    return found


def zero_filled(subject: Subject, candidate: Candidate) -> onnx.ModelProto | None:
    """The candidate's weights in the dense shapes, with zeros where units went; None where it is quantised or large.

    It computes what the candidate does, at every size, unless something is computed over all units together. The
    candidate's branches are still open.
    """
    if subject.quantised is not None or subject.dense.store is not None:
        return None
    present = {name for name, tensor in weights(subject.prepared) if tensor.data_type in FLOATS}
    values = {tensor.name: array_of(tensor) for tensor in candidate.model.graph.initializer if tensor.name in present}
    whole = _in_dense_shape(subject, candidate.plan.alive(subject.trace), values)
    return subject.branches.closed(rewrite(subject.prepared, [FoldWeights(whole)]).model)


def tidied(work: Work, candidate: Candidate) -> Candidate:
    """The candidate without the nodes that stand where blocks were."""
    subject, depth = work.subject, work.subject.depth
    if depth is None:
        return candidate
    passes: list[Pass] = [DropIdentities.after(depth.blocks), EliminateDead()]
    tidy = rewrite(candidate.model, passes, subject.dense.store)
    cost = candidate.cost
    if tidy.changed:
        cost = replace(cost, bytes=bytes_on_disk(subject.branches.closed(tidy.model), work.external_as))
    present = {name for name, _ in weights(subject.prepared)}
    earlier = {name: values for name, values in depth.values.items() if name in present}
    return replace(candidate, model=tidy.model, folds={**earlier, **candidate.folds}, cost=cost)


def cut_only(work: Work, plan: Plan) -> Candidate:
    """Cut without folding: what the result will cost, known sooner."""
    return _cut(work, plan, plan.alive(work.subject.trace), Folding({}, ()))


def candidate_from_plan(work: Work, plan: Plan, saved: Folds | None, same: bool) -> Candidate:
    """A plan made earlier: folded anew with calibration, else with its sidecar's weights, else not at all.

    `same` says whether it was made for this very model.
    """
    subject = work.subject
    alive = plan.alive(subject.trace)
    if work.measured.moments:
        return carry_out(work, plan)
    if saved and same:
        return _cut(work, plan, alive, Folding(_fitting(subject, saved), ()))
    as_removed = not plan.removed or plan.options.get("refine", Refine.NONE) == Refine.NONE
    as_cut = plan.options.get("fold") == Fold.NONE and plan.options.get("refine", Refine.NONE) == Refine.NONE
    if (alive.all() and as_removed) or (same and as_cut):
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
        model = rewrite(subject.prepared, passes, subject.dense.store).own
        surface = surface_after(subject.prepared, subject.trace, alive)
        surface.declare(model)
        kept = {KEPT: surface.after(surface_of(model)).record()} if surface.kept else {}
        cost = _cost(subject, model, alive)
        with_provenance(model, _provenance(subject, plan, cost) | kept)
        cost = replace(cost, bytes=bytes_on_disk(subject.branches.closed(model), work.external_as))
    return Candidate(model, plan, folding.values, cost, folding.unfolded)


def _provenance(subject: Subject, plan: Plan, cost: Cost) -> dict[str, str]:
    return {
        "snp_onnx.version": __version__,
        "snp_onnx.summary": _in_words(subject, plan, cost),
        "snp_onnx.plan": plan.summary(),
        "snp_onnx.dense_sha256": subject.dense.sha256,
    }


def _in_words(subject: Subject, plan: Plan, cost: Cost) -> str:
    """One line for those who open the model in a viewer: what it costs beside the dense one, and what went."""
    dense = subject.dense_cost()
    parts = [f"{100 * cost.macs / dense.macs:.1f} % of the MACs"] if dense.macs else []
    parts += [f"{100 * cost.params / dense.params:.1f} % of the parameters"] if dense.params else []
    parts += [f"{len(plan.removed)} block{'s' * (len(plan.removed) > 1)} removed"] if plan.removed else []
    return ", ".join([*parts, f"{len(plan.cut_groups(subject.trace))} of {len(subject.trace.groups)} groups cut"])


def _cost(subject: Subject, model: onnx.ModelProto, alive: Mask) -> Cost:
    """MACs and parameters of the cut model; its bytes aren't counted here."""
    trace = subject.trace
    after = {name: trace.shape_after(name, alive) for name in trace.facts.shapes}
    macs = total(subject.mac_terms(), lambda tensor, axis: after[tensor][axis])
    sizes = {name: tuple(tensor.dims) for name, tensor in weights(model)}
    params = total(param_terms(model), lambda tensor, axis: sizes[tensor][axis])
    return Cost(macs, params, 0)
