"""The torch form of a graph beside what the runtime computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]


def tensors(feed: Mapping[str, Array]) -> dict[str, Tensor]:
    """The feed as torch takes it."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in feed.items()}


def torch_outputs(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """The outputs in their order, computed by the torch form."""
    import torch

    from snp_onnx.recovery.graph import GraphModule

    module = GraphModule(model)
    with torch.no_grad():
        results = module(tensors(feed))
    return [np.asarray(results[value.name].numpy()) for value in model.graph.output]


def assert_close(found: list[Array], wanted: list[Array], tolerance: float = 1e-4) -> None:
    """Equal up to a tolerance relative to each output's largest entry."""
    assert [np.shape(x) for x in found] == [np.shape(x) for x in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        theirs = np.asarray(theirs, dtype=np.float64)
        scale = float(np.abs(theirs).max(initial=0.0))
        np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol=tolerance, atol=tolerance * scale)
