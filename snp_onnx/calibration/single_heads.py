"""Single heads: one head's rows of an activation as a tensor of their own, so that moments can be asked of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper


@dataclass(frozen=True, slots=True)
class SingleHead:
    """The place `index` along an axis of a tensor."""

    tensor: str
    axis: int
    index: int

    @property
    def name(self) -> str:
        return f"head{self.index}of{self.axis}::{self.tensor}"


def with_single_heads(model: onnx.ModelProto, heads: Iterable[SingleHead]) -> onnx.ModelProto:
    """A copy of the model with a Gather for every head; the model itself where there is none."""
    wanted = list(dict.fromkeys(heads))
    if not wanted:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for head in wanted:
        place = numpy_helper.from_array(np.array(head.index, dtype=np.int64), f"{head.name}::place")
        result.graph.initializer.append(place)
        result.graph.node.append(helper.make_node("Gather", [head.tensor, place.name], [head.name], axis=head.axis))
    return result
