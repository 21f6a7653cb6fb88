"""One small model with data and options for every kind of plan, and the same network as another exporter names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx

import snp_onnx
from snp_onnx.verbs.result import PruneResult
from tests import command_line, streams
from tests.graphs import Array, Net
from tests.test_depth import network
from tests.topologies import CATALOGUE

ROWS = 64


@dataclass(frozen=True, slots=True)
class Case:
    """How a plan of one kind comes about; heads are from a layer of attention with a feed-forward behind it."""

    units: tuple[str, ...]
    target: str = "target_macs"
    share: float = 0.7

    def model(self, seed: int = 0) -> onnx.ModelProto:
        if "blocks" in self.units:
            return network(quiet=True, seed=seed)
        if "stream" in self.units:
            net = Net(17, batch="n", seed=seed)
            streams.pre_norm(net, streams.layer_norm)
            return net.model()
        if "heads" in self.units or "head-dims" in self.units:
            return reseeded(CATALOGUE["separate"].model("N"), seed)
        return command_line.small(seed=seed)

    def data(self) -> dict[str, Array]:
        rng = np.random.default_rng(5)
        (given, *_) = self.model().graph.input
        if given.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            return {given.name: rng.integers(0, streams.WORDS, (ROWS, streams.LENGTH))}
        shape = [axis.dim_value for axis in given.type.tensor_type.shape.dim][1:]
        return {given.name: rng.standard_normal((ROWS, *shape)).astype(np.float32)}

    def options(self, preset: str = "fast") -> Mapping[str, Any]:
        return {self.target: self.share, "units": self.units, "preset": preset}

    def prune(self, seed: int = 0, preset: str = "fast") -> PruneResult:
        return snp_onnx.prune(self.model(seed), self.data(), **self.options(preset))


CASES: Mapping[str, Case] = {
    "channels": Case(("channels",)),
    "heads": Case(("channels", "heads")),
    "head-dims": Case(("channels", "head-dims")),
    "stream": Case(("channels", "stream")),
    "blocks": Case(("channels", "blocks"), share=0.5),
    "latency": Case(("channels",), "target_latency", 1.0),
}


@cache
def pruned(name: str) -> PruneResult:
    """The case's result, made once."""
    return CASES[name].prune()


def reseeded(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same network with other weights."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer if seed else ():
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            drawn = array.std() * rng.standard_normal(array.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(drawn.astype(np.float32), tensor.name))
    return model


def renumbered(model: onnx.ModelProto, first: int = 100) -> onnx.ModelProto:
    """The same network with numbers in place of the names of its weights and nodes, as some exporters write them."""
    names = {tensor.name: f"onnx::W_{first + place}" for place, tensor in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for place, node in enumerate(model.graph.node):
        node.name = f"/node/{first + place}"
        node.input[:] = [names.get(name, name) for name in node.input]
    return model
