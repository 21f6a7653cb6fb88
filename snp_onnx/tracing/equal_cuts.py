"""Equal cuts: grouped convolutions of which not whole groups go, but the same positions of every group.

A convolution with G groups keeps its form either way. Whole groups are the rule. Where they can't go, because channels
are shuffled between groups or added to a stream that stays, position q of every group is one unit. Which is which shows
only once the graph has been walked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from snp_onnx.tracing.labels import FIXED, SUMMED, Labels
from snp_onnx.tracing.tracer import Linear, Tracer

FEW = 2
"""With so many groups at most one can go, and half of the layer with it: positions are tried first."""

MOST_WALKS = 4
"""Walks on which convolutions change over: each can leave a neighbour without whole groups."""

Walk = Callable[[frozenset[int]], Tracer]


def equal_cuts(tracer: Tracer, walk: Walk) -> frozenset[int]:
    """The convolutions that lose positions, by the index of their nodes; `walk` traces the graph for some of them."""
    grouped = [linear for linear in tracer.linears if linear.groups > 1 and _positions(tracer, linear) > 1]
    if not grouped:
        return frozenset()
    chosen: frozenset[int] = frozenset()
    added = {x.op.index for x in grouped if x.groups <= FEW < _positions(tracer, x) or not _goes_whole(tracer, x)}
    for _ in range(MOST_WALKS):
        if not added:
            break
        chosen |= added
        tracer = walk(chosen)
        added = {x.op.index for x in _of(tracer, grouped) if not x.is_equal and not _goes_whole(tracer, x)}
    return frozenset(x.op.index for x in _of(tracer, grouped) if x.is_equal and _goes_in_part(tracer, x))


def _of(tracer: Tracer, linears: list[Linear]) -> list[Linear]:
    """The same layers as another walk recorded them."""
    wanted = {linear.op.index for linear in linears}
    return [linear for linear in tracer.linears if linear.op.index in wanted]


def _positions(tracer: Tracer, linear: Linear) -> int:
    """The inputs or outputs of one group, whichever are more; 1 of a depthwise convolution."""
    ends = ((linear.input, linear.input_axis), (linear.output, linear.output_axis))
    return max(tracer.shape(tensor)[axis] // linear.groups for tensor, axis in ends)


def _goes_whole(tracer: Tracer, linear: Linear) -> bool:
    """Whether a whole group can go, and is not part of a residual stream."""
    return _units(tracer, tracer.axes(linear.input)[linear.input_axis]) > 1


def _goes_in_part(tracer: Tracer, linear: Linear) -> bool:
    """Whether positions can go at either end."""
    weight = tracer.axes(linear.weight)
    return any(_units(tracer, weight[axis], with_streams=True) > 1 for axis in (linear.in_axis, linear.out_axis))


def _units(tracer: Tracer, labels: Labels, with_streams: bool = False) -> int:
    """How many units of an axis may go one by one; those of residual streams only if asked for."""
    classes = tracer.classes
    may = ~classes.has(labels, FIXED)
    if not with_streams:
        may &= ~classes.has(labels, SUMMED)
    return len(np.unique(classes.find(labels)[may]))
