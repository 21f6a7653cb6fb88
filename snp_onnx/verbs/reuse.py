"""Reuse: a plan made earlier, brought to the model at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from snp_onnx.planning.decide import decisions_at
from snp_onnx.planning.options import Ratios
from snp_onnx.planning.paths import find_paths
from snp_onnx.planning.plan import Plan, UnitDecision
from snp_onnx.planning.plan_text import VERSION
from snp_onnx.planning.transfer import block_places, group_places
from snp_onnx.verbs.carry_out import Work
from snp_onnx.verbs.subject import Subject

BY_NUMBER = (
    "the plan was made for another model: the units it keeps are kept by number here; for a network trained from "
    "another start take its widths only (--plan-widths)"
)


def tied(plan: Plan, subject: Subject) -> Plan:
    """The plan as one of this model and of the present version; itself where it is that already."""
    is_same = plan.dense_sha256 == subject.dense.sha256
    if is_same and plan.version == VERSION:
        return plan
    shapes = plan.input_shapes if is_same else dict(subject.input_shapes)
    blocks = block_places(subject.depth.known) if subject.depth is not None else ()
    return replace(
        plan,
        dense_sha256=subject.dense.sha256,
        version=VERSION,
        input_shapes=shapes,
        groups=group_places(subject.trace),
        blocks=blocks,
        branches=subject.branches.decisions,
    )


def chosen_anew(work: Work, plan: Plan) -> Plan:
    """The widths of a plan, and the units that this model's own statistics say are best kept at them."""
    subject, after = work.subject, {decision.group: decision.after for decision in plan.decisions}
    groups = plan.cut_groups(subject.trace)
    by_cost = replace(work.choices, ratios=Ratios.BUDGET)
    with work.clock("decide"):
        least = [after[group.id] for group in groups]
        paths = find_paths(subject.flow, groups, work.measured.statistics, by_cost, least=least)
    by_group = {path.group.id: path for path in paths}

    def anew(decision: UnitDecision) -> UnitDecision:
        path = by_group.get(decision.group)
        return decision if path is None else decisions_at([path], np.array([decision.after]))[0]

    return replace(plan, decisions=tuple(anew(decision) for decision in plan.decisions))
