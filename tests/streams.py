"""Small transformers around one residual stream, in the spellings that exporters give norms and positions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.graphs import Net

WIDTH, HEADS, EACH, WORDS, LENGTH = 16, 4, 4, 11, 5
EPSILON = 0.1
"""Large, so that a cut which forgets to correct it shows."""
NormMaker = Callable[[Net, str], str]


def layer_norm(net: Net, x: str) -> str:
    """The operator, with gain and shift."""
    return net.LayerNormalization(x, _gain(net), net.normal(WIDTH), epsilon=EPSILON)


def layer_norm_parts(net: Net, x: str) -> str:
    """As torch writes it before opset 17."""
    centred = net.Sub(x, net.reduce("ReduceMean", x, [-1]))
    mean = net.reduce("ReduceMean", net.Pow(centred, net.const(2.0)), [-1])
    normed = net.Div(centred, net.Sqrt(net.Add(mean, net.const(EPSILON))))
    return net.Add(net.Mul(normed, _gain(net)), net.normal(WIDTH))


def rms_parts(net: Net, x: str) -> str:
    """x (1 / sqrt(mean + eps)) g, as LLaMA is exported."""
    mean = net.reduce("ReduceMean", net.Mul(x, x), [-1])
    root = net.Sqrt(net.Add(mean, net.const(EPSILON)))
    return net.Mul(_gain(net), net.Mul(x, net.Div(net.const(1.0), root)))


def rms_power(net: Net, x: str) -> str:
    """x (mean + eps)^-0.5 g."""
    mean = net.reduce("ReduceMean", net.Pow(x, net.const(2.0)), [-1])
    return net.Mul(net.Mul(x, net.Pow(net.Add(net.const(EPSILON), mean), net.const(-0.5))), _gain(net))


def rms_norm(net: Net, x: str) -> str:
    """The operator of opset 23."""
    return net.RMSNormalization(x, _gain(net), epsilon=EPSILON, axis=-1)


def rms_fused(net: Net, x: str) -> str:
    """The operator that onnxruntime fuses the chain to; onnx doesn't know it."""
    return net.SimplifiedLayerNormalization(x, _gain(net), epsilon=EPSILON, axis=-1)


def _gain(net: Net) -> str:
    return net.normal(WIDTH, scale=0.3, shift=1.0)


def embedded(net: Net, positions: str = "learned") -> str:
    """Token embeddings; `learned` positions are a table cut to the length, `fixed` ones a constant."""
    ids = net.input("ids", LENGTH, dtype=np.int64)
    table = net.normal(WORDS, WIDTH, name="table")
    x = net.Gather(table, ids, axis=0)
    if positions == "learned":
        places = net.slice(net.normal(2 * LENGTH, WIDTH, name="places"), 0, 0, LENGTH)
        return net.Add(x, net.unsqueeze(places, 0))
    return net.Add(x, net.normal(1, LENGTH, WIDTH, name="places")) if positions == "fixed" else x


def attention(net: Net, y: str, bias: bool) -> str:
    def heads(x: str, order: tuple[int, ...]) -> str:
        return net.Transpose(net.reshape(x, 0, -1, HEADS, EACH), perm=list(order))

    q, k, v = (net.linear(y, WIDTH, WIDTH, bias) for _ in range(3))
    scores = net.MatMul(heads(q, (0, 2, 1, 3)), heads(k, (0, 2, 3, 1)))
    mixed = net.MatMul(net.Softmax(net.Div(scores, net.const(2.0)), axis=-1), heads(v, (0, 2, 1, 3)))
    joined = net.reshape(net.Transpose(mixed, perm=[0, 2, 1, 3]), 0, -1, WIDTH)
    return net.linear(joined, WIDTH, WIDTH, bias)


def feed_forward(net: Net, y: str, bias: bool) -> str:
    return net.linear(net.Relu(net.linear(y, WIDTH, 24, bias)), 24, WIDTH, bias)


def pre_norm(net: Net, norm: NormMaker, positions: str = "learned", bias: bool = True, layers: int = 2) -> None:
    """x + attention(norm(x)), x + feed_forward(norm(x)), a last norm and a head."""
    x = embedded(net, positions)
    for _ in range(layers):
        x = net.Add(x, attention(net, norm(net, x), bias))
        x = net.Add(feed_forward(net, norm(net, x), bias), x)
    net.output(net.MatMul(norm(net, x), net.weight(WIDTH, WORDS, fan_in=WIDTH)))


def post_norm(net: Net) -> None:
    """BERT: the norm's output is the stream."""
    x = layer_norm(net, embedded(net))
    for _ in range(2):
        x = layer_norm(net, net.Add(x, attention(net, x, bias=True)))
        x = layer_norm(net, net.Add(x, feed_forward(net, x, bias=True)))
    net.output(net.linear(x, WIDTH, 3))


def vision(net: Net) -> None:
    """ViT: a patch convolution, a class token, the head on the class token's row."""
    image = net.input("x", 3, 8, 8)
    patches = net.conv(image, 3, WIDTH, k=4, bias=True, strides=[4, 4])
    rows = net.Transpose(net.reshape(patches, 0, WIDTH, -1), perm=[0, 2, 1])
    batch = net.extent(image, 0)
    token = net.Expand(net.normal(1, 1, WIDTH, name="token"), net.computed_shape(batch, 1, WIDTH))
    x = net.Concat(token, rows, axis=1)
    x = net.Add(x, net.normal(1, 10, WIDTH, name="places"))
    for _ in range(2):
        x = net.Add(x, attention(net, layer_norm(net, x), bias=True))
        x = net.Add(x, feed_forward(net, layer_norm(net, x), bias=True))
    row = net.Gather(layer_norm(net, x), net.const(0), axis=1)
    net.output(net.dense(row, WIDTH, 5))
