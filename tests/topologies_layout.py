"""Topologies that rearrange axes: flattening, pixel shuffles, matrix products, reductions, broadcasting, extents."""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper

from tests.graphs import Net


def pixel_shuffle(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 6), 6, 16)
    net.output(net.conv(net.DepthToSpace(x, blocksize=2), 4, 3))


def pixel_shuffle_crd(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 6), 6, 16)
    net.output(net.conv(net.DepthToSpace(x, blocksize=2, mode="CRD"), 4, 3))


def pixel_shuffle_in_parts(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 6), 6, 16)
    apart = net.Transpose(net.reshape(x, -1, 4, 2, 2, 8, 8), perm=[0, 1, 4, 2, 5, 3])
    net.output(net.conv(net.reshape(apart, -1, 4, 16, 16), 4, 3))


def space_to_depth(net: Net) -> None:
    x = net.SpaceToDepth(net.conv_relu(net.image(), 3, 6), blocksize=2)
    net.output(net.conv(x, 24, 3))


def flatten_gemm(net: Net) -> None:
    x = net.Flatten(net.conv_relu(net.image(), 3, 6), axis=-3)
    net.output(net.dense(net.Relu(net.dense(x, 384, 10)), 10, 4))


def flatten_gemm_plain(net: Net) -> None:
    x = net.Flatten(net.conv_relu(net.image(), 3, 6))
    net.output(net.dense(net.Relu(net.dense(x, 384, 10, trans=False)), 10, 4, trans=False, bias=False))


def flatten_nhwc(net: Net) -> None:
    x = net.Transpose(net.conv_relu(net.image(), 3, 6), perm=[0, 2, 3, 1])
    net.output(net.dense(net.Flatten(x), 384, 4))


def flatten_copying(net: Net) -> None:
    x = net.reshape(net.conv_relu(net.image(), 3, 6), 0, -1)
    net.output(net.dense(x, 384, 4))


def flatten_by_number(net: Net) -> None:
    x = net.reshape(net.conv_relu(net.image(), 3, 6), -1, 384)
    net.output(net.dense(x, 384, 4))


def flatten_computed(net: Net) -> None:
    """The flat extent is the product of computed extents."""
    x = net.conv_relu(net.image(), 3, 6)
    batch, channels, height, width = (net.extent(x, axis) for axis in range(4))
    flat = net.Mul(net.Mul(channels, height), width)
    net.output(net.dense(net.Reshape(x, net.computed_shape(batch, flat)), 384, 4))


def flatten_by_batch(net: Net) -> None:
    """TorchScript's `view(x.size(0), 384)`: the batch is computed, the flat extent a number."""
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.dense(net.Reshape(x, net.computed_shape(net.extent(x, 0), 384)), 384, 4))


def rows_of_positions(net: Net) -> None:
    """NHWC positions become rows of a matrix; the extent of the rows is batch times positions."""
    x = net.Transpose(net.conv_relu(net.image(), 3, 6), perm=[0, 2, 3, 1])
    rows = net.dense(net.reshape(x, -1, 6), 6, 5)
    back = net.Reshape(net.Relu(rows), net.computed_shape(net.extent(x, 0), 8, 8, 5))
    net.output(net.dense(net.reshape(back, -1, 5), 5, 4))


def matmul_bias(net: Net) -> None:
    x = net.Relu(net.linear(net.input("x", 5, 6), 6, 8))
    net.output(net.linear(net.Relu(net.linear(x, 8, 10, bias=False)), 10, 4))


def matmul_left(net: Net) -> None:
    """MLP-Mixer: a constant on the left mixes positions, one on the right features."""
    x = net.linear(net.input("x", 5, 6), 6, 8)
    mixed = net.Relu(net.MatMul(net.weight(7, 5, fan_in=5), x))
    mixed = net.MatMul(net.weight(5, 7, fan_in=7), mixed)
    net.output(net.linear(net.Add(mixed, x), 8, 4))


def matmul_vector(net: Net) -> None:
    x = net.Relu(net.linear(net.input("x", 5, 6), 6, 8))
    net.output(net.MatMul(x, net.normal(8)))


def gemm_transposed_input(net: Net) -> None:
    """transA: the features are rows; then the constant is the left operand."""
    x = net.Relu(net.dense(net.input("x", 6, batched=True), 6, 8))
    turned = net.Transpose(x, perm=[1, 0])
    y = net.Gemm(turned, net.weight(8, 5, fan_in=8), net.bias(5), transA=1)
    left = net.Gemm(net.weight(4, 5, fan_in=5), net.Relu(y), transB=1, alpha=0.5)
    net.output(left)


def gemm_bias_row(net: Net) -> None:
    x = net.Relu(net.Gemm(net.input("x", 6), net.weight(6, 8, fan_in=6), net.normal(1, 8), beta=0.5))
    net.output(net.Gemm(x, net.weight(8, 4, fan_in=8), net.normal(1)))


def learned_row(net: Net) -> None:
    """A learned row, repeated by Expand and Tile, joins the stream."""
    x = net.linear(net.input("x", 5, 6), 6, 8)
    batch = net.extent(x, 0)
    token = net.Expand(net.normal(1, 1, 8), net.computed_shape(batch, 1, 8))
    more = net.Tile(net.normal(1, 1, 8), net.computed_shape(batch, 2, 1))
    net.output(net.linear(net.Concat(token, x, more, axis=1), 8, 4))


def expand_channels(net: Net) -> None:
    """One channel is repeated to the width of the map: whatever reads it decides how many are needed."""
    x = net.conv_relu(net.image(), 3, 8)
    one = net.Sigmoid(net.conv("x", 3, 1))
    wide = net.Expand(one, net.const([1, 8, 1, 1]))
    wider = net.Tile(one, net.const([1, 8, 1, 1]))
    net.output(net.conv(net.Mul(net.Mul(x, wide), wider), 8, 4))


def tile_channels(net: Net) -> None:
    x = net.Tile(net.conv_relu(net.image(), 3, 4), net.const([1, 3, 1, 1]))
    net.output(net.conv(x, 12, 4))


def unsqueezed(net: Net) -> None:
    x = net.squeeze(net.unsqueeze(net.conv_relu(net.image(), 3, 6), -2, 0), 0, -2)
    net.output(net.conv(x, 6, 4))


def squeeze_everything(net: Net) -> None:
    """A Squeeze without axes would drop an axis that is cut to one position."""
    x = net.GlobalAveragePool(net.conv_relu(net.conv_relu(net.image(), 3, 6), 6, 5))
    net.output(net.MatMul(net.Squeeze(x), net.weight(5, 4, fan_in=5)))


def mean_kept(net: Net) -> None:
    x = net.reduce("ReduceMean", net.conv_relu(net.image(), 3, 6), [-1, 2])
    net.output(net.conv(x, 6, 4, k=1))


def mean_dropped(net: Net) -> None:
    x = net.reduce("ReduceMean", net.conv_relu(net.image(), 3, 6), [2, -1], keepdims=0)
    net.output(net.dense(x, 6, 4))


def sum_dropped(net: Net) -> None:
    x = net.reduce("ReduceSum", net.conv_relu(net.image(), 3, 6), [-1, -2], keepdims=0)
    net.output(net.dense(x, 6, 4))


def mean_of_channels(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(net.Mul(x, net.reduce("ReduceMean", x, [-3])), 6, 4))


def pointwise(net: Net) -> None:
    """Where, Clip, Pow, Min, Max, with constants along channels and scalars."""
    x = net.conv(net.image(), 3, 8)
    x = net.Where(net.Greater(x, net.const(0.0)), x, net.Mul(x, net.normal(8, 1, 1)))
    x = net.Min(net.Max(x, net.normal(1, 8, 1, 1, shift=-1.0)), net.const(3.0))
    x = net.Pow(net.Clip(x, net.const(-1.0), net.const(2.0)), net.const(2.0))
    net.output(net.conv(x, 8, 4))


def gelu_in_parts(net: Net) -> None:
    x = net.linear(net.input("x", 5, 6), 6, 8)
    erf = net.Add(net.Erf(net.Div(x, net.const(1.4142135))), net.const(1.0))
    net.output(net.linear(net.Mul(net.Mul(x, erf), net.const(0.5)), 8, 4))


def extent_as_number(net: Net) -> None:
    """A map divided by the square root of its own width."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    width = net.Sqrt(net.Cast(net.extent(x, 1), to=net.element_type))
    net.output(net.conv(net.Div(x, width), 6, 4))


def extent_as_output(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(x, 6, 4), net.Shape(x))


def one_channel(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 1), 1, 6)
    net.output(net.conv(x, 6, 4))


def slice_at_run_time(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    end = net.input("end", 1, dtype="int64", batched=False)
    gone = net.Slice(x, net.const([0]), end, net.const([1]))
    net.output(net.conv(net.Mul(x, net.reduce("ReduceSum", gone, [1])), 6, 4))


def pad_at_run_time(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    pads = net.Mul(net.input("end", 1, dtype="int64", batched=False), net.const([0, 0, 1, 1, 0, 0, 1, 1]))
    net.output(net.conv(net.Pad(x, pads), 6, 4))


def reshape_at_run_time(net: Net) -> None:
    """A shape that the caller gives: nothing may be assumed of its entries."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    shape = net.Concat(
        net.const([-1, 6, 8]), net.Mul(net.input("end", 1, dtype="int64", batched=False), net.const([8])), axis=0
    )
    net.output(net.conv(net.Reshape(x, shape), 6, 4))


def pad_reflecting(net: Net) -> None:
    x = net.Pad(net.conv_relu(net.image(), 3, 8), net.const([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
    net.output(net.conv(x, 8, 4))


def pad_channels_reflecting(net: Net) -> None:
    """The first and the last channel again, as their neighbours are: no unit of its own."""
    x = net.Pad(net.conv_relu(net.image(), 3, 8), net.const([0, 1, 0, 0, 0, 1, 0, 0]), mode="reflect")
    net.output(net.conv(x, 10, 4))


def gather_by_matrix(net: Net) -> None:
    x = net.Gather(net.conv_relu(net.image(), 3, 8), net.const([[0, 1], [2, 3], [4, 7]]), axis=1)
    net.output(net.conv(net.reshape(x, -1, 6, 8, 8), 6, 4))


def reduce_nothing(net: Net) -> None:
    """A reduction that names no axes and is told to leave its input alone then."""
    x = net.ReduceSum(net.conv_relu(net.image(), 3, 8), noop_with_empty_axes=1)
    net.output(net.conv(x, 8, 4))


def resize_named_axes(net: Net) -> None:
    """Sizes of some axes only, the channels among them."""
    x = net.Resize(net.conv_relu(net.image(), 3, 8), "", "", net.const([8, 16, 12]), axes=[1, 2, 3])
    net.output(net.conv(x, 8, 4))


def resize_at_run_time(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    sizes = net.Mul(net.input("end", 1, dtype="int64", batched=False), net.const([16, 12]))
    net.output(net.conv(net.Resize(x, "", "", sizes, axes=[2, 3]), 6, 4))


def reshape_allowing_zeros(net: Net) -> None:
    """A shape in which 0 would be an extent, and no entry is 0."""
    x = net.Reshape(net.conv_relu(net.image(), 3, 8), net.const([-1, 8, 64]), allowzero=1)
    net.output(net.conv(x, 8, 4, rank=1))


def crop_channels(net: Net) -> None:
    """Negative amounts of a Pad crop."""
    x = net.conv_relu(net.image(), 3, 8)
    net.output(net.conv(net.pad(x, [0, -2, 0, 0, 0, -1, 0, 0]), 5, 4), net.conv(x, 8, 3))


def sliced_with_step(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(net.slice(x, 1, 0, 6, 2), 3, 4))


def cumulated(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(net.CumSum(x, net.const(1)), 6, 4))


def batch_as_channels(net: Net) -> None:
    """Batch and channels merged (an extent computed as their product), spatial work, and back."""
    x = net.conv_relu(net.image(), 3, 6)
    batch, channels = net.extent(x, 0), net.extent(x, 1)
    merged = net.Reshape(x, net.computed_shape(net.Mul(batch, channels), 1, 8, 8))
    blurred = net.conv(merged, 1, 1)
    back = net.Reshape(blurred, net.computed_shape(batch, channels, 8, 8))
    net.output(net.conv(back, 6, 4))


def batch_times_width(net: Net) -> None:
    """The same with the width as a number: the entry can't be corrected by a number when the batch is dynamic."""
    x = net.conv_relu(net.image(), 3, 6)
    batch = net.extent(x, 0)
    merged = net.Reshape(x, net.computed_shape(net.Mul(batch, net.const([6])), 1, 8, 8))
    back = net.Reshape(net.conv(merged, 1, 1), net.computed_shape(batch, 6, 8, 8))
    net.output(net.conv(back, 6, 4))


def pad_by_axes(net: Net) -> None:
    """The amounts name one axis only; what is added joins a stream."""
    x = net.conv_relu(net.image(), 3, 5)
    wide = net.Pad(x, net.const([1, 2]), "", net.const([-3]))
    net.output(net.conv(net.Add(net.conv(x, 5, 8), wide), 8, 4))


def slice_by_half(net: Net) -> None:
    """Bounds computed from the extent of the axis that they cut."""
    x = net.conv_relu(net.image(), 3, 8)
    half = net.Div(net.extent(x, 1), net.const([2]))
    left = net.Slice(x, net.const([0]), half, net.const([1]))
    right = net.Slice(x, half, net.extent(x, 1), net.const([1]))
    net.output(net.conv(net.Mul(net.Relu(left), net.Sigmoid(right)), 4, 3))


def split_by_half(net: Net) -> None:
    """torch.chunk as exported: sizes from the extent, the second by what is left."""
    x = net.conv_relu(net.image(), 3, 8)
    half = net.Div(net.extent(x, 1), net.const([2]))
    rest = net.Sub(net.extent(x, 1), half)
    left, right = net.ops("Split", x, net.Concat(half, rest, axis=0), outputs=2, axis=1)
    net.output(net.conv(net.Concat(right, net.conv_relu(left, 4, 4), axis=1), 8, 3))


def expand_script(net: Net) -> None:
    """TorchScript's `token.expand(batch, -1, -1)`: -1 is replaced by 1 with ConstantOfShape, Mul, Equal, Where."""
    x = net.linear(net.input("x", 5, 6), 6, 8)
    wanted = net.computed_shape(net.extent(x, 0), -1, -1)
    ones = net.ConstantOfShape(net.const([3]), value=numpy_helper.from_array(np.ones(1, dtype=np.int64)))
    shape = net.Where(net.Equal(wanted, net.Mul(ones, net.const([-1]))), ones, wanted)
    token = net.Expand(net.normal(1, 1, 8), shape)
    net.output(net.linear(net.Concat(token, x, axis=1), 8, 4))


def scales_from_extents(net: Net) -> None:
    """Scales of a Resize computed from the widths: cut, the channels would be resampled."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    wanted = net.Cast(net.computed_shape(net.extent(x, 0), 6, 16, 16), to=net.element_type)
    scales = net.Div(wanted, net.Cast(net.Shape(x), to=net.element_type))
    net.output(net.conv(net.Resize(x, "", scales), 6, 4))


def _recurrent(net: Net, kind: str, gates: int, directions: int = 1) -> None:
    """A convolution along the steps in front, a layer behind: hidden units stay, what is read at a step may go."""
    x = net.Transpose(net.Relu(net.conv(net.input("x", 3, 8), 3, 6, rank=1)), perm=[2, 0, 1])
    w = net.weight(directions, gates * 5, 6, fan_in=6)
    r, b = net.normal(directions, gates * 5, 5, scale=0.4), net.normal(directions, 2 * gates * 5)
    direction = "bidirectional" if directions == 2 else "forward"
    y = net.op(kind, x, w, r, b, hidden_size=5, direction=direction)
    y = net.reshape(net.Transpose(y, perm=[2, 0, 1, 3]), -1, 8 * directions * 5)
    net.output(net.dense(net.Relu(net.dense(y, 8 * directions * 5, 10)), 10, 4))


def lstm(net: Net) -> None:
    _recurrent(net, "LSTM", 4, directions=2)


def gru(net: Net) -> None:
    _recurrent(net, "GRU", 3)


def rnn(net: Net) -> None:
    _recurrent(net, "RNN", 1)
