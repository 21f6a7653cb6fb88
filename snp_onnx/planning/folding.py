"""Folding: least-squares weights for every consumer that lost inputs, from the moments at its own input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.parallel import side_by_side
from snp_onnx.planning.plan import Folds
from snp_onnx.planning.statistics import Statistics
from snp_onnx.planning.systems import systems, together
from snp_onnx.subspace import affine_fold
from snp_onnx.tracing import Linear, Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.weights import WeightPath

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """The folded weights and biases, and one line for every consumer that was cut without folding."""

    values: Folds
    unfolded: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Layers that are folded together: those that read one weight, or those of one sum.

    `paths` are the ways to the initialisers of their weights, `bias` the one that may take up a constant. `is_centred`
    says whether the ridge is relative to the variance of the inputs or, as published, to their energy.
    """

    linears: tuple[Linear, ...]
    paths: Mapping[Linear, WeightPath]
    bias: str | None
    is_centred: bool


def fold(
    flow: Flow,
    alive: Mask,
    statistics: Statistics,
    ridge: float,
    affine: bool = False,
    keep: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = lambda array: array,
) -> Folding:
    """W' = W A for every consumer weight with removed inputs, A from the kept inputs' moments; nothing is changed.

    A weight that several nodes share is folded once, on the moments of all their inputs together. `affine` takes the
    moments around the mean and lets a bias take up what a constant column of the least squares gets, where the reading
    is exact; without it they are around 0, as published. `keep` puts what was folded where it stays.
    """
    trace, weights = flow.trace, flow.weights
    readers = _readers(trace)
    unfolded = []
    work: list[_Work] = []
    for linears in together((linear for linear in trace.linears if linear.mixes), statistics.readings):
        if all(alive[trace.axes[linear.weight][linear.in_axis]].all() for linear in linears):
            continue
        paths = {linear: weights.path(linear.weight) for linear in _own(linears)}
        reason = _obstacle(readers, paths, linears, statistics)
        known = {linear: path for linear, path in paths.items() if path is not None}
        if reason:
            unfolded += [f"{linear.weight}: cut without folding: {reason}" for linear in paths]
        else:
            bias = free_bias(flow, linears, statistics) if affine else None
            work.append(_Work(linears, known, bias, affine))

    def folded(item: _Work) -> dict[str, npt.NDArray[np.generic]]:
        strength = ridge * statistics.caution(item.linears) if affine else ridge
        return {name: keep(array) for name, array in _fold_one(flow, item, alive, statistics, strength).items()}

    found = side_by_side(folded, work, lambda item: len(statistics.readings[item.linears[0]].columns))
    values = {name: array for part in found for name, array in part.items()}
    return Folding(values, tuple(unfolded))


def free_bias(flow: Flow, linears: Sequence[Linear], statistics: Statistics) -> str | None:
    """The initialiser of a bias that only these consumers read, where a constant may be folded into it."""
    own = _own(linears)
    if not statistics.readings[own[0]].is_exact or len(own) < len(linears):
        return None
    return next(filter(None, (flow.recurrent_bias(linear) or flow.bias(linear)[0] for linear in own)), None)


def _own(linears: Sequence[Linear]) -> list[Linear]:
    """One layer for every weight."""
    return list({linear.weight: linear for linear in reversed(linears)}.values())[::-1]


def _fold_one(
    flow: Flow, work: _Work, alive: Mask, statistics: Statistics, ridge: float
) -> dict[str, npt.NDArray[np.generic]]:
    """The weights in their dense shapes, folded columns where inputs stay and zeros where they went; and the bias."""
    weights, reading = flow.weights, statistics.readings[work.linears[0]]
    inputs = statistics.inputs(work.linears)
    if not work.is_centred:
        inputs = inputs.around_zero()
    dense = {linear: np.asarray(weights.array(linear.weight), dtype=np.float64) for linear in work.paths}
    unfolded = {linear: reading.unfold(array, linear) for linear, array in dense.items()}
    folded = {linear: np.zeros_like(array) for linear, array in unfolded.items()}
    gains = []
    for system in systems(work.linears[0], reading, flow.trace.facts.shapes):
        keep = np.flatnonzero(alive[system.labels])
        absorb, shift = affine_fold(inputs.on(system.columns), keep, ridge, is_affine=work.bias is not None)
        system.put(keep, (matrix @ absorb for matrix in system.matrices(unfolded)), folded)
        if work.bias is not None:
            gains.append(np.sum([matrix @ shift for matrix in system.matrices(unfolded)], axis=0))
    values = {}
    for linear, path in work.paths.items():
        root = weights.array(path.root)
        values[path.root] = path.undo(
            reading.refold(folded[linear], linear, dense[linear].shape), root.shape, root.dtype
        )
    if work.bias is not None:
        bias = weights.array(work.bias)
        values[work.bias] = _with_gain(bias, np.concatenate(gains)).astype(bias.dtype)
    return values


def _with_gain(bias: npt.NDArray[np.generic], gain: Vector) -> Matrix:
    """A bias that takes up a constant: of a recurrent layer, (directions, 2 gates x hidden), the first half."""
    taken = np.array(bias, dtype=np.float64)
    half = bias.shape[-1] // 2
    if bias.size == 2 * gain.size:
        taken[..., :half] += gain.reshape(*bias.shape[:-1], half)
    else:
        taken += gain.reshape(bias.shape)
    return taken


def _readers(trace: Trace) -> dict[str, set[int]]:
    """The nodes that read each tensor."""
    readers: dict[str, set[int]] = {}
    for op in trace.ops:
        for name in op.inputs:
            readers.setdefault(name, set()).add(op.index)
    return readers


def _obstacle(
    readers: Mapping[str, set[int]],
    paths: Mapping[Linear, WeightPath | None],
    linears: Sequence[Linear],
    statistics: Statistics,
) -> str | None:
    for own, path in paths.items():
        if path is None:
            return "the weight is quantised or computed"
        sharing = [linear for linear in linears if linear.weight == own.weight]
        chain = {op.index for op in path.ops} | {linear.op.index for linear in sharing}
        if not readers.get(path.root, set()) <= chain or len({linear.in_axis for linear in sharing}) > 1:
            return "the weight is shared with nodes of another kind"
    fault = statistics.fault(linears)
    if fault is not None:
        return fault
    shapes = {statistics.readings[linear].slots.shape for linear in linears}
    return None if len(shapes) == 1 else "nodes that share the weight read inputs of different layouts"
