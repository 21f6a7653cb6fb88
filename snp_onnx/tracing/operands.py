"""Operands that say how axes are cut: the sizes of a Split, the bounds of a Slice, the amounts of a Pad.

Older opsets carry them as attributes, newer ones as inputs; the rules read them here and the rewrite does too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.op import Op

OPEN = 2**31 - 1
"""A bound of a Slice that is as large means the end of the axis: exporters write INT32_MAX or INT64_MAX."""


class Values(Protocol):
    """Anything that knows the values of constant tensors."""

    def value(self, tensor: str) -> npt.NDArray[np.generic] | None: ...

    def shape(self, tensor: str) -> Shape: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """One axis of a Slice with its bounds resolved; `entry` is its place in the bounds' vectors.

    Where it `is_open`, the bounds say the whole axis at any extent.
    """

    axis: int
    start: int
    stop: int
    step: int
    entry: int
    is_open: bool = False


def _ints(op: Op, known: Values, place: int, attribute: str) -> list[int] | None:
    """An operand given as an input or as an attribute; None where it is neither or not constant."""
    if op.input(place):
        value = known.value(op.input(place))
        return None if value is None else [int(x) for x in value.reshape(-1)]
    given = op.attr(attribute, None)
    return None if given is None else [int(x) for x in given]


def split_sizes(op: Op, known: Values) -> list[int] | None:
    """Sizes of a Split's outputs; without an operand, onnx's rule of equal parts with a smaller last one."""
    given = _ints(op, known, 1, "split")
    if given is not None or op.input(1):
        return given
    source = known.shape(op.input(0))
    extent = source[int(op.attr("axis", 0)) % len(source)]
    part = -(-extent // len(op.outputs))
    return [min(part, extent - part * place) for place in range(len(op.outputs))]


def slice_cuts(op: Op, known: Values, shape: Shape) -> list[Cut] | None:
    """The cuts of a Slice, bounds resolved as numpy resolves them; None where they aren't constant."""
    starts, ends = _ints(op, known, 1, "starts"), _ints(op, known, 2, "ends")
    if starts is None or ends is None:
        return None
    axes = _ints(op, known, 3, "axes")
    steps = _ints(op, known, 4, "steps")
    if (axes is None and op.input(3)) or (steps is None and op.input(4)):
        return None
    cuts = []
    for entry, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[entry] if axes else entry) % len(shape)
        begin, stop, step = slice(start, end, steps[entry] if steps else 1).indices(shape[axis])
        is_open = (start == 0 or start <= -OPEN) and end >= OPEN and step == 1
        cuts.append(Cut(axis, begin, stop, step, entry, is_open))
    return cuts


def pad_amounts(op: Op, known: Values, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) for every axis of a Pad; None where they aren't constant."""
    given = _ints(op, known, 1, "pads")
    axes = _ints(op, known, 3, "axes") if op.input(3) else list(range(rank))
    if given is None or axes is None:
        return None
    amounts = [(0, 0)] * rank
    for entry, axis in enumerate(axes):
        amounts[axis % rank] = (given[entry], given[entry + len(axes)])
    return amounts


def slice_axes(op: Op, known: Values, rank: int) -> list[int]:
    """The axes that a Slice, Pad or Split works on; all of them where that isn't constant."""
    if op.type == "Split":
        return [int(op.attr("axis", 0)) % rank]
    axes = _ints(op, known, 3, "axes")
    if axes is None and (op.input(3) or op.type == "Pad"):
        return list(range(rank))
    if axes is None:
        starts = _ints(op, known, 1, "starts")
        return list(range(rank if starts is None else len(starts)))
    return [axis % rank for axis in axes]
