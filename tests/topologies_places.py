"""Topologies of operators that read or write at places: by indices, on a grid, in regions, at offsets."""

from __future__ import annotations

import numpy as np

from tests.graphs import Net


def gather_elements(net: Net) -> None:
    """Rows are picked, of every map others."""
    rows = net.const(net.rng.integers(0, 8, (2, 6, 4, 8)))
    net.output(net.conv(net.GatherElements(net.conv_relu(net.image(), 3, 6), rows, axis=2), 6, 4))


def scatter_elements(net: Net) -> None:
    """What one layer gives is written over rows of what another gives; every row is written once."""
    x, updates = net.conv_relu(net.image(), 3, 6), net.conv_relu("x", 3, 6, strides=[2, 1])
    rows = net.const(net.rng.permuted(np.tile(np.arange(8), (2, 6, 8, 1)), axis=3)[..., :4].transpose(0, 1, 3, 2))
    net.output(net.conv(net.ScatterElements(x, rows, updates, axis=2), 6, 4))


def gather_nd(net: Net) -> None:
    """Pixels are picked by pairs of numbers; their channels stay together."""
    pixels = net.Transpose(net.conv_relu(net.image(), 3, 6), perm=[2, 3, 0, 1])
    net.output(net.linear(net.GatherND(pixels, net.const(net.rng.integers(0, 8, (5, 2)))), 6, 4))


def scatter_nd(net: Net) -> None:
    pixels, others = (net.Transpose(net.conv_relu(x, 3, 6), perm=[2, 3, 0, 1]) for x in (net.image(), "x"))
    places = net.const([[0, 1], [3, 4], [7, 7]])
    written = net.ScatterND(pixels, places, net.GatherND(others, places))
    net.output(net.linear(written, 6, 4))


def tensor_scatter(net: Net) -> None:
    cache, update = net.linear(net.input("x", 5, 6), 6, 8), net.linear(net.slice("x", 1, 0, 2), 6, 8)
    net.output(net.linear(net.TensorScatter(cache, update), 8, 4))


def grid_sample(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.conv(net.GridSample(x, net.input("grid", 5, 4, 2), padding_mode="border"), 6, 4))


def roi_align(net: Net) -> None:
    regions = net.const([[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 7.0, 6.0], [2.0, 0.0, 5.0, 8.0]])
    x = net.RoiAlign(net.conv_relu(net.image(), 3, 6), regions, net.const([0, 0, 0]), output_height=3, output_width=2)
    net.output(net.conv(x, 6, 4))


def max_roi_pool(net: Net) -> None:
    regions = net.const([[0.0, 0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 2.0, 7.0, 6.0]])
    net.output(net.conv(net.MaxRoiPool(net.conv_relu(net.image(), 3, 6), regions, pooled_shape=[3, 2]), 6, 4))


def column_to_image(net: Net) -> None:
    columns = net.reshape(net.conv_relu(net.image(), 3, 24), 0, 24, 64)
    image = net.Col2Im(columns, net.const([16, 16]), net.const([2, 2]), strides=[2, 2])
    net.output(net.conv(image, 6, 4))


def deform_conv(net: Net) -> None:
    """Offsets and mask come from layers of their own, as in deformable networks."""
    x = net.conv_relu(net.image(), 3, 6)
    offsets, mask = net.conv("x", 3, 18), net.Sigmoid(net.conv("x", 3, 9))
    y = net.DeformConv(x, net.weight(5, 6, 3, 3, fan_in=54), offsets, net.bias(5), mask, pads=[1, 1, 1, 1])
    net.output(net.conv(net.Relu(y), 5, 4))


def deform_conv_grouped(net: Net) -> None:
    x, offsets = net.conv_relu(net.image(), 3, 6), net.conv("x", 3, 18)
    y = net.DeformConv(x, net.weight(9, 2, 3, 3, fan_in=18), offsets, pads=[1, 1, 1, 1], group=3)
    net.output(net.conv(net.Relu(y), 9, 4))


def offsets_in_groups(net: Net) -> None:
    """Half of the channels have offsets of their own."""
    x, offsets = net.conv_relu(net.image(), 3, 6), net.input("offsets", 36, 8, 8)
    y = net.DeformConv(x, net.weight(5, 6, 3, 3, fan_in=54), offsets, pads=[1, 1, 1, 1], offset_group=2)
    net.output(net.conv(net.Relu(y), 5, 4))


def reversed_in_time(net: Net) -> None:
    x = net.linear(net.input("x", 5, 6), 6, 8)
    net.output(net.linear(net.ReverseSequence(x, net.const([3, 5]), batch_axis=0, time_axis=1), 8, 4))


def cropped_to_the_centre(net: Net) -> None:
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.conv(net.CenterCropPad(x, net.const([5, 12]), axes=[2, 3]), 6, 4))
