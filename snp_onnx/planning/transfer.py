"""Transfer: a plan for the same structure under other names, as exporters number them, or of a model trained anew.

Names decide where all of them are there. Otherwise groups are matched by their place in graph order, and only where
every group has the kind, units, producers and consumers that the plan says, and no two groups that look alike and are
cut differently stand side by side, so that their order could be either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx

from snp_onnx.errors import PlanError
from snp_onnx.planning.plan import BlockPlace, GroupPlace, Plan, UnitDecision
from snp_onnx.tracing import Trace
from snp_onnx.tracing.ancestry import Ancestry
from snp_onnx.tracing.blocks import Block
from snp_onnx.tracing.flow import Flow


def group_places(trace: Trace) -> tuple[GroupPlace, ...]:
    """All groups of a trace, as a plan records them."""
    return tuple(
        GroupPlace(group.id, str(group.kind), len(group), len(group.producers), len(group.consumers))
        for group in trace.groups
    )


def block_places(blocks: Sequence[Block]) -> tuple[BlockPlace, ...]:
    """All blocks of a model, as a plan records them."""
    return tuple(BlockPlace(block.name, str(block.kind), block.stage) for block in blocks)


def on_blocks(plan: Plan, blocks: Sequence[Block]) -> tuple[Plan, tuple[str, ...]]:
    """The plan with the names that its blocks have here, and a note where these are others."""
    here = block_places(blocks)
    if not plan.removed or not plan.blocks or set(plan.blocks) == set(here):
        return plan, ()
    for number, (there, found) in enumerate(zip(plan.blocks, here, strict=False), 1):
        if (there.kind, there.stage) != (found.kind, found.stage):
            raise PlanError(
                f"the plan's block {number} is {there.block} ({there.kind}, stage {there.stage}), here it is "
                f"{found.block} ({found.kind}, stage {found.stage}): the models differ, make the plan anew"
            )
    if len(here) != len(plan.blocks):
        raise PlanError(f"the plan's model has {len(plan.blocks)} blocks, this has {len(here)}: make the plan anew")
    names = {there.block: found.block for there, found in zip(plan.blocks, here, strict=True)}
    removed = tuple(replace(decision, block=names.get(decision.block, decision.block)) for decision in plan.removed)
    note = f"the plan's blocks have other names here: matched by their order, {_example(names)}"
    return replace(plan, removed=removed, blocks=here), (note,)


def on_groups(plan: Plan, flow: Flow, model: onnx.ModelProto) -> tuple[Plan, tuple[str, ...]]:
    """The plan with the names that its groups have here, and a note where these are others.

    PlanError, naming the first difference, where this isn't the structure that the plan was made for.
    """
    here = group_places(flow.trace)
    sizes = {(place.group, place.kind, place.units) for place in here}
    if not plan.groups or {(place.group, place.kind, place.units) for place in plan.groups} == sizes:
        return plan, ()
    for number, (there, found) in enumerate(zip(plan.groups, here, strict=False), 1):
        if replace(there, group="") != replace(found, group=""):
            raise PlanError(
                f"the plan's group {number} is {_told(there)}, here it is {_told(found)}: the models differ, make the "
                "plan anew"
            )
    if len(here) != len(plan.groups):
        raise PlanError(f"the plan's model has {len(plan.groups)} groups, this has {len(here)}: make the plan anew")
    names = {there.group: found.group for there, found in zip(plan.groups, here, strict=True)}
    moved = replace(plan, groups=here, decisions=tuple(_renamed(decision, names) for decision in plan.decisions))
    for first, second in _side_by_side(moved, flow, model):
        raise PlanError(
            f"the plan's groups have other names here, and {first} and {second} are alike and side by side, so that "
            "which is which can't be told: make the plan anew, or write these names into it"
        )
    return moved, (f"the plan's groups have other names here: matched by their order, {_example(names)}",)


def _renamed(decision: UnitDecision, names: dict[str, str]) -> UnitDecision:
    return replace(decision, group=names.get(decision.group, decision.group))


def _side_by_side(plan: Plan, flow: Flow, model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Neighbours of one look, cut differently, of which neither comes from the other."""
    kept = {decision.group: decision.kept for decision in plan.decisions}
    starts = {group.id: group.producers[0].output for group in flow.trace.groups}
    ancestry = Ancestry(model, flow)
    last: dict[GroupPlace, str] = {}
    for place in plan.groups:
        look, name = replace(place, group=""), place.group
        before = last.get(look)
        last[look] = name
        if before is None or kept.get(before) == kept.get(name):
            continue
        if not ancestry.descends(starts[name], starts[before]):
            yield before, name


def _told(place: GroupPlace) -> str:
    readers = "layer reads" if place.consumers == 1 else "layers read"
    return f"{place.group} ({place.units} {place.kind}, made by {place.producers}, {place.consumers} {readers} them)"


def _example(names: dict[str, str]) -> str:
    there, here = next((pair for pair in names.items() if pair[0] != pair[1]), next(iter(names.items())))
    return f"{there} is {here}"
