"""What an operator is to the torch form: a factory that reads a node's attributes once and gives a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from snp_onnx.errors import ModelError
from snp_onnx.tracing.op import Op

Outputs = Tensor | tuple[Tensor | None, ...]
Kernel = Callable[..., Outputs]
"""Takes the node's inputs in order, None where one is left out."""

Factory = Callable[[Op], Kernel]
"""Raises ModelError where the node asks for something that isn't covered."""

FLOAT = torch.float32
TYPES = {
    1: FLOAT, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: FLOAT, 11: torch.float64, 16: FLOAT,
}  # fmt: skip
"""ONNX element types; what a model keeps in 16 bits is computed in float32."""


def refuse(op: Op, what: str) -> ModelError:
    """The error for a node that can't be put into torch."""
    return ModelError(f"node {op.name}: {what} of {op.type} can't be trained through: recovery doesn't cover it")


def torch_type(op: Op, number: int) -> torch.dtype:
    """The torch type of an ONNX element type."""
    if number not in TYPES:
        raise refuse(op, f"element type {number}")
    return TYPES[number]


def numbers(given: Tensor | None) -> list[int]:
    """A vector of sizes or places as Python numbers; empty where it is left out."""
    return [] if given is None else [int(value) for value in given.reshape(-1).tolist()]


def spatial_pads(
    op: Op, extents: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after every spatial axis, by `pads` or `auto_pad`."""
    mode, rank = op.attr("auto_pad", "NOTSET"), len(kernel)
    if mode == "VALID":
        return [0] * rank, [0] * rank
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for extent, k, s, d in zip(extents, kernel, strides, dilations, strict=True):
            total = max((-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent, 0)
            small, large = total // 2, total - total // 2
            before.append(small if mode == "SAME_UPPER" else large)
            after.append(large if mode == "SAME_UPPER" else small)
        return before, after
    pads = list(op.attr("pads", None) or [0] * 2 * rank)
    return pads[:rank], pads[rank:]


def torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The same padding in torch's order: last axis first, both sides together.

    >>> torch_pads([1, 2], [3, 4])
    [2, 4, 1, 3]
    """
    return [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
