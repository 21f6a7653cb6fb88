"""Decide: from a trace, its statistics and a target to a plan's decisions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from snp_onnx.errors import TargetError
from snp_onnx.planning.budget import (
    Costs,
    Ladders,
    Widths,
    legal_widths,
    smallest,
    widths_at,
    widths_by_error,
    widths_within,
)
from snp_onnx.planning.options import Choices, Ratios, Target, TargetKind
from snp_onnx.planning.paths import Path
from snp_onnx.planning.plan import UnitDecision
from snp_onnx.tracing import Group, Kind, Trace


def eligible(trace: Trace, choices: Choices) -> tuple[Group, ...]:
    """The groups that the options allow to be cut.

    `--include` wants a producer's node name to match, `--exclude` none of them; a convolutional residual stream is cut
    only if `streams` says so.
    """
    return tuple(group for group in trace.groups if not needs(group, choices))


def left_out(group: Group, choices: Choices) -> str | None:
    """What would let a group in that the options keep whole, or None."""
    needed = needs(group, choices)
    return f"needs {' and '.join(needed)}" if needed else None


def needs(group: Group, choices: Choices) -> tuple[str, ...]:
    """The options without which a group stays whole; none where it may be cut."""
    names = producer_names(group)
    needed = []
    if group.kind not in choices.kinds:
        needed.append(f"--units {','.join(sorted({*choices.kinds, group.kind}))}")
    if group.is_stream and group.kind is Kind.CHANNELS and not choices.streams:
        needed.append("--streams")
    if choices.include is not None and not any(re.search(choices.include, name) for name in names):
        needed.append("another --include")
    if choices.exclude is not None and any(re.search(choices.exclude, name) for name in names):
        needed.append("another --exclude")
    return tuple(needed)


def producer_names(group: Group) -> tuple[str, ...]:
    """What `--include` and `--exclude` look at: the names of the nodes that produce the units."""
    return tuple(linear.op.name for linear in group.producers)


def ladders_of(paths: Iterable[Path], choices: Choices) -> Ladders:
    """The widths that the options allow every path's group."""
    return [legal_widths(len(path.group), choices.min_units, choices.step) for path in paths]


def decide(
    paths: Sequence[Path], target: Target, costs: Costs, dense: float, ratios: Ratios, ladders: Ladders
) -> tuple[UnitDecision, ...]:
    """One decision for every path; TargetError, saying how far it gets, where the target can't be met.

    `costs` gives the cost of widths and its gradient, `dense` what the target is a share of, `ladders` the widths
    that every path's group may have.
    """
    if target.kind is TargetKind.VARIANCE:
        widths = widths_at(paths, target.value, ladders)
        return decisions_at(paths, widths)
    limit = target.value * dense
    if ratios is Ratios.BUDGET:
        within = widths_by_error(paths, costs, limit, ladders)
    else:
        within = widths_within(paths, costs.cost, limit, ladders)
    if within is None:
        least = math.ceil(1000 * costs.cost(smallest(ladders)) / dense) / 1000
        raise TargetError(
            f"--{target.option} {target.value:g} can't be reached: with these options the smallest model keeps "
            f"{least:.3f} of the dense {target.kind}: allow more units (--units, --streams, --include, --min-units)"
        )
    return decisions_at(paths, within)


def decisions_at(paths: Iterable[Path], widths: Widths) -> tuple[UnitDecision, ...]:
    """One decision for every path, at one width each, (G,)."""
    return tuple(
        UnitDecision(
            path.group.id,
            str(path.group.kind),
            len(path.group),
            tuple(path.kept(int(width)).tolist()),
            tuple(path.order.tolist()),
            tuple(np.round(path.variance, 9).tolist()),
        )
        for path, width in zip(paths, widths, strict=True)
    )
