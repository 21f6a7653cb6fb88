"""Folding: least-squares weights for every consumer that lost inputs, from the moments at its own input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.parallel import side_by_side
from snp_onnx.planning.plan import Folds
from snp_onnx.planning.statistics import Statistics
from snp_onnx.subspace import affine_fold
from snp_onnx.tracing import Linear, Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.weights import WeightPath, Weights

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """The folded weights and biases, and one line for every consumer that was cut without folding."""

    values: Folds
    unfolded: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """One weight to fold: the way to its initialiser, who reads it, and the bias that may take up a constant.

    `is_centred` says whether its ridge is relative to the variance of the inputs or, as published, to their energy.
    """

    path: WeightPath
    linears: list[Linear]
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
    for weight, linears in _by_weight(trace):
        if alive[trace.axes[weight][linears[0].in_axis]].all():
            continue
        path = weights.path(weight)
        reason = _obstacle(readers, path, linears, statistics)
        if path is None or reason:
            unfolded.append(f"{weight}: cut without folding: {reason}")
        else:
            bias = own_bias(flow, linears, statistics) if affine else None
            work.append(_Work(path, linears, bias, affine))

    def folded(item: _Work) -> dict[str, npt.NDArray[np.generic]]:
        strength = ridge * statistics.caution(item.linears) if affine else ridge
        return {name: keep(array) for name, array in _fold_one(weights, item, alive, statistics, strength).items()}

    found = side_by_side(folded, work, lambda item: len(statistics.readings[item.linears[0]].columns))
    values = {name: array for part in found for name, array in part.items()}
    return Folding(values, tuple(unfolded))


def own_bias(flow: Flow, linears: list[Linear], statistics: Statistics) -> str | None:
    """The initialiser of a bias that only this consumer reads, where a constant may be folded into it."""
    if len(linears) > 1 or not statistics.readings[linears[0]].is_exact:
        return None
    return flow.recurrent_bias(linears[0]) or flow.bias(linears[0])[0]


def _fold_one(
    weights: Weights, work: _Work, alive: Mask, statistics: Statistics, ridge: float
) -> dict[str, npt.NDArray[np.generic]]:
    """The weight in its dense shape, folded columns where inputs stay and zeros where they went; and the bias."""
    linear = work.linears[0]
    reading = statistics.readings[linear]
    keep = np.flatnonzero(alive[reading.columns])
    inputs = statistics.inputs(work.linears)
    if not work.is_centred:
        inputs = inputs.around_zero()
    absorb, shift = affine_fold(inputs, keep, ridge, is_affine=work.bias is not None)
    dense = np.asarray(weights.array(linear.weight), dtype=np.float64)
    unfolded = reading.unfold(dense, linear)
    folded = np.zeros_like(unfolded)
    for positions in reading.slots:
        rows = unfolded[..., positions].reshape(-1, len(positions))  # of several matrices numpy multiplies each alone
        folded[..., positions[keep]] = (rows @ absorb).reshape(*unfolded.shape[:-1], -1)
    root = weights.array(work.path.root)
    refolded = reading.refold(folded, linear, dense.shape)
    values = {work.path.root: work.path.undo(refolded, root.shape, root.dtype)}
    if work.bias is not None:
        bias = weights.array(work.bias)
        gain = np.sum([unfolded[..., positions] @ shift for positions in reading.slots], axis=0)
        values[work.bias] = _with_gain(bias, gain).astype(bias.dtype)
    return values


def _with_gain(bias: npt.NDArray[np.generic], gain: Matrix) -> Matrix:
    """A bias that takes up a constant: of a recurrent layer, (directions, 2 gates x hidden), the first half."""
    taken = np.array(bias, dtype=np.float64)
    if bias.size == 2 * gain.size:
        taken[..., : gain.shape[-1]] += gain
    else:
        taken += gain.reshape(bias.shape)
    return taken


def _by_weight(trace: Trace) -> Iterator[tuple[str, list[Linear]]]:
    """Mixing nodes by the weight they read, in graph order."""
    by_weight: dict[str, list[Linear]] = {}
    for linear in trace.linears:
        if linear.mixes:
            by_weight.setdefault(linear.weight, []).append(linear)
    yield from by_weight.items()


def _readers(trace: Trace) -> dict[str, set[int]]:
    """The nodes that read each tensor."""
    readers: dict[str, set[int]] = {}
    for op in trace.ops:
        for name in op.inputs:
            readers.setdefault(name, set()).add(op.index)
    return readers


def _obstacle(
    readers: Mapping[str, set[int]], path: WeightPath | None, linears: list[Linear], statistics: Statistics
) -> str | None:
    fault = statistics.fault(linears)
    if fault is not None:
        return fault
    if path is None:
        return "the weight is quantised or computed"
    chain = {op.index for op in path.ops} | {linear.op.index for linear in linears}
    if not readers.get(path.root, set()) <= chain or len({linear.in_axis for linear in linears}) > 1:
        return "the weight is shared with nodes of another kind"
    shapes = {statistics.readings[linear].slots.shape for linear in linears}
    return None if len(shapes) == 1 else "nodes that share the weight read inputs of different layouts"
