"""Windows: what of its input a convolution reads for one position of its output."""

from __future__ import annotations

import numpy as np

from snp_onnx.calibration.moments import Window
from snp_onnx.tracing import Linear, Trace

PATCH_COLUMNS = 4608
"""Convolutions with more weights an output than this are read by channel: the Gram of patches would not fit."""


def conv_window(trace: Trace, linear: Linear) -> Window | None:
    """The window of a convolution that reads more than one position or not every one; None for all else."""
    if linear.op.type != "Conv":
        return None
    window = window_of(trace, linear)
    if int(np.prod(window.kernel + window.strides)) == 1:
        return None
    channels = trace.facts.shapes[linear.input][linear.input_axis]
    return window if channels * int(np.prod(window.kernel)) <= PATCH_COLUMNS else None


def window_of(trace: Trace, linear: Linear) -> Window:
    """The window of a convolution, its pads resolved at the traced shapes."""
    shapes, op = trace.facts.shapes, linear.op
    kernel = shapes[linear.weight][2:]
    rank = len(kernel)
    strides = tuple(op.attr("strides", [1] * rank))
    dilations = tuple(op.attr("dilations", [1] * rank))
    pads = tuple(op.attr("pads", [0] * 2 * rank))
    if op.attr("auto_pad", "NOTSET").startswith("SAME"):
        reach = [(out - 1) * s + (k - 1) * d + 1 for out, s, k, d in
                 zip(shapes[linear.output][2:], strides, kernel, dilations, strict=True)]  # fmt: skip
        missing = [max(0, need - extent) for need, extent in zip(reach, shapes[linear.input][2:], strict=True)]
        less, more = tuple(n // 2 for n in missing), tuple(n - n // 2 for n in missing)
        pads = less + more if op.attr("auto_pad", "") == "SAME_UPPER" else more + less
    return Window(kernel, strides, dilations, pads)
