"""Un-fused attention, as exporters write it: separate and fused projections, heads, key-value groups."""

from __future__ import annotations

import numpy as np

from tests.graphs import Net

WIDTH, HEADS, EACH = 12, 4, 3
ANGLES = np.outer(np.arange(5), [1.0, 0.1])


def _heads(net: Net, x: str, batch: str | int, order: tuple[int, ...] = (0, 2, 1, 3), heads: int = HEADS) -> str:
    shape = net.const([0, -1, heads, EACH]) if isinstance(batch, int) else net.computed_shape(batch, 5, heads, EACH)
    return net.Transpose(net.Reshape(x, shape), perm=list(order))


def _attend(net: Net, q: str, k: str, v: str) -> str:
    """Softmax(q k / sqrt(d)) v; k comes transposed."""
    weights = net.Softmax(net.Div(net.MatMul(q, k), net.const(EACH**0.5)), axis=-1)
    return net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3])


def _feed_forward(net: Net, x: str) -> str:
    hidden = net.Relu(net.linear(x, WIDTH, 10))
    return net.Add(x, net.linear(hidden, 10, WIDTH))


def _separate(net: Net, bias: bool, dynamic: bool) -> None:
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    batch = net.extent(x, 0) if dynamic else 0
    q, k, v = (net.linear(x, WIDTH, WIDTH, bias) for _ in range(3))
    joined = _attend(net, _heads(net, q, batch), _heads(net, k, batch, (0, 2, 3, 1)), _heads(net, v, batch))
    shape = net.computed_shape(batch, 5, WIDTH) if isinstance(batch, str) else net.const([0, 0, WIDTH])
    x = net.Add(x, net.linear(net.Reshape(joined, shape), WIDTH, WIDTH, bias))
    net.output(net.linear(_feed_forward(net, x), WIDTH, 4))


def separate(net: Net) -> None:
    _separate(net, bias=True, dynamic=False)


def separate_bare(net: Net) -> None:
    _separate(net, bias=False, dynamic=False)


def separate_computed(net: Net) -> None:
    _separate(net, bias=True, dynamic=True)


def _fused(net: Net, bias: bool) -> None:
    """One projection for all three, parted by Reshape, Transpose and Gather, as timm's ViT is exported."""
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    parts = net.reshape(net.linear(x, WIDTH, 3 * WIDTH, bias), 0, -1, 3, HEADS, EACH)
    parts = net.Transpose(parts, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.Gather(parts, net.const(place), axis=0) for place in range(3))
    joined = _attend(net, q, net.Transpose(k, perm=[0, 1, 3, 2]), v)
    x = net.Add(x, net.linear(net.reshape(joined, 0, -1, WIDTH), WIDTH, WIDTH, bias))
    net.output(net.linear(_feed_forward(net, x), WIDTH, 4))


def fused(net: Net) -> None:
    _fused(net, bias=True)


def fused_bare(net: Net) -> None:
    _fused(net, bias=False)


def fused_split(net: Net) -> None:
    """One projection, parted by Split, as GPT-2 is exported."""
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    q, k, v = net.split(net.linear(x, WIDTH, 3 * WIDTH), [WIDTH] * 3, axis=-1)
    joined = _attend(net, _heads(net, q, 0), _heads(net, k, 0, (0, 2, 3, 1)), _heads(net, v, 0))
    x = net.Add(x, net.linear(net.reshape(joined, 0, -1, WIDTH), WIDTH, WIDTH))
    net.output(net.linear(_feed_forward(net, x), WIDTH, 4))


def key_value_groups(net: Net) -> None:
    """Two key-value heads, each repeated for two query heads by Unsqueeze, Expand, Reshape."""
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    q = _heads(net, net.linear(x, WIDTH, WIDTH), 0)
    repeated = []
    for _ in range(2):
        narrow = _heads(net, net.linear(x, WIDTH, 2 * EACH), 0, heads=2)
        wide = net.Expand(net.unsqueeze(narrow, 2), net.const([1, 2, 2, 5, EACH]))
        repeated.append(net.reshape(wide, 0, HEADS, 5, EACH))
    joined = _attend(net, q, net.Transpose(repeated[0], perm=[0, 1, 3, 2]), repeated[1])
    x = net.Add(x, net.linear(net.reshape(joined, 0, -1, WIDTH), WIDTH, WIDTH))
    net.output(net.linear(_feed_forward(net, x), WIDTH, 4))


def merged_with_batch(net: Net) -> None:
    """Heads merged with the batch (BLOOM, older exporters): the merged extent is batch times heads."""
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    batch = net.extent(x, 0)
    rows = net.Mul(batch, net.const([HEADS]))
    q, k, v = (_heads(net, net.linear(x, WIDTH, WIDTH), batch) for _ in range(3))
    q, k, v = (net.Reshape(part, net.computed_shape(rows, 5, EACH)) for part in (q, k, v))
    mixed = net.MatMul(net.Softmax(net.MatMul(q, net.Transpose(k, perm=[0, 2, 1])), axis=-1), v)
    apart = net.Reshape(mixed, net.computed_shape(batch, HEADS, 5, EACH))
    joined = net.Reshape(net.Transpose(apart, perm=[0, 2, 1, 3]), net.computed_shape(batch, 5, WIDTH))
    x = net.Add(x, net.linear(joined, WIDTH, WIDTH))
    net.output(net.linear(_feed_forward(net, x), WIDTH, 4))


def _biased(net: Net, x: str, bias: str) -> str:
    q, k, v = (_heads(net, net.linear(x, WIDTH, WIDTH), 0) for _ in range(3))
    scores = net.Add(net.MatMul(q, net.Transpose(k, perm=[0, 1, 3, 2])), bias)
    joined = net.Transpose(net.MatMul(net.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
    return net.Add(x, net.linear(net.reshape(joined, 0, -1, WIDTH), WIDTH, WIDTH))


def bias_of_one(net: Net) -> None:
    """A learned bias by head and distance, for one layer alone: it loses the heads that go."""
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    net.output(net.linear(_biased(net, x, net.Neg(net.normal(HEADS, 5, 5))), WIDTH, 4))


def bias_of_two(net: Net) -> None:
    """The same bias for two layers, which pick their own heads from it."""
    x, bias = net.linear(net.input("x", 5, 6), 6, WIDTH), net.Neg(net.normal(HEADS, 5, 5))
    net.output(net.linear(_biased(net, _biased(net, x, bias), bias), WIDTH, 4))


def bias_as_input(net: Net) -> None:
    """A mask for every head, given by the caller."""
    x, bias = net.linear(net.input("x", 5, 6), 6, WIDTH), net.input("bias", HEADS, 5, 5)
    net.output(net.linear(_biased(net, x, bias), WIDTH, 4))


def normalised(net: Net) -> None:
    """A pre-norm block: the stream is barred, heads and hidden units are not."""
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    y = net.LayerNormalization(x, net.normal(WIDTH), net.normal(WIDTH))
    q, k, v = (
        _heads(net, net.linear(y, WIDTH, WIDTH), 0, order) for order in ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    )
    x = net.Add(x, net.linear(net.reshape(_attend(net, q, k, v), 0, -1, WIDTH), WIDTH, WIDTH))
    net.output(net.linear(_feed_forward(net, x), WIDTH, 4))


def _root_mean_square(net: Net, x: str, width: int) -> str:
    square = net.reduce("ReduceMean", net.Mul(x, x), [-1])
    return net.Mul(net.Div(x, net.Sqrt(net.Add(square, net.const(1e-3)))), net.normal(width))


def _turned(net: Net, x: str) -> str:
    """Rotary positions on interleaved pairs: (5, 2) angles for heads of four entries."""
    cosine, sine = (net.const(values) for values in (np.cos(ANGLES), np.sin(ANGLES)))
    even, odd = net.slice(x, -1, 0, 100, 2), net.slice(x, -1, 1, 100, 2)
    left = net.Sub(net.Mul(even, cosine), net.Mul(odd, sine))
    right = net.Add(net.Mul(even, sine), net.Mul(odd, cosine))
    pairs = net.Concat(net.unsqueeze(left, -1), net.unsqueeze(right, -1), axis=-1)
    return net.reshape(pairs, 0, 0, 5, -1)


def llama(net: Net) -> None:
    """RMSNorm in parts, rotary positions, six query heads on three key-value heads, SwiGLU; computed shapes."""
    x = net.linear(net.input("x", 5, 6), 6, WIDTH)
    batch, y = net.extent(x, 0), _root_mean_square(net, x, WIDTH)
    parts = []
    for heads in (6, 3, 3):
        apart = net.Reshape(net.linear(y, WIDTH, 4 * heads, bias=False), net.computed_shape(batch, 5, heads, 4))
        parts.append(net.Transpose(apart, perm=[0, 2, 1, 3]))
    q, k, v = _turned(net, parts[0]), _turned(net, parts[1]), parts[2]
    shape = net.computed_shape(batch, 3, 2, 5, 4)
    k, v = (net.reshape(net.Expand(net.unsqueeze(part, 2), shape), 0, 6, 5, 4) for part in (k, v))
    joined = _attend(net, q, net.Transpose(k, perm=[0, 1, 3, 2]), v)
    x = net.Add(x, net.linear(net.Reshape(joined, net.computed_shape(batch, 5, 24)), 24, WIDTH, bias=False))
    y = _root_mean_square(net, x, WIDTH)
    gate = net.linear(y, WIDTH, 10, bias=False)
    y = net.Mul(net.Mul(gate, net.Sigmoid(gate)), net.linear(y, WIDTH, 10, bias=False))
    net.output(net.linear(net.Add(x, net.linear(y, 10, WIDTH, bias=False)), WIDTH, 4))
