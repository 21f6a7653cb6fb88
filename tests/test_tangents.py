"""Tangents of chains: J D against the derivative of the consumer's output, and Jᵀ against J."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from snp_onnx.calibration.tangents import Region, Tangent
from snp_onnx.planning.windows import window_of
from snp_onnx.tracing.op import Op, ops_of
from tests.graphs import Net, feed_for
from tests.oracles import run, traced

Array = npt.NDArray[Any]


def _relu(net: Net) -> None:
    net.output(net.conv(net.conv_relu(net.image(), 3, 6), 6, 4))


def _strided(net: Net) -> None:
    """Windows that don't fit the map evenly, on both axes differently."""
    x = net.conv_relu(net.image(), 3, 6, strides=[2, 1])
    weight = net.weight(4, 6, 2, 3, fan_in=36)
    net.output(net.op("Conv", x, weight, net.bias(4), strides=[1, 3], pads=[0, 1, 1, 0], dilations=[2, 1]))


def _strided_point(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.op("Conv", x, net.weight(4, 6, 1, 1, fan_in=6), strides=[3, 3]))


def _same(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.op("Conv", x, net.weight(4, 6, 3, 3, fan_in=54), auto_pad="SAME_UPPER", strides=[2, 2]))


def _padded(net: Net) -> None:
    """More zeros on three sides than the window reaches over, without strides."""
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.op("Conv", x, net.weight(4, 6, 2, 3, fan_in=36), pads=[3, 4, 0, 3]))


def _padded_depthwise(net: Net) -> None:
    x = net.Relu(net.conv(net.image(), 3, 6, k=1))
    x = net.op("Conv", x, net.weight(6, 1, 2, 2, fan_in=4), group=6, pads=[2, 1, 1, 4], dilations=[2, 1])
    net.output(net.conv(x, 6, 4, k=1))


def _separable(net: Net) -> None:
    """As in MobileNet: Conv, Clip, depthwise Conv with a stride, Clip, pointwise Conv."""

    def clip(x: str) -> str:
        return net.Clip(x, net.const(np.float32(-0.3)), net.const(np.float32(0.8)))

    x = clip(net.conv(net.image(), 3, 6, k=1))
    x = clip(net.conv(x, 6, 6, group=6, strides=[2, 2]))
    net.output(net.conv(x, 6, 4, k=1))


def _no_bias(net: Net) -> None:
    net.output(net.conv(net.Sigmoid(net.conv(net.image(), 3, 6, bias=False)), 6, 4, bias=False))


def _line(net: Net) -> None:
    x = net.LeakyRelu(net.conv(net.input("x", 3, 11), 3, 6, rank=1), alpha=0.3)
    net.output(net.conv(x, 6, 4, rank=1, strides=[2]))


def _volume(net: Net) -> None:
    x = net.Elu(net.conv(net.input("x", 2, 4, 5, 6), 2, 6, rank=3))
    net.output(net.conv(x, 6, 3, rank=3, strides=[1, 2, 2]))


def _gelu(net: Net) -> None:
    net.output(net.linear(net.Gelu(net.linear(net.input("x", 5, 6), 6, 8)), 8, 3))


def _tanh(net: Net) -> None:
    net.output(net.linear(net.Tanh(net.linear(net.input("x", 5, 6), 6, 8, bias=False)), 8, 3, bias=False))


def _gemm(*trans: bool) -> Callable[[Net], None]:
    def draw(net: Net) -> None:
        net.output(net.dense(net.Softplus(net.dense(net.input("x", 6), 6, 8, trans[0])), 8, 3, trans[1]))

    return draw


def _two_activations(net: Net) -> None:
    x = net.Tanh(net.HardSwish(net.conv(net.image(), 3, 6)))
    net.output(net.conv(net.Neg(net.Identity(x)), 6, 4))


CHAINS: dict[str, tuple[Callable[[Net], None], int]] = {
    "relu": (_relu, 17),
    "relu-opset-9": (_relu, 9),
    "strided": (_strided, 17),
    "strided-point": (_strided_point, 17),
    "same": (_same, 17),
    "padded": (_padded, 17),
    "padded-opset-11": (_padded, 11),
    "padded-depthwise": (_padded_depthwise, 17),
    "separable": (_separable, 17),
    "separable-opset-11": (_separable, 11),
    "no-bias": (_no_bias, 17),
    "line": (_line, 17),
    "volume": (_volume, 17),
    "gelu": (_gelu, 20),
    "tanh": (_tanh, 17),
    "two-activations": (_two_activations, 17),
    "strided-opset-9": (_strided, 9),
    "same-opset-9": (_same, 9),
    "padded-opset-9": (_padded, 9),
    "gemm-opset-9": (_gemm(True, True), 9),
    "line-opset-9": (_line, 9),
    **{f"gemm-{int(a)}{int(b)}": (_gemm(a, b), 17) for a in (False, True) for b in (False, True)},
}
SMOOTH = {"no-bias": 1e-3, "gelu": 1e-3, "tanh": 2e-3, "gemm-00": 1e-3}
"""Chains without a kink, and how far slopes by central differences may be off."""


def shown(model: onnx.ModelProto, *tensors: str) -> onnx.ModelProto:
    """The model with these tensors as its outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    result.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return result


def with_values(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with initialisers added or replaced."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in values]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    result.graph.initializer.extend(numpy_helper.from_array(np.float32(v), name) for name, v in values.items())
    return result


@dataclass(frozen=True, slots=True)
class Case:
    """A chain from the first mixing layer of a model to the last, a direction D, and what it does to z = W x + b."""

    model: onnx.ModelProto
    feed: dict[str, Array]
    tangent: Tangent
    producer: Op
    consumer: Op
    weight: Array
    bias: Array
    moved: Array
    """D x and the change of the bias: how far z goes."""

    def behind(self, shift: float) -> Array:
        """The consumer's output when z goes so many times as far."""
        z, y = self.producer.outputs[0], self.consumer.outputs[0]
        (start,) = run(shown(self.model, z), self.feed)
        rest = shown(self.model, y)
        nodes = [node for node in rest.graph.node if node.output[0] != z]
        del rest.graph.node[:], rest.graph.input[:]
        rest.graph.node.extend(nodes)
        rest.graph.input.append(onnx.helper.make_tensor_value_info(z, onnx.TensorProto.FLOAT, None))
        return run(rest, {z: (start + shift * self.moved).astype(np.float32)})[0].astype(np.float64)

    def tangents(self, u: Array) -> tuple[Array, Array]:
        """J D and Jᵀ u as the nodes give them."""
        moved, back = self.tangent.forward(self.producer), self.tangent.back("u")
        model = shown(self.model, moved, back)
        model.graph.node.extend(self.tangent.nodes)
        model.graph.initializer.extend(self.tangent.constants)
        values = {self.tangent.weight: self.weight, self.tangent.bias: self.bias, "u": u}
        found = run(with_values(model, values), self.feed)
        return found[0].astype(np.float64), found[1].astype(np.float64)


def case(name: str, batch: int = 3) -> Case:
    draw, opset = CHAINS[name]
    net = Net(opset=opset, batch="N", seed=3)
    draw(net)
    model, rng = net.model(), np.random.default_rng(0)
    feed = feed_for(model, batch, seed=5)
    trace = traced(model, feed_for(model, 1))
    linears = {linear.op.outputs[0]: linear for linear in trace.linears}
    producer, *between, consumer = (op for op in ops_of(model) if op.type != "Add")
    links = [op if op.type == "Conv" else Region((op,), op.input(0), op.outputs[0]) for op in between]
    convs = [op.outputs[0] for op in (*between, consumer) if op.type == "Conv"]
    windows = {output: window_of(trace, linears[output]) for output in convs}
    rank = len(trace.facts.shapes[producer.outputs[0]])
    row_axes = [axis for axis in range(rank) if axis != (1 if producer.type == "Conv" else rank - 1)]
    tangent = Tangent("here", links, consumer, windows, row_axes)
    shape = next(tuple(t.dims) for t in model.graph.initializer if t.name == producer.input(1))
    outputs = shape[0 if producer.type == "Conv" or producer.attr("transB", 0) else 1]
    weight, bias = rng.standard_normal(shape), rng.standard_normal(outputs)
    values = {producer.input(1): weight} | ({producer.input(2): np.zeros(outputs)} if producer.input(2) else {})
    (moved,) = run(shown(with_values(model, values), producer.outputs[0]), feed)
    axis = 1 if producer.type == "Conv" else moved.ndim - 1
    moved = moved + bias.reshape([-1 if place == axis else 1 for place in range(moved.ndim)])
    return Case(model, feed, tangent, producer, consumer, weight, bias, moved)


@pytest.mark.parametrize("name", CHAINS)
def test_forward_is_the_derivative_of_the_consumers_output(name: str) -> None:
    found, step = case(name), 2.0**-9
    slope = (found.behind(step) - found.behind(-step)) / (2 * step)
    jd, _ = found.tangents(np.zeros_like(slope))
    assert jd.shape == slope.shape
    assert np.square(slope).mean() > 0.01
    assert np.sqrt(np.square(jd - slope).mean() / np.square(slope).mean()) < SMOOTH.get(name, 0.05)


@pytest.mark.parametrize("name", CHAINS)
def test_back_is_the_adjoint_of_forward(name: str) -> None:
    """<u, J D> = <Jᵀ u, z'>, with z' how far D moves z."""
    found = case(name)
    u = np.random.default_rng(2).standard_normal(found.behind(0.0).shape)
    jd, back = found.tangents(u)
    assert back.shape == found.moved.shape
    scale = np.sqrt(np.square(u).sum() * np.square(jd).sum())
    assert scale > 1.0
    assert abs(float((u * jd).sum() - (back * found.moved).sum())) < 1e-5 * scale
    for axis in range(1, back.ndim):  # nothing else would do
        assert abs(float((u * jd).sum() - (np.roll(back, 1, axis) * found.moved).sum())) > 1e-4 * scale


def slopes_of(z: Array, draw: Callable[[Net, str], str]) -> Array:
    """The slopes at z (n,), the same in both channels, of what is drawn between two layers that change nothing."""
    net = Net(batch="N")
    net.output(net.linear(draw(net, net.linear(net.input("x", 2), 2, 2, bias=False)), 2, 2, bias=False))
    model = with_values(net.model(), {"w1": np.eye(2), "w2": np.eye(2)})
    producer, *links, consumer = (op for op in ops_of(model) if op.type != "Constant")
    region = Region(tuple(links), links[0].input(0), links[-1].outputs[0])
    tangent = Tangent("here", [region], consumer, {}, [0])
    moved = tangent.forward(producer)
    model.graph.node.extend(tangent.nodes)
    model.graph.initializer.extend(tangent.constants)
    model = with_values(model, {tangent.weight: np.zeros((2, 2)), tangent.bias: np.ones(2)})
    feed = {"x": np.repeat(np.float32(z)[:, None], 2, axis=1)}
    return np.asarray(run(shown(model, moved), feed)[0][:, 0], dtype=np.float64)


def test_a_relu_has_its_own_step_and_smooth_slopes_are_central_differences() -> None:
    values = np.array([-2.0, -0.004, 0.0, 0.004, 0.5, 3.0], dtype=np.float32)
    relu, tanh, sigmoid = (
        slopes_of(values, lambda net, x, kind=kind: net.op(kind, x)) for kind in ("Relu", "Tanh", "Sigmoid")
    )
    clip = slopes_of(values, lambda net, x: net.Clip(x, net.const(np.float32(-1.0)), net.const(np.float32(1.0))))
    assert relu.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(tanh, 1 - np.tanh(values) ** 2, atol=2e-3)
    np.testing.assert_allclose(sigmoid, np.exp(-values) / (1 + np.exp(-values)) ** 2, atol=2e-4)
    assert clip.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 1000.0), (1e-4, 0.0), (1e-3, 1.0), (500.0, -1e5)])
def test_slopes_follow_an_offset_and_a_scale(scale: float, offset: float) -> None:
    """An activation that takes both out again: the steps are in units of what varies."""
    values = np.random.default_rng(0).standard_normal(50)

    def draw(net: Net, x: str) -> str:
        return net.Tanh(net.Mul(net.Sub(x, net.const(np.float32(offset))), net.const(np.float32(1 / scale))))

    plain = slopes_of(values, lambda net, x: net.Tanh(x))
    np.testing.assert_allclose(scale * slopes_of(scale * values + offset, draw), plain, atol=1e-2)
    np.testing.assert_allclose(plain, 1 - np.tanh(values) ** 2, atol=2e-3)


def test_slopes_of_channels_that_do_not_vary_are_finite() -> None:
    for value in (0.0, 0.5, 1e4):
        found = slopes_of(np.full(4, value), lambda net, x: net.Sigmoid(x))
        assert np.isfinite(found).all()
    np.testing.assert_allclose(slopes_of(np.full(4, 0.5), lambda net, x: net.Sigmoid(x)), 0.235, atol=1e-2)
