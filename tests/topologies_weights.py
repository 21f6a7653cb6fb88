"""Where weights come from: shared, wrapped, quantised, computed, listed as inputs; bodies that read from outside."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, parser

from tests.graphs import Net


def tied_weights(net: Net) -> None:
    """One weight for two nodes of a recurrent pair: their outputs are one set of units."""
    weight = net.weight(6, 6, 3, 3, fan_in=54)
    x = net.conv_relu(net.image(), 3, 6)
    for _ in range(2):
        x = net.Relu(net.Conv(x, weight, net.bias(6), pads=[1, 1, 1, 1]))
    net.output(net.conv(x, 6, 4))


def tied_embedding(net: Net) -> None:
    """Encoder and decoder share one matrix, the second time transposed by Gemm."""
    weight = net.weight(6, 8, fan_in=6)
    hidden = net.Relu(net.Gemm(net.input("x", 6), weight, net.bias(8)))
    net.output(net.Gemm(hidden, weight, transB=1))


def shared_bias(net: Net) -> None:
    """Exporters merge equal constants: one zero bias for three layers that have nothing else in common."""
    bias = net.const([0.0] * 8)
    x = net.image()
    for cin in (3, 8, 8):
        x = net.Relu(net.Conv(x, net.weight(8, cin, 3, 3, fan_in=9 * cin), bias, pads=[1, 1, 1, 1]))
    net.output(net.conv(x, 8, 4))


def shared_shape(net: Net) -> None:
    """One shape vector and one vector of split sizes for two branches that are cut differently."""
    shape, sizes = net.const([0, 8, -1]), net.const([3, 5])
    parts = []
    for _ in range(2):
        flat = net.Reshape(net.conv_relu(net.image() if not parts else "x", 3, 8), shape)
        parts += net.ops("Split", flat, sizes, outputs=2, axis=1)
    net.output(net.conv(net.Concat(*parts, axis=1), 16, 4, rank=1))


def weight_as_output(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(x, 6, 4), "w2")


def weight_as_output_before_bn(net: Net) -> None:
    """Folding the normalisation would change what the model gives out."""
    x = net.Relu(net.bn(net.conv(net.conv_relu(net.image(), 3, 8), 8, 6, bias=False), 6))
    net.output(net.conv(x, 6, 4), "w2")


def constant_nodes(net: Net) -> None:
    """Everything that would be an initialiser comes from a Constant node."""
    left, right = net.split(net.conv_relu(net.image(), 3, 8), [3, 5])
    net.output(net.conv(net.Relu(net.bn(net.conv(net.Concat(right, left, axis=1), 8, 6), 6)), 6, 4))
    net.constants_as_nodes()


def behind_identity(net: Net) -> None:
    x = net.image()
    for cin, cout in ((3, 8), (8, 6), (6, 4)):
        x = net.Relu(net.Conv(x, net.Identity(net.weight(cout, cin, 1, 1, fan_in=cin)), net.Identity(net.bias(cout))))
    net.output(x)


def behind_cast(net: Net) -> None:
    """Weights stored in halves, computed with in floats."""
    x = net.image()
    for cin, cout in ((3, 8), (8, 6), (6, 4)):
        stored = net.const(net.rng.standard_normal((cout, cin, 1, 1)) / cin, f"w{cout}", np.float16)
        x = net.Relu(net.Conv(x, net.Cast(stored, to=onnx.TensorProto.FLOAT)))
    net.output(x)


def behind_transpose(net: Net) -> None:
    x = net.input("x", 5, 6)
    for cin, cout in ((6, 8), (8, 10), (10, 4)):
        x = net.Relu(net.MatMul(x, net.Transpose(net.weight(cout, cin, fan_in=cin), perm=[1, 0])))
    net.output(x)


def behind_reshape(net: Net) -> None:
    """A matrix that a Reshape makes a kernel of one position."""
    x = net.conv_relu(net.image(), 3, 8)
    weight = net.reshape(net.weight(6, 8, fan_in=8), 6, 8, 1, 1)
    net.output(net.conv(net.Relu(net.Conv(x, weight)), 6, 4))


def _stored(net: Net, cin: int, cout: int) -> str:
    return net.const(net.rng.integers(-90, 90, (cout, cin, 1, 1)), f"w{cout}", np.int8)


def dequantised(net: Net) -> None:
    x = net.image()
    for cin, cout in ((3, 8), (8, 6), (6, 4)):
        weight = net.DequantizeLinear(_stored(net, cin, cout), net.const(0.01), net.const(3, "", np.int8))
        x = net.Relu(net.Conv(x, weight, net.bias(cout)))
    net.output(x)


def dequantised_by_output(net: Net) -> None:
    x = net.image()
    for cin, cout in ((3, 8), (8, 6), (6, 4)):
        scale = net.const(net.rng.uniform(0.005, 0.02, cout))
        weight = net.DequantizeLinear(_stored(net, cin, cout), scale, net.const(np.zeros(cout), "", np.int8), axis=0)
        x = net.Relu(net.Conv(x, weight, net.bias(cout)))
    net.output(x)


def dequantised_by_input(net: Net) -> None:
    x = net.image()
    for cin, cout in ((3, 8), (8, 6), (6, 4)):
        scale = net.const(net.rng.uniform(0.005, 0.02, cin))
        weight = net.DequantizeLinear(_stored(net, cin, cout), scale, axis=-3)
        x = net.Relu(net.Conv(x, weight, net.bias(cout)))
    net.output(x)


def fake_quantised(net: Net) -> None:
    """QuantizeLinear and DequantizeLinear on the activations, as quantisation-aware training leaves them."""
    x = net.image()
    for cin, cout in ((3, 8), (8, 6), (6, 4)):
        codes = net.QuantizeLinear(x, net.const(0.02), net.const(0, "", np.int8))
        x = net.Relu(net.conv(net.DequantizeLinear(codes, net.const(0.02), net.const(0, "", np.int8)), cin, cout))
    net.output(x)


def weight_norm(net: Net) -> None:
    """A weight computed from constants: its direction over its norm, times a gain."""
    x = net.image()
    for cin, cout in ((3, 8), (8, 6), (6, 4)):
        direction = net.normal(cout, cin, 3, 3)
        norm = net.reduce("ReduceL2", direction, [1, 2, 3])
        weight = net.Mul(net.Div(direction, norm), net.normal(cout, 1, 1, 1))
        x = net.Relu(net.Conv(x, weight, net.bias(cout), pads=[1, 1, 1, 1]))
    net.output(x)


def packed_equally(net: Net) -> None:
    """One constant holds the weights of two layers and a table, which a Split without sizes takes apart."""
    first, second, table = net.ops("Split", net.normal(24, 8, scale=0.5), outputs=3)
    x = net.Relu(net.linear(net.input("x", 5, 6), 6, 8))
    for weight in (first, second):
        x = net.Relu(net.MatMul(x, weight))
    net.output(net.linear(net.Mul(x, net.reduce("ReduceSum", table, [0])), 8, 4))


def packed_by_size(net: Net) -> None:
    """One constant holds a weight and a row that is added; the row is also turned into a factor."""
    weight, row = net.split(net.normal(9, 8, scale=0.5), [8, 1], axis=0)
    x = net.Relu(net.linear(net.input("x", 5, 6), 6, 8))
    x = net.Relu(net.Add(net.MatMul(x, weight), row))
    net.output(net.linear(net.Mul(x, net.Tanh(row)), 8, 4))


def cropped_weight(net: Net) -> None:
    """A Pad with negative amounts cuts a constant to the weight that is read; one with both signs moves another."""
    x = net.Relu(net.linear(net.input("x", 5, 6), 6, 8))
    x = net.Relu(net.MatMul(x, net.pad(net.normal(11, 10, scale=0.5), [-3, 0, 0, 0])))
    net.output(net.MatMul(x, net.pad(net.normal(9, 5), [2, -1, -1, 0])))


def listed_initialisers(net: Net) -> None:
    net.lists_initialisers = True
    x = net.Relu(net.bn(net.conv(net.image(), 3, 8), 8))
    net.output(net.conv(net.reshape(net.conv_relu(x, 8, 6), -1, 6, 8, 8), 6, 4))


def _branch(kind: str, *inputs: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{kind}_out", onnx.TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(kind, inputs, [output.name])], kind, [], [output])


def if_capture(net: Net) -> None:
    """Both branches read a map from outside; the layers before and after it are cut all the same."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    choice = net.Cast(net.input("choice", dtype="int64", batched=False), to=onnx.TensorProto.BOOL)
    y = net.op("If", choice, then_branch=_branch("Relu", x), else_branch=_branch("Neg", x))
    net.output(net.conv(net.conv_relu(y, 6, 5), 5, 4))


def if_captures_constant(net: Net) -> None:
    """A Constant node that the main graph and a branch both read."""
    x = net.conv_relu(net.image(), 3, 6)
    shift = net.normal(6, 1, 1)
    choice = net.Cast(net.input("choice", dtype="int64", batched=False), to=onnx.TensorProto.BOOL)
    y = net.op("If", choice, then_branch=_branch("Add", x, shift), else_branch=_branch("Mul", x, shift))
    y = net.conv_relu(net.Add(y, shift), 6, 5)
    net.output(net.conv(y, 5, 4))
    net.constants_as_nodes()


def if_captures_extent(net: Net) -> None:
    """A branch reads the shape of a map, and reshapes by it what it reads besides."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    extents, other = net.Shape(x), net.conv("x", 3, 6)
    choice = net.Cast(net.input("choice", dtype="int64", batched=False), to=onnx.TensorProto.BOOL)
    y = net.op("If", choice, then_branch=_branch("Reshape", other, extents), else_branch=_branch("Neg", other))
    net.output(net.conv(x, 6, 4), net.conv(y, 6, 4))


def loop_capture(net: Net) -> None:
    """A body that adds the same map again and again to what it carries."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    start = net.conv("x", 3, 6)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["carried", x], ["sum"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [info("i", 7, []), info("go", 9, []), info("carried", 1, None)],
        [info("on", 9, []), info("sum", 1, None)],
    )
    y = net.op("Loop", net.const(2), net.const(True), start, body=body)
    net.output(net.conv(net.conv_relu(y, 6, 5), 5, 4))


def custom_operator(net: Net) -> None:
    net.domains["com.microsoft"] = 1
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    x = net.op("Trilu", x, domain="com.microsoft", upper=1)
    net.output(net.conv(net.conv_relu(x, 6, 5), 5, 4))


def eye_like(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    x = net.EyeLike(net.reduce("ReduceSum", x, [2, 3], keepdims=0))
    net.output(net.dense(net.Relu(net.dense(x, 6, 5)), 5, 4))


def local_function(net: Net) -> None:
    net.domains["local"] = 1
    net.functions.append(
        parser.parse_function(
            f'<domain: "local", opset_import: ["": {net.opset}]>'
            "scaled (x, gain) => (y) { z = Mul(x, gain) y = Relu(z) }"
        )
    )
    x = net.op("scaled", net.conv(net.image(), 3, 8), net.normal(8, 1, 1), domain="local")
    x = net.op("scaled", net.conv(x, 8, 6), net.normal(6, 1, 1), domain="local")
    net.output(net.conv(x, 6, 4))
