"""onnxruntime's fused operators, ONNX's own attention, and Einsum, in the places where optimisers put them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.graphs import Net

WIDTH, HEADS, EACH, LENGTH = 12, 4, 4, 5
ALL = HEADS * EACH
FUSED = "com.microsoft"
ROTATIONS = np.outer(np.arange(LENGTH), [1.0, 0.1])
WIDE = 16
"""GroupQueryAttention wants a multiple of 8 dims a head, of 16 with rotary positions."""
WIDE_ROTATIONS = np.outer(np.arange(LENGTH), 0.5 ** np.arange(WIDE // 2))


def _start(net: Net, length: int = LENGTH) -> str:
    net.domains[FUSED] = 1
    net.output_rank = 3
    return net.linear(net.input("x", length, 6), 6, WIDTH)


def _fused(net: Net, kind: str, *inputs: str, **attributes: Any) -> str:
    return net.op(kind, *inputs, domain=FUSED, **attributes)


def _projected(net: Net, x: str, *heads: int, each: int = EACH, bias: bool = False) -> list[str]:
    return [net.linear(x, WIDTH, count * each, bias) for count in heads]


def _finish(net: Net, x: str, joined: str, width: int = ALL) -> None:
    """Output projection and residual Add, and the last layer."""
    net.output(net.linear(net.Add(x, net.linear(joined, width, WIDTH)), WIDTH, 4))


def bias_gelu(net: Net) -> None:
    x = _start(net)
    y = _fused(net, "BiasGelu", net.linear(x, WIDTH, 10, bias=False), net.bias(10))
    net.output(net.linear(y, 10, 4))


def gelus(net: Net) -> None:
    """Every activation that onnxruntime has of its own."""
    x = _start(net)
    y = _fused(net, "FastGelu", net.linear(x, WIDTH, 10, bias=False), net.bias(10))
    for kind in ("FastGelu", "QuickGelu", "Gelu"):
        y = _fused(net, kind, net.linear(y, 10, 10))
    net.output(net.linear(y, 10, 4))


def skip_norm(net: Net) -> None:
    """A post-norm feed-forward part, as BERT is optimised: the biases are in the fused nodes."""
    x = _start(net)
    hidden = _fused(net, "BiasGelu", net.linear(x, WIDTH, 10, bias=False), net.bias(10))
    last = net.linear(hidden, 10, WIDTH, bias=False)
    x = _fused(net, "SkipLayerNormalization", last, x, net.normal(WIDTH), net.normal(WIDTH), net.bias(WIDTH))
    net.output(net.linear(x, WIDTH, 4))


def skip_norm_broadcast(net: Net) -> None:
    """What is added is the same for every sample: learned positions."""
    x = _start(net)
    last = net.linear(net.Relu(net.linear(x, WIDTH, 10)), 10, WIDTH)
    inputs = [last, net.normal(1, LENGTH, WIDTH), net.normal(WIDTH)]
    net.output(net.linear(_fused(net, "SkipLayerNormalization", *inputs), WIDTH, 4))


def skip_norm_with_sum(net: Net) -> None:
    """Pre-norm parts: the fourth output is the stream that goes on."""
    x = _start(net)
    y = net.op("SimplifiedLayerNormalization", x, net.normal(WIDTH), axis=-1, epsilon=1e-5, stash_type=1)
    for _ in range(2):
        last = net.linear(net.Relu(net.linear(y, WIDTH, 10)), 10, WIDTH, bias=False)
        y, x = _skip_simplified(net, last, x)
    net.output(net.linear(net.Add(x, y), WIDTH, 4))


def _skip_simplified(net: Net, x: str, skip: str) -> tuple[str, str]:
    outputs = net.ops("SkipSimplifiedLayerNormalization", x, skip, net.normal(WIDTH), outputs=4, domain=FUSED)
    net.nodes[-1].output[1] = net.nodes[-1].output[2] = ""
    return outputs[0], outputs[3]


def embedding_norm(net: Net) -> None:
    net.domains[FUSED] = 1
    net.output_rank = 3
    tables = [net.normal(rows, WIDTH) for rows in (7, LENGTH, 2)]
    ids, segments = (net.input(name, LENGTH, dtype=np.int32) for name in ("ids", "segments"))
    x = net.ops("EmbedLayerNormalization", ids, segments, *tables, net.normal(WIDTH), net.normal(WIDTH), outputs=2,
                domain=FUSED)[0]  # fmt: skip
    net.output(net.linear(net.Relu(net.linear(x, WIDTH, 10)), 10, 4))


def multi_head(net: Net) -> None:
    """Queries, keys and values apart, their biases in one vector; wider values."""
    x = _start(net)
    parts = [net.linear(x, WIDTH, HEADS * each, bias=False) for each in (EACH, EACH, 5)]
    _finish(net, x, _fused(net, "MultiHeadAttention", *parts, net.bias(13 * HEADS), num_heads=HEADS), 5 * HEADS)


def multi_head_biased(net: Net) -> None:
    """A mask for every sample, and relative positions for every head."""
    x = _start(net)
    mask = net.input("mask", LENGTH, dtype=np.int32)
    inputs = [*_projected(net, x, HEADS, HEADS, HEADS), "", mask, net.normal(1, HEADS, LENGTH, LENGTH)]
    _finish(net, x, _fused(net, "MultiHeadAttention", *inputs, num_heads=HEADS, scale=0.3))


def multi_head_values(net: Net) -> None:
    """A bias for every head from outside: heads stay, and the same dims of the values in all of them may go."""
    x = _start(net)
    bias = net.input("bias", HEADS, LENGTH, LENGTH)
    inputs = [*_projected(net, x, HEADS, HEADS, HEADS), net.bias(3 * ALL), "", bias]
    _finish(net, x, _fused(net, "MultiHeadAttention", *inputs, num_heads=HEADS))


def projection_values(net: Net) -> None:
    """The same with the projection inside."""
    x = _start(net)
    bias = net.input("bias", HEADS, LENGTH, LENGTH)
    inputs = [x, net.weight(WIDTH, 3 * ALL, fan_in=WIDTH), net.bias(3 * ALL), "", "", bias]
    _finish(net, x, _fused(net, "Attention", *inputs, num_heads=HEADS))


def multi_head_cross(net: Net) -> None:
    """Keys and values by head, as they come out of another graph."""
    x = _start(net)
    q, k, v = _projected(net, x, HEADS, HEADS, HEADS)
    k, v = (net.Transpose(net.reshape(part, 0, 0, HEADS, EACH), perm=[0, 2, 1, 3]) for part in (k, v))
    _finish(net, x, _fused(net, "MultiHeadAttention", q, k, v, num_heads=HEADS))


def multi_head_packed(net: Net) -> None:
    """Queries, keys and values in one tensor, side by side inside each head."""
    x = _start(net)
    packed = net.reshape(net.linear(x, WIDTH, 3 * ALL), 0, 0, HEADS, 3, EACH)
    _finish(net, x, _fused(net, "MultiHeadAttention", packed, num_heads=HEADS))


def multi_head_pairs(net: Net) -> None:
    """Keys and values in one tensor, as for attention to another sequence."""
    x = _start(net)
    query, pairs = _projected(net, x, HEADS, 2 * HEADS)
    _finish(net, x, _fused(net, "MultiHeadAttention", query, net.reshape(pairs, 0, 0, HEADS, 2, EACH), num_heads=HEADS))


def multi_head_cached(net: Net) -> None:
    """Earlier keys and values are inputs, all of them outputs: heads stay."""
    x = _start(net)
    parts = _projected(net, x, HEADS, HEADS, HEADS)
    past = [net.input(f"past_{name}", HEADS, 3, EACH) for name in ("key", "value")]
    joined, *present = net.ops("MultiHeadAttention", *parts, "", "", "", *past, outputs=3, domain=FUSED,
                               num_heads=HEADS)  # fmt: skip
    _finish(net, x, joined)
    net.output(*present)


def projection(net: Net) -> None:
    """Attention with its projection inside, and a mask of every sample's positions."""
    x = _start(net)
    mask = net.input("mask", LENGTH, dtype=np.int32)
    weight = net.weight(WIDTH, 3 * ALL, fan_in=WIDTH)
    _finish(net, x, _fused(net, "Attention", x, weight, net.bias(3 * ALL), mask, num_heads=HEADS))


def projection_uneven(net: Net) -> None:
    """Values of other dims than queries and keys, behind a normalised stream."""
    x = _start(net)
    y = net.LayerNormalization(x, net.normal(WIDTH), net.normal(WIDTH))
    sizes = [ALL, ALL, 6 * HEADS]
    inputs = [y, net.weight(WIDTH, sum(sizes), fan_in=WIDTH), net.bias(sum(sizes))]
    _finish(net, x, _fused(net, "Attention", *inputs, num_heads=HEADS, qkv_hidden_sizes=sizes), 6 * HEADS)


def projection_cached(net: Net) -> None:
    x = _start(net)
    weight = net.weight(WIDTH, 3 * ALL, fan_in=WIDTH)
    past = net.input("past", 2, net.batch, HEADS, 3, EACH, batched=False)
    joined, present = net.ops("Attention", x, weight, net.bias(3 * ALL), "", past, outputs=2, domain=FUSED,
                              num_heads=HEADS, unidirectional=1)  # fmt: skip
    _finish(net, x, joined)
    net.output(present)


def _positions(net: Net, x: str) -> list[str]:
    """Lengths of what comes before, and the total, as GroupQueryAttention wants them."""
    before = net.Expand(net.const([LENGTH - 1], dtype=np.int32), net.extent(x, 0))
    return [before, net.const(LENGTH, dtype=np.int32)]


def group_query(net: Net) -> None:
    """Six query heads on three key-value heads, rotary positions inside."""
    x = _start(net)
    parts = _projected(net, x, 6, 3, 3, each=WIDE)
    tables = [net.const(values) for values in (np.cos(WIDE_ROTATIONS), np.sin(WIDE_ROTATIONS))]
    inputs = [*parts, "", "", *_positions(net, x), *tables]
    joined = net.ops("GroupQueryAttention", *inputs, outputs=3, domain=FUSED, num_heads=6, kv_num_heads=3, do_rotary=1)
    _finish(net, x, joined[0], 6 * WIDE)


def group_query_packed(net: Net) -> None:
    """One projection for all; a bias and a sink of its own for every query head."""
    x = _start(net)
    packed = net.linear(x, WIDTH, 12 * WIDE, bias=False)
    inputs = [packed, "", "", "", "", *_positions(net, x), "", "", "", net.normal(1, 6, LENGTH, LENGTH), net.normal(6)]
    joined = net.ops("GroupQueryAttention", *inputs, outputs=3, domain=FUSED, num_heads=6, kv_num_heads=3)
    _finish(net, x, joined[0], 6 * WIDE)


def group_query_single(net: Net) -> None:
    """One key-value head for all: every query head may go on its own."""
    x = _start(net)
    inputs = [*_projected(net, x, HEADS, 1, 1, each=WIDE), "", "", *_positions(net, x)]
    joined = net.ops("GroupQueryAttention", *inputs, outputs=3, domain=FUSED, num_heads=HEADS, kv_num_heads=1)
    _finish(net, x, joined[0], HEADS * WIDE)


def group_query_cached(net: Net) -> None:
    """One more position behind those of the cache."""
    x = _start(net, length=1)
    past = [net.input(f"past_{name}", 3, LENGTH, WIDE) for name in ("key", "value")]
    before = net.Expand(net.const([LENGTH], dtype=np.int32), net.extent(x, 0))
    inputs = [*_projected(net, x, 6, 3, 3, each=WIDE), *past, before, net.const(LENGTH + 1, dtype=np.int32)]
    joined = net.ops("GroupQueryAttention", *inputs, outputs=3, domain=FUSED, num_heads=6, kv_num_heads=3)
    _finish(net, x, joined[0], 6 * WIDE)
    net.output(*joined[1:])


def rotated(net: Net) -> None:
    """Rotary positions in nodes of their own, on three and on four axes, before attention of one node."""
    x = _start(net)
    q, k, v = _projected(net, x, HEADS, HEADS, HEADS)
    tables = [net.const(values) for values in (np.cos(ROTATIONS), np.sin(ROTATIONS))]
    places = net.Expand(net.const([list(range(LENGTH))]), net.computed_shape(net.extent(x, 0), LENGTH))
    q = _fused(net, "RotaryEmbedding", q, places, *tables, num_heads=0)
    apart = net.Transpose(net.reshape(k, 0, 0, HEADS, EACH), perm=[0, 2, 1, 3])
    apart = _fused(net, "RotaryEmbedding", apart, places, *tables, interleaved=1)
    k = net.reshape(net.Transpose(apart, perm=[0, 2, 1, 3]), 0, 0, ALL)
    _finish(net, x, _fused(net, "MultiHeadAttention", q, k, v, num_heads=HEADS))


def rotated_half(net: Net) -> None:
    """onnxruntime's rotation with the heads given by an attribute."""
    x = _start(net)
    q, k, v = _projected(net, x, HEADS, HEADS, HEADS)
    tables = [net.const(values) for values in (np.cos(ROTATIONS), np.sin(ROTATIONS))]
    q, k = (
        _fused(net, "RotaryEmbedding", part, net.const([0]), *tables, num_heads=HEADS, rotary_embedding_dim=EACH)
        for part in (q, k)
    )
    _finish(net, x, _fused(net, "MultiHeadAttention", q, k, v, num_heads=HEADS))


def standard_joined(net: Net) -> None:
    """ONNX's attention on three axes, with shared key-value heads and rotary positions."""
    x = _start(net)
    q, k, v = _projected(net, x, 6, 3, 3)
    places = net.Expand(net.const([list(range(LENGTH))]), net.computed_shape(net.extent(x, 0), LENGTH))
    tables = [net.const(values) for values in (np.cos(ROTATIONS), np.sin(ROTATIONS))]
    q, k = (net.RotaryEmbedding(part, *tables, places, num_heads=heads) for part, heads in ((q, 6), (k, 3)))
    _finish(net, x, net.op("Attention", q, k, v, q_num_heads=6, kv_num_heads=3, is_causal=1), 6 * EACH)


def standard_apart(net: Net) -> None:
    """ONNX's attention on four axes, biased for every head; wider values."""
    x = _start(net)
    parts = [net.linear(x, WIDTH, HEADS * each, bias=False) for each in (EACH, EACH, 5)]
    q, k, v = (
        net.Transpose(net.reshape(part, 0, 0, HEADS, each), perm=[0, 2, 1, 3])
        for part, each in zip(parts, (EACH, EACH, 5), strict=True)
    )
    mixed = net.Attention(q, k, v, net.normal(1, HEADS, LENGTH, LENGTH))
    _finish(net, x, net.reshape(net.Transpose(mixed, perm=[0, 2, 1, 3]), 0, 0, HEADS * 5), HEADS * 5)


def standard_padded(net: Net) -> None:
    """The number of positions that count, sample by sample."""
    x = _start(net)
    counted = net.Expand(net.const([3]), net.extent(x, 0))
    parts = _projected(net, x, HEADS, HEADS, HEADS)
    _finish(net, x, net.op("Attention", *parts, "", "", "", counted, q_num_heads=HEADS, kv_num_heads=HEADS))


def standard_cached(net: Net) -> None:
    x = _start(net)
    parts = _projected(net, x, HEADS, HEADS, HEADS)
    past = [net.input(f"past_{name}", HEADS, 3, EACH) for name in ("key", "value")]
    joined, *present = net.ops("Attention", *parts, "", *past, outputs=3, q_num_heads=HEADS, kv_num_heads=HEADS)
    _finish(net, x, joined)
    net.output(*present)


def fused_matmul(net: Net) -> None:
    """Products with a transposed and scaled operand: layers, and the logits of attention."""
    x = _start(net)
    q, k, v = (
        net.Transpose(net.reshape(part, 0, 0, HEADS, EACH), perm=[0, 2, 1, 3])
        for part in _projected(net, x, HEADS, HEADS, HEADS)
    )
    weights = net.Softmax(_fused(net, "FusedMatMul", q, k, transB=1, alpha=EACH**-0.5), axis=-1)
    joined = net.reshape(net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3]), 0, 0, ALL)
    y = _fused(net, "FusedMatMul", joined, net.weight(WIDTH, ALL, fan_in=ALL), transB=1, alpha=0.5)
    x = net.Add(x, net.Add(y, net.bias(WIDTH)))
    hidden = _fused(net, "FusedMatMul", x, net.weight(10, WIDTH, fan_in=WIDTH), transB=1)
    net.output(net.linear(net.Relu(net.Add(hidden, net.bias(10))), 10, 4))


def fused_matmul_left(net: Net) -> None:
    """The left operand transposed: its last axis but one is contracted."""
    x = net.Transpose(_start(net), perm=[0, 2, 1])
    y = _fused(net, "FusedMatMul", x, net.weight(WIDTH, 10, fan_in=WIDTH), transA=1)
    net.output(net.linear(net.Relu(y), 10, 4))


def fused_matmul_batch(net: Net) -> None:
    """Samples and positions change places inside a product, on its left and on its right side."""
    x = _start(net)
    left = net.Relu(net.linear(x, WIDTH, 10))
    right = net.Transpose(net.Relu(net.linear(x, WIDTH, 10)), perm=[1, 0, 2])
    first = _fused(net, "FusedMatMul", left, net.weight(LENGTH, 10, 8, fan_in=10), transBatchA=1)
    second = _fused(net, "FusedMatMul", right, net.weight(10, LENGTH, 8, fan_in=10), transBatchB=1)
    net.output(*(net.linear(net.Transpose(y, perm=[1, 0, 2]), 8, 4) for y in (first, second)))


def fused_weight(net: Net) -> None:
    """A weight that a fused operator computes is not known before the run: cut, but not written to."""
    x = _start(net)
    made = _fused(net, "FusedMatMul", net.weight(12, 8, fan_in=12), net.weight(10, 8, fan_in=8), transB=1)
    net.output(net.linear(net.Relu(net.MatMul(x, made)), 10, 4))


def einsum(net: Net) -> None:
    """Layers and both products of attention as equations."""
    x = _start(net)
    q, k, v = (
        net.Transpose(net.reshape(part, 0, 0, HEADS, EACH), perm=[0, 2, 1, 3])
        for part in _projected(net, x, HEADS, HEADS, HEADS)
    )
    weights = net.Softmax(net.op("Einsum", q, k, equation="bhqd,bhkd->bhqk"), axis=-1)
    mixed = net.op("Einsum", weights, v, equation="bhqk, bhkd -> bqhd")
    x = net.Add(x, net.linear(net.reshape(mixed, 0, 0, ALL), ALL, WIDTH))
    hidden = net.op("Einsum", x, net.weight(WIDTH, 10, fan_in=WIDTH), equation="bij,jk->bik")
    turned = net.op("Einsum", net.Relu(net.Add(hidden, net.bias(10))), equation="bik->bki")
    net.output(net.op("Einsum", net.weight(4, 10, fan_in=10), turned, equation="ok,bki"))


def einsum_heads(net: Net) -> None:
    """Projections by head, as Keras has them: weights of three axes, biases of two."""
    x = _start(net)
    q, k, v = (
        net.Add(
            net.op("Einsum", x, net.weight(WIDTH, HEADS, EACH, fan_in=WIDTH), equation="abc,cde->abde"),
            net.normal(HEADS, EACH),
        )
        for _ in range(3)
    )
    weights = net.Softmax(net.op("Einsum", k, q, equation="aecd,abcd->acbe"), axis=-1)
    mixed = net.op("Einsum", weights, v, equation="acbe,aecd->abcd")
    y = net.op("Einsum", mixed, net.weight(HEADS, EACH, WIDTH, fan_in=ALL), equation="abcd,cde->abe")
    net.output(net.linear(net.Add(x, net.Add(y, net.bias(WIDTH))), WIDTH, 4))


def einsum_other(net: Net) -> None:
    """A run of indices is not followed."""
    x = _start(net)
    y = net.op("Einsum", x, net.weight(WIDTH, 10, fan_in=WIDTH), equation="...j,jk->...k")
    net.output(net.linear(net.Relu(net.linear(net.Relu(y), 10, 8)), 8, 4))
