"""Convolutional topologies: chains, residual streams, concatenations, splits, grouped convolutions, normalisations."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.graphs import Net


def chain(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(x, 6, 4))


def conv_bn_relu(net: Net) -> None:
    x = net.Relu(net.bn(net.conv(net.image(), 3, 8, bias=False), 8))
    x = net.Relu(net.bn(net.conv(x, 8, 6), 6))
    net.output(net.conv(x, 6, 4))


def bn_behind_transposed(net: Net) -> None:
    x = net.Relu(net.bn(net.transposed(net.conv_relu(net.image(), 3, 8), 8, 6, group=2), 6))
    net.output(net.conv(x, 6, 4))


def preactivation(net: Net) -> None:
    stem = net.conv(net.image(), 3, 8)
    x = net.conv_relu(net.Relu(net.bn(stem, 8)), 8, 6)
    net.output(net.conv(net.Relu(net.bn(net.Add(stem, net.conv(x, 6, 8)), 8)), 8, 4))


def residual_identity(net: Net) -> None:
    stem = net.conv_relu(net.image(), 3, 8)
    x = net.conv(net.conv_relu(stem, 8, 6), 6, 8)
    net.output(net.conv(net.Relu(net.Add(x, stem)), 8, 4))


def residual_projection(net: Net) -> None:
    stem = net.conv_relu(net.image(), 3, 8)
    x = net.conv(net.conv_relu(stem, 8, 6, strides=[2, 2]), 6, 12)
    shortcut = net.conv(stem, 8, 12, k=1, strides=[2, 2])
    net.output(net.conv(net.Relu(net.Add(x, shortcut)), 12, 4))


def _strided(net: Net, x: str) -> str:
    return net.slice(net.slice(x, 2, 0, 100, 2), -1, 0, 100, 2)


def option_a(net: Net) -> None:
    stem = net.conv_relu(net.image(), 3, 8)
    shortcut = net.pad(_strided(net, stem), [0, 4, 0, 0, 0, 4, 0, 0])
    x = net.conv(net.conv_relu(stem, 8, 6, strides=[2, 2]), 6, 16)
    net.output(net.conv(net.Relu(net.Add(x, shortcut)), 16, 4))


def option_a_script(net: Net) -> None:
    """The amounts of the Pad as TorchScript computes them from torch's own order."""
    stem = net.conv_relu(net.image(), 3, 8)
    given = net.const([0, 0, 0, 0, 4, 4])
    missing = net.Sub(net.const([8]), net.Unsqueeze(net.Size(given), net.const([0])))
    zeros = net.ConstantOfShape(missing, value=numpy_helper.from_array(np.zeros(1, dtype=np.int64)))
    pairs = net.reshape(net.Cast(net.Concat(given, zeros, axis=0), to=7), -1, 2)
    swapped = net.Transpose(net.slice(pairs, 0, -1, -(2**62), -1), perm=[1, 0])
    pads = net.Cast(net.reshape(swapped, -1), to=7)
    shortcut = net.Pad(_strided(net, stem), pads, net.const(0.0))
    x = net.conv(net.conv_relu(stem, 8, 6, strides=[2, 2]), 6, 16)
    net.output(net.conv(net.Relu(net.Add(x, shortcut)), 16, 4))


def two_heads(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 8)
    net.output(net.conv(x, 8, 4), net.dense(net.Flatten(net.GlobalAveragePool(x)), 8, 5))


def concat(net: Net) -> None:
    x = net.image()
    both = net.Concat(net.conv_relu(x, 3, 6), net.conv_relu(x, 3, 4), axis=-3)
    net.output(net.conv(both, 10, 4))


def concat_with_input(net: Net) -> None:
    x = net.image()
    net.output(net.conv(net.Concat(net.conv_relu(x, 3, 6), x, axis=1), 9, 4))


def dense_net(net: Net) -> None:
    stream = net.conv(net.image(), 3, 6)
    for width in (6, 10):
        x = net.conv(net.Relu(net.bn(stream, width)), width, 4)
        stream = net.Concat(stream, x, axis=1)
    net.output(net.conv(net.Relu(net.bn(stream, 14)), 14, 4))


def split(net: Net) -> None:
    left, right = net.split(net.conv_relu(net.image(), 3, 10), [4, 6], axis=-3)
    net.output(net.conv(net.Concat(net.conv_relu(left, 4, 5), right, axis=1), 11, 4))


def split_equally(net: Net) -> None:
    """No sizes given: the operator divides by the number of its outputs."""
    more = {"num_outputs": 2} if net.opset >= 18 else {}
    left, right = net.ops("Split", net.conv_relu(net.image(), 3, 8), outputs=2, axis=1, **more)
    net.output(net.conv(net.Relu(left), 4, 4), net.conv(right, 4, 3))


def split_gate(net: Net) -> None:
    """Both halves multiply each other (GLU): the same position of each is one unit."""
    left, right = net.split(net.conv(net.image(), 3, 8), [4, 4])
    net.output(net.conv(net.Mul(left, net.Sigmoid(right)), 4, 3))


def split_to_sequence(net: Net) -> None:
    """A sequence of known parts in an optional, two of them read, and a list that is joined again."""
    parts = net.op("SplitToSequence", net.conv_relu(net.image(), 3, 12), net.const([4, 4, 4]), axis=1)
    held = net.op("OptionalGetElement", net.op("Optional", parts))
    first, last = (net.op("SequenceAt", held, net.const(np.array(place))) for place in (0, -1))
    listed = net.op("SequenceInsert", net.op("SequenceConstruct", net.conv_relu(first, 4, 6)), last)
    net.output(net.conv(net.op("ConcatFromSequence", listed, axis=1), 10, 4))


def slice_channels(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 10)
    first, last = net.slice(x, 1, 0, 4), net.slice(x, -3, -6, 2**31 - 1)
    net.output(net.conv(net.Concat(last, first, axis=1), 10, 4))


def slice_overlapping(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 8)
    net.output(net.conv(net.Concat(net.slice(x, 1, 2, 7), x, axis=1), 13, 4))


def gather_channels(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 6)
    picked = net.Gather(x, net.const([5, -5, 3, 3, 0]), axis=-3)
    net.output(net.conv(picked, 5, 4), net.conv(x, 6, 2))


def gather_one_channel(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 6)
    one = net.unsqueeze(net.Gather(x, net.const(-2), axis=1), 1)
    net.output(net.conv(one, 1, 4), net.conv(x, 6, 2))


def slice_one_channel(net: Net) -> None:
    """A window of one channel gates all others: it must not go."""
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.conv(net.Mul(x, net.Sigmoid(net.slice(x, 1, 2, 3))), 6, 4))


def split_one_channel(net: Net) -> None:
    one, rest = net.split(net.conv_relu(net.image(), 3, 6), [1, 5])
    net.output(net.conv(net.Mul(rest, net.Sigmoid(one)), 5, 4))


def gather_repeatedly(net: Net) -> None:
    """One channel, picked six times, then parted: it can't go, because nothing would be left to part."""
    x = net.conv_relu(net.image(), 3, 5)
    many = net.reshape(net.Gather(x, net.const([2] * 6), axis=1), 0, 2, 3, 64)
    net.output(net.reduce("ReduceMax", many, [1, 2]), net.conv(x, 5, 4))


def shuffle_between_groups(net: Net) -> None:
    """Groups of four positions, shuffled into three: between the convolutions all channels are one unit."""
    x = net.Relu(net.conv(net.conv_relu(net.image(), 3, 12, k=1), 12, 12, k=1, group=3))
    apart = net.Transpose(net.reshape(x, 0, 3, 4, 8, 8), perm=[0, 2, 1, 3, 4])
    x = net.Relu(net.conv(net.reshape(apart, 0, 12, 8, 8), 12, 12, k=1, group=3))
    net.output(net.conv(net.conv_relu(x, 12, 6), 6, 4))


def shuffle_net(net: Net) -> None:
    """ShuffleNetV1: whole groups can't go, but the same positions of every group can. Two units, both residual."""
    x = net.conv_relu(net.image(), 3, 12)
    for _ in range(2):
        h = net.Relu(net.conv(x, 12, 18, k=1, group=3))
        apart = net.Transpose(net.reshape(h, 0, 3, 6, 8, 8), perm=[0, 2, 1, 3, 4])
        h = net.conv(net.reshape(apart, 0, 18, 8, 8), 18, 18, group=18)
        x = net.Relu(net.Add(x, net.bn(net.conv(h, 18, 12, k=1, group=3), 12)))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 12, 5))


def shuffle_net_strided(net: Net) -> None:
    """The unit in front of a stage: a pooled shortcut, joined by concatenation."""
    x = net.conv_relu(net.image(), 3, 6)
    h = net.Relu(net.conv(x, 6, 8, k=1, group=2))
    apart = net.Transpose(net.reshape(h, 0, 2, 4, 8, 8), perm=[0, 2, 1, 3, 4])
    h = net.conv(net.reshape(apart, 0, 8, 8, 8), 8, 8, group=8, strides=[2, 2])
    pooled = net.AveragePool(x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1)
    x = net.Relu(net.Concat(pooled, net.conv(h, 8, 10, k=1, group=2), axis=1))
    net.output(net.conv(x, 16, 4))


def grouped_residual(net: Net) -> None:
    """Convolutions of three groups inside a residual sum: positions between them go, without the stream."""
    x = net.conv_relu(net.image(), 3, 12)
    h = net.conv(net.Relu(net.conv(x, 12, 15, group=3)), 15, 12, group=3)
    net.output(net.conv(net.Relu(net.Add(x, h)), 12, 4))


def grouped_at_the_ends(net: Net) -> None:
    """The input and the output stay whole: what lies between loses positions of every group."""
    x = net.Relu(net.conv(net.image(4), 4, 24, group=4))
    net.output(net.conv(x, 24, 8, group=4))


def grouped_in_two(net: Net) -> None:
    """As in AlexNet: of two groups none goes, both lose the same positions."""
    x = net.Relu(net.conv(net.conv_relu(net.image(), 3, 8), 8, 12, group=2))
    net.output(net.conv(net.Relu(net.conv(x, 12, 6, group=2)), 6, 4))


def transposed_in_two(net: Net) -> None:
    x = net.Relu(net.transposed(net.conv_relu(net.image(), 3, 8), 8, 12, group=2))
    net.output(net.conv(x, 12, 4))


def depthwise(net: Net) -> None:
    x = net.Clip(net.bn(net.conv(net.conv_relu(net.image(), 3, 8), 8, 8, group=8), 8), net.const(0.0), net.const(6.0))
    net.output(net.conv(x, 8, 4, k=1))


def depthwise_twofold(net: Net) -> None:
    x = net.Relu(net.conv(net.conv_relu(net.image(), 3, 6), 6, 12, group=6))
    net.output(net.conv(x, 12, 4, k=1))


def grouped(net: Net) -> None:
    x = net.Relu(net.conv(net.conv_relu(net.image(), 3, 8), 8, 12, group=4))
    net.output(net.conv(x, 12, 4))


def shuffle_static(net: Net) -> None:
    x = net.Relu(net.conv(net.conv_relu(net.image(), 3, 12, k=1), 12, 12, k=1, group=3))
    apart = net.Transpose(net.reshape(x, 2, 3, 4, 8, 8), perm=[0, 2, 1, 3, 4])
    x = net.conv(net.reshape(apart, 2, 12, 8, 8), 12, 12, group=12)
    net.output(net.conv(x, 12, 4, k=1))


def shuffle_plain(net: Net) -> None:
    """Two groups between ungrouped convolutions: positions inside a group may go, the same in each."""
    x = net.conv_relu(net.image(), 3, 12, k=1)
    apart = net.Transpose(net.reshape(x, 0, 2, 6, 8, 8), perm=[0, 2, 1, 3, 4])
    net.output(net.conv(net.reshape(apart, 0, -1, 8, 8), 12, 4))


def shuffle_dynamic(net: Net) -> None:
    """Every extent is computed at run time, the width of a group by a division."""
    x = net.Relu(net.conv(net.conv_relu(net.image(), 3, 12, k=1), 12, 12, k=1, group=3))
    batch, channels, height, width = (net.extent(x, axis) for axis in range(4))
    inner = net.Div(channels, net.const([3]))
    apart = net.Reshape(x, net.computed_shape(batch, 3, inner, height, width))
    apart = net.Transpose(apart, perm=[0, 2, 1, 3, 4])
    x = net.Reshape(apart, net.computed_shape(batch, channels, height, width))
    net.output(net.conv(net.conv(x, 12, 12, group=12), 12, 4, k=1))


def shuffle_units(net: Net) -> None:
    """ShuffleNetV2: split, work on one half, join, shuffle; dynamic extents."""
    left, right = net.split(net.conv_relu(net.image(), 3, 12), [6, 6])
    right = net.conv_relu(net.conv(net.conv_relu(right, 6, 6, k=1), 6, 6, group=6), 6, 6, k=1)
    joined = net.Concat(left, right, axis=1)
    batch, channels, height, width = (net.extent(joined, axis) for axis in range(4))
    inner = net.Div(channels, net.const([2]))
    apart = net.Reshape(joined, net.computed_shape(batch, 2, inner, height, width))
    x = net.Reshape(net.Transpose(apart, perm=[0, 2, 1, 3, 4]), net.computed_shape(batch, -1, height, width))
    left, right = net.split(x, [6, 6])
    net.output(net.conv(net.Concat(left, net.conv_relu(right, 6, 6), axis=1), 12, 4))


def transposed(net: Net) -> None:
    x = net.Relu(net.transposed(net.conv_relu(net.image(), 3, 8), 8, 6))
    net.output(net.conv(x, 6, 4))


def transposed_grouped(net: Net) -> None:
    x = net.Relu(net.transposed(net.conv_relu(net.image(), 3, 8), 8, 12, group=4))
    net.output(net.conv(x, 12, 4))


def unet(net: Net) -> None:
    top = net.conv_relu(net.image(), 3, 6)
    deep = net.conv_relu(net.MaxPool(top, kernel_shape=[2, 2], strides=[2, 2]), 6, 10)
    x = net.conv_relu(net.Concat(net.upsample(deep), top, axis=1), 16, 8)
    net.output(net.conv(x, 8, 2, k=1))


def unet_sizes(net: Net) -> None:
    """Resize by sizes: channels by number, then all extents computed, channels included."""
    top = net.conv_relu(net.image(), 3, 6)
    deep = net.conv_relu(net.AveragePool(top, kernel_shape=[2, 2], strides=[2, 2]), 6, 10)
    batch, channels = net.extent(deep, 0), net.extent(deep, 1)
    sizes = net.computed_shape(batch, channels, net.extent(top, 2), net.extent(top, 3))
    fixed = net.computed_shape(batch, 10, 8, 8)
    up = [net.Resize(deep, "", "", given, mode="linear") for given in (sizes, fixed)]
    net.output(net.conv(net.Concat(*up, top, axis=1), 26, 2, k=1))


def unet_transposed(net: Net) -> None:
    top = net.conv_relu(net.image(), 3, 6)
    deep = net.conv_relu(net.MaxPool(top, kernel_shape=[2, 2], strides=[2, 2]), 6, 10)
    x = net.conv_relu(net.Concat(net.transposed(deep, 10, 5), top, axis=1), 11, 8)
    net.output(net.conv(x, 8, 2, k=1))


def se_gate(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 8)
    gate = net.conv(net.Relu(net.conv(net.GlobalAveragePool(x), 8, 4, k=1)), 4, 8, k=1)
    net.output(net.conv(net.Mul(x, net.Sigmoid(gate)), 8, 4))


def se_gate_dense(net: Net) -> None:
    """The gate by two Gemms, its shape rebuilt from the extents of the map."""
    x = net.conv_relu(net.image(), 3, 8)
    flat = net.Reshape(net.GlobalAveragePool(x), net.computed_shape(net.extent(x, 0), net.extent(x, 1)))
    gate = net.Sigmoid(net.dense(net.Relu(net.dense(flat, 8, 4)), 4, 8))
    gate = net.Reshape(gate, net.computed_shape(net.extent(x, 0), net.extent(x, 1), 1, 1))
    net.output(net.conv(net.Mul(x, net.Expand(gate, net.Shape(x))), 8, 4))


def conv_1d(net: Net) -> None:
    x = net.input("x", 3, 12)
    x = net.Relu(net.conv(net.Relu(net.conv(x, 3, 8, rank=1)), 8, 6, rank=1))
    net.output(net.conv(x, 6, 4, rank=1))


def conv_3d(net: Net) -> None:
    x = net.input("x", 2, 4, 4, 4)
    x = net.Relu(net.bn(net.conv(x, 2, 6, rank=3), 6))
    net.output(net.conv(net.Relu(net.conv(x, 6, 6, rank=3, group=6)), 6, 4, rank=3))


def prelu(net: Net) -> None:
    x = net.PRelu(net.conv(net.image(), 3, 8), net.normal(8, 1, 1))
    x = net.PRelu(net.conv(x, 8, 6), net.normal(1))
    net.output(net.conv(x, 6, 4))


def instance_norm(net: Net) -> None:
    x = net.conv(net.image(), 3, 8)
    x = net.Relu(net.InstanceNormalization(x, net.normal(8), net.normal(8)))
    net.output(net.conv(x, 8, 4))


def group_norm(net: Net) -> None:
    """Scale and bias have one entry a group in opset 18, one a channel from 21 on."""
    x, count = net.conv(net.image(), 3, 12), 4 if net.opset < 21 else 12
    x = net.Relu(net.GroupNormalization(x, net.normal(count), net.normal(count), num_groups=4))
    net.output(net.conv(x, 12, 4))


def group_norm_in_parts(net: Net) -> None:
    """As exporters write it: Reshape, InstanceNormalization, Reshape back, Mul, Add."""
    x = net.conv(net.image(), 3, 12)
    apart = net.reshape(x, 0, 4, -1)
    ones, zeros = net.const([1.0] * 4), net.const([0.0] * 4)
    normal = net.Reshape(net.InstanceNormalization(apart, ones, zeros), net.Shape(x))
    scaled = net.Add(net.Mul(normal, net.normal(12, 1, 1)), net.normal(12, 1, 1))
    net.output(net.conv(net.Relu(scaled), 12, 4))


def group_norm_of_one(net: Net) -> None:
    x = net.conv(net.image(), 3, 8)
    count = 1 if net.opset < 21 else 8
    x = net.GroupNormalization(x, net.normal(count), net.normal(count), num_groups=1)
    net.output(net.conv(net.Relu(x), 8, 4))


def layer_norm(net: Net) -> None:
    x = net.linear(net.linear(net.input("x", 5, 6), 6, 8), 8, 10)
    x = net.LayerNormalization(x, net.normal(10), net.normal(10), axis=-1)
    net.output(net.linear(net.Relu(net.linear(x, 10, 7)), 7, 4))


def softmax_channels(net: Net) -> None:
    x = net.Softmax(net.conv(net.conv_relu(net.image(), 3, 8), 8, 6), axis=-3)
    net.output(net.conv(x, 6, 4))


def lrn(net: Net) -> None:
    x = net.LRN(net.conv(net.conv_relu(net.image(), 3, 8), 8, 6), size=3, alpha=2.0)
    net.output(net.conv(x, 6, 4))


def arg_max(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.ArgMax(x, axis=1), net.conv(x, 6, 4))


def pooled_indices(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    pooled, where = net.ops("MaxPool", x, outputs=2, kernel_shape=[2, 2], strides=[2, 2])
    net.output(net.conv(net.Add(pooled, net.Cast(where, to=1)), 6, 4))


def global_pools(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 8)
    both = net.Concat(net.GlobalMaxPool(x), net.GlobalAveragePool(x), axis=1)
    net.output(net.dense(net.squeeze(both, -1, 2), 16, 4))


def weight_at_run_time(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 4)
    weight = net.slice(net.slice(net.conv("x", 3, 4), 2, 0, 3), 3, 0, 3)
    net.output(net.Conv(x, weight))
