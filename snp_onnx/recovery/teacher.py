"""The teacher: the dense model, in torch where its operators are covered, else in the runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx
import torch
from torch import Tensor

from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.errors import ModelError
from snp_onnx.recovery.graph import GraphModule

Teacher = Callable[[Mapping[str, Tensor], Sequence[str]], dict[str, Tensor]]
"""Gives the tensors of these names for a feed, without gradients."""


def teacher_of(dense: onnx.ModelProto, tensors: Sequence[str], device: torch.device, runtime: Runtime) -> Teacher:
    """A teacher that can give any of `tensors`."""
    try:
        module = GraphModule(dense, trains=False).placed(device)
    except ModelError:
        return _in_runtime(dense, tensors, runtime)

    def teach(feed: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        with torch.no_grad():
            return module.tensors(feed, wanted)

    return teach


def _in_runtime(dense: onnx.ModelProto, tensors: Sequence[str], runtime: Runtime) -> Teacher:
    copy = onnx.ModelProto()
    copy.CopyFrom(dense)
    outputs = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in outputs)
    session = open_session(copy, runtime, stays=True)

    def teach(feed: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        device = next(iter(feed.values())).device
        results = run(session, {name: values.cpu().numpy() for name, values in feed.items()})
        return {name: torch.from_numpy(results[name]).to(device) for name in wanted}

    return teach
