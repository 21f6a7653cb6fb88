"""Operators that move positions, make shapes, or make constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from snp_onnx.errors import ModelError
from snp_onnx.recovery.operators.kernel import Factory, Kernel, numbers, refuse, torch_pads, torch_type
from snp_onnx.tracing.op import Op


def _shape(op: Op) -> Kernel:
    start, end = int(op.attr("start", 0)), op.attr("end", None)
    window = slice(start, None if end is None else int(end))
    return lambda x: torch.tensor(list(x.shape)[window], dtype=torch.int64)


def _constant(op: Op) -> Kernel:
    array = op.constant_value()
    if array is None:
        raise refuse(op, "this kind")
    value = as_tensor(array)
    return lambda: value


def as_tensor(array: Any) -> Tensor:
    """A copy of an array, 16-bit floats as float32."""
    if array.dtype.kind in "OSU":
        raise ModelError("the model has constants that are strings: recovery doesn't cover them")
    wide = array.astype("float32") if array.dtype.itemsize == 2 and array.dtype.kind in "fV" else array
    return torch.from_numpy(wide.copy())


def _constant_of_shape(op: Op) -> Kernel:
    given = op.attr("value", None)
    value = as_tensor(numpy_helper.to_array(given)).reshape(()) if given is not None else torch.zeros(())
    return lambda shape: value.expand(numbers(shape)).clone()


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _reshape(op: Op) -> Kernel:
    keeps_zero = bool(op.attr("allowzero", 0))

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = numbers(shape)
        if not keeps_zero:
            wanted = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
        return x.reshape(wanted)

    return run


def _flatten(op: Op) -> Kernel:
    axis = int(op.attr("axis", 1))

    def run(x: Tensor) -> Tensor:
        place = axis % x.ndim if axis < 0 else axis
        rows = int(torch.Size(x.shape[:place]).numel())
        return x.reshape(rows, int(torch.Size(x.shape[place:]).numel()))

    return run


def _transpose(op: Op) -> Kernel:
    order = op.attr("perm", None)
    return lambda x: x.permute(order or list(range(x.ndim))[::-1])


def _squeeze(op: Op) -> Kernel:
    given = list(op.attr("axes", None) or [])

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        places = numbers(axes) or given
        return x.squeeze(places) if places else x.squeeze()

    return run


def _unsqueeze(op: Op) -> Kernel:
    given = list(op.attr("axes", None) or [])

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        places = numbers(axes) or given
        rank = x.ndim + len(places)
        for place in sorted(axis % rank for axis in places):
            x = x.unsqueeze(place)
        return x

    return run


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(numbers(shape))))


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(numbers(repeats))


def _concat(op: Op) -> Kernel:
    axis = int(op.attr("axis", 1))
    return lambda *parts: torch.cat(parts, axis)


def _split(op: Op) -> Kernel:
    axis, given, parts = int(op.attr("axis", 0)), list(op.attr("split", None) or []), len(op.outputs)

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        widths = numbers(sizes) or given
        return torch.split(x, widths or -(-x.shape[axis] // parts), axis)

    return run


def _slice(op: Op) -> Kernel:
    fixed = [list(op.attr(name, None) or []) for name in ("starts", "ends", "axes")]

    def run(x: Tensor, *given: Tensor | None) -> Tensor:
        starts, ends, axes, *rest = [numbers(g) for g in given] + [[]] * (4 - len(given)) if given else [*fixed, []]
        axes, steps = axes or list(range(len(starts))), rest[0] or [1] * len(starts)
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            x = _cut(x, start, end, axis % x.ndim, step)
        return x

    return run


def _cut(x: Tensor, start: int, end: int, axis: int, step: int) -> Tensor:
    first, last, stride = slice(start, end, step).indices(x.shape[axis])
    if step > 0:
        return x[(slice(None),) * axis + (slice(first, max(last, first), stride),)]
    return x.index_select(axis, torch.arange(first, last, stride, device=x.device))


def _pad(op: Op) -> Kernel:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        op.attr("mode", "constant")
    ]
    fixed, fill = list(op.attr("pads", None) or []), float(op.attr("value", 0.0))

    def run(x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        sides = numbers(pads) or fixed
        places = [axis % x.ndim for axis in numbers(axes)] or list(range(x.ndim))
        before, after = [0] * x.ndim, [0] * x.ndim
        for number, axis in enumerate(places):
            before[axis], after[axis] = sides[number], sides[number + len(places)]
        if mode == "constant":
            return F.pad(x, torch_pads(before, after), value=fill if value is None else value.item())
        kept = max(1, x.ndim - 2)  # torch pads the last axes only in these modes
        return F.pad(x, torch_pads(before[-kept:], after[-kept:]), mode=mode)

    return run


def _gather(op: Op) -> Kernel:
    axis = int(op.attr("axis", 0))

    def run(x: Tensor, indices: Tensor) -> Tensor:
        place = axis % x.ndim
        wanted = torch.where(indices < 0, indices + x.shape[place], indices).long()
        if place == 0 and x.ndim == 2 and x.is_floating_point():
            return F.embedding(wanted, x)
        shape = (*x.shape[:place], *indices.shape, *x.shape[place + 1 :])
        return x.index_select(place, wanted.reshape(-1)).reshape(shape)

    return run


def _gather_elements(op: Op) -> Kernel:
    axis = int(op.attr("axis", 0))
    return lambda x, indices: x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def _gather_nd(op: Op) -> Kernel:
    if op.attr("batch_dims", 0):
        raise refuse(op, "batch_dims")
    return lambda x, indices: x[tuple(indices.long().unbind(-1))]


def _scatter_nd(op: Op) -> Kernel:
    if op.attr("reduction", "none") != "none":
        raise refuse(op, "a reduction")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        return x.index_put(tuple(indices.long().unbind(-1)), updates)

    return run


def _scatter_elements(op: Op) -> Kernel:
    axis = int(op.attr("axis", 0))
    if op.attr("reduction", "none") != "none":
        raise refuse(op, "a reduction")

    def run(x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        return x.scatter(axis, torch.where(indices < 0, indices + x.shape[axis], indices).long(), updates)

    return run


def _depth_to_space(op: Op) -> Kernel:
    side, is_column_first = int(op.attr("blocksize", 1)), op.attr("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if is_column_first:
            return F.pixel_shuffle(x, side)
        parts = x.reshape(n, side, side, c // side**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(n, c // side**2, h * side, w * side)

    return run


def _space_to_depth(op: Op) -> Kernel:
    side = int(op.attr("blocksize", 1))
    if op.attr("mode", "DCR") != "DCR":
        raise refuse(op, "this mode")

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        parts = x.reshape(n, c, h // side, side, w // side, side).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * side**2, h // side, w // side)

    return run


def _trilu(op: Op) -> Kernel:
    is_upper = bool(op.attr("upper", 1))

    def run(x: Tensor, k: Tensor | None = None) -> Tensor:
        diagonal = 0 if k is None else int(k)
        return torch.triu(x, diagonal) if is_upper else torch.tril(x, diagonal)

    return run


def _eye_like(op: Op) -> Kernel:
    offset, kind = int(op.attr("k", 0)), op.attr("dtype", None)
    wanted = None if kind is None else torch_type(op, int(kind))

    def run(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], x.shape[1], dtype=wanted or x.dtype, device=x.device)
        return torch.triu(torch.tril(ones, offset), offset)

    return run


def _one_hot(op: Op) -> Kernel:
    axis = int(op.attr("axis", -1))

    def run(indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        wide = F.one_hot(indices.long() % int(depth), int(depth)).bool().movedim(-1, axis)
        return torch.where(wide, values[1], values[0])

    return run


LAYOUT: dict[str, Factory] = {
    "Shape": _shape, "Size": lambda op: lambda x: torch.tensor(x.numel()), "Constant": _constant,
    "ConstantOfShape": _constant_of_shape, "Range": lambda op: _range, "Reshape": _reshape, "Flatten": _flatten,
    "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Expand": lambda op: _expand,
    "Tile": lambda op: _tile, "Concat": _concat, "Split": _split, "Slice": _slice, "Pad": _pad, "Gather": _gather,
    "GatherElements": _gather_elements, "GatherND": _gather_nd, "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements, "Scatter": _scatter_elements,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Trilu": _trilu, "EyeLike": _eye_like,
    "OneHot": _one_hot,
}  # fmt: skip
