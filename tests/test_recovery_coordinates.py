"""Whitened coordinates: the same weights, and steps as if multiplied by the inverse moments."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graphs import Net, feed_for
from tests.topologies import CATALOGUE
from tests.torch_form import tensors

torch = pytest.importorskip("torch")

from snp_onnx.recovery.coordinates import RIDGE, Coordinates, layers_of  # noqa: E402
from snp_onnx.recovery.graph import GraphModule  # noqa: E402

NAMES = ["residual-projection", "depthwise", "grouped", "flatten-gemm", "separate", "conv-bn-relu", "conv-1d"]


def student(name: str) -> tuple[GraphModule, dict[str, torch.Tensor]]:
    model = CATALOGUE[name].model()
    return GraphModule(model), tensors(feed_for(model, 20))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_the_same_at_the_start(name: str) -> None:
    module, feed = student(name)
    found = Coordinates(module, [feed]).weights()
    assert set(found) == set(module.weights)
    for weight, values in module.weights.items():
        assert found[weight].shape == values.shape
        torch.testing.assert_close(found[weight], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["depthwise", "flatten-gemm", "separate"])
def test_gradients_reach_the_coordinates(name: str) -> None:
    module, feed = student(name)
    coordinates = Coordinates(module, [feed])
    assert len(coordinates.whitened)
    found = module.tensors(feed, weights=coordinates.weights())
    sum(values.square().sum() for values in found.values()).backward()
    assert all(bool((values.grad != 0).any()) for values in coordinates.whitened)


@pytest.mark.parametrize("turned", [True, False])
def test_a_step_is_one_of_the_weights_times_the_inverse_moments(turned: bool) -> None:
    net = Net(batch="N")
    net.output_rank = 2
    net.output(net.dense(net.input("x", 5), 5, 3, trans=turned))
    module = GraphModule(net.model())
    x = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32) * [1, 2, 3, 4, 0.1]
    feed = tensors({"x": x.astype(np.float32)})
    coordinates = Coordinates(module, [feed])
    before = coordinates.weights()
    module.tensors(feed, weights=before)["t1"].square().sum().backward()
    module(feed)["t1"].square().sum().backward()
    with torch.no_grad():
        for values in coordinates.whitened:
            values -= 0.01 * values.grad
    after = coordinates.weights()

    joined = np.concatenate([x, np.ones((40, 1))], 1)
    moments = joined.T @ joined / 40
    energy = moments.diagonal()[:-1]
    ridge = np.diag([*(RIDGE * np.maximum(energy, 1e-3 * energy.mean())), 1e-6])
    weight, bias = (module.weights[name].grad.numpy() for name in ("w1", "b1"))
    gradient = np.concatenate([weight if turned else weight.T, bias[:, None]], 1)
    wanted = -0.01 * gradient @ np.linalg.inv(moments + ridge)
    moved = {name: (after[name] - before[name]).detach().numpy() for name in ("w1", "b1")}
    found = np.concatenate([moved["w1"] if turned else moved["w1"].T, moved["b1"][:, None]], 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_windows_are_those_of_the_convolution() -> None:
    """A layer's product with its rows is the convolution itself, strides, padding, dilation and groups included."""
    net = Net(batch="N")
    x = net.op("Conv", net.image(4), net.weight(6, 2, 3, 3, fan_in=18), net.bias(6), group=2, pads=[1, 2, 0, 1],
               strides=[2, 1], dilations=[1, 2])  # fmt: skip
    net.output(x)
    module = GraphModule(net.model())
    feed = tensors(feed_for(net.model(), 3))
    (layer,) = layers_of(module)
    rows = layer.rows(feed["x"])
    product = torch.einsum("ngi,goi->ngo", rows, layer.matrix(module.weights["w1"])).reshape(len(rows), 6)
    expected = module(feed)[x].movedim(1, -1).reshape(-1, 6)
    torch.testing.assert_close(product + module.weights["b1"], expected, rtol=1e-4, atol=1e-4)


def test_shared_and_very_wide_weights_stay_as_they_are() -> None:
    net = Net(batch="N")
    net.output_rank = 2
    x = net.input("x", 2100)
    shared = net.weight(4, 4, fan_in=4)
    y = net.dense(x, 2100, 4)
    net.output(net.MatMul(net.MatMul(y, shared), shared))
    module = GraphModule(net.model())
    assert layers_of(module) == ()
    coordinates = Coordinates(module, [tensors(feed_for(net.model(), 3))])
    assert set(coordinates.plain) == set(module.weights)


def test_an_input_that_is_never_seen_and_one_that_is_not_finite() -> None:
    net = Net(batch="N")
    net.output_rank = 2
    net.output(net.dense(net.input("x", 5), 5, 3))
    module = GraphModule(net.model())
    silent = Coordinates(module, [tensors({"x": np.zeros((4, 5), np.float32)})])
    torch.testing.assert_close(silent.weights()["w1"], module.weights["w1"])
    broken = Coordinates(module, [tensors({"x": np.full((4, 5), np.nan, np.float32)})])
    assert set(broken.plain) == {"w1", "b1"}


def test_whitening_can_be_left_out() -> None:
    module, feed = student("residual-projection")
    coordinates = Coordinates(module, [feed], whitens=False)
    assert len(coordinates.whitened) == 0
    assert len(coordinates.trained) == len(module.weights)
