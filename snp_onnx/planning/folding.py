"""Folding: least-squares weights for every consumer that lost inputs, from the moments at its own input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.planning.parallel import side_by_side
from snp_onnx.planning.plan import Folds
from snp_onnx.planning.statistics import Statistics
from snp_onnx.subspace import fold_map
from snp_onnx.tracing import Linear, Trace
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.weights import WeightPath, Weights

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """The folded weights, and one line for every consumer that was cut without folding."""

    values: Folds
    unfolded: tuple[str, ...]


def fold(model: onnx.ModelProto, trace: Trace, alive: Mask, statistics: Statistics, ridge: float) -> Folding:
    """W' = W A for every consumer weight with removed inputs, A = `fold_map(G, kept)`; the model isn't changed.

    A weight that several nodes share is folded once, on the moments of all their inputs together.
    """
    weights = Weights(model)
    unfolded = []
    work: list[tuple[WeightPath, list[Linear]]] = []
    for weight, linears in _by_weight(trace):
        if alive[trace.axes[weight][linears[0].in_axis]].all():
            continue
        path = weights.path(weight)
        reason = _obstacle(trace, path, linears, statistics)
        if path is None or reason:
            unfolded.append(f"{weight}: cut without folding: {reason}")
        else:
            work.append((path, linears))

    def folded(item: tuple[WeightPath, list[Linear]]) -> npt.NDArray[np.generic]:
        path, linears = item
        dense = np.asarray(weights.array(linears[0].weight), dtype=np.float64)
        root = weights.array(path.root)
        return path.undo(_folded(dense, linears, alive, statistics, ridge), root.shape, root.dtype)

    found = side_by_side(folded, work, lambda item: len(statistics.readings[item[1][0]].columns))
    values = dict(zip((path.root for path, _ in work), found, strict=True))
    return Folding(values, tuple(unfolded))


def _by_weight(trace: Trace) -> Iterator[tuple[str, list[Linear]]]:
    """Mixing nodes by the weight they read, in graph order."""
    by_weight: dict[str, list[Linear]] = {}
    for linear in trace.linears:
        if linear.mixes:
            by_weight.setdefault(linear.weight, []).append(linear)
    yield from by_weight.items()


def _obstacle(trace: Trace, path: WeightPath | None, linears: list[Linear], statistics: Statistics) -> str | None:
    if not all(statistics.is_measured(linear) for linear in linears):
        return "its input is not finite on the calibration samples"
    if path is None:
        return "the weight is quantised or computed"
    readers = {op.index for op in trace.ops if path.root in op.inputs}
    chain = {op.index for op in path.ops} | {linear.op.index for linear in linears}
    if not readers <= chain or len({linear.in_axis for linear in linears}) > 1:
        return "the weight is shared with nodes of another kind"
    shapes = {statistics.readings[linear].slots.shape for linear in linears}
    return None if len(shapes) == 1 else "nodes that share the weight read inputs of different layouts"


def _folded(dense: Matrix, linears: list[Linear], alive: Mask, statistics: Statistics, ridge: float) -> Matrix:
    """The weight in its dense shape, folded columns where inputs stay and zeros where they went."""
    reading = statistics.readings[linears[0]]
    keep = np.flatnonzero(alive[reading.columns])
    absorb = fold_map(statistics.gram(linears), keep, ridge)
    weight = np.moveaxis(dense, linears[0].in_axis, -1)
    folded = np.zeros_like(weight)
    for positions in reading.slots:
        folded[..., positions[keep]] = weight[..., positions] @ absorb
    return np.moveaxis(folded, -1, linears[0].in_axis)
