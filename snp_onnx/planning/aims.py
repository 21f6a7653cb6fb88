"""Aims: what every layer of a pruned model should give, so that a refit in topological order repairs what it can.

A layer right before a residual Add aims at the dense model's sum less the pruned model's own shortcut: so it also makes
up for the error that came down the stream. Layers that were folded as one sum (`sums`) aim at the sum less what the
others give as they are now: otherwise each would undo what they take over from each other. Every other layer aims at
its own dense output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.moments import MomentRequest, View, row_strides
from snp_onnx.planning.detours import Detour
from snp_onnx.planning.readings import Reading, reads_tokens, rows_per_column
from snp_onnx.planning.scarcity import SCARCITY
from snp_onnx.planning.sums import Sum, find_sums, is_own_product
from snp_onnx.planning.windows import PATCH_COLUMNS, conv_window
from snp_onnx.tracing import Linear, Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.weights import Weights

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer that can be solved anew: its input as the pruned model has it, and what may be written.

    `output` is its output with the bias; `bias` an initialiser (O,) that only this layer reads, or None. A bias that is
    `apart` is added by the node behind, with more than that: `output` lacks it.
    """

    linear: Linear
    reading: Reading
    bias: str | None
    output: str
    is_apart: bool = False

    def matrix(self, weights: Weights) -> Array:
        """The weight as (O, C), columns in the order of the reading."""
        present = np.asarray(weights.array(self.linear.weight), dtype=np.float64)
        unfolded = self.reading.unfold(present, self.linear)  # (O, ..., C), of extent 1 in between
        return unfolded.reshape(len(unfolded), -1)

    def offset(self, weights: Weights) -> Array:
        """The bias (O,), its own or one that others read too; zeros where there is none."""
        op = self.linear.op
        name = self.bias or (op.input(2) if op.type in ("Conv", "Gemm") else "")
        bias = np.asarray(weights.array(name), dtype=np.float64) if name else np.zeros(1)
        outputs = weights.array(self.linear.weight).shape[self.linear.out_axis]
        return np.broadcast_to(bias.reshape(-1), (outputs,))

    def shaped(self, weights: Weights, matrix: Array) -> Array:
        """An (O, C) matrix in the shape that the node reads its weight in."""
        shape = weights.array(self.linear.weight).shape
        moved = shape if self.reading.request.view is View.PATCHES else None
        if moved is None:
            moved = (*np.delete(shape, self.linear.in_axis), shape[self.linear.in_axis])
        return self.reading.refold(matrix.reshape(moved), self.linear, shape)

    def values(self, weights: Weights, matrix: Array, bias: Array) -> dict[str, npt.NDArray[Any]]:
        """What the layer's initialisers must hold for these weights and, where it has its own, this bias."""
        path = weights.path(self.linear.weight)
        assert path is not None
        root = weights.array(path.root)
        values = {path.root: path.undo(self.shaped(weights, matrix), root.shape, root.dtype)}
        if self.bias is not None:
            values[self.bias] = bias.astype(weights.array(self.bias).dtype)
        return values


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """What a layer should give: the dense value of `total`, which the pruned model makes of its output and `shortcuts`.

    Without a shortcut `total` is the output itself. `kept` are, by axis, the positions of `total` that the pruned model
    has, where it hasn't all. `bias` is added to the dense `total`: a fused node behind adds the layer's. `pending` are
    the outputs of layers that give a shortcut and have their turn later.
    """

    layer: Layer
    total: str
    shortcuts: tuple[str, ...]
    kept: Mapping[int, npt.NDArray[np.int64]]
    bias: str | None = None
    pending: frozenset[str] = frozenset()


def find_aims(flow: Flow, alive: Mask, samples: int, gone: Detour | None = None) -> tuple[Aim, ...]:
    """The layers worth a refit when only `alive` labels stay and blocks are `gone`, in the order of the refit."""
    gone = gone or Detour()
    trace, depth = flow.trace, flow.depths()
    ordered = sorted(trace.linears, key=lambda linear: (depth[linear.op.index], linear.op.index))
    place = {linear.op.index: number for number, linear in enumerate(ordered)}
    last, moved = flow.last(place), flow.moved(alive, gone.moved)
    losers = [x for x in ordered if x.mixes and not alive[trace.axes[x.weight][x.in_axis]].all()]
    sums = {linear: joint for joint in find_sums(flow, losers) for linear in joint.layers}
    found = []
    for number, linear in enumerate(ordered):
        lost = not alive[trace.axes[linear.weight][linear.in_axis]].all()
        layer = find_layer(flow, alive, linear, samples)
        if layer is None:
            continue
        joint = sums.get(linear)
        aim = (None if joint is None else _aim_of_sum(flow, alive, layer, joint, last, number)) or _aim(
            flow, alive, layer, last, number
        )
        if any(trace.facts.varies(aim.layer.output, axis) for axis in aim.kept):
            continue  # the places that stay are others in every batch
        if lost or linear.input in moved or aim.total in gone.totals:
            found.append(replace(aim, total=gone.total(aim.total)))
    return tuple(found)


def on_samples(flow: Flow, layer: Layer, samples: int) -> Layer:
    """The layer with a lattice made for so many samples."""
    lattice = _lattice(flow.trace, layer.linear, len(layer.reading.columns), samples)
    reading = replace(layer.reading, request=replace(layer.reading.request, lattice=lattice))
    return replace(layer, reading=reading)


def find_layer(flow: Flow, alive: Mask, linear: Linear, samples: int) -> Layer | None:
    """The layer of a linear node, None where it isn't one matrix product with its own weight, or can't be measured."""
    reading = _reading(flow.trace, alive, linear, samples) if is_own_product(flow, linear) else None
    return None if reading is None else Layer(linear, reading, *flow.bias(linear), flow.is_bias_apart(linear))


def _reading(trace: Trace, alive: Mask, linear: Linear, samples: int) -> Reading | None:
    """The layer's input as the pruned model has it; None where rows are too few or columns too many."""
    shape = trace.facts.shapes
    window = conv_window(trace, linear)
    if window is None and linear.op.type == "Conv" and int(np.prod(shape[linear.weight][2:])) > 1:
        return None
    taps = int(np.prod(window.kernel)) if window is not None else 1
    labels = trace.axes[linear.input][linear.input_axis]
    columns = labels[alive[labels]].repeat(taps)
    output, axis = shape[linear.output], linear.output_axis
    positions = int(np.prod([extent for place, extent in enumerate(output) if place not in (0, axis)]))
    if len(columns) > PATCH_COLUMNS or samples * positions < SCARCITY.least_refit_rows * len(columns):
        return None
    lattice = _lattice(trace, linear, len(columns), samples)
    view = View.CHANNELS if window is None else View.PATCHES
    mask = trace.row_mask(
        linear.output, axis
    )  # rows are positions of the output: strides leave some of the input's out
    request = MomentRequest(linear.input, axis, len(output), view=view, window=window, lattice=lattice, row_mask=mask)
    slots = np.arange(len(columns), dtype=np.int64)[None, :]
    wanted = SCARCITY.refit_tokens if reads_tokens(trace, linear) else 0
    return Reading(request, columns, slots, is_exact=True, rows_wanted=wanted)


def _lattice(trace: Trace, linear: Linear, columns: int, samples: int) -> tuple[int, ...]:
    wanted = rows_per_column(trace, linear, SCARCITY.refit_rows, SCARCITY.refit_rows)
    return row_strides(trace.facts.shapes[linear.output], linear.output_axis, samples, columns, wanted)


def _aim(flow: Flow, alive: Mask, layer: Layer, last: Mapping[str, int], number: int) -> Aim:
    output = layer.output
    kept, residual = _kept(flow, alive, output), flow.residual(output)
    if residual is None or last.get(residual[1], -1) >= number:  # the shortcut would still change
        return Aim(layer, output, (), kept, layer.bias if layer.is_apart else None)
    total, shortcut = residual
    return Aim(layer, total, (shortcut,), kept)


def _aim_of_sum(flow: Flow, alive: Mask, layer: Layer, joint: Sum, last: Mapping[str, int], number: int) -> Aim | None:
    """The sum less all other terms; None where one of them would still change, but for the layers of the sum itself."""
    pending: set[str] = set()
    for linear, term in zip_longest(joint.layers, joint.terms):
        if term == layer.output or last.get(term, -1) < number:
            continue
        if linear is None or last.get(linear.input, -1) >= number:
            return None
        pending |= {linear.output, term}
    shortcuts = tuple(term for term in joint.terms if term != layer.output)
    return Aim(layer, joint.total, shortcuts, _kept(flow, alive, layer.output), pending=frozenset(pending))


def _kept(flow: Flow, alive: Mask, output: str) -> dict[int, npt.NDArray[np.int64]]:
    masks = {axis: alive[labels] for axis, labels in enumerate(flow.trace.axes[output])}
    return {axis: np.flatnonzero(mask) for axis, mask in masks.items() if not mask.all()}
