"""Normalisations, softmax, and reductions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from snp_onnx.recovery.operators.kernel import Factory, Kernel, numbers, refuse
from snp_onnx.tracing.op import Op


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Factory:
    """Along one axis; before opset 13 along everything from the axis on."""

    def factory(op: Op) -> Kernel:
        axis, is_flat = int(op.attr("axis", -1 if op.version >= 13 else 1)), op.version < 13

        def run(x: Tensor) -> Tensor:
            return function(x.flatten(axis % x.ndim), -1).reshape(x.shape) if is_flat else function(x, axis)

        return run

    return factory


def layer_norm(op: Op) -> Kernel:
    """ONNX LayerNormalization, with mean and inverse deviation where they are asked for."""
    first, epsilon, wants = int(op.attr("axis", -1)), float(op.attr("epsilon", 1e-5)), len(op.outputs)

    def run(x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        extents = x.shape[first % x.ndim :]
        gain = gain.expand(extents)
        normal = F.layer_norm(x, extents, gain, None if bias is None else bias.expand(extents), epsilon)
        if wants == 1:
            return normal
        axes = list(range(first % x.ndim, x.ndim))
        mean, variance = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        return normal, mean, torch.rsqrt(variance + epsilon)

    return run


def rms(x: Tensor, gain: Tensor, axes: list[int], epsilon: float) -> Tensor:
    """x / root mean square over the axes, times the gain."""
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * gain


def _rms_norm(op: Op) -> Kernel:
    first, epsilon = int(op.attr("axis", -1)), float(op.attr("epsilon", 1e-5))

    def run(x: Tensor, gain: Tensor, *_: Tensor | None) -> Tensor:
        return rms(x, gain, list(range(first % x.ndim, x.ndim)), epsilon)

    return run


def _instance_norm(op: Op) -> Kernel:
    epsilon = float(op.attr("epsilon", 1e-5))
    return lambda x, gain, bias: F.instance_norm(x, weight=gain, bias=bias, eps=epsilon)


def _group_norm(op: Op) -> Kernel:
    """Gain and bias of a group up to opset 20, of a channel from 21 on."""
    groups, epsilon, is_by_group = int(op.attr("num_groups", 1)), float(op.attr("epsilon", 1e-5)), op.version < 21

    def run(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        if is_by_group:
            each = x.shape[1] // groups
            gain, bias = gain.repeat_interleave(each), bias.repeat_interleave(each)
        return F.group_norm(x, groups, gain, bias, epsilon)

    return run


def _lrn(op: Op) -> Kernel:
    size, alpha = int(op.attr("size", 1)), float(op.attr("alpha", 1e-4))
    beta, bias = float(op.attr("beta", 0.75)), float(op.attr("bias", 1.0))

    def run(x: Tensor) -> Tensor:
        flat = x.square().reshape(x.shape[0], 1, x.shape[1], -1)
        padded = F.pad(flat, [0, 0, (size - 1) // 2, size // 2])
        total = F.avg_pool2d(padded, (size, 1), 1) * size
        return x / (bias + alpha / size * total.reshape(x.shape)) ** beta

    return run


def _mean_variance(op: Op) -> Kernel:
    axes = list(op.attr("axes", None) or [0, 2, 3])

    def run(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return run


def _lp_norm(op: Op) -> Kernel:
    axis, power = int(op.attr("axis", -1)), int(op.attr("p", 2))

    def run(x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, power, axis, keepdim=True)
        return torch.where(size == 0, torch.zeros_like(x), x / size)

    return run


def _product(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keeps)
    return x


def _mean(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
    return x.mean(axes, keepdim=keeps) if x.is_floating_point() else x.double().mean(axes, keepdim=keeps).to(x.dtype)


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": _mean,
    "ReduceSum": lambda x, axes, keeps: x.sum(axes, keepdim=keeps, dtype=x.dtype),
    "ReduceMax": lambda x, axes, keeps: x.amax(axes, keepdim=keeps),
    "ReduceMin": lambda x, axes, keeps: x.amin(axes, keepdim=keeps),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keeps: x.abs().sum(axes, keepdim=keeps),
    "ReduceL2": lambda x, axes, keeps: torch.linalg.vector_norm(x, 2, axes, keepdim=keeps),
    "ReduceSumSquare": lambda x, axes, keeps: x.square().sum(axes, keepdim=keeps),
    "ReduceLogSumExp": lambda x, axes, keeps: torch.logsumexp(x, axes, keepdim=keeps),
    "ReduceLogSum": lambda x, axes, keeps: x.sum(axes, keepdim=keeps).log(),
}


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Factory:
    def factory(op: Op) -> Kernel:
        fixed, keeps = list(op.attr("axes", None) or []), bool(op.attr("keepdims", 1))
        does_nothing = bool(op.attr("noop_with_empty_axes", 0))

        def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
            places = numbers(axes) or fixed
            if not places and does_nothing:
                return x
            return function(x, places or list(range(x.ndim)), keeps)

        return run

    return factory


def _arg(function: Callable[..., Tensor]) -> Factory:
    def factory(op: Op) -> Kernel:
        axis, keeps, is_last = int(op.attr("axis", 0)), bool(op.attr("keepdims", 1)), op.attr("select_last_index", 0)

        def run(x: Tensor) -> Tensor:
            found = function(x.flip(axis) if is_last else x, axis, keepdim=keeps)
            return x.shape[axis] - 1 - found if is_last else found

        return run

    return factory


def _top_k(op: Op) -> Kernel:
    axis, is_largest = int(op.attr("axis", -1)), bool(op.attr("largest", 1))

    def run(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Of equal values the first comes first, as in the runtime."""
        values, places = torch.sort(x, dim=axis, descending=is_largest, stable=True)
        return values.narrow(axis, 0, int(k)), places.narrow(axis, 0, int(k))

    return run


def _cumulative(op: Op) -> Kernel:
    is_exclusive, is_reversed = bool(op.attr("exclusive", 0)), bool(op.attr("reverse", 0))

    def run(x: Tensor, axis: Tensor) -> Tensor:
        place = int(axis)
        turned = x.flip(place) if is_reversed else x
        total = turned.cumsum(place, dtype=x.dtype)
        total = total - turned if is_exclusive else total
        return total.flip(place) if is_reversed else total

    return run


def _refused(what: str) -> Factory:
    def factory(op: Op) -> Kernel:
        raise refuse(op, what)

    return factory


NORMALISATION: dict[str, Factory] = {
    "Softmax": _softmax(lambda x, axis: torch.softmax(x, axis)),
    "LogSoftmax": _softmax(lambda x, axis: torch.log_softmax(x, axis)),
    "LayerNormalization": layer_norm,
    "RMSNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LRN": _lrn,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    **{name: _reduction(function) for name, function in _REDUCTIONS.items()},
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "TopK": _top_k,
    "CumSum": _cumulative,
    "QuantizeLinear": _refused("rounding to integers"),
}
