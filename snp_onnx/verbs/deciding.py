"""Deciding: plans for one set of paths, at one target after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snp_onnx.planning.budget import Costs, Ladders, Widths, smallest
from snp_onnx.planning.decide import decide, decisions_at
from snp_onnx.planning.options import Target
from snp_onnx.planning.paths import Path
from snp_onnx.planning.plan import Plan, UnitDecision
from snp_onnx.planning.transfer import block_places, group_places
from snp_onnx.verbs.carry_out import Work


@dataclass(frozen=True, slots=True, eq=False)
class Deciding:
    """The paths of all groups, what widths cost (`dense`: all of them), and the widths that every group may have."""

    work: Work
    paths: Sequence[Path]
    costs: Costs
    dense: float
    ladders: Ladders

    def plan(self, target: Target) -> Plan:
        """The plan of a target; TargetError where it can't be met."""
        with self.work.clock("decide"):
            ratios = self.work.choices.ratios
            found = decide(self.paths, target, self.costs, self.dense, ratios, self.ladders)
            return plan_of(self.work, target, found)

    def plan_at(self, target: Target, widths: Widths) -> Plan:
        """The plan of given widths, whatever they cost."""
        return plan_of(self.work, target, decisions_at(self.paths, widths))

    @property
    def least(self) -> float:
        """The smallest share of the dense cost."""
        return self.costs.cost(smallest(self.ladders)) / self.dense


def plan_of(work: Work, target: Target, decisions: tuple[UnitDecision, ...]) -> Plan:
    """A plan of these decisions for a subject, with the blocks that are gone already."""
    subject, record = work.subject, {"kind": str(target.kind), "value": target.value}
    removed = subject.depth.decisions if subject.depth is not None else ()
    shapes = dict(subject.input_shapes)
    blocks = block_places(subject.depth.known) if subject.depth is not None else ()
    groups = group_places(subject.trace)
    return Plan(
        subject.dense.sha256,
        decisions,
        record,
        work.choices.record(),
        shapes,
        removed=removed,
        groups=groups,
        blocks=blocks,
        branches=subject.branches.decisions,
    )
