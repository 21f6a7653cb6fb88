"""How many blocks go: all that a target needs, or, where units may go too, as many as leave the outputs best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from snp_onnx.cost import Cost
from snp_onnx.errors import TargetError
from snp_onnx.planning.options import Target, TargetKind
from snp_onnx.sources.samples import Part
from snp_onnx.verbs.carry_out import Candidate, Work
from snp_onnx.verbs.clocked import clocked
from snp_onnx.verbs.depth import Descent
from snp_onnx.verbs.fidelity import worst
from snp_onnx.verbs.settle import held_back_fidelity, trial_error
from snp_onnx.verbs.subject import Subject

STRIDE = 8
"""A joint search looks at about so many depths between none and all that the target needs."""

Find = Callable[[Subject, bool], tuple[Work, Candidate]]
"""Widths for a subject whose blocks are chosen; as a trial on few samples, or for good."""


def by_blocks_alone(descent: Descent, target: Target) -> Subject:
    """The first subject that meets a cost, or the last one that keeps a fidelity."""
    if target.kind is TargetKind.FIDELITY:
        return _above(descent, target)
    subject = descent.whole
    for subject in descent.steps():
        if kept(descent, subject, target) <= target.value:
            return descent.finished(subject)
    raise TargetError(
        f"--{target.option} {target.value:g} can't be reached by removing blocks: "
        f"{kept(descent, subject, target):.3f} is left with {descent.choices.min_blocks} of every stage kept: "
        "allow more (--units channels,heads,blocks, --min-blocks)"
    )


def _above(descent: Descent, target: Target) -> Subject:
    best = None
    for subject in descent.steps():
        assert descent.calibration is not None
        found = held_back_fidelity(subject.dense.proto, subject.prepared, descent.calibration, Part.CHOOSING)
        if worst(found) < target.value:
            break
        best = subject
    if best is None:
        raise TargetError(
            f"--{target.option} {target.value:g} can't be reached by removing anything: "
            "give a lower bound or more samples"
        )
    return descent.finished(best)


def jointly(descent: Descent, target: Target, find: Find) -> tuple[Work, Candidate]:
    """The depth whose widths, cut to the target, leave the smallest error on the samples that a trial doesn't see.

    In strides from none to as many blocks as the target needs alone, then the depths beside the best one: errors don't
    fall and rise once, because what a width saves in time comes in steps.
    """
    depths = list(_depths(descent, target))
    stride = max(1, round((len(depths) - 1) / STRIDE))
    tried: dict[int, float] = {}
    reason: TargetError | None = None
    for place in sorted({*range(0, len(depths), stride), len(depths) - 1}):
        try:
            tried[place] = _error(depths[place], find)
        except TargetError as problem:  # too few units left to cut, or none
            reason = problem
    if not tried:
        assert reason is not None
        raise reason
    best = min(tried, key=lambda place: tried[place])
    for place in (best - stride // 2, best + stride // 2):
        if 0 <= place < len(depths) and place not in tried:
            with suppress(TargetError):
                tried[place] = _error(depths[place], find)
    best = min(tried, key=lambda place: tried[place])
    return find(descent.finished(depths[best]), False)


def _error(subject: Subject, find: Find) -> float:
    """The error that a depth has in a trial."""
    work, candidate = find(subject, True)
    assert work.calibration is not None
    return trial_error(subject.dense.proto, candidate.model, work.calibration)


def _depths(descent: Descent, target: Target) -> Iterator[Subject]:
    """No block gone, then one more each time, until blocks alone meet the target."""
    yield descent.whole
    for subject in descent.steps():
        yield subject
        if kept(descent, subject, target) <= target.value:
            return


def kept(descent: Descent, subject: Subject, target: Target) -> float:
    """The share of what the target counts that a subject still has."""
    if target.kind is TargetKind.LATENCY:
        assert descent.calibration is not None
        batch = descent.choices.latency_batch
        return clocked(subject.dense.proto, subject.prepared, descent.calibration, batch).undisturbed
    now, dense = subject.cost_now(), subject.dense_cost()
    return _counted(now, target.kind) / max(_counted(dense, target.kind), 1e-9)


def _counted(cost: Cost, kind: TargetKind) -> float:
    return float(cost.params if kind is TargetKind.PARAMS else cost.macs)
