"""Detours: what the layers that stay have to make up for where blocks are gone.

A block that is removed added something to a stream. What comes after it expects the stream as it was behind the block,
so that is what the last layer before it should give: the sum behind the last of the removed blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from snp_onnx.tracing.blocks import Block
from snp_onnx.tracing.flow import Flow

_PASSING = frozenset(("Relu", "Clip", "Identity", "LeakyRelu", "Sigmoid", "HardSwish", "Tanh", "Elu"))
"""Activations between a sum and the tensor in which its block ends."""


@dataclass(frozen=True, slots=True)
class Detour:
    """Tensors whose values differ from the dense model's because blocks are gone, and sums to aim at by old ones."""

    moved: frozenset[str] = frozenset()
    totals: Mapping[str, str] = field(default_factory=dict)

    def total(self, tensor: str) -> str:
        """The dense tensor that a layer should make `tensor` be."""
        return self.totals.get(tensor, tensor)


def detour(flow: Flow, blocks: Iterable[Block]) -> Detour:
    """Of these blocks of a model; `flow` is that of the model with them."""
    removed = list(blocks)
    sums: dict[str, str] = {}
    for block in removed:
        before, behind = _sum(flow, block.input), _sum(flow, block.output)
        if flow.are_alike(before, behind):
            sums[before] = behind
    totals = {}
    for tensor in sums:
        last = tensor
        while last in sums:
            last = sums[last]
        totals[tensor] = last
    return Detour(frozenset(block.output for block in removed), totals)


def _sum(flow: Flow, tensor: str) -> str:
    """The tensor before the activations that end in this one."""
    maker = flow.maker(tensor)
    while maker is not None and maker.is_standard and maker.type in _PASSING and flow.is_sole(maker.input(0)):
        tensor = maker.input(0)
        maker = flow.maker(tensor)
    return tensor
