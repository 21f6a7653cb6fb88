"""Tensors whose size the data decide, between layers: nothing breaks, and what has no common places isn't compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import snp_onnx
from tests.graphs import Net
from tests.oracles import difference, run

Array = npt.NDArray[Any]
Picking = Callable[[Net, str, str], str]
RNG = np.random.default_rng(0)


def twice(net: Net, x: str, cin: int, cout: int) -> str:
    """A layer of which the second half of the units repeats the first, so that half of them can go."""
    half = net.rng.standard_normal((cin, cout // 2)) / np.sqrt(cin)
    return net.Relu(net.MatMul(x, net.const(np.concatenate([half, half], axis=1))))


def above(net: Net, x: str, least: float) -> str:
    """Which rows have a first entry above a number."""
    return net.op("Greater", net.op("Gather", x, net.const(np.array(0)), axis=1), net.const(np.array(least)))


def compressed(net: Net, x: str, h: str) -> str:
    return net.op("Compress", h, above(net, x, 0.0), axis=0)


def hardly_ever(net: Net, x: str, h: str) -> str:
    """Most batches leave nothing."""
    return net.op("Compress", h, above(net, x, 1.5), axis=0)


def by_places(net: Net, x: str, h: str) -> str:
    return net.op("Gather", h, net.reshape(net.op("NonZero", above(net, x, 0.0)), -1), axis=0)


def best_of_as_many(net: Net, x: str, h: str) -> str:
    """TopK of as many rows as the data say."""
    number = net.op("ReduceSum", net.op("Cast", above(net, x, 0.0), to=7), keepdims=0)
    sums = net.op("ReduceSum", x, net.const([1]), keepdims=0)
    _, places = net.ops("TopK", sums, net.reshape(number, 1), outputs=2, axis=0)
    return net.op("Gather", h, places, axis=0)


def without_overlap(net: Net, x: str, h: str) -> str:
    """NonMaxSuppression over the batch, each row a box."""
    boxes, scores = net.unsqueeze(net.Abs(net.slice(x, 1, 0, 4)), 0), net.slice(x, 1, 4, 5)
    scores = net.op("Transpose", net.unsqueeze(net.Sigmoid(scores), 0), perm=[0, 2, 1])
    limits = [net.const([9]), net.const([0.3], dtype=np.float32), net.const([0.4], dtype=np.float32)]
    found = net.op("NonMaxSuppression", boxes, scores, *limits)
    return net.op("Gather", h, net.op("Gather", found, net.const(np.array(2)), axis=1), axis=0)


def different_ones(net: Net, x: str, h: str) -> str:
    """As many as there are different values; they take no part in the layers before."""
    rounded = net.op("Floor", net.op("Gather", x, net.const(np.array(0)), axis=1))
    return net.Mul(net.unsqueeze(net.op("Unique", rounded), 1), net.const(np.ones(8)))


def by_weights(net: Net, x: str, h: str) -> str:
    """What layers give decides what is picked."""
    return net.op("Compress", h, above(net, h, 0.0), axis=0)


ALL = (compressed, hardly_ever, by_places, best_of_as_many, without_overlap, different_ones, by_weights)


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize("pick", ALL)
def test_layers_behind_picked_rows(pick: Picking, preset: str) -> None:
    net = Net(18, "N")
    net.output_rank = 2
    x = net.input("x", 6)
    h = net.MatMul(twice(net, x, 6, 16), net.weight(16, 8, fan_in=16))
    for end in (pick(net, x, h), h):
        net.output(net.MatMul(twice(net, end, 8, 16), net.weight(16, 3, fan_in=16)))
    model = net.model()
    data = RNG.standard_normal((80, 6)).astype(np.float32)
    result = snp_onnx.prune(model, data, target_macs=0.75, preset=preset, ridge=1e-6)
    for rows in (1, 7):
        feed = {"x": RNG.standard_normal((rows, 6)).astype(np.float32)}
        allowed = 0.1 if pick is hardly_ever else 1e-2  # few rows say little of what can go
        assert difference(run(model, feed), run(result.model, feed)) < allowed
    picked, whole = result.report.fidelity
    assert whole.compared == 1.0
    assert whole.error < 1e-2
    is_told = any(f"output {picked.output} is not compared" in text for text in result.report.warnings)
    assert is_told == (picked.compared == 0.0)
    if pick is by_weights:
        assert is_told
