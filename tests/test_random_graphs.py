"""Random graphs of the common operators, random legal choices: the cut model is valid and computes what it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snp_onnx.passes import prepare
from tests.graphs import Net, feed_for
from tests.oracles import (
    assert_counts,
    assert_valid,
    cut,
    difference,
    one_kept,
    random_mask,
    run,
    tolerance,
    traced,
    zeroed,
)

WIDTHS = st.sampled_from([4, 6, 8, 12])


@dataclass(frozen=True, slots=True)
class Map:
    """A feature map under construction: its name, channels and side."""

    name: str
    channels: int
    side: int


Step = Callable[[Net, Map, st.DataObject], Map]


def _convolution(net: Net, x: Map, data: st.DataObject) -> Map:
    cout, kernel = data.draw(WIDTHS), data.draw(st.sampled_from([1, 3]))
    y = net.conv(x.name, x.channels, cout, k=kernel, bias=data.draw(st.booleans()))
    return Map(net.Relu(net.bn(y, cout) if data.draw(st.booleans()) else y), cout, x.side)


def _strided(net: Net, x: Map, data: st.DataObject) -> Map:
    if x.side < 4:
        return x
    cout = data.draw(WIDTHS)
    return Map(net.conv_relu(x.name, x.channels, cout, strides=[2, 2]), cout, x.side // 2)


def _residual(net: Net, x: Map, data: st.DataObject) -> Map:
    inner = data.draw(WIDTHS)
    y = net.conv(net.conv_relu(x.name, x.channels, inner), inner, x.channels)
    return Map(net.Relu(net.Add(y, x.name)), x.channels, x.side)


def _joined(net: Net, x: Map, data: st.DataObject) -> Map:
    """A dense connection: the map itself and what a convolution makes of it."""
    growth = data.draw(WIDTHS)
    parts = [x.name, net.conv_relu(x.name, x.channels, growth)]
    order = parts if data.draw(st.booleans()) else parts[::-1]
    return Map(net.Concat(*order, axis=1), x.channels + growth, x.side)


def _parted(net: Net, x: Map, data: st.DataObject) -> Map:
    """Split, work on one part, join in some order."""
    first = data.draw(st.integers(1, x.channels - 1))
    left, right = net.split(x.name, [first, x.channels - first])
    worked = net.conv_relu(left, first, first)
    parts = (worked, right) if data.draw(st.booleans()) else (right, worked)
    return Map(net.Concat(*parts, axis=1), x.channels, x.side)


def _windowed(net: Net, x: Map, data: st.DataObject) -> Map:
    """A window of the channels, then all of them."""
    start = data.draw(st.integers(0, x.channels - 2))
    end = data.draw(st.integers(start + 1, x.channels))
    window = net.slice(x.name, 1, start, end)
    return Map(net.Concat(window, x.name, axis=1), x.channels + end - start, x.side)


def _picked(net: Net, x: Map, data: st.DataObject) -> Map:
    indices = data.draw(st.lists(st.integers(-x.channels, x.channels - 1), min_size=2, max_size=10))
    return Map(net.Gather(x.name, net.const(indices), axis=1), len(indices), x.side)


def _depthwise(net: Net, x: Map, data: st.DataObject) -> Map:
    cout = x.channels * data.draw(st.sampled_from([1, 2]))
    return Map(net.Relu(net.conv(x.name, x.channels, cout, group=x.channels)), cout, x.side)


def _grouped(net: Net, x: Map, data: st.DataObject) -> Map:
    groups = data.draw(st.sampled_from([g for g in (1, 2, 3, 4) if x.channels % g == 0]))
    return Map(net.Relu(net.conv(x.name, x.channels, 3 * groups, group=groups)), 3 * groups, x.side)


def _shuffled(net: Net, x: Map, data: st.DataObject) -> Map:
    groups = data.draw(st.sampled_from([g for g in (1, 2, 3, 4) if x.channels % g == 0]))
    inner, computed = x.channels // groups, data.draw(st.booleans())
    if computed:
        batch, width = net.extent(x.name, 0), net.Div(net.extent(x.name, 1), net.const([groups]))
        apart = net.Reshape(x.name, net.computed_shape(batch, groups, width, x.side, x.side))
    else:
        apart = net.reshape(x.name, -1, groups, inner, x.side, x.side)
    turned = net.Transpose(apart, perm=[0, 2, 1, 3, 4])
    shape = net.computed_shape(net.extent(x.name, 0), net.extent(x.name, 1), x.side, x.side)
    back = net.Reshape(turned, shape) if computed else net.reshape(turned, -1, x.channels, x.side, x.side)
    return Map(back, x.channels, x.side)


def _gated(net: Net, x: Map, data: st.DataObject) -> Map:
    inner = data.draw(WIDTHS)
    pooled = net.reduce("ReduceMean", x.name, [2, -1])
    gate = net.conv(net.conv_relu(pooled, x.channels, inner, k=1), inner, x.channels, k=1)
    return Map(net.Mul(net.Sigmoid(gate), x.name), x.channels, x.side)


def _pooled(net: Net, x: Map, data: st.DataObject) -> Map:
    if x.side < 4:
        return x
    kind = data.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return Map(net.op(kind, x.name, kernel_shape=[2, 2], strides=[2, 2]), x.channels, x.side // 2)


def _upsampled(net: Net, x: Map, data: st.DataObject) -> Map:
    if x.side > 8:
        return x
    if data.draw(st.booleans()):
        return Map(net.upsample(x.name), x.channels, 2 * x.side)
    cout = data.draw(WIDTHS)
    return Map(net.Relu(net.transposed(x.name, x.channels, cout)), cout, 2 * x.side)


def _unshuffled(net: Net, x: Map, data: st.DataObject) -> Map:
    if x.channels % 4 == 0 and x.side < 16:
        mode = data.draw(st.sampled_from(["DCR", "CRD"]))
        return Map(net.DepthToSpace(x.name, blocksize=2, mode=mode), x.channels // 4, 2 * x.side)
    if x.side % 2 == 0 and x.channels < 16:
        return Map(net.SpaceToDepth(x.name, blocksize=2), 4 * x.channels, x.side // 2)
    return x


def _widened(net: Net, x: Map, data: st.DataObject) -> Map:
    """Zero channels on both sides, as an option-A shortcut has them, and something added to all."""
    before, after = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    cout = x.channels + before + after
    padded = net.pad(x.name, [0, before, 0, 0, 0, after, 0, 0])
    return Map(net.Add(net.conv(x.name, x.channels, cout), padded), cout, x.side)


def _normalised(net: Net, x: Map, data: st.DataObject) -> Map:
    kind = data.draw(st.sampled_from(["batch", "instance", "prelu", "softmax"]))
    if kind == "batch":
        return Map(net.bn(x.name, x.channels), x.channels, x.side)
    if kind == "instance" and x.side > 1:
        scale, shift = net.normal(x.channels), net.normal(x.channels)
        return Map(net.InstanceNormalization(x.name, scale, shift, epsilon=0.1), x.channels, x.side)
    if kind == "softmax":
        return Map(net.Softmax(x.name, axis=1), x.channels, x.side)
    return Map(net.PRelu(x.name, net.normal(x.channels, 1, 1)), x.channels, x.side)


STEPS: tuple[Step, ...] = (
    _convolution,
    _strided,
    _residual,
    _joined,
    _parted,
    _windowed,
    _picked,
    _depthwise,
    _grouped,
    _shuffled,
    _gated,
    _pooled,
    _upsampled,
    _unshuffled,
    _widened,
    _normalised,
)


def _head(net: Net, x: Map, data: st.DataObject) -> str:
    kind = data.draw(st.sampled_from(["conv", "pool", "flatten", "matmul"]))
    if kind == "conv":
        return net.conv(x.name, x.channels, 3)
    if kind == "pool":
        return net.dense(net.Flatten(net.GlobalAveragePool(x.name)), x.channels, 3)
    flat = x.channels * x.side**2
    if kind == "flatten":
        hidden = net.Relu(net.dense(net.reshape(x.name, 0, -1), flat, 6, trans=data.draw(st.booleans())))
        return net.dense(hidden, 6, 3, trans=data.draw(st.booleans()))
    return net.linear(net.Reshape(x.name, net.computed_shape(net.extent(x.name, 0), flat)), flat, 3)


def random_model(data: st.DataObject) -> onnx.ModelProto:
    """A stem, three to six steps (kept below 64 channels), one or two heads."""
    net = Net(opset=data.draw(st.sampled_from([13, 17, 20])), batch="N", seed=data.draw(st.integers(0, 99)))
    x = Map(net.conv_relu(net.image(), 3, 8), 8, 8)
    middle = x
    for _ in range(data.draw(st.integers(3, 6))):
        step = data.draw(st.sampled_from(STEPS))
        x = step(net, x, data) if 2 <= x.channels <= 48 else _convolution(net, x, data)
        middle = data.draw(st.sampled_from([middle, x]))
    net.output(_head(net, x, data))
    if data.draw(st.booleans()):
        net.output(_head(net, middle, data))
    return net.model()


# networks of tokens: [batch, 6, features]

TOKENS = 6
FEATURES = st.sampled_from([4, 6, 8, 12])


def _projected(net: Net, x: Map, data: st.DataObject) -> Map:
    cout = data.draw(FEATURES)
    return Map(net.Relu(net.linear(x.name, x.channels, cout, bias=data.draw(st.booleans()))), cout, x.side)


def _fed_forward(net: Net, x: Map, data: st.DataObject) -> Map:
    inner = data.draw(FEATURES)
    y = net.linear(net.Tanh(net.linear(x.name, x.channels, inner)), inner, x.channels)
    return Map(net.Add(x.name, y), x.channels, x.side)


def _gated_linear(net: Net, x: Map, data: st.DataObject) -> Map:
    inner = data.draw(FEATURES)
    both = net.linear(x.name, x.channels, 2 * inner)
    left, right = net.split(both, [inner, inner], axis=-1)
    return Map(net.linear(net.Mul(net.Sigmoid(left), right), inner, x.channels), x.channels, x.side)


def _mixed_tokens(net: Net, x: Map, data: st.DataObject) -> Map:
    if data.draw(st.booleans()):
        mixed = net.MatMul(net.weight(TOKENS, TOKENS, fan_in=TOKENS), x.name)
    else:
        turned = net.Transpose(x.name, perm=[0, 2, 1])
        mixed = net.Transpose(net.linear(net.linear(turned, TOKENS, 5), 5, TOKENS), perm=[0, 2, 1])
    return Map(net.Add(x.name, mixed), x.channels, x.side)


def _attended(net: Net, x: Map, data: st.DataObject) -> Map:
    """Attention in one of the forms it is exported in: apart or fused, shapes by number or computed."""
    heads, each = data.draw(st.sampled_from([2, 3])), data.draw(st.sampled_from([1, 2, 4]))
    width, bias = heads * each, data.draw(st.booleans())
    batch = net.extent(x.name, 0)
    number: tuple[int, int] = data.draw(st.sampled_from([(0, TOKENS), (-1, TOKENS), (0, -1)]))

    def shaped(y: str, *rest: int) -> str:
        if data.draw(st.booleans()):
            return net.Reshape(y, net.computed_shape(batch, TOKENS, *rest))
        return net.reshape(y, *number, *rest)

    form = data.draw(st.sampled_from(["apart", "split", "stacked"]))
    if form == "stacked":
        parts = shaped(net.linear(x.name, x.channels, 3 * width, bias), 3, heads, each)
        parts = net.Transpose(parts, perm=[2, 0, 3, 1, 4])
        q, k, v = (net.Gather(parts, net.const(place), axis=0) for place in range(3))
    else:
        if form == "split":
            three = net.split(net.linear(x.name, x.channels, 3 * width, bias), [width] * 3, axis=2)
        else:
            three = [net.linear(x.name, x.channels, width, bias) for _ in range(3)]
        q, k, v = (net.Transpose(shaped(part, heads, each), perm=[0, 2, 1, 3]) for part in three)
    weights = net.Softmax(net.MatMul(q, net.Transpose(k, perm=[0, 1, 3, 2])), axis=-1)
    joined = shaped(net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3]), width)
    y = net.linear(joined, width, x.channels)
    return Map(net.Add(y, x.name) if data.draw(st.booleans()) else y, x.channels, x.side)


def _normal_tokens(net: Net, x: Map, data: st.DataObject) -> Map:
    gain, shift = net.normal(x.channels), net.normal(x.channels)
    return Map(net.LayerNormalization(x.name, gain, shift, axis=-1, epsilon=0.1), x.channels, x.side)


def _rows(net: Net, x: Map, data: st.DataObject) -> Map:
    """Tokens as rows of one matrix, through a Gemm, and back."""
    cout = data.draw(FEATURES)
    rows = net.dense(net.reshape(x.name, -1, x.channels), x.channels, cout, trans=data.draw(st.booleans()))
    return Map(net.Reshape(net.Relu(rows), net.computed_shape(net.extent(x.name, 0), TOKENS, cout)), cout, x.side)


def _positioned(net: Net, x: Map, data: st.DataObject) -> Map:
    learned = net.normal(TOKENS, x.channels) if data.draw(st.booleans()) else net.normal(1, 1, x.channels)
    return Map(net.Add(x.name, net.Mul(learned, net.const(0.5))), x.channels, x.side)


def _regrouped(net: Net, x: Map, data: st.DataObject) -> Map:
    """Features parted in two axes, one of them reduced or turned, and joined again."""
    if x.channels % 2:
        return x
    apart = net.reshape(x.name, 0, 0, 2, x.channels // 2)
    if data.draw(st.booleans()):
        return Map(net.reduce("ReduceMax", apart, [2], keepdims=0), x.channels // 2, x.side)
    turned = net.Transpose(apart, perm=[0, 1, 3, 2])
    return Map(net.reshape(turned, 0, 0, x.channels), x.channels, x.side)


TOKEN_STEPS: tuple[Step, ...] = (
    _projected,
    _fed_forward,
    _gated_linear,
    _mixed_tokens,
    _attended,
    _attended,
    _normal_tokens,
    _rows,
    _positioned,
    _regrouped,
)


def random_token_model(data: st.DataObject) -> onnx.ModelProto:
    """An embedding, two to five steps, one head."""
    net = Net(opset=data.draw(st.sampled_from([17, 20])), batch="N", seed=data.draw(st.integers(0, 99)))
    x = Map(net.linear(net.input("x", TOKENS, 5), 5, 8), 8, 1)
    for _ in range(data.draw(st.integers(2, 5))):
        x = data.draw(st.sampled_from(TOKEN_STEPS))(net, x, data)
    net.output(net.linear(x.name, x.channels, 3))
    return net.model()


UNHURRIED = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def assert_cut_rightly(source: onnx.ModelProto, seed: int) -> None:
    """Oracles (a), (c), (e), (f) and (g) for two random choices."""
    before = source.SerializeToString()
    prepared = prepare(source).model
    trace = traced(prepared, feed_for(source, batch=1))
    feed = feed_for(source, batch=2)
    dense = run(source, feed)
    assert difference(dense, run(prepared, feed)) <= tolerance(dense)
    for mask in (random_mask(trace, np.random.default_rng(seed)), one_kept(trace)):
        if mask.all():
            continue
        result = cut(prepared, trace, mask)
        expected = run(zeroed(prepared, trace, mask), feed)
        assert difference(expected, run(result, feed)) <= 4 * tolerance(expected)
        assert_valid(result, feed)
        assert_counts(prepared, trace, mask, result, feed_for(source, batch=1))
    assert source.SerializeToString() == before


@settings(UNHURRIED, max_examples=250)
@given(data=st.data())
def test_random_convolutional_graphs_are_cut_rightly(data: st.DataObject) -> None:
    assert_cut_rightly(random_model(data), data.draw(st.integers(0, 99)))


@settings(UNHURRIED, max_examples=150)
@given(data=st.data())
def test_random_token_graphs_are_cut_rightly(data: st.DataObject) -> None:
    assert_cut_rightly(random_token_model(data), data.draw(st.integers(0, 99)))
