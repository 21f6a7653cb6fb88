"""Operators that multiply and add up: products of matrices, convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from snp_onnx.recovery.operators.kernel import Factory, Kernel, spatial_pads, torch_pads
from snp_onnx.tracing.op import Op

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _gemm(op: Op) -> Kernel:
    alpha, beta = float(op.attr("alpha", 1.0)), float(op.attr("beta", 1.0))
    turns_a, turns_b = bool(op.attr("transA", 0)), bool(op.attr("transB", 0))

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        left, right = a.t() if turns_a else a, b.t() if turns_b else b
        if c is None:
            return alpha * (left @ right)
        return torch.addmm(c.expand(left.shape[0], right.shape[1]), left, right, beta=beta, alpha=alpha)

    return run


def fused_matmul(op: Op) -> Kernel:
    """com.microsoft FusedMatMul: both sides transposed in their last two axes, and a factor."""
    alpha = float(op.attr("alpha", 1.0))
    turns = [(bool(op.attr(f"trans{s}", 0)), bool(op.attr(f"transBatch{s}", 0))) for s in "AB"]

    def run(a: Tensor, b: Tensor) -> Tensor:
        left, right = (_turned(x, *turn) for x, turn in zip((a, b), turns, strict=True))
        return alpha * (left @ right)

    return run


def _turned(x: Tensor, last: bool, batch: bool) -> Tensor:
    if batch and x.ndim > 2:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if last and x.ndim > 1 else x


def _einsum(op: Op) -> Kernel:
    equation = op.attr("equation", "").replace(" ", "")
    return lambda *operands: torch.einsum(equation, *operands)


def _conv(op: Op) -> Kernel:
    group = int(op.attr("group", 1))

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        stride, dilation = (list(op_values[key] or [1] * rank) for key in ("strides", "dilations"))
        before, after = spatial_pads(op, x.shape[2:], weight.shape[2:], stride, dilation)
        if before != after:
            x, before = F.pad(x, torch_pads(before, after)), [0] * rank
        return _CONV[rank](x, weight, bias, stride, before, dilation, group)

    op_values: dict[str, Any] = {key: op.attr(key, None) for key in ("strides", "dilations")}
    return run


def _conv_transpose(op: Op) -> Kernel:
    """The full transposed convolution, cut on both sides by the padding."""
    group, wanted = int(op.attr("group", 1)), op.attr("output_shape", None)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rank = weight.ndim - 2
        stride, dilation = (list(op.attr(key, None) or [1] * rank) for key in ("strides", "dilations"))
        extra = list(op.attr("output_padding", None) or [0] * rank)
        before, after = _cuts(op, x, weight, stride, dilation, extra, wanted)
        grown = [max(0, -side) for side in after]  # output padding beyond the cut
        full = _CONV_TRANSPOSE[rank](x, weight, bias, stride, 0, 0, group, dilation)
        full = (
            F.pad(full, torch_pads([0] * rank, grown)) if bias is None or not any(grown) else _grow(full, bias, grown)
        )
        after = [max(0, side) for side in after]
        places = [slice(low, extent - high) for low, high, extent in zip(before, after, full.shape[2:], strict=True)]
        return full[(slice(None), slice(None), *places)]

    return run


def _grow(full: Tensor, bias: Tensor, grown: list[int]) -> Tensor:
    """Positions that no window reaches hold the bias alone."""
    shape = (1, -1, *(1 for _ in grown))
    return F.pad(full - bias.reshape(shape), torch_pads([0] * len(grown), grown)) + bias.reshape(shape)


def _cuts(
    op: Op, x: Tensor, weight: Tensor, stride: list[int], dilation: list[int], extra: list[int], wanted: Any
) -> tuple[list[int], list[int]]:
    """What goes on both sides of every axis of the full output; negative after: positions that are added."""
    rank = len(stride)
    full = [(e - 1) * s + (k - 1) * d + 1 for e, s, k, d in zip(x.shape[2:], stride, weight.shape[2:], dilation,
                                                                 strict=True)]  # fmt: skip
    mode = op.attr("auto_pad", "NOTSET")
    if wanted is None and mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = list(op.attr("pads", None) or [0] * 2 * rank)
        return pads[:rank], [high - more for high, more in zip(pads[rank:], extra, strict=True)]
    sizes = list(wanted)[-rank:] if wanted else [e * s for e, s in zip(x.shape[2:], stride, strict=True)]
    totals = [f + more - size for f, more, size in zip(full, extra, sizes, strict=True)]
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    before = small if mode == "SAME_UPPER" else large
    after = large if mode == "SAME_UPPER" else small
    return before, [high - more for high, more in zip(after, extra, strict=True)]


PRODUCTS: dict[str, Factory] = {
    "Gemm": _gemm,
    "MatMul": lambda op: torch.matmul,
    "Einsum": _einsum,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
}
