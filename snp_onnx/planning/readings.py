"""Readings: which tensors must be measured so that every consumer of removable units can be decided and folded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.moments import MomentRequest, Squares, View, Window, row_strides
from snp_onnx.planning.scarcity import SCARCITY
from snp_onnx.planning.sums import Sum
from snp_onnx.planning.windows import conv_window
from snp_onnx.tracing import Group, Linear, Trace
from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.labels import Labels

Slots = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]

PADDED = 4
"""So many positions are read for one that counts, where a mask says that some are padding."""


WIDEST_TOTAL = 4096
"""Sums of more channels (a language model's logits) aren't measured for their spread."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One consumer input: the moments it needs, and the label behind every column of its Gram matrix.

    `slots` (S, C) gives the positions of the axis that share column c, one a row; where there is one row, position and
    column are the same. With the view `patches` a position is a channel under one tap of the window, in the order of
    `W.reshape(O, -1)`. `is_exact` says that the consumer is linear in the columns, its border included: only then does
    a fold know what a constant column (a bias) would do.
    """

    request: MomentRequest
    columns: Labels
    slots: Slots
    is_exact: bool
    rows_wanted: int = 0
    """Rows a column with which the ridge is no stronger than usual; 0 where any number will do."""
    members: tuple[Linear, ...] = ()
    """The layers of a sum whose inputs are side by side in its columns; none where it is of one tensor."""

    @property
    def key(self) -> str:
        return self.request.key

    def unfold(self, weight: Array, linear: Linear) -> Array:
        """A consumer's weight with the positions of this reading on its last axis."""
        if self.request.view is View.PATCHES:
            return weight.reshape(len(weight), -1)
        return np.moveaxis(weight, linear.in_axis, -1)

    def refold(self, unfolded: Array, linear: Linear, shape: tuple[int, ...]) -> Array:
        """The inverse of `unfold`."""
        if self.request.view is View.PATCHES:
            return unfolded.reshape(shape)
        return np.moveaxis(unfolded, -1, linear.in_axis)


@dataclass(frozen=True, slots=True, eq=False)
class _Input:
    """What consumers read: a tensor, its unit axis, its shape, and the labels along this axis."""

    tensor: str
    axis: int
    shape: Shape
    labels: Labels

    @classmethod
    def of(cls, trace: Trace, linear: Linear) -> _Input:
        name, axis = linear.input, linear.input_axis
        return cls(name, axis, trace.facts.shapes[name], trace.axes[name][axis])

    @classmethod
    def beside(cls, trace: Trace, joint: Sum) -> _Input:
        """The inputs of all layers of a sum, side by side."""
        parts = [cls.of(trace, linear) for linear in joint.layers]
        labels, shape, axis = np.concatenate([part.labels for part in parts]), parts[0].shape, parts[0].axis
        return cls(joint.input, axis, (*shape[:axis], len(labels), *shape[axis + 1 :]), labels)


def readings(
    trace: Trace, groups: Iterable[Group], samples: int, patches: bool = False, sums: Iterable[Sum] = ()
) -> dict[Linear, Reading]:
    """The reading of every consumer of the groups; consumers that read a tensor alike share it, and layers of a sum.

    `patches` asks for the moments of whole windows at the inputs of convolutions, where there are rows enough.
    """
    joints = {linear: joint for joint in sums for linear in joint.layers}
    found: dict[tuple[str, int, Window | None], Reading] = {}
    result: dict[Linear, Reading] = {}
    for linear in losing(trace, groups):
        joint = joints.get(linear)
        source = _Input.of(trace, linear) if joint is None else _Input.beside(trace, joint)
        window = conv_window(trace, linear) if patches else None
        if window is not None and not _has_rows(trace, linear, len(source.labels), window, samples):
            window = None
        place = (source.tensor, source.axis, window)
        if place not in found:
            members = () if joint is None else joint.layers
            fresh = (
                _channels(trace, linear, source, samples, is_plain=joint is None and not _is_grouped(trace, source))
                if window is None
                else _patches(trace, linear, source, window, samples)
            )
            found[place] = replace(fresh, members=members)
        result[linear] = found[place]
    return result


def _is_grouped(trace: Trace, source: _Input) -> bool:
    """Whether units are positions of several groups of a convolution: these are alike in number, not in kind."""
    tied = [linear for linear in trace.linears if linear.is_equal]
    labels = [trace.axes[name][1] for linear in tied for name in (linear.input, linear.output)]
    return not trace.alive(labels)[source.labels].all()


def losing(trace: Trace, groups: Iterable[Group]) -> list[Linear]:
    """The layers that read units of these groups."""
    wanted = trace.alive([group.labels for group in groups])
    return [
        linear
        for linear in trace.linears
        if linear.mixes and not wanted[trace.axes[linear.weight][linear.in_axis]].all()
    ]


def _has_rows(trace: Trace, linear: Linear, channels: int, window: Window, samples: int) -> bool:
    """Whether the samples have enough positions for all the weights of a whole window."""
    positions = int(np.prod(trace.facts.shapes[linear.output][2:]))
    columns = channels * int(np.prod(window.kernel))
    return columns < SCARCITY.wide_window or SCARCITY.is_whole(columns, samples * positions)


def reads_tokens(trace: Trace, linear: Linear) -> bool:
    """Whether a layer reads the positions of a sequence, not pixels and not one vector a sample."""
    if linear.op.type in ("Conv", "ConvTranspose"):
        return False
    return len(trace.facts.shapes[linear.input]) > 2 or trace.padding(linear.input, linear.input_axis) is not None


def rows_per_column(trace: Trace, linear: Linear, of_pixels: int, of_tokens: int) -> int:
    """How many rows a column sub-sampling should aim at."""
    if linear.op.type in ("Conv", "ConvTranspose"):
        return of_pixels
    return of_tokens * (PADDED if trace.padding(linear.input, linear.input_axis) else 1)


def _patches(trace: Trace, linear: Linear, source: _Input, window: Window, samples: int) -> Reading:
    """Every column is a channel under one tap; positions are those of the convolution's output."""
    columns = source.labels.repeat(int(np.prod(window.kernel)))
    output = trace.facts.shapes[linear.output]
    lattice = row_strides(output, 1, samples, len(columns), SCARCITY.pixel_rows)
    request = MomentRequest(
        source.tensor,
        source.axis,
        len(output),
        view=View.PATCHES,
        window=window,
        lattice=lattice,
        row_mask=trace.gates.get(linear.input),
    )
    slots = np.arange(len(columns), dtype=np.int64)[None, :]
    return Reading(request, columns, slots, is_exact=True)


def _channels(trace: Trace, linear: Linear, source: _Input, samples: int, is_plain: bool) -> Reading:
    """Every column is a position of the axis, or of a `is_plain` one that is flattened, and has few rows, a unit."""
    shape, axis = source.shape, source.axis
    positions = int(np.prod([n for place, n in enumerate(shape) if place not in (0, axis)]))
    slots = _slots(source.labels) if is_plain else None
    if slots is None or SCARCITY.is_whole(len(source.labels), samples * positions):
        slots = np.arange(len(source.labels), dtype=np.int64)[None, :]
    columns = source.labels[slots[0]]
    flattened = len(slots) > 1
    lattice = row_strides(
        shape, axis, samples, len(columns), rows_per_column(trace, linear, SCARCITY.pixel_rows, SCARCITY.token_rows)
    )
    request = MomentRequest(
        source.tensor,
        axis,
        len(shape),
        slots=tuple(map(tuple, slots.tolist())) if flattened else None,
        lattice=lattice,
        row_mask=trace.row_mask(linear.input, axis),
    )
    kernel = trace.facts.shapes[linear.weight][2:] if linear.op.type in ("Conv", "ConvTranspose") else ()
    is_exact = int(np.prod(kernel)) == 1 and not any(linear.op.attr("pads", []))
    return Reading(request, columns, slots, is_exact, SCARCITY.token_rows if reads_tokens(trace, linear) else 0)


def shows_spread(flow: Flow, linear: Linear, reading: Reading) -> bool:
    """Whether a reading says how far a convolution's output spreads, so that this needn't be measured.

    What is computed from a tensor that is measured costs nothing; a tap before an activation splits what the runtime
    would fuse.
    """
    alone = linear.op.type == "Conv" and flow.residual(flow.bias(linear)[1]) is None
    return alone and reading.is_exact and len(reading.slots) == 1


def total_requests(
    flow: Flow, linears: Iterable[Linear], samples: int, sums: Iterable[Sum] = ()
) -> dict[Linear, MomentRequest]:
    """For every layer the moments of what it is part of: the sum after its residual Add, or its own output."""
    found, joint = {}, {linear: each.total for each in sums for linear in each.layers}
    for linear in linears:
        output = flow.bias(linear)[1]
        residual = flow.residual(output)
        total = joint.get(linear, output if residual is None else residual[0])
        shape, axis = flow.shape(total), linear.output_axis
        is_product = shape[axis] == flow.shape(linear.weight)[linear.out_axis]  # not so where attention follows inside
        if shape[axis] <= WIDEST_TOTAL and is_product:
            lattice = row_strides(shape, axis, samples, shape[axis], per_unit=4, at_least=4)
            mask = flow.trace.row_mask(total, axis)
            found[linear] = MomentRequest(
                total, axis, len(shape), lattice=lattice, row_mask=mask, squares=Squares.ENERGIES
            )
    return found


def _slots(labels: Labels) -> Slots | None:
    """Positions (S, U) of an axis on which each of U labels appears S > 1 times; None for any other axis."""
    unique, first, counts = np.unique(labels, return_index=True, return_counts=True)
    if counts[0] < 2 or not (counts == counts[0]).all():
        return None
    by_label = np.argsort(labels, kind="stable").reshape(len(unique), -1)
    return by_label[np.argsort(first)].T
