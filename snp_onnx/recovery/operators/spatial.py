"""Pooling and resizing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from snp_onnx.recovery.operators.kernel import Factory, Kernel, numbers, refuse, spatial_pads, torch_pads
from snp_onnx.tracing.op import Op

_MAX: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _windows(op: Op) -> tuple[list[int], list[int], list[int], bool]:
    """Kernel, strides, dilations, and whether a last partial window counts."""
    kernel = list(op.attr("kernel_shape", []))
    strides, dilations = (list(op.attr(name, None) or [1] * len(kernel)) for name in ("strides", "dilations"))
    return kernel, strides, dilations, bool(op.attr("ceil_mode", 0))


def _max_pool(op: Op) -> Kernel:
    kernel, strides, dilations, ceil = _windows(op)
    if len([name for name in op.outputs if name]) > 1:
        raise refuse(op, "the places of the maxima")

    def run(x: Tensor) -> Tensor:
        before, after = spatial_pads(op, x.shape[2:], kernel, strides, dilations)
        if before != after or any(2 * side > k for side, k in zip(before, kernel, strict=True)):
            x, before = F.pad(x, torch_pads(before, after), value=-torch.inf), [0] * len(kernel)
        found: Tensor = _MAX[len(kernel)](x, kernel, strides, before, dilations, ceil)
        return found

    return run


def _average_pool(op: Op) -> Kernel:
    kernel, strides, dilations, ceil = _windows(op)
    counts_pads, pool = bool(op.attr("count_include_pad", 0)), _AVERAGE[len(kernel)]
    if any(step != 1 for step in dilations):
        raise refuse(op, "dilation")

    def run(x: Tensor) -> Tensor:
        before, after = spatial_pads(op, x.shape[2:], kernel, strides, dilations)
        if before == after and all(2 * side <= k for side, k in zip(before, kernel, strict=True)):
            return pool(x, kernel, strides, before, ceil, counts_pads)
        sides = torch_pads(before, after)
        mean = pool(F.pad(x, sides), kernel, strides, 0, ceil, False)
        if counts_pads:
            return mean
        return mean / pool(F.pad(torch.ones_like(x[:1, :1]), sides), kernel, strides, 0, ceil, False)

    return run


def _global(function: Callable[[Tensor, list[int]], Tensor]) -> Factory:
    return lambda op: lambda x: function(x, list(range(2, x.ndim)))


def _mean_over(x: Tensor, axes: list[int]) -> Tensor:
    return x.mean(axes, keepdim=True)


def _max_over(x: Tensor, axes: list[int]) -> Tensor:
    return x.amax(axes, keepdim=True)


def _resize(op: Op) -> Kernel:
    """Separable: along every axis that changes, a weighted sum of positions picked from the input."""
    way = _Way(op)

    def run(x: Tensor, *given: Tensor | None) -> Tensor:
        scales, sizes, axes = way.sides(x, given)
        for axis, scale, size in zip(axes, scales, sizes, strict=True):
            if size != x.shape[axis] or scale != 1.0:
                x = _along(x, axis, *way.taps(x.shape[axis], size, scale))
        return x

    return run


def _along(x: Tensor, axis: int, places: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> Tensor:
    shape = [1] * x.ndim
    shape[axis] = places.shape[1]
    parts = []
    for tap, weight in zip(places, weights, strict=True):
        picked = x.index_select(axis, torch.from_numpy(tap).to(x.device))
        factor = torch.from_numpy(weight).to(x.device, x.dtype).reshape(shape)
        parts.append(picked if (weight == 1).all() else picked * factor)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


class _Way:
    """How a Resize or Upsample node maps positions; ONNX's definition of the operator, axis by axis."""

    def __init__(self, op: Op) -> None:
        self.op = op
        self.mode = op.attr("mode", "nearest")
        self.coordinates = op.attr("coordinate_transformation_mode", "half_pixel" if op.version > 10 else "asymmetric")
        self.rounding = op.attr("nearest_mode", "round_prefer_floor" if op.version > 10 else "floor")
        self.cubic = float(op.attr("cubic_coeff_a", -0.75))
        self.excludes = bool(op.attr("exclude_outside", 0))
        if self.mode not in ("nearest", "linear", "cubic"):
            raise refuse(op, f"mode {self.mode}")
        if self.coordinates not in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
            raise refuse(op, f"coordinates {self.coordinates}")
        if op.attr("antialias", 0) or op.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise refuse(op, "antialiasing, or keeping of the aspect ratio,")

    def sides(self, x: Tensor, given: tuple[Tensor | None, ...]) -> tuple[list[float], list[int], list[int]]:
        """Scales, output extents and axes."""
        places = [given[0], None] if len(given) == 1 else [*given[1:], None][:2]
        axes = [axis % x.ndim for axis in self.op.attr("axes", None) or range(x.ndim)]
        scales = [] if places[0] is None else [float(s) for s in places[0].reshape(-1).tolist()]
        if not given:
            scales = [float(scale) for scale in self.op.attr("scales", None) or []]
        if scales:
            return scales, [int(np.floor(x.shape[a] * s)) for a, s in zip(axes, scales, strict=True)], axes
        sizes = numbers(places[1])
        return [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)], sizes, axes

    def taps(self, extent: int, size: int, scale: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """For every output position the input positions it is made of (taps, size), and their weights."""
        source = self._source(np.arange(size, dtype=np.float64), extent, size, scale)
        if self.mode == "nearest":
            return np.clip(self._rounded(source), 0, extent - 1)[None], np.ones((1, size))
        low = np.floor(source).astype(np.int64)
        ratio = source - low
        if self.mode == "linear":
            places, weights = np.stack([low, low + 1]), np.stack([1 - ratio, ratio])
        else:
            places = np.stack([low + step for step in (-1, 0, 1, 2)])
            weights = _cubic(ratio, self.cubic)
        if self.excludes:
            weights = weights * ((places >= 0) & (places < extent))
            weights = weights / weights.sum(0)
        return np.clip(places, 0, extent - 1), weights

    def _source(self, x: npt.NDArray[np.float64], extent: int, size: int, scale: float) -> npt.NDArray[np.float64]:
        if self.coordinates == "asymmetric":
            return x / scale
        if self.coordinates == "align_corners":
            return x * (extent - 1) / (size - 1) if size > 1 else np.zeros_like(x)
        if self.coordinates == "pytorch_half_pixel" and size == 1:
            return np.zeros_like(x)
        return (x + 0.5) / scale - 0.5

    def _rounded(self, source: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        found = {
            "round_prefer_floor": lambda: np.ceil(source - 0.5),
            "round_prefer_ceil": lambda: np.floor(source + 0.5),
            "floor": lambda: np.floor(source),
            "ceil": lambda: np.ceil(source),
        }[self.rounding]()
        return np.asarray(found, dtype=np.int64)


def _cubic(ratio: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Keys' kernel at the four positions around."""
    outer, inner = ratio + 1, ratio
    first = ((a * outer - 5 * a) * outer + 8 * a) * outer - 4 * a
    second = ((a + 2) * inner - (a + 3)) * inner * inner + 1
    third = ((a + 2) * (1 - inner) - (a + 3)) * (1 - inner) ** 2 + 1
    return np.stack([first, second, third, 1 - first - second - third])


SPATIAL: dict[str, Factory] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global(_mean_over),
    "GlobalMaxPool": _global(_max_over),
    "Resize": _resize,
    "Upsample": _resize,
}
