"""Turn: dimensions inside attention heads get other bases, on both sides of a product, so that it stays the same.

Values v' = v T and the output projection T^{-1} W; queries q' = q A and keys k' = k A^{-T}: `subspace.rotation` says
which. A weight's columns (or a bias's entries, or the rows of the output projection) are multiplied family by family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, constants, replace_values, values_of

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Multiply the positions `places` (d,) of an axis by `matrix` (d, d), from the right."""

    axis: int
    places: npt.NDArray[np.int64]
    matrix: Matrix


@dataclass(frozen=True, slots=True, eq=False)
class TurnHeads(Pass):
    """Turn initialisers, by name; `digests` are those of their values before, so that nothing is turned twice."""

    turns: Mapping[str, tuple[Turn, ...]]
    digests: Mapping[str, str]

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        for constant in constants(graph):
            turns = self.turns.get(constant.name, ())
            if not turns or digest(values_of(constant)) != self.digests[constant.name]:
                continue
            replace_values(constant, _turned(np.asarray(values_of(constant)), turns))
            notes.append(Note(constant.name, "turned to the principal axes inside each head"))
        return Outcome(bool(notes), tuple(notes))


def digest(values: npt.NDArray[Any]) -> str:
    """The same for equal values of the same shape and type."""
    array = np.ascontiguousarray(values)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def _turned(values: npt.NDArray[Any], turns: tuple[Turn, ...]) -> npt.NDArray[Any]:
    """The product in float64, a family of columns at a time; the result in the type of the weight."""
    result = values.copy()
    for turn in turns:
        part = np.moveaxis(np.take(values, turn.places, axis=turn.axis), turn.axis, -1)
        product = part.astype(np.float64) @ turn.matrix
        where = tuple(turn.places if axis == turn.axis else slice(None) for axis in range(values.ndim))
        result[where] = np.moveaxis(product, -1, turn.axis).astype(values.dtype)
    return result
