"""Operators that work position by position."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snp_onnx.recovery.operators.kernel import Factory, Kernel, refuse, torch_type
from snp_onnx.tracing.op import Op


def plain(function: Callable[..., Any]) -> Factory:
    """An operator without attributes."""
    return lambda op: function


def _with_alpha(function: Callable[[Tensor, float], Tensor], default: float) -> Factory:
    """An activation with one attribute, `alpha`."""

    def factory(op: Op) -> Kernel:
        alpha = float(op.attr("alpha", default))
        return lambda x: function(x, alpha)

    return factory


def _hard_sigmoid(op: Op) -> Kernel:
    alpha, beta = float(op.attr("alpha", 0.2)), float(op.attr("beta", 0.5))
    return lambda x: (alpha * x + beta).clamp(0, 1)


def _gelu(op: Op) -> Kernel:
    form = op.attr("approximate", "none")
    return lambda x: F.gelu(x, approximate=form)


def fast_gelu(op: Op) -> Kernel:
    """com.microsoft FastGelu: the tanh form, with a bias that may be left out."""
    return lambda x, bias=None: F.gelu(x if bias is None else x + bias, approximate="tanh")


def _shrink(op: Op) -> Kernel:
    lambd, bias = float(op.attr("lambd", 0.5)), float(op.attr("bias", 0.0))

    def run(x: Tensor) -> Tensor:
        return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))

    return run


def _selu(op: Op) -> Kernel:
    alpha, gamma = (
        float(op.attr("alpha", 1.67326319217681884765625)),
        float(op.attr("gamma", 1.05070102214813232421875)),
    )
    return lambda x: gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp_max(0)))


def _clip(op: Op) -> Kernel:
    lowest, highest = op.attr("min", None), op.attr("max", None)

    def run(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        bottom = lowest if low is None else low
        top = highest if high is None else high
        x = x if bottom is None else x.clamp_min(bottom)
        return x if top is None else x.clamp_max(top)

    return run


def _cast(op: Op) -> Kernel:
    kind = torch_type(op, int(op.attr("to", 1)))
    return lambda x: x.to(kind)


def _dropout(op: Op) -> Kernel:
    """Nothing is dropped at inference, and recovery trains what inference computes."""
    return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    if b.numel() == 1 and not b.requires_grad and a.is_floating_point():
        return torch.pow(a, float(b)).reshape(np.broadcast_shapes(tuple(a.shape), tuple(b.shape)))
    return torch.pow(a, b).to(a.dtype)


def _modulo(op: Op) -> Kernel:
    return torch.fmod if op.attr("fmod", 0) else torch.remainder


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Factory:
    return lambda op: lambda *values: reduce(function, values)


def _mean(*values: Tensor) -> Tensor:
    return reduce(torch.add, values) / len(values)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _batch_norm(op: Op) -> Kernel:
    """Scale and shift by the statistics in the graph, which stay as they are."""
    if op.attr("training_mode", 0):
        raise refuse(op, "training mode")
    epsilon = float(op.attr("epsilon", 1e-5))

    def run(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, epsilon)

    return run


def _is_inf(op: Op) -> Kernel:
    above, below = bool(op.attr("detect_positive", 1)), bool(op.attr("detect_negative", 1))
    return lambda x: (torch.isposinf(x) & above) | (torch.isneginf(x) & below)


_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Identity": lambda x: x, "IsNaN": torch.isnan,
    "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh, "Mish": F.mish, "HardSwish": F.hardswish,
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divide, "Pow": _power, "PRelu": _prelu,
    "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt,
    "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "Where": torch.where, "Mean": _mean,
}  # fmt: skip

ELEMENTWISE: dict[str, Factory] = {
    **{name: plain(function) for name, function in _PLAIN.items()},
    "Max": _variadic(torch.maximum), "Min": _variadic(torch.minimum), "Sum": _variadic(torch.add),
    "Elu": _with_alpha(F.elu, 1.0), "Celu": _with_alpha(F.celu, 1.0),
    "LeakyRelu": _with_alpha(F.leaky_relu, 0.01),
    "ThresholdedRelu": _with_alpha(lambda x, a: torch.where(x > a, x, torch.zeros_like(x)), 1.0),
    "Swish": _with_alpha(lambda x, a: x * torch.sigmoid(a * x), 1.0),
    "Selu": _selu, "HardSigmoid": _hard_sigmoid, "Gelu": _gelu, "Shrink": _shrink, "Clip": _clip,
    "Cast": _cast, "CastLike": plain(lambda x, like: x.to(like.dtype)), "Dropout": _dropout, "Mod": _modulo,
    "BatchNormalization": _batch_norm, "IsInf": _is_inf,
}  # fmt: skip

FUSED_ELEMENTWISE: dict[str, Factory] = {
    "Gelu": plain(F.gelu),
    "QuickGelu": _with_alpha(lambda x, a: x * torch.sigmoid(a * x), 1.702),
    "BiasGelu": plain(lambda x, bias: F.gelu(x + bias)),
    "FastGelu": fast_gelu,
}
