"""Clocked: widths for a share of the measured latency.

What a width saves in time depends on the kernels, so nothing is modelled: the share of the MACs is bisected, the plan
for each share is cut (the values of weights don't change the time), and the cut model runs in turn with the dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx

from snp_onnx.calibration.samples import Part
from snp_onnx.calibration.sessions import open_session
from snp_onnx.errors import TargetError
from snp_onnx.planning.options import Target, TargetKind
from snp_onnx.planning.plan import Plan
from snp_onnx.tracing.surface import surface_between
from snp_onnx.verbs.latency import Latency, measure_latency
from snp_onnx.verbs.measure import Calibration

PROBES = 7
ROUNDS, SECONDS = 200, 2.0
"""Of each measurement: runs of both models, and about how long they may take."""


def clocked(dense: onnx.ModelProto, pruned: onnx.ModelProto, calibration: Calibration, batch: int) -> Latency:
    """Both models in turn on `batch` calibration samples, where the model's batch is dynamic."""
    surface = surface_between(dense, pruned)
    feed: Mapping[str, Any] = next(iter(calibration.samples.batches(batch, Part.CALIBRATION)))
    sessions = [open_session(model, calibration.runtime, stays=True) for model in (dense, pruned)]
    other = feed if surface is None else surface.cut(feed)
    return measure_latency(sessions[0], sessions[1], feed, other, ROUNDS, SECONDS)


def within_latency(
    target: Target, decide: Callable[[Target], Plan], ratio: Callable[[Plan], float], least: float, most: float
) -> Plan:
    """The plan with the most MACs whose measured share of the dense latency is at most the target's value.

    `decide` makes the plan of a MACs target, `ratio` cuts and times it; `least` and `most` bound the share of the MACs.
    """
    low, high, best = least, most, None
    if most < 1.0:  # blocks are gone: that may do already
        best = _meeting(target, decide, ratio, most)
    for _ in range(PROBES if best is None else 0):
        share = 0.5 * (low + high)
        plan = _meeting(target, decide, ratio, share)
        low, high, best = (low, share, best) if plan is None else (share, high, plan)
    if best is None:
        plan = decide(Target(TargetKind.MACS, min(1.0, least * (1.0 + 1e-9))))
        found = ratio(plan)
        if found > target.value:
            raise TargetError(
                f"--{target.option} {target.value:g} can't be reached: the smallest model takes {found:.3f} of the "
                "dense time: allow more (--units channels,heads,blocks, --streams, --round-to)"
            )
        best = plan
    return best


def _meeting(
    target: Target, decide: Callable[[Target], Plan], ratio: Callable[[Plan], float], share: float
) -> Plan | None:
    """The plan for a share of the MACs, if it meets the target."""
    plan = decide(Target(TargetKind.MACS, min(1.0, share)))
    return plan if ratio(plan) <= target.value else None
