"""Topologies whose axes merge units with the batch, with heads or with pixels: their places are those of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.graphs import Net

WIDTH, HEADS, EACH, LENGTH = 12, 4, 3, 5
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1


def _pooled(net: Net, flat: str) -> None:
    """Channels and pixels apart again, the mean over pixels, and a layer."""
    mean = net.reduce("ReduceMean", net.reshape(flat, 0, 6, -1), [2], keepdims=0)
    net.output(net.dense(mean, 6, 4))


def open_slice(net: Net) -> None:
    """`x[:, :]` behind a Flatten, as both exporters write it."""
    flat = net.Flatten(net.conv_relu(net.image(), 3, 6))
    _pooled(net, net.slice(net.slice(flat, 1, 0, INT64_MAX), -1, 0, INT32_MAX))


def slice_to_own_extent(net: Net) -> None:
    """`x[:, :x.shape[1]]`, the extent computed."""
    flat = net.Flatten(net.conv_relu(net.image(), 3, 6))
    _pooled(net, net.Slice(flat, net.const([0]), net.extent(flat, 1), net.const([1])))


def expand_to_own_extent(net: Net) -> None:
    """A row for every sample, as wide as the flat map."""
    flat = net.Flatten(net.conv_relu(net.image(), 3, 6))
    row = net.Expand(net.const([[0.3]]), net.Shape(flat))
    _pooled(net, net.Mul(net.Add(flat, row), net.Expand(flat, net.Shape(flat))))


def tiled_over_pixels(net: Net) -> None:
    """A bias by channel, repeated for every pixel and flattened like the map it is added to."""
    x = net.conv_relu(net.image(), 3, 6)
    pixels = net.Mul(net.extent(x, 2), net.extent(x, 3))
    repeats = net.computed_shape(1, 1, pixels)
    bias = net.reshape(net.Tile(net.normal(1, 6, 1), repeats), 1, -1)
    _pooled(net, net.Relu(net.Add(net.Flatten(x), bias)))


def repeated_by_channel(net: Net) -> None:
    """A mask of pixels, repeated for every channel by Expand, and joined with itself."""
    image = net.image()
    x, mask = net.conv_relu(image, 3, 6), net.Greater(net.reduce("ReduceSum", image, [1]), net.const(0.5))
    wide = net.Expand(mask, net.computed_shape(net.extent(x, 0), 6, 1, 1))
    twice = net.Concat(net.Flatten(wide), net.Flatten(wide), axis=1)
    both = net.Concat(net.Flatten(x), net.Flatten(net.Relu(net.Neg(x))), axis=1)
    kept = net.Where(twice, both, net.const(0.1))
    mean = net.reduce("ReduceMean", net.reshape(kept, 0, 2, 6, -1), [1, -1], keepdims=0)
    net.output(net.dense(mean, 6, 4))


Steps = Callable[[str], str]


def _same(tensor: str) -> str:
    return tensor


def _attention(
    net: Net,
    on_scores: Steps = _same,
    on_output: Steps = _same,
    parts: Callable[[str], Sequence[str]] | None = None,
    x: str = "",
) -> None:
    """Attention with its heads merged with the batch: (batch times heads, sequence, dims)."""
    x = net.linear(x or net.input("x", LENGTH, 6), 6, WIDTH)
    q, k, v = parts(x) if parts else (_heads(net, net.linear(x, WIDTH, WIDTH)) for _ in range(3))
    scores = on_scores(net.MatMul(q, net.Transpose(k, perm=[0, 2, 1])))
    mixed = on_output(net.MatMul(net.Softmax(scores, axis=-1), v))
    apart = net.Transpose(net.reshape(mixed, -1, HEADS, LENGTH, EACH), perm=[0, 2, 1, 3])
    net.output(net.linear(net.reshape(apart, 0, 0, WIDTH), WIDTH, 4))


def _heads(net: Net, x: str) -> str:
    apart = net.Transpose(net.reshape(x, 0, 0, HEADS, EACH), perm=[0, 2, 1, 3])
    return net.reshape(apart, -1, LENGTH, EACH)


def heads_sliced(net: Net) -> None:
    _attention(net, on_output=lambda x: net.slice(x, 0, 0, INT64_MAX))


def heads_with_bias(net: Net) -> None:
    """A bias of the scores from the caller, tiled for every head."""
    bias = net.input("bias", LENGTH, LENGTH)
    tiled = net.Tile(net.unsqueeze(bias, 1), net.const([1, HEADS, 1, 1]))
    _attention(net, lambda scores: net.Add(scores, net.reshape(tiled, -1, LENGTH, LENGTH)))


def heads_with_expanded_mask(net: Net) -> None:
    """A mask of the scores for each sample, expanded over the heads at run time."""
    mask = net.Greater(net.input("bias", LENGTH, LENGTH), net.const(-0.5))
    shape = net.computed_shape(net.extent("bias", 0), HEADS, LENGTH, LENGTH)
    wide = net.reshape(net.Expand(net.unsqueeze(mask, 1), shape), -1, LENGTH, LENGTH)
    _attention(net, lambda scores: net.Where(wide, scores, net.const(-9.0)))


def heads_with_learned_bias(net: Net) -> None:
    """A bias by head, the same for every sample: tiled over the batch, as `repeat` is exported."""
    x = net.input("x", LENGTH, 6)
    repeats = net.computed_shape(net.extent(x, 0), 1, 1)
    _attention(net, lambda scores: net.Add(scores, net.Tile(net.normal(HEADS, LENGTH, LENGTH), repeats)), x=x)


def heads_with_bias_of_two(net: Net) -> None:
    """The same bias on two sums of the scores: united, where a pick would have places of one batch size."""
    bias = net.Tile(net.unsqueeze(net.input("bias", LENGTH, LENGTH), 1), net.const([1, HEADS, 1, 1]))
    bias = net.reshape(bias, -1, LENGTH, LENGTH)
    _attention(net, lambda scores: net.Add(net.Add(scores, bias), bias))


def heads_with_given_bias(net: Net) -> None:
    """What is added has an entry for every sample and head, which the caller gives."""
    bias = net.reshape(net.input("bias", HEADS, LENGTH, LENGTH), -1, LENGTH, LENGTH)
    _attention(net, lambda scores: net.Add(scores, bias))


def heads_outermost(net: Net) -> None:
    """Heads merged with the batch the other way round, and a bias by sample tiled the same way."""
    x, bias = net.linear(net.input("x", LENGTH, 6), 6, WIDTH), net.input("bias", LENGTH, LENGTH)
    parts = []
    for _ in range(3):
        apart = net.Transpose(net.reshape(net.linear(x, WIDTH, WIDTH), 0, 0, HEADS, EACH), perm=[2, 0, 1, 3])
        parts.append(net.reshape(apart, -1, LENGTH, EACH))
    scores = net.MatMul(parts[0], net.Transpose(parts[1], perm=[0, 2, 1]))
    mixed = net.MatMul(net.Softmax(net.Add(scores, net.Tile(bias, net.const([HEADS, 1, 1]))), axis=-1), parts[2])
    apart = net.Transpose(net.reshape(mixed, HEADS, -1, LENGTH, EACH), perm=[1, 2, 0, 3])
    net.output(net.linear(net.reshape(apart, 0, 0, WIDTH), WIDTH, 4))


def heads_in_two_orders(net: Net) -> None:
    """A bias by sample tiled the other way round than heads are merged: with a batch of one nobody can tell."""
    bias = net.Tile(net.input("bias", LENGTH, LENGTH), net.const([HEADS, 1, 1]))
    _attention(net, lambda scores: net.Add(scores, bias))


def heads_with_zeros(net: Net) -> None:
    """Zeros beside the keys and values, for as many rows as these have (`add_zero_attn`)."""

    def parts(x: str) -> list[str]:
        q, k, v = (_heads(net, net.linear(x, WIDTH, WIDTH)) for _ in range(3))
        zeros = net.ConstantOfShape(net.computed_shape(net.extent(k, 0), 1, EACH))
        return [q, net.Concat(k, zeros, axis=1), net.Concat(v, zeros, axis=1)]

    _attention(net, parts=parts)


def heads_with_expanded_bias(net: Net) -> None:
    """A constant expanded to batch times heads, a number that can't be corrected by another."""
    x = net.input("x", LENGTH, 6)
    rows = net.Mul(net.extent(x, 0), net.const([HEADS]))
    bias = net.Expand(net.normal(1, LENGTH, LENGTH), net.computed_shape(rows, 1, 1))
    _attention(net, lambda scores: net.Add(scores, bias), x=x)


def heads_split(net: Net) -> None:
    """Queries, keys and values behind each other on the axis of batch and heads, split into equal parts."""

    def parts(x: str) -> list[str]:
        joined = net.Concat(*(_heads(net, net.linear(x, WIDTH, WIDTH)) for _ in range(3)), axis=0)
        return net.ops("Split", joined, outputs=3, axis=0)

    _attention(net, parts=parts)


def heads_gathered(net: Net) -> None:
    """The first head of the first sample beside all: places of an axis whose extent varies."""
    _attention(net, on_output=lambda x: net.Add(x, net.Gather(x, net.const([0]), axis=0)))


def heads_halved(net: Net) -> None:
    """The first half of batch and heads is scaled, by bounds that are computed."""

    def scaled(x: str) -> str:
        half = net.Div(net.extent(x, 0), net.const([2]))
        first = net.Slice(x, net.const([0]), half, net.const([0]))
        rest = net.Slice(x, half, net.const([INT64_MAX]), net.const([0]))
        return net.Concat(net.Mul(first, net.const(2.0)), rest, axis=0)

    _attention(net, on_output=scaled)


def heads_padded(net: Net) -> None:
    """A head of zeros behind all heads of all samples, and what is cut off again."""
    pads = net.const([0, 0, 0, 1, 0, 0])
    back = net.const([0, 0, 0, -1, 0, 0])
    _attention(net, on_output=lambda x: net.Pad(net.Pad(x, pads), back))


def layer_on_heads(net: Net) -> None:
    """One weight for every head, heads merged with the batch."""
    weight = net.weight(EACH, EACH, fan_in=EACH)
    _attention(net, on_output=lambda x: net.Relu(net.MatMul(x, weight)))


def width_from_shape(net: Net) -> None:
    """Attention over pixels; the channels are taken from the Shape of the map, which its weight decides."""
    x = net.conv(net.image(), 3, WIDTH)
    batch, width = net.extent(x, 0), net.extent(x, 1)
    rows = net.Transpose(net.Reshape(x, net.computed_shape(batch, width, -1)), perm=[0, 2, 1])
    rows = net.LayerNormalization(rows, net.normal(WIDTH), axis=-1)
    parts = []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        apart = net.Reshape(net.linear(rows, WIDTH, WIDTH), net.computed_shape(batch, -1, HEADS, EACH))
        parts.append(net.Transpose(apart, perm=order))
    q, k, v = parts
    mixed = net.Transpose(net.MatMul(net.Softmax(net.MatMul(q, k), axis=-1), v), perm=[0, 2, 1, 3])
    net.output(net.linear(net.Reshape(mixed, net.computed_shape(batch, -1, width)), WIDTH, 4))


def gemm_matrix_bias(net: Net) -> None:
    """C as a matrix, a column and a row; where it is square, rows are still no units."""
    x = net.Relu(net.dense(net.input("x", 6), 6, 8))
    rows = net.batch if isinstance(net.batch, int) else 1
    for shape in ((rows, 8), (rows, 1), (1, 8), (8,), (1,), ()):
        x = net.Relu(net.Gemm(x, net.weight(8, 8, fan_in=8), net.normal(*shape)))
    net.output(net.dense(x, 8, 4))


def gemm_constant_left(net: Net) -> None:
    """A constant on the left: its rows are the units, and C has an entry for each only as a column."""
    x = net.Transpose(net.Relu(net.dense(net.input("x", 6), 6, 8)), perm=[1, 0])
    rows = net.batch if isinstance(net.batch, int) else 1
    for shape in ((8, 1), (8, rows), (rows,)):
        x = net.Relu(net.Gemm(net.weight(8, 8, fan_in=8), x, net.normal(*shape)))
    net.output(net.dense(net.Transpose(x, perm=[1, 0]), 8, 4))


REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)


def reduced_over_tokens(net: Net) -> None:
    """Every reduction over the tokens, without keepdims: the units are on the last axis of fewer."""
    x = net.Sigmoid(net.linear(net.input("x", LENGTH, 6), 6, 8))
    found = [net.reduce(kind, x, [-2], keepdims=0) for kind in REDUCTIONS]
    picked = net.Cast(net.ArgMax(x, axis=1, keepdims=0), to=net.element_type)
    net.output(net.dense(net.Concat(*found, picked, axis=1), 8 * (len(REDUCTIONS) + 1), 4))


def reduced_by_nothing(net: Net) -> None:
    """No axes: nothing is reduced, or everything."""
    x = net.Sigmoid(net.linear(net.input("x", LENGTH, 6), 6, 8))
    same = net.ReduceSum(x, noop_with_empty_axes=1)
    same = net.ReduceMax(same, net.const([], dtype=np.int64), noop_with_empty_axes=1)
    net.output(net.linear(same, 8, 4))


def norm_over_tokens(net: Net) -> None:
    """The chain of an RMSNorm over tokens: with a single unit left it still isn't one over units."""
    x = net.Relu(net.linear(net.input("x", LENGTH, 6), 6, 8))
    square = net.reduce("ReduceMean", net.Mul(x, x), [1])
    x = net.Div(x, net.Sqrt(net.Add(square, net.const([1e-2]))))
    net.output(net.linear(net.Mul(x, net.normal(8, shift=1.0)), 8, 4))
