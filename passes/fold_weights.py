"""Fold: what the removed units contributed is written into the columns of the units that stay.

W'_K = W G_:,K (G_KK)^-1 by `subspace.fold_map`; removed columns become zero, so that the graph already computes, at
full width, what the cut one will.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, constants, replace_values, values_of


@dataclass(frozen=True, slots=True, eq=False)
class FoldWeights(Pass):
    """Write folded values, in the dense shape, over the initialisers of the given names."""

    values: Mapping[str, npt.NDArray[np.generic]]

    def __call__(self, graph: gs.Graph) -> Outcome:
        notes = []
        for constant in constants(graph):
            folded = self.values.get(constant.name)
            if folded is None or np.array_equal(folded, values_of(constant)):
                continue
            replace_values(constant, folded.astype(values_of(constant).dtype, copy=False))
            notes.append(Note(constant.name, "folded"))
        return Outcome(bool(notes), tuple(notes))

    def requires(self, graph: gs.Graph) -> str:
        for constant in constants(graph):
            folded = self.values.get(constant.name)
            if folded is not None and tuple(folded.shape) != tuple(constant.shape):
                return f"folded {constant.name} has shape {folded.shape}, the weight {tuple(constant.shape)}"
        return ""
