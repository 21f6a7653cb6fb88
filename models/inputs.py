"""What a network reads: the name of every input, its axes, and examples to trace it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

DYNAMIC_AXES = ("batch", "sequence")
"""Axes that may vary; `size` is the recipe's own in_size and stays."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input; an axis is a number or a name: batch, sequence, size."""

    name: str
    axes: tuple[str | int, ...]
    below: int = 0
    """Integers from 0 to below this; standard normal numbers where it is 0."""
    is_mask: bool = False
    """Ones, then zeros: every second row has a third of its positions padded."""

    def shape(self, extents: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(extents[axis] if isinstance(axis, str) else axis for axis in self.axes)

    def sample(self, extents: Mapping[str, int], generator: torch.Generator) -> Tensor:
        """An example with the given extents of its named axes."""
        shape = self.shape(extents)
        if self.is_mask:
            mask = torch.ones(shape, dtype=torch.int64)
            mask[1::2, shape[1] - shape[1] // 3 :] = 0
            return mask
        if self.below:
            return torch.randint(0, self.below, shape, generator=generator)
        return torch.randn(shape, generator=generator)

    @property
    def dynamic(self) -> dict[int, str]:
        """The axes that may vary, by place."""
        return {place: axis for place, axis in enumerate(self.axes) if axis in DYNAMIC_AXES and isinstance(axis, str)}


IMAGE = (Input("input", ("batch", 3, "size", "size")),)
FEATURES = (Input("input", ("batch", "size")),)
TOKENS = (Input("input_ids", ("batch", "sequence"), below=50),)  # every vocabulary has fifty
MASKED_TOKENS = (
    *TOKENS,
    Input("attention_mask", ("batch", "sequence"), is_mask=True),
    Input("token_type_ids", ("batch", "sequence"), below=2),
)
MELS = (Input("input_features", ("batch", 80, "size")),)
