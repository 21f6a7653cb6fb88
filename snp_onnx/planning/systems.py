"""Systems: the least-squares problems that consumers pose, each of weights side by side on measured columns.

A plain layer is one system. So are layers whose outputs are added up (`sums`), with their inputs side by side. A
grouped convolution is one for every group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.readings import Reading, Slots
from snp_onnx.tracing import Linear
from snp_onnx.tracing.labels import Labels

Array = npt.NDArray[np.float64]
Unfolded = Mapping[Linear, Array]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of a layer's unfolded weight (`Reading.unfold`, its first axis) and places on its last axis, (S, C)."""

    linear: Linear
    rows: slice
    slots: Slots


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """Columns of a reading's Gram, (C,) their places and their labels, and the pieces of weight on them in turn."""

    columns: npt.NDArray[np.int64]
    labels: Labels
    pieces: tuple[Piece, ...]

    def matrices(self, weights: Unfolded) -> Iterator[Array]:
        """For every slot the weight as one matrix (R, C), of few copies: rows of several matrices side by side."""
        for slot in range(len(self.pieces[0].slots)):
            parts = [
                weights[piece.linear][piece.rows][..., piece.slots[slot]].reshape(-1, piece.slots.shape[1])
                for piece in self.pieces
            ]
            yield parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def put(self, kept: npt.NDArray[np.int64], matrices: Iterable[Array], weights: Unfolded) -> None:
        """Write (R, K) matrices, one for every slot, to the columns `kept` of these weights, in place."""
        for slot, matrix in enumerate(matrices):
            start = 0
            for piece in self.pieces:
                end = start + piece.slots.shape[1]
                own = (kept >= start) & (kept < end)
                target = weights[piece.linear][piece.rows]
                places = piece.slots[slot][kept[own] - start]
                target[..., places] = matrix[:, own].reshape(*target.shape[:-1], -1)
                start = end


def systems(linear: Linear, reading: Reading, shapes: Mapping[str, Sequence[int]]) -> list[System]:
    """The systems of a layer, or of all layers of its sum."""
    if linear.groups > 1:
        return _by_group(linear, reading, shapes[linear.weight])
    if not reading.members:
        piece = Piece(linear, slice(None), reading.slots)
        return [System(np.arange(len(reading.columns)), reading.columns, (piece,))]
    widths = [shapes[member.input][member.input_axis] for member in reading.members]
    taps = len(reading.columns) // sum(widths)
    pieces = [
        Piece(member, slice(None), np.arange(width * taps, dtype=np.int64)[None, :])
        for member, width in zip(reading.members, widths, strict=True)
    ]
    return [System(np.arange(len(reading.columns)), reading.columns, tuple(pieces))]


def _by_group(linear: Linear, reading: Reading, shape: Sequence[int]) -> list[System]:
    """The weight of a convolution is (outputs, inputs of a group, ...), of a transposed one the other way round."""
    count, width = linear.groups, len(reading.columns) // linear.groups
    found = []
    for number in range(count):
        columns = np.arange(number * width, (number + 1) * width)
        if linear.out_axis == 0:
            outputs = shape[0] // count
            piece = Piece(linear, slice(number * outputs, (number + 1) * outputs), np.arange(width)[None, :])
        else:
            piece = Piece(linear, slice(None), columns[None, :])
        found.append(System(columns, reading.columns[columns], (piece,)))
    return found


def together(linears: Iterable[Linear], readings: Mapping[Linear, Reading]) -> list[tuple[Linear, ...]]:
    """The layers that share their systems: all that read one weight, and all of one sum."""
    found: dict[object, dict[Linear, None]] = {}
    for linear in linears:
        members = readings[linear].members if linear in readings else ()
        found.setdefault(members or linear.weight, {}).update(dict.fromkeys(members or (linear,)))
    return [tuple(bundle) for bundle in found.values()]
