"""Extents that a graph computes with: where one may be read because the rewrite corrects it, and where it bars an axis.

A Reshape by Shape -> Gather -> Concat is corrected entry by entry. An extent that enters a computation as a number, or
leaves the graph, would change the outcome when its axis shrinks. And an entry that a batch or spatial extent takes part
in can't be replaced by a number: the model would only work for the extents it was traced with.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.operands import slice_axes
from snp_onnx.tracing.tracer import Tracer

SHAPE_OPERANDS: frozenset[tuple[str, int]] = frozenset(
    {
        ("Reshape", 1),
        ("Expand", 1),
        ("Tile", 1),
        ("ConstantOfShape", 0),
        ("Resize", 3),
        ("Slice", 1),
        ("Slice", 2),
        ("Pad", 1),
        ("Split", 1),
    }
)
"""(operator, input place) where an extent may be read because the rewrite corrects it."""

_CUTS = frozenset(("Slice", "Pad", "Split"))
_NAMES_EXTENTS = frozenset({("Reshape", 1), ("Expand", 1), ("Tile", 1), ("ConstantOfShape", 0), ("Resize", 3)})


def bar_extents(op: Op, tracer: Tracer, is_followed: bool = False) -> None:
    """Bar what the extents among the node's inputs would change or can't follow.

    A node that `is_followed` computes a known value of them: whoever reads that reads the extents too.
    """
    for place, name in enumerate(op.inputs):
        if name not in tracer.facts.origins:
            continue
        is_known = all(tracer.knows(other) for other in (*op.inputs, *op.outputs) if other)
        if not op.is_standard or (op.type, place) not in SHAPE_OPERANDS or not is_known:
            if is_followed:
                continue
            bar_numbers(op, tracer, name, f"its extent is read as a number by {op.type}")
        elif op.type in _CUTS:
            _bar_cuts(op, tracer, name)
        elif (op.type, place) in _NAMES_EXTENTS:
            _bar_entries(op, tracer, name)


def bar_numbers(op: Op | None, tracer: Tracer, name: str, reason: str) -> None:
    """Bar every axis whose extent the tensor's value was computed from."""
    for tensor, axis in sorted(tracer.facts.origin_axes(name)):
        tracer.barrier(op, tensor, axis, reason)


def is_extent_of(tracer: Tracer, vector: str, entry: int, tensor: str, axis: int) -> bool:
    """Whether an entry of a size vector is the extent of an axis with these units: it is right whatever goes."""
    facts = tracer.facts
    if vector not in facts.origins:
        return False
    axes = facts.extents[facts.origins[vector].reshape(-1)[entry]]
    labels = tracer.classes.find(tracer.axes(tensor)[axis])
    is_own = len(axes) == 1 and int(facts.values[vector].reshape(-1)[entry]) == len(labels)
    return is_own and all(np.array_equal(tracer.classes.find(tracer.axes(name)[place]), labels) for name, place in axes)


def _bar_cuts(op: Op, tracer: Tracer, name: str) -> None:
    """A cut may only follow the extent of the axis it cuts."""
    source = op.input(0)
    cut = slice_axes(op, tracer, len(tracer.shape(source)))
    for tensor, axis in sorted(tracer.facts.origin_axes(name)):
        roots = np.unique(tracer.classes.find(tracer.axes(tensor)[axis]))
        if any(np.isin(roots, tracer.classes.find(tracer.axes(source)[place])).all() for place in cut):
            continue
        tracer.barrier(op, tensor, axis, f"its extent is read as a number by {op.type}")
        for place in cut:
            tracer.barrier(op, source, place, f"{op.type} at a place that another extent decides")


def _bar_entries(op: Op, tracer: Tracer, name: str) -> None:
    """Entries that mix in an extent which may vary can only be left to a -1, and a shape has one of these."""
    output, entries = op.outputs[0], tracer.facts.origins[name].reshape(-1)
    offset = len(tracer.shape(output)) - len(entries)
    varying = [
        place + offset
        for place, origin in enumerate(entries)
        if tracer.is_live(output, place + offset)
        and _may_vary(tracer, tracer.facts.extents[origin])
        and not is_extent_of(tracer, name, place, output, place + offset)
        and not (op.type == "Tile" and _repeats_all(op, tracer, place, tracer.facts.extents[origin]))
    ]
    value = tracer.value(name)
    inferred = value is not None and (value.reshape(-1) == -1).any()
    if op.type == "Reshape" and len(varying) <= 1 and not inferred:
        return
    for axis in varying:
        tracer.barrier(op, output, axis, f"its extent in this {op.type} varies with another axis")


def _may_vary(tracer: Tracer, axes: Iterable[tuple[str, int]]) -> bool:
    """Whether an axis takes part whose extent differs from one run to the next; unknown, that may be any not cut."""
    return any(_varies(tracer, tensor, axis) for tensor, axis in axes)


def _varies(tracer: Tracer, tensor: str, axis: int) -> bool:
    known = tracer.facts.varies(tensor, axis)
    return not tracer.is_live(tensor, axis) if known is None else known


def _repeats_all(op: Op, tracer: Tracer, axis: int, origin: Iterable[tuple[str, int]]) -> bool:
    """Whether a Tile repeats several positions, as often after a cut as before."""
    return tracer.shape(op.input(0))[axis] > 1 and not any(tracer.is_live(*place) for place in origin)
