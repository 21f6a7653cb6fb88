"""Readings: which tensors must be measured so that every consumer of removable units can be decided and folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.moments import MomentRequest, row_strides
from snp_onnx.tracing import Group, Linear, Trace
from snp_onnx.tracing.labels import Labels

Slots = npt.NDArray[np.int64]

FULL_ROWS_PER_COLUMN = 4
"""A flattened axis is measured position by position if there are at least so many rows a column, else by channel."""

ROWS_PER_UNIT = 16
"""Rows a column that sub-sampling aims at: the least-squares error from the sample is then about 1/16 of the rest."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One consumer input: the moments it needs, and the label behind every column of its Gram matrix.

    `slots` (S, C) gives the positions of the axis that share column c, one a row; without it, position and column are
    the same.
    """

    request: MomentRequest
    columns: Labels
    slots: Slots
    rows: int

    @property
    def key(self) -> str:
        return self.request.key


def readings(trace: Trace, groups: Iterable[Group], samples: int) -> dict[Linear, Reading]:
    """The reading of every consumer of the groups; consumers of one tensor share it."""
    wanted = trace.alive([group.labels for group in groups])
    found: dict[tuple[str, int], Reading] = {}
    result: dict[Linear, Reading] = {}
    for linear in trace.linears:
        if linear.mixes and not wanted[trace.axes[linear.weight][linear.in_axis]].all():
            place = (linear.input, linear.input_axis)
            if place not in found:
                found[place] = _reading(trace, linear, samples)
            result[linear] = found[place]
    return result


def _reading(trace: Trace, linear: Linear, samples: int) -> Reading:
    shape, axis = trace.facts.shapes[linear.input], linear.input_axis
    labels = trace.axes[linear.input][axis]
    positions = int(np.prod([n for place, n in enumerate(shape) if place not in (0, axis)]))
    slots = _slots(labels)
    if slots is None or len(labels) * FULL_ROWS_PER_COLUMN <= samples * positions:
        slots = np.arange(len(labels), dtype=np.int64)[None, :]
    columns = labels[slots[0]]
    flattened = len(slots) > 1
    lattice = row_strides(shape, axis, samples, len(columns), ROWS_PER_UNIT)
    request = MomentRequest(
        linear.input,
        axis,
        len(shape),
        slots=tuple(map(tuple, slots.tolist())) if flattened else None,
        lattice=lattice,
    )
    read = int(np.prod([-(-n // step) for n, step in zip(_row_extents(shape, axis), lattice, strict=False)]))
    return Reading(request, columns, slots, samples * (read or 1) * len(slots))


def _row_extents(shape: Sequence[int], axis: int) -> list[int]:
    return [n for place, n in enumerate(shape) if place not in (0, axis)]


def _slots(labels: Labels) -> Slots | None:
    """Positions (S, U) of an axis on which each of U labels appears S > 1 times; None for any other axis."""
    unique, first, counts = np.unique(labels, return_index=True, return_counts=True)
    if counts[0] < 2 or not (counts == counts[0]).all():
        return None
    by_label = np.argsort(labels, kind="stable").reshape(len(unique), -1)
    return by_label[np.argsort(first)].T
