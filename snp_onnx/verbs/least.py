"""The least model above a fidelity: plans along the path of budgets, carried out until the bound is met closely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from snp_onnx.errors import TargetError
from snp_onnx.planning.options import Target, TargetKind
from snp_onnx.planning.plan import Plan
from snp_onnx.sources.samples import Part
from snp_onnx.verbs.carry_out import Candidate, Work, carry_out
from snp_onnx.verbs.fidelity import worst
from snp_onnx.verbs.measure import on_fewer_samples
from snp_onnx.verbs.quantised import quantised_again
from snp_onnx.verbs.settle import held_back_fidelity

PROBES = 6
STEP = 0.02
"""Share of the MACs by which the result is moved once it has been refitted on all samples."""

Decide = Callable[[Target], Plan]


def least_above(work: Work, target: Target, decide: Decide, least: float) -> Candidate:
    """The candidate with the fewest MACs whose worst R² on the choosing samples is at least the target's value.

    `decide` makes the plan of a MACs target from the paths that are there; `least` is the smallest share it can reach.
    Bisects with trials on few samples, then moves the result, refitted on all of them, in small steps to the bound.
    """
    assert work.calibration is not None
    trial = replace(work, calibration=on_fewer_samples(work.calibration))
    low, high = least, 1.0
    for _ in range(PROBES):
        middle = 0.5 * (low + high)
        meets = _held(trial, carry_out(trial, decide(_macs(middle)))) >= target.value
        low, high = (low, middle) if meets else (middle, high)
    best = _moved_to_bound(work, target, decide, high, least)
    if best is None or all(decision.after == decision.before for decision in best.plan.decisions):
        raise TargetError(
            f"--{target.option} {target.value:g} can't be reached by removing anything: "
            "give a lower bound or more samples"
        )
    record = {"kind": str(target.kind), "value": target.value}
    return replace(best, plan=replace(best.plan, target=record))


def _moved_to_bound(work: Work, target: Target, decide: Decide, share: float, least: float) -> Candidate | None:
    """From a share of the MACs down while the bound still holds, or up until it does; None if it never does."""
    best: Candidate | None = None
    step = 0.0
    while least <= share <= 1.0:
        candidate = carry_out(work, decide(_macs(share)))
        meets = _held(work, candidate) >= target.value
        if meets:
            best = candidate
        step = step or (-STEP if meets else STEP)
        if meets == (step > 0.0):  # going down it no longer holds, or going up it does at last
            return best
        share += step
    return best


def _macs(share: float) -> Target:
    return Target(TargetKind.MACS, min(max(share, 1e-6), 1.0))


def _held(work: Work, candidate: Candidate) -> float:
    """R² of the worst output's worst channel."""
    assert work.calibration is not None
    final = quantised_again(work.subject, candidate, work.calibration.runtime)
    dense = work.subject.dense.proto
    return worst(held_back_fidelity(dense, final.model, work.calibration, Part.CHOOSING))
