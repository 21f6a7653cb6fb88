"""One small graph for every reason for which an axis stays whole, a stream isn't rotated, or a block can't go.

A graph is drawn on a `Net`, or is the name of a topology of the catalogue. Reasons stand as `tests.reasons` reads them
from the sources, … for what is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from onnx import helper, numpy_helper

from snp_onnx.passes.open_branches import open_branch
from tests import streams
from tests import topologies_weights as weights
from tests.graphs import Net
from tests.topologies_merged import heads_in_two_orders

FUSED = "com.microsoft"
Draw = Callable[[Net], None]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A graph function, the operator set that it needs, and what is done to the model."""

    draw: Draw
    opset: int = 17
    spoil: Callable[[onnx.ModelProto], None] | None = None

    def model(self) -> onnx.ModelProto:
        net = Net(self.opset, batch=2)
        self.draw(net)
        model = net.model()
        if self.spoil is not None:
            self.spoil(model)
        return model


# pieces


def hidden(net: Net, channels: int = 6) -> str:
    """A map of `channels`, made by a layer."""
    return net.conv_relu(net.image(), 3, channels)


def channels_last(net: Net, channels: int = 6) -> str:
    """The map with its channels where others have pixels: (2, 8, 8, channels)."""
    return net.Transpose(hidden(net, channels), perm=[0, 2, 3, 1])


def given(net: Net, *values: int) -> str:
    """Numbers that are known at run time only; in a feed of ones these."""
    return net.Mul(net.input("end", 1, dtype="int64", batched=False), net.const(list(values)))


def shown(net: Net, x: str, channels: int = 6) -> None:
    net.output(net.conv(x, channels, 2))


# convolutions, pooling, normalisation


def convolved_over_channels(net: Net) -> None:
    net.output(net.conv(channels_last(net), 8, 4))


def kernel_added_to_channels(net: Net) -> None:
    """One tensor is a kernel, and is added along the channels of a layer."""
    kernel = net.weight(4, 8, 3, fan_in=24)
    x = net.Transpose(net.conv(net.input("a", 3, 8), 3, 3, rank=1), perm=[0, 2, 1])
    net.output(net.Add(net.unsqueeze(x, 1), kernel), net.Conv(net.input("b", 8, 8), kernel))


def pooled_over_channels(net: Net) -> None:
    net.output(net.MaxPool(channels_last(net), kernel_shape=[2, 2]))


def resampled(net: Net) -> None:
    net.output(net.upsample(channels_last(net)))


def rearranged(net: Net) -> None:
    net.output(net.DepthToSpace(channels_last(net), blocksize=2))


def normalised_over_channels(net: Net) -> None:
    net.output(net.InstanceNormalization(channels_last(net), net.normal(8), net.normal(8)))


# picking and cutting


def picked_at_run_time(net: Net) -> None:
    shown(net, net.Gather(hidden(net), given(net, 0, 1, 2), axis=1), 3)


def picked_by_several(net: Net) -> None:
    """A table that scales the channels, and that two others pick rows from."""
    table = net.normal(6, 8, 8)
    rows = [net.Gather(table, net.const(places), axis=0) for places in ([0, 1, 2], [3, 4])]
    shown(net, net.Mul(hidden(net), table))
    net.output(*rows)


def biased_by_several(net: Net) -> None:
    """A table of biases for every head that also scales the channels of a layer."""
    table, x = net.normal(4, 5, 5), net.input("x", 5, 12)
    for _ in range(2):
        q, k, v = (net.Transpose(net.reshape(net.linear(x, 12, 12), 0, 0, 4, 3), perm=[0, 2, 1, 3]) for _ in range(3))
        scores = net.Add(net.MatMul(q, net.Transpose(k, perm=[0, 1, 3, 2])), table)
        mixed = net.Transpose(net.MatMul(net.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
        x = net.linear(net.reshape(mixed, 0, 0, 12), 12, 12)
    net.output(x, net.conv(net.Mul(net.conv(net.input("y", 3, 5, 5), 3, 4), table), 4, 2))


def split_at_run_time(net: Net) -> None:
    left, right = net.ops("Split", hidden(net), given(net, 3, 3), outputs=2, axis=1)
    net.output(net.conv(left, 3, 2), net.conv(right, 3, 2))


def expanded_at_run_time(net: Net) -> None:
    shown(net, net.Expand(hidden(net), given(net, 1, 6, 8, 8)))


def tiled_at_run_time(net: Net) -> None:
    shown(net, net.Tile(hidden(net), given(net, 1, 1, 2, 2)))


def cut_where_another_ends(net: Net) -> None:
    """As many channels of a map as another one has."""
    x, other = net.conv_relu(net.image(), 3, 6), net.conv_relu("x", 3, 4)
    net.output(
        net.conv(net.Slice(x, net.const([0]), net.extent(other, 1), net.const([1])), 4, 2), net.conv(other, 4, 2)
    )


def emptied(net: Net) -> None:
    net.output(net.Relu(net.slice(hidden(net), 1, 0, 0)))


def dropped_whole(net: Net) -> None:
    """All units of a layer are cut off behind a join."""
    joined = net.Concat(hidden(net, 4), net.conv_relu("x", 3, 6), axis=1)
    shown(net, net.slice(joined, 1, 4, 10))


# reductions, sizes, unknown things


def ranked(net: Net) -> None:
    values, _ = net.ops("TopK", hidden(net), net.const([3]), outputs=2, axis=1)
    shown(net, values, 3)


def reduced_at_run_time(net: Net) -> None:
    net.output(net.op("ReduceMean", hidden(net), given(net, 1)))


def summed_by_einsum(net: Net) -> None:
    net.output(net.Einsum(hidden(net), equation="bchw->bhw"))


def ones_like(net: Net) -> None:
    """Ones on the diagonal of a matrix that is as large as what a layer gives."""
    net.output(net.EyeLike(net.linear(net.input("x", 5), 5, 6)))


def scaled_by_sparse(net: Net) -> None:
    net.output(net.conv(net.Mul(hidden(net), net.normal(6, 1, 1, name="sparse")), 6, 2))


def made_sparse(model: onnx.ModelProto) -> None:
    """The constant `sparse` is stored by its places."""
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "sparse"]
    values = numpy_helper.to_array(tensor).reshape(-1)
    places = np.stack(np.unravel_index(np.arange(values.size), tuple(tensor.dims)), axis=1).astype(np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values, "sparse"), numpy_helper.from_array(places, "places"), list(tensor.dims)
    )
    model.graph.initializer.remove(tensor)
    model.graph.sparse_initializer.append(sparse)


def added_to_the_unknown(net: Net) -> None:
    net.domains["custom"] = 1
    x = hidden(net)
    shown(net, net.Add(x, net.op("Mystery", x, domain="custom")))


def multiplied_in_a_body(net: Net) -> None:
    """A layer inside an If, weight and all."""
    x = net.input("x", 6)
    weight = numpy_helper.from_array(np.ones((6, 4), np.float32), "inner")
    bodies = []
    for name in ("then", "other"):
        node = helper.make_node("MatMul", [x, "inner"], [f"{name}_y"])
        body = helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, [2, 4])], [weight])
        bodies.append(body)
    chosen = net.op("If", net.const(True, dtype=bool), then_branch=bodies[0], else_branch=bodies[1])
    net.output(net.dense(net.Relu(chosen), 4, 2))


def opened(branch: str) -> Callable[[onnx.ModelProto], None]:
    """The nodes of this branch of the only If stand in front of it."""

    def open_it(model: onnx.ModelProto) -> None:
        (choice,) = [node for node in model.graph.node if node.op_type == "If"]
        open_branch(model, choice.output[0], branch)

    return open_it


def chosen_of_two_sizes(net: Net) -> None:
    x = hidden(net)
    bodies = []
    for name, source in (("then", x), ("other", net.normal(1, 6, 1, 1))):
        node = helper.make_node("Identity", [source], [f"{name}_y"])
        bodies.append(helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)]))
    choice = net.Cast(net.input("choice", dtype="int64", batched=False), to=onnx.TensorProto.BOOL)
    chosen = net.op("If", choice, then_branch=bodies[0], else_branch=bodies[1])
    net.output(net.conv(x, 6, 4), chosen)


# blocks


def residual(
    net: Net, shortcut: Callable[[Net, str], str] = lambda net, x: x, stride: int = 1, add: str = "Add"
) -> None:
    """A sum of a branch of two layers and of what `shortcut` makes of its input."""
    x = net.conv(net.image(), 3, 4)
    branch = net.conv(net.conv_relu(x, 4, 4, strides=[stride] * 2), 4, 4)
    shown(net, net.op(add, shortcut(net, x), branch), 4)


def shortcut_pooled(net: Net) -> None:
    residual(net, lambda net, x: net.AveragePool(x, kernel_shape=[2, 2], strides=[2, 2]), 2)


def shortcut_resized(net: Net) -> None:
    x = net.conv(net.image(), 3, 4)
    shown(net, net.Add(net.upsample(x), net.transposed(net.conv_relu(x, 4, 4), 4, 4)), 4)


def shortcut_changed(net: Net) -> None:
    residual(net, lambda net, x: net.Neg(x))


def sum_that_grows(net: Net) -> None:
    x = net.GlobalAveragePool(net.conv(net.image(), 3, 4))
    shown(net, net.Add(x, net.transposed(x, 4, 4, k=4)), 4)


def spread_over_the_batch(net: Net) -> None:
    net.batch = "N"
    prompt = net.input("prompt", 1, 5, 6, batched=False)
    mixed = net.Add(net.linear(prompt, 6, 6), net.input("x", 5, 6))
    net.output(net.linear(net.Add(prompt, net.linear(net.Relu(mixed), 6, 6)), 6, 2))


def two_orders(net: Net) -> None:
    net.batch = "N"
    heads_in_two_orders(net)


def sum_of_the_unknown(net: Net) -> None:
    net.domains["custom"] = 1
    x = net.op("Mystery", net.conv(net.image(), 3, 4), domain="custom")
    shown(net, net.Add(x, net.conv_relu(x, 4, 4)), 4)


def layer_beside_its_sum(net: Net) -> None:
    """A layer that normalises after its sums, the last of which is read elsewhere too."""
    net.domains[FUSED] = 1
    width = streams.WIDTH

    def added(x: str, part: str) -> list[str]:
        gain, shift = net.normal(width, shift=1.0), net.normal(width)
        return net.ops("SkipLayerNormalization", part, x, gain, shift, outputs=4, domain=FUSED, epsilon=1e-5)

    x = net.LayerNormalization(net.linear(net.input("x", 5, 6), 6, width), net.normal(width), net.normal(width))
    y = added(x, streams.attention(net, x, bias=True))[0]
    z, _, _, total = added(y, streams.feed_forward(net, y, bias=True))
    net.output(net.linear(z, width, 3), net.linear(total, width, 2))


# streams


def stream(net: Net) -> str:
    """Embeddings, and what a layer behind a norm adds to them."""
    x = streams.embedded(net)
    return net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))


def last(net: Net, x: str) -> None:
    """A norm and the head."""
    net.output(net.linear(streams.layer_norm(net, x), 16, 3))


def function_on_the_stream(net: Net) -> None:
    last(net, net.Tanh(stream(net)))


def entries_apart(net: Net) -> None:
    x = stream(net)
    last(net, x)
    net.output(net.linear(net.slice(x, -1, 0, 6), 6, 3))


def depthwise_on_the_stream(net: Net) -> None:
    """A depthwise convolution along the positions, as in ConvNeXt or Mamba."""
    x = net.Transpose(stream(net), perm=[0, 2, 1])
    last(net, net.Transpose(net.conv(x, 16, 16, group=16, rank=1), perm=[0, 2, 1]))


def multiplied_across(net: Net) -> None:
    """A layer that mixes positions, as in MLP-Mixer: entries of the stream are its rows."""
    x = stream(net)
    y = net.MatMul(net.Transpose(streams.layer_norm(net, x), perm=[0, 2, 1]), net.weight(5, 5, fan_in=5))
    last(net, net.Add(x, net.Transpose(y, perm=[0, 2, 1])))


def same_number_added(net: Net) -> None:
    last(net, net.Add(stream(net), net.const(0.5)))


def rounded(net: Net) -> None:
    x = net.Cast(net.Cast(streams.embedded(net), to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)
    last(net, net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16)))


def norms_joined(net: Net) -> None:
    """Outputs of two norms as one sequence."""
    x = stream(net)
    both = net.Concat(*(streams.layer_norm(net, part) for part in (x, net.Add(x, net.normal(16)))), axis=1)
    net.output(net.linear(both, 16, 3))


def entries_scaled(net: Net) -> None:
    x = streams.embedded(net)
    last(net, net.Add(x, net.Mul(net.linear(streams.layer_norm(net, x), 16, 16), net.normal(16))))


def gain_behind_a_scale(net: Net) -> None:
    """A norm's output times a number, then times a vector."""
    y = net.Mul(net.Mul(streams.layer_norm(net, stream(net)), net.const(0.5)), net.normal(16))
    net.output(net.linear(y, 16, 3))


def shift_before_a_sum(net: Net) -> None:
    y = net.reduce("ReduceSum", streams.layer_norm(net, stream(net)), [1], keepdims=0)
    net.output(net.linear(y, 16, 3))


def stream_shown(net: Net) -> None:
    x = stream(net)
    last(net, x)
    net.output(x)


def norms_of_two_kinds(net: Net) -> None:
    net.output(net.linear(streams.rms_parts(net, stream(net)), 16, 3))


def weight_in_codes(net: Net) -> None:
    x = streams.embedded(net)
    codes = net.const(net.rng.integers(-100, 100, (16, 16)), dtype=np.int8)
    weight = net.DequantizeLinear(codes, net.const(0.01), net.const(0, dtype=np.int8))
    last(net, net.Add(x, net.MatMul(streams.layer_norm(net, x), weight)))


def read_without_a_norm(net: Net) -> None:
    net.output(net.linear(stream(net), 16, 3))


def averaged_over_entries(net: Net) -> None:
    x = stream(net)
    last(net, x)
    net.output(net.reduce("ReduceMean", x, [-1]))


def spread_over_entries(net: Net) -> None:
    """One number a position, repeated for every entry."""
    wide = net.Expand(net.input("level", 5, 1), net.const([2, 5, 16]))
    last(net, net.Add(stream(net), wide))


def gain_given(net: Net) -> None:
    """A norm whose gain the caller gives."""
    gain = net.input("gain", 16, batched=False)
    net.output(net.linear(net.LayerNormalization(stream(net), gain, net.normal(16)), 16, 3))


def stream_given(net: Net) -> None:
    """A stream that starts from an input."""
    x = net.input("x", 5, 16)
    last(net, net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16)))


def only_its_size_read(net: Net) -> None:
    """A norm of which nothing but the size is used."""
    x = net.linear(net.input("x", 5, 6), 6, 16)
    net.output(net.Shape(streams.layer_norm(net, x)))


# attention: where dimensions inside heads can't change their basis


@dataclass(frozen=True, slots=True)
class Attending:
    """Attention of four heads of three dimensions; `queries` and `keys` make an operand of a layer's output."""

    queries: Callable[[Net, str], str]
    keys: Callable[[Net, str], str]
    weights: Callable[[Net], tuple[str, str]] = lambda net: (
        net.weight(12, 12, fan_in=12),
        net.weight(12, 12, fan_in=12),
    )
    is_shown: bool = False
    order: tuple[int, ...] = (0, 2, 1, 3)

    def __call__(self, net: Net) -> None:
        x = net.input("x", 5, 12)
        q, k = (net.MatMul(x, weight) for weight in self.weights(net))
        scores = net.MatMul(self.queries(net, q), self.keys(net, k))
        v = net.Transpose(net.reshape(net.linear(x, 12, 12), 0, 0, 4, 3), perm=[0, 2, 1, 3])
        mixed = net.Transpose(net.MatMul(net.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
        net.output(net.linear(net.reshape(mixed, 0, 0, 12), 12, 4), *([q] if self.is_shown else []))


def moved(*perm: int, shape: tuple[int, ...] = (0, 0, 4, 3)) -> Callable[[Net, str], str]:
    return lambda net, x: net.Transpose(net.reshape(x, *shape), perm=list(perm))


QUERIES, KEYS = moved(0, 2, 1, 3), moved(0, 2, 3, 1)


def shared_weights(net: Net) -> tuple[str, str]:
    return (net.weight(12, 12, fan_in=12),) * 2


def reshaped_weights(net: Net) -> tuple[str, str]:
    stored = [net.weight(3, 4, 12, fan_in=12) for _ in range(2)]
    return net.reshape(stored[0], 12, 12), net.reshape(stored[1], 12, 12)


def weights_in_codes(net: Net) -> tuple[str, str]:
    codes = [net.const(net.rng.integers(-100, 100, (12, 12)), dtype=np.int8) for _ in range(2)]
    scale, zero = net.const(0.01), net.const(0, dtype=np.int8)
    return net.DequantizeLinear(codes[0], scale, zero), net.DequantizeLinear(codes[1], scale, zero)


def heads_in_two_axes(net: Net) -> None:
    """Queries and keys with their heads as rows and columns of a square."""
    x = net.input("x", 5, 12)
    q, k = (
        net.Transpose(net.reshape(net.linear(x, 12, 12), 0, 0, 2, 2, 3), perm=perm)
        for perm in ([0, 2, 3, 1, 4], [0, 2, 3, 4, 1])
    )
    net.output(net.linear(net.Softmax(net.MatMul(q, k), axis=-1), 5, 4))


def contracted_over_positions(net: Net) -> None:
    """The dimensions of queries and keys are left, positions are summed."""
    x = net.input("x", 5, 12)
    q, k = moved(0, 2, 3, 1)(net, net.linear(x, 12, 12)), moved(0, 2, 1, 3)(net, net.linear(x, 12, 12))
    net.output(net.linear(net.Softmax(net.MatMul(q, k), axis=-1), 3, 4))


def different_heads(net: Net) -> None:
    """Every one of four queries meets every one of two keys."""
    x = net.input("x", 5, 12)
    q = net.Transpose(net.reshape(net.linear(x, 12, 12), 0, 0, 4, 1, 3), perm=[0, 2, 3, 1, 4])
    k = net.Transpose(net.reshape(net.linear(x, 12, 6), 0, 0, 1, 2, 3), perm=[0, 2, 3, 4, 1])
    net.output(net.linear(net.Softmax(net.MatMul(q, k), axis=-1), 5, 4))


def scaled_biases(net: Net) -> None:
    """Queries and keys by Gemm, with half of a bias."""
    x, parts = net.reshape(net.input("x", 5, 12), -1, 12), []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1]):
        y = net.Gemm(x, net.weight(12, 12, fan_in=12), net.bias(12), beta=0.5)
        parts.append(net.Transpose(net.reshape(y, -1, 5, 4, 3), perm=order))
    net.output(net.linear(net.Softmax(net.MatMul(*parts), axis=-1), 5, 4))


# attention in one node


def fused(net: Net, kind: str, *inputs: str, outputs: int = 1, **attributes: int) -> str:
    net.domains[FUSED] = 1
    net.output_rank = 3
    return net.ops(kind, *inputs, outputs=outputs, domain=FUSED, **attributes)[0]


def three_layers(net: Net, each: int = 16) -> list[str]:
    x = net.input("x", 5, 12)
    return [net.linear(x, 12, each) for _ in range(3)]


def cache_of_beams(net: Net) -> None:
    rest = ["", "", "", "", "", net.const([0], dtype=np.int32)]
    net.output(net.linear(fused(net, "MultiHeadAttention", *three_layers(net), *rest, num_heads=4), 16, 3))


def weight_at_run_time(net: Net) -> None:
    weight = net.reshape(net.linear(net.input("style", 6), 6, 12 * 24), -1, 48)
    x = net.linear(net.input("x", 5, 6), 6, 12)
    net.output(net.linear(fused(net, "Attention", x, weight, num_heads=4), 16, 3))


def quantised_cache(net: Net) -> None:
    lengths = [net.const([4, 4], dtype=np.int32), net.const(5, dtype=np.int32)]
    rest = ["", "", *lengths, "", "", "", "", "", net.const(1.0), net.const(1.0)]
    y = fused(net, "GroupQueryAttention", *three_layers(net, 32), *rest, num_heads=4, kv_num_heads=4)
    net.output(net.linear(y, 32, 3))


def packed_by_channels(net: Net) -> None:
    """Queries, keys and values are three channels of a map."""
    x = net.reshape(net.conv(net.image(), 3, 3), 0, 3, 4, 4, 4)
    y = fused(net, "MultiHeadAttention", net.Transpose(x, perm=[0, 2, 3, 1, 4]), num_heads=4)
    net.output(net.linear(y, 16, 3))


def positions_by_a_layer(net: Net) -> None:
    """Positions that a layer makes (MLP-Mixer), in front of an attention."""
    x = net.Transpose(net.linear(net.input("x", 12, 6), 6, 5), perm=[0, 2, 1])
    net.output(net.linear(fused(net, "Attention", x, net.weight(12, 48, fan_in=12), num_heads=4), 16, 3))


def lengths_by_a_layer(net: Net) -> None:
    """How many positions count, computed by a layer."""
    lengths = net.Cast(net.reshape(net.linear(net.input("y", 1, 6, batched=False), 6, 2), 2), to=onnx.TensorProto.INT64)
    parts = [net.reshape(part, 0, 0, 16) for part in three_layers(net)]
    net.output_rank = 3
    y = net.op("Attention", *parts, "", "", "", lengths, q_num_heads=4, kv_num_heads=4)
    net.output(net.linear(y, 16, 3))


def one_rotated_head(net: Net) -> None:
    angles = [net.const(np.ones((5, 2))), net.const(np.ones((5, 2)))]
    x = net.unsqueeze(net.linear(net.input("x", 5, 6), 6, 4), 1)
    net.output(net.linear(fused(net, "RotaryEmbedding", x, net.const([0]), *angles), 4, 3))


# quantised


def weight_in_blocks(net: Net) -> None:
    codes = net.const(net.rng.integers(-100, 100, (12, 6)), dtype=np.int8)
    weight = net.DequantizeLinear(codes, net.normal(3, 6, scale=0.01), block_size=4, axis=0)
    net.output(net.dense(net.Relu(net.MatMul(net.input("x", 12), weight)), 6, 3))


def weight_in_half_bytes(net: Net) -> None:
    codes = net.const(
        net.rng.integers(-7, 7, (12, 6)), dtype=onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
    )
    weight = net.DequantizeLinear(codes, net.const(0.1))
    net.output(net.dense(net.Relu(net.MatMul(net.input("x", 12), weight)), 6, 3))


def quantised_at_run_time(net: Net) -> None:
    shown(net, net.DequantizeLinear(*net.ops("DynamicQuantizeLinear", hidden(net), outputs=3)))


# places, numbers, what is drawn or found


def written_over_channels(net: Net) -> None:
    x = net.linear(net.input("x", 5), 5, 6)
    shown_row(net, net.ScatterElements(x, net.const([[0, 3], [1, 2]]), net.const([[1.0, 2.0], [3.0, 4.0]]), axis=1))


def numbers_apart(net: Net) -> None:
    """Rounded outputs of a layer become ones and zeros; the layer that reads them reads these."""
    whole = net.Cast(net.linear(net.input("x", 5), 5, 6), to=onnx.TensorProto.INT64)
    apart = net.Cast(net.OneHot(whole, net.const([4]), net.const([0, 1])), to=onnx.TensorProto.FLOAT)
    net.output(net.Add(apart, net.linear(net.input("y", 6, 3), 3, 4)))


def places_found(net: Net) -> None:
    """How many there are is declared, and no inference can say it."""
    found = net.Unique(net.linear(net.input("x", 5, batched=False), 5, 6))
    net.output(found)


def grid_by_a_layer(net: Net) -> None:
    net.output(net.GridSample(net.image(), net.linear(net.input("y", 4, 4, 6), 6, 2)))


def regions_over_channels(net: Net) -> None:
    """Channels stand where others have pixels."""
    regions = net.const([[0.0, 0.0, 0.0, 2.0, 2.0]])
    net.output(net.MaxRoiPool(channels_last(net), regions, pooled_shape=[2, 2]))


def channels_cropped(net: Net) -> None:
    net.output(net.CenterCropPad(hidden(net), net.const([4]), axes=[1]))


def noise_like(net: Net) -> None:
    x = net.linear(net.input("x", 5), 5, 6)
    shown_row(net, net.Add(x, net.RandomNormalLike(x)))


def added_to_a_diagonal(net: Net) -> None:
    """A matrix of ones on the diagonal, as large as another input."""
    shown_row(net, net.Add(net.linear(net.input("x", 5), 5, 6), net.EyeLike(net.input("y", 6))))


def features_weighed(net: Net) -> None:
    """A linear model of scikit-learn behind a layer."""
    net.domains["ai.onnx.ml"] = 1
    x = net.linear(net.input("x", 5), 5, 6)
    net.output(net.op("LinearRegressor", x, domain="ai.onnx.ml", coefficients=[1.0, 2, 3, 4, 5, 6], targets=1))


def held_in_a_sequence(net: Net) -> None:
    """Which of two tensors comes out of a sequence, an input says."""
    left, right = (net.linear(net.input(name, 5), 5, 6) for name in ("x", "y"))
    place = net.Squeeze(net.Sub(net.input("end", 1, dtype="int64", batched=False), net.const([1])))
    shown_row(net, net.SequenceAt(net.SequenceConstruct(left, right), place))


def shown_row(net: Net, x: str, width: int = 6) -> None:
    net.output(net.linear(x, width, 2))


GRAPHS: Mapping[str, str | Draw | Drawing] = MappingProxyType(
    {
        "Squeeze without axes": "squeeze-everything",
        "TopK works over this axis": ranked,
        "a FusedMatMul that moves batch axes": "fused-matmul-batch",
        "a bias by batch and head stays whole": "heads-with-given-bias",
        "a bias of the scores, left whole": biased_by_several,
        "a gain or shift that isn't a constant vector": gain_given,
        "a gain stands behind another operation on the norm's output": gain_behind_a_scale,
        "a grouped … works on parts of the stream": depthwise_on_the_stream,
        "a quantised weight can't be rotated without loss": weight_in_codes,
        "a single position": "expand-channels",
        "a single position is picked": "gather-one-channel",
        "a place on a map": grid_by_a_layer,
        "all positions are made by …": added_to_a_diagonal,
        "all positions are one unit": "shuffle-between-groups",
        "an Einsum sums over this axis": summed_by_einsum,
        "attention with a cache of beams or with its weights as an output": cache_of_beams,
        "attention with a quantised cache or with its weights as an output": quantised_cache,
        "channels in groups share the offsets of this DeformConv": "offsets-in-groups",
        "contracted between two activations": "matmul-vector",
        "contracted with a constant of rank …": "matmul-vector",
        "cropped or padded at both ends": Drawing(channels_cropped, 18),
        "empty tensor": emptied,
        "entries of the stream are scaled one by one": entries_scaled,
        "graph input": "matmul-left",
        "graph output": "chain",
        "heads and dimensions of its projection can't be told apart": heads_in_two_axes,
        "another branch of this If stays whole": Drawing(weights.if_capture, spoil=opened("then_branch")),
        "inside a body of …": multiplied_in_a_body,
        "inside a branch of If that is not taken": Drawing(multiplied_in_a_body, spoil=opened("then_branch")),
        "its extent is read inside a branch of If that is not taken": Drawing(
            weights.if_captures_extent, spoil=opened("else_branch")
        ),
        "read inside a branch of If that is not taken": Drawing(weights.if_capture, spoil=opened("then_branch")),
        "the branches of this If give different shapes": chosen_of_two_sizes,
        "its units are others at another batch or size": two_orders,
        "its input and output have one shape at this size only: elsewhere … and …": spread_over_the_batch,
        "its extent in this … varies with another axis": "heads-with-expanded-bias",
        "its extent is a graph output": "extent-as-output",
        "its extent is read as a number by …": "extent-as-number",
        "its extent is read inside a body of …": "if-captures-extent",
        "its input has the shape …, its output …": sum_that_grows,
        "its projection is read elsewhere too (…)": Attending(QUERIES, KEYS, is_shown=True),
        "its projections don't meet in the axis that is contracted": contracted_over_positions,
        "its shortcut has weights of its own (…)": "residual-projection",
        "its shortcut is cut or padded": "option-a",
        "its shortcut is pooled": shortcut_pooled,
        "its shortcut is resized": shortcut_resized,
        "its shortcut isn't its input (…)": shortcut_changed,
        "its sum is inside a fused node (…): prune before operators are fused": "skip-norm",
        "kernel axis of a convolution": kernel_added_to_channels,
        "keys and values have dims of one size": "group-query-single",
        "lengths of an attention": Drawing(lengths_by_a_layer, 24),
        "mask of an attention": "multi-head-biased",
        "more than moves and scales stands before the other operand": "fused-weight",
        "multiplied along another axis than the stream's": multiplied_across,
        "no output projection was found behind it": "merged-with-batch",
        "no rule for operator …": "loop-capture",
        "no rule for this equation of an Einsum: …": "einsum-other",
        "no weight consumes it, so nothing could take over what is removed": dropped_whole,
        "no weight reads it": only_its_size_read,
        "normalised over all channels": "group-norm-of-one",
        "normalised over this axis": normalised_over_channels,
        "norms with and without mean on one stream": norms_of_two_kinds,
        "not written by weights alone": stream_given,
        "offsets or mask of a DeformConv": "deform-conv",
        "outputs of different norms are joined": norms_joined,
        "padded in mode …": "pad-channels-reflecting",
        "picked with indices of rank …": "gather-by-matrix",
        "position inside a group of a grouped convolution": "transposed-grouped",
        "positions and lengths of an attention": "group-query",
        "positions are picked at run time": picked_at_run_time,
        "positions are written at run time": written_over_channels,
        "queries and keys have different numbers of heads": different_heads,
        "queries, keys and values are packed": packed_by_channels,
        "read inside a body of …": "if-capture",
        "read without a norm, so its mean can't be taken away": read_without_a_norm,
        "regions of a map are picked at run time": regions_over_channels,
        "resampled axis": resampled,
        "quantised in blocks of …: prune the float model, then quantise it": Drawing(weight_in_blocks, 21),
        "stored with several values in a byte: prune the float model, then quantise it": Drawing(
            weight_in_half_bytes, 21
        ),
        "… draws a number for every position": noise_like,
        "… gives as many positions as it finds": places_found,
        "… has a position for every number": numbers_apart,
        "… takes its shape from this": ones_like,
        "… works on what has no axes: a sequence, an optional or a map": held_in_a_sequence,
        "… works on quantised values: prune the float model, then quantise it": quantised_at_run_time,
        "rotary positions mix the dims of a head": one_rotated_head,
        "rounded to whole numbers": rounded,
        "sequence of an attention": positions_by_a_layer,
        "several nodes pick from it": picked_by_several,
        "sliced with a step": "sliced-with-step",
        "sparse initialiser": Drawing(scaled_by_sparse, spoil=made_sparse),
        "spatial axis of a convolution": convolved_over_channels,
        "spatial axis of a pooling": pooled_over_channels,
        "spatial axis of …": rearranged,
        "the amounts of this Pad are computed at run time": "pad-at-run-time",
        "the axes of this … are computed at run time": Drawing(reduced_at_run_time, 18),
        "the bias … is shared or scaled": scaled_biases,
        "the bounds of this Slice are computed at run time": "slice-at-run-time",
        "the indices of this … count its channels": "pooled-indices",
        "the numbers of this … are attributes": features_weighed,
        "the norm's output is the stream itself (post-norm), so its gain can't move into the weights that read it": (
            streams.post_norm
        ),
        "the norm's shift can't move into a bias": shift_before_a_sum,
        "the only position of its axis": "slice-one-channel",
        "the repeats of this Tile are computed at run time": tiled_at_run_time,
        "the same number is added to every entry of the stream": same_number_added,
        "the shape of its input or of its output isn't known": sum_of_the_unknown,
        "the shape of this Expand is computed at run time": expanded_at_run_time,
        "the shape of this Reshape is computed at run time": "reshape-at-run-time",
        "the shape of … is not known": added_to_the_unknown,
        "the sizes of this Split are computed at run time": split_at_run_time,
        "the sizes of this … are computed at run time": "resize-at-run-time",
        "the stream is a graph output": stream_shown,
        "the weight of this Attention is computed at run time": weight_at_run_time,
        "the weight of this … is computed at run time": "weight-at-run-time",
        "the weight … is quantised or computed": Attending(QUERIES, KEYS, weights_in_codes),
        "the weight … is reshaped before it is read": Attending(QUERIES, KEYS, reshaped_weights),
        "the weight … is shared": Attending(QUERIES, KEYS, shared_weights),
        "tied to an axis that must stay whole": "llama",
        "… at fixed places of an axis whose extent varies": "heads-gathered",
        "… at a place that another extent decides": cut_where_another_ends,
        "… beside its output is needed": layer_beside_its_sum,
        "… carries a state from step to step": "lstm",
        "… handles entries of the stream one by one": entries_apart,
        "… inside it is also read by …": "skip-norm-with-sum",
        "… inside it is an output of the model": "multi-head-cached",
        "… makes the stream from something else": spread_over_entries,
        "… reduces this axis": "arg-max",
        "… works on single entries of the stream": function_on_the_stream,
        "… works over the stream": averaged_over_entries,
        "… works over this axis": "layer-norm",
    }
)
"""By reason: a topology of the catalogue, or a graph of its own."""
