"""Finding a plan: decide widths, carry them out, and see whether the result meets the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from snp_onnx.cost import Cost, Term, byte_terms, item_bytes, param_terms, weights
from snp_onnx.errors import TargetError
from snp_onnx.model_io import bytes_on_disk
from snp_onnx.passes import summarise
from snp_onnx.planning.budget import Ladders, legal_widths
from snp_onnx.planning.cost_table import CostTable, WithRemainder
from snp_onnx.planning.decide import eligible, ladders_of, left_out
from snp_onnx.planning.options import Choices, Fold, Ratios, Target, TargetKind
from snp_onnx.planning.paths import Path, clipping, find_paths
from snp_onnx.planning.plan import Plan, widths
from snp_onnx.planning.statistics import Statistics
from snp_onnx.tracing import PLAIN_KINDS, Group
from snp_onnx.verbs.branches import APART
from snp_onnx.verbs.carry_out import Candidate, Work, carry_out, cut_only, folded
from snp_onnx.verbs.clocked import timed_layers, within_latency
from snp_onnx.verbs.deciding import Deciding
from snp_onnx.verbs.least import least_above
from snp_onnx.verbs.prunable import other_kinds
from snp_onnx.verbs.quantised import quantised_again
from snp_onnx.verbs.sensitivity import weighed
from snp_onnx.verbs.subject import Subject

_SIZE_TRIES = 8
_FIELD = 4
"""Bytes that the place of an entry of the metadata takes in the file."""


def find_candidate(work: Work, target: Target) -> Candidate:
    """Decide and carry out; a size target is decided again, a little lower, until the bytes on disk keep it."""
    paths = _paths(work, target)
    candidate = _carried_out(work, target, paths)
    return replace(candidate, warnings=(*clipping(paths), *candidate.warnings))


def _carried_out(work: Work, target: Target, paths: tuple[Path, ...]) -> Candidate:
    if target.kind is TargetKind.LATENCY:
        return carry_out(work, within_latency(work, target, paths))
    deciding = _deciding(work, target, paths)
    if target.kind is TargetKind.SIZE:
        return _within_bytes(work, target, paths, deciding.ladders)
    if target.kind is TargetKind.FIDELITY:
        return least_above(work, target, deciding.plan, deciding.least)
    return carry_out(work, deciding.plan(target))


def deciding_by_macs(work: Work) -> Deciding:
    """Plans at any share of the MACs; TargetError where nothing can be pruned."""
    target = Target(TargetKind.MACS, 1.0)
    return _deciding(work, target, _paths(work, target))


def _paths(work: Work, target: Target) -> tuple[Path, ...]:
    """The paths of all groups that were measured, comparable with each other."""
    subject, chosen = work.subject, work.choices
    with work.clock("decide"):
        statistics = work.measured.statistics
        implied = _with_implied_ratios(chosen, target)
        groups = _foldable(eligible(subject.trace, chosen), statistics)
        prices = _prices(work, target, groups)
        least = [legal_widths(len(group), chosen.min_units, chosen.step)[0] for group in groups]
        paths = find_paths(subject.flow, groups, statistics, implied, prices, least)
        if not paths:
            raise TargetError(_nothing_prunable(work))
    return weighed(work, paths)


def _prices(work: Work, target: Target, groups: Sequence[Group]) -> npt.NDArray[np.float64]:
    """What one unit of every group frees of what the target measures, all others kept; MACs stand for time."""
    terms = _byte_terms(work.subject) if target.kind is TargetKind.SIZE else _terms(work.subject, target)
    dense = np.array([len(group) for group in groups])
    return CostTable(terms, work.subject.trace, groups).marginal(dense)


def _deciding(work: Work, target: Target, paths: tuple[Path, ...]) -> Deciding:
    cut = [path.group for path in paths]
    chosen = work.choices
    ladders = timed_layers(work, cut).times.ladders if chosen.is_rounded_by_clock else ladders_of(paths, chosen)
    table = CostTable(_terms(work.subject, target), work.subject.trace, cut)
    return Deciding(work, paths, table, _dense_cost(work.subject, target), ladders)


def _with_implied_ratios(chosen: Choices, target: Target) -> Choices:
    """The paper's τ is a statement about variance: it implies those ratios."""
    return replace(chosen, ratios=Ratios.VARIANCE) if target.kind is TargetKind.VARIANCE else chosen


def _foldable(groups: tuple[Group, ...], statistics: Statistics) -> list[Group]:
    """Groups all of whose consumers were measured: the others would be cut blindly."""
    return [group for group in groups if not statistics.unmeasured(group)]


def _terms(subject: Subject, target: Target) -> list[Term]:
    if target.kind is TargetKind.PARAMS:
        return param_terms(subject.prepared)
    return subject.mac_terms()


def _dense_cost(subject: Subject, target: Target) -> float:
    cost = subject.dense_cost()
    return float(cost.params if target.kind is TargetKind.PARAMS else cost.macs)


def _within_bytes(work: Work, target: Target, paths: Sequence[Path], ladders: Ladders) -> Candidate:
    """Bytes on disk are weights plus a remainder that the widths hardly change: it is measured, not modelled.

    The remainder is taken from the last cut until it no longer turns out smaller, so that nothing more would fit.
    """
    subject = work.subject
    groups = [path.group for path in paths]
    table = CostTable(_byte_terms(subject), subject.trace, groups)
    limit = target.value * subject.dense.bytes
    remainder = bytes_on_disk(subject.branches.closed(subject.quantised or subject.prepared)) - table.dense()
    best: tuple[int, Plan] | None = None
    for _ in range(_SIZE_TRIES):
        plan = Deciding(work, paths, WithRemainder(table, remainder), subject.dense.bytes, ladders).plan(target)
        size = _bytes_of(work, plan)
        actual = size - table.cost(widths(plan.decisions, groups))
        if size <= limit and (best is None or size > best[0]):
            best = size, plan
        if best is not None and (size > limit or actual >= remainder):
            break
        remainder = actual
    if best is None:
        raise TargetError(f"--target-size {target.value:g} can't be met: {size:,} bytes remain of {limit:,.0f}")
    return carry_out(work, best[1])


def _byte_terms(subject: Subject) -> list[Term]:
    """Bytes of the weights as they are stored, also where the prepared model is the float form of a quantised one."""
    terms = byte_terms(subject.prepared)
    if subject.quantised is None:
        return terms
    stored = {name: item_bytes(tensor.data_type) for name, tensor in weights(subject.quantised)}
    return [replace(term, scale=stored[term.name]) for term in terms if term.name in stored]


def _bytes_of(work: Work, plan: Plan) -> int:
    """Bytes on disk of what a plan leaves; a quantised model may get scales of its own for what is folded."""
    subject, calibration = work.subject, work.calibration
    if subject.quantised is None or calibration is None:
        return cut_only(work, plan).cost.bytes
    candidate = cut_only(work, plan) if work.choices.fold is Fold.NONE else folded(work, plan)
    return quantised_again(subject, candidate, calibration.runtime, work.external_as).cost.bytes


def growth(dense: Cost, candidate: Candidate) -> tuple[str, ...]:
    """One warning where a result has more than its model, what it says of its own making apart."""
    own = [entry for entry in candidate.model.metadata_props if entry.key.startswith("snp_onnx.")]
    size = candidate.cost.bytes - sum(entry.ByteSize() + _FIELD for entry in own)
    both = (("parameters", candidate.cost.params, dense.params), ("bytes", size, dense.bytes))
    more = [f"{now:,} {kind} instead of {before:,}" for kind, now, before in both if now > before]
    return (f"the result is larger than its model: {', '.join(more)}",) if more else ()


def require_met(target: Target | None, dense: Cost, candidate: Candidate) -> None:
    """TargetError where a result has more parameters or bytes than its target allows."""
    if target is None or target.kind not in (TargetKind.PARAMS, TargetKind.SIZE):
        return
    kind = "params" if target.kind is TargetKind.PARAMS else "bytes"
    now, limit = getattr(candidate.cost, kind), target.value * getattr(dense, kind)
    if now > limit:
        raise TargetError(
            f"--{target.option} {target.value:g} can't be reached: {now:,} {kind} remain, {limit:,.0f} are allowed: "
            "give a larger share"
        )


def _nothing_prunable(work: Work) -> str:
    """One line that says which options would let groups in, and axis by axis why nothing else may be cut."""
    alike: dict[str, list[str]] = {}
    for stop in work.subject.trace.stops:
        alike.setdefault(stop.barrier.reason, []).append(f"{stop.weight} axis {stop.axis}")
    reasons = [*summarise(note for note in work.subject.notes if note.text == APART), *_out_of_groups(work)]
    reasons += [f"{name}: {reason}" for reason, names in list(alike.items())[:4] for name in _told(names)]
    if len(alike) > 4:
        reasons.append(f"{sum(map(len, list(alike.values())[4:]))} more (see snp-onnx inspect)")
    if work.calibration is not None and work.choices.kinds == PLAIN_KINDS and not work.choices.caches:
        reasons += other_kinds(work.subject, work.calibration.runtime)
    return "nothing can be pruned: " + ("; ".join(reasons) or "the model has no weights with units")


def _out_of_groups(work: Work) -> list[str]:
    """How many groups need which options, and how many could not be measured and why."""
    needed = Counter(left_out(group, work.choices) for group in work.subject.trace.groups)
    unmeasured = needed.pop(None, 0)
    found = []
    for text, count in needed.most_common():
        noun, verb = ("group", text) if count == 1 else ("groups", str(text).replace("needs", "need", 1))
        found.append(f"{count} {noun} {verb}")
    if unmeasured:
        told = next(iter(work.measured.warnings), "")
        found.append(
            f"{unmeasured} group{'s' if unmeasured > 1 else ''} could not be measured{f' ({told})' if told else ''}"
        )
    return found


def _told(names: Sequence[str]) -> list[str]:
    """At most two names, or the first name and how many more there are.

    >>> _told(["w1", "w2"]), _told(["w1", "w2", "w3"])
    (['w1', 'w2'], ['w1 and 2 more'])
    """
    return list(names) if len(names) < 3 else [f"{names[0]} and {len(names) - 1} more"]
