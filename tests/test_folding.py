"""What a fold does to biases, shared weights and few rows, where it could do too much."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from snp_onnx.planning.folding import fold
from snp_onnx.planning.options import Choices
from snp_onnx.planning.scarcity import SCARCITY
from snp_onnx.subspace import Order
from snp_onnx.tracing.weights import Weights
from tests.graphs import Net
from tests.oracles import Mask
from tests.test_planning import Planned, folded, planned

Array = npt.NDArray[Any]


def constant_unit(net: Net, x: str, channels: int) -> str:
    """A convolution whose first channel is the constant 1 behind its activation."""
    weight, bias = net.rng.standard_normal((channels, 3, 3, 3)), np.zeros(channels)
    weight[0], bias[0] = 0.0, 1.0
    return net.Relu(net.Conv(x, net.const(weight, "w"), net.const(bias, "b"), pads=[1, 1, 1, 1]))


def affine(found: Planned, alive: Mask, ridge: float = 1e-10) -> Mapping[str, Array]:
    return fold(found.flow, alive, found.statistics, ridge, affine=True).values


def test_a_bias_takes_up_every_position_of_a_flattened_constant() -> None:
    """Few samples: all positions of a unit share a column, and each of them adds its weight to the bias."""
    net = Net(batch="N")
    net.output(net.dense(net.Flatten(constant_unit(net, net.input("x", 3, 4, 4), 5)), 80, 3))
    found = planned(net.model(), samples=20)
    (group,) = found.trace.groups
    assert found.statistics.readings[group.consumers[0]].slots.shape == (16, 5)
    values = affine(found, found.trace.alive([group.labels[:1]]))
    weights = Weights(found.model)
    gain = weights.array("w1").astype(np.float64).reshape(3, 5, 16)[:, 0].sum(axis=1)
    assert np.allclose(values["b1"], weights.array("b1") + gain, atol=1e-4)
    assert np.allclose(values["w1"].reshape(3, 5, 16)[:, 1:], weights.array("w1").reshape(3, 5, 16)[:, 1:], atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "is_exact"),
    [
        (lambda net, x: net.conv(x, 4, 2, k=1), True),
        (lambda net, x: net.Conv(x, net.weight(2, 4, 1, 1, fan_in=4), net.bias(2), pads=[1, 1, 1, 1]), False),
        (lambda net, x: net.transposed(x, 4, 2), False),
    ],
    ids=["pixels", "padded pixels", "windows"],
)
def test_a_bias_takes_up_a_constant_only_where_it_is_one_at_the_borders_too(
    layer: Callable[[Net, str], str], is_exact: bool
) -> None:
    net = Net(batch="N")
    net.output(layer(net, constant_unit(net, net.input("x", 3, 4, 4), 4)))
    found = planned(net.model(), samples=50)
    (group,) = found.trace.groups
    assert found.statistics.readings[group.consumers[0]].is_exact is is_exact
    values = affine(found, found.trace.alive([group.labels[:1]]))
    assert ("b1" in values) is is_exact


def test_a_bias_behind_a_shared_weight_is_left_alone() -> None:
    """One weight for two inputs: what is constant in one of them needn't be so in the other."""
    net = Net(batch="N")
    first, second = (net.Relu(net.dense(net.input(name, 6), 6, 8)) for name in ("a", "b"))
    joined = net.weight(5, 8, fan_in=8)
    outs = [net.op("Gemm", x, joined, net.bias(5), transB=1) for x in (first, second)]
    net.output(*outs, net.dense(net.Add(first, second), 8, 3))
    found = planned(net.model(), samples=200)
    (group,) = found.trace.groups
    values = affine(found, found.trace.alive([group.labels[:3]]))
    assert joined in values
    assert {"b3", "b4"}.isdisjoint(values)
    assert "b5" in values


def test_weights_that_other_nodes_read_too_are_not_folded() -> None:
    net = Net(batch="N")
    hidden = net.Relu(net.dense(net.input("x", 6), 6, 8))
    shared = net.weight(5, 8, fan_in=8)
    scaled = net.MatMul(net.Mul(net.unsqueeze(hidden, 1), shared), net.weight(8, 2, fan_in=8))
    net.output(net.op("Gemm", hidden, shared, transB=1), scaled)
    found = planned(net.model(), samples=100)
    (group,) = found.trace.groups
    folding = fold(found.flow, found.trace.alive([group.labels[:2]]), found.statistics, 1e-6)
    assert set(folding.values) == {"w3"}
    assert folding.unfolded == ("w2: cut without folding: the weight is shared with nodes of another kind",)


def left_alone(net: Net, samples: int) -> tuple[str, ...]:
    """What is said of weights that aren't folded where a unit of the first group goes."""
    found = planned(net.model(), samples)
    alive = found.trace.alive([found.trace.groups[0].labels[:1]])
    return fold(found.flow, alive, found.statistics, 1e-6).unfolded


def test_a_weight_that_is_read_both_ways_is_not_folded() -> None:
    """Once as it is and once transposed: its columns are inputs here and outputs there."""
    net = Net(batch="N")
    square = net.weight(8, 8, fan_in=8)
    for name, trans in (("a", 1), ("b", 0)):
        hidden = net.Relu(net.dense(net.input(name, 6), 6, 8))
        net.output(net.dense(net.Relu(net.op("Gemm", hidden, square, transB=trans)), 8, 3))
    assert "w1: cut without folding: the weight is shared with nodes of another kind" in left_alone(net, 50)


def test_a_weight_for_inputs_that_are_measured_differently_is_not_folded() -> None:
    """A flattened map by unit, for want of rows, and tokens by position."""
    net = Net(batch="N")
    weight = net.weight(80, 3, fan_in=80)
    flat = net.Flatten(net.conv_relu(net.input("a", 3, 4, 4), 3, 5))
    tokens = net.Relu(net.linear(net.input("b", 16, 6), 6, 80))
    net.output(*(net.MatMul(x, weight) for x in (flat, tokens)))
    assert left_alone(net, 20) == (
        "w1: cut without folding: nodes that share the weight read inputs of different layouts",
    )


def test_the_ridge_of_a_fold_is_stronger_where_tokens_are_few() -> None:
    """It is by as much as `caution` says; as published it isn't."""
    net = Net(batch="N")
    net.output(net.linear(net.Relu(net.linear(net.input("x", 3, 6), 6, 8)), 8, 4))
    found = planned(net.model(), samples=12)
    (group,) = found.trace.groups
    alive = found.trace.alive([group.labels[:3]])
    growth = found.statistics.caution(group.consumers)
    assert growth > 5.0
    few, weak = affine(found, alive, 1e-2), folded(found, alive, 1e-2)
    free = replace(found, statistics=replace(found.statistics, scarcity=replace(SCARCITY, most=1.0)))
    strong = affine(free, alive, 1e-2 * growth)
    (name,) = weak.keys()
    assert np.allclose(few[name], strong[name], rtol=1e-4, atol=1e-6)
    assert not np.allclose(few[name], affine(free, alive, 1e-2)[name], atol=1e-3)
    assert np.allclose(weak[name], folded(free, alive, 1e-2)[name])
    slow, plain, stronger = (
        one.paths(Choices(order=Order.OUTPUT, ridge=ridge))[0].errors
        for one, ridge in ((found, 1e-2), (free, 1e-2), (free, 1e-2 * growth))
    )
    assert np.allclose(slow, stronger)
    assert not np.allclose(slow, plain, rtol=1e-3)
