"""Blocks are found by structure: what may go, what may not and why, in recipes of either exporter and in small nets."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from rich.console import Console

import snp_onnx
from models.tiny import TINY, TRANSFORMERS
from snp_onnx.passes import prepare
from snp_onnx.report.json_report import to_json
from snp_onnx.report.table import inspection_table
from snp_onnx.tracing import Block, BlockKind, find_blocks, trace
from snp_onnx.tracing.flow import Flow
from tests.exports import export_bytes
from tests.graphs import Net, feed_for
from tests.oracles import traced
from tests.topologies import CATALOGUE

LAYER = {"attention": 2, "feed-forward": 2, "layer": 2}
EXPECTED: dict[str, tuple[dict[str, int], int, int]] = {
    "resnet18": ({"residual": 3}, 1, 2),
    "resnet34": ({"residual": 3}, 1, 2),
    "resnet50": ({"residual": 2}, 2, 2),
    **dict.fromkeys(("resnet20-a", "resnet20-b", "resnet110-a", "preresnet20"), ({"residual": 1}, 2, 3)),
    **dict.fromkeys(("resnet56-a", "resnet56-b", "preresnet56"), ({"residual": 4}, 2, 3)),
    "mobilenetv2": ({"residual": 2}, 0, 2),
    "shufflenetv1": ({"residual": 2}, 0, 2),
    "super-resolution": ({"residual": 3}, 0, 1),
    "se-resnet18": ({"residual": 1}, 1, 2),
    "se-resnet18-linear": ({"residual": 1}, 1, 2),
    **dict.fromkeys(TRANSFORMERS, (LAYER, 0, 1)),
}
"""By recipe: how many blocks of each kind may go, how many may not, and in how many stages; others have none."""
TS_QUICK = (*EXPECTED, "mlp", "densenet40", "shufflenetv2", "unet")
DYNAMO_QUICK = ("resnet20-a", "preresnet20", "bert", "llama")


@cache
def exported(name: str, exporter: str) -> onnx.ModelProto:
    rows = 2 if name in TRANSFORMERS else 1
    return prepare(export_bytes(name, exporter, "dynamic", rows=rows, **TINY[name])).model


def recipe_feed(name: str, rows: int = 1) -> dict[str, Any]:
    from models.recipes import recipe

    return {key: value.numpy() for key, value in recipe(name).samples(TINY[name]["in_size"], rows, 0).items()}


def blocks_of(model: onnx.ModelProto, feed: dict[str, Any] | None = None) -> tuple[Block, ...]:
    return find_blocks(model, Flow(model, traced(model, feed or feed_for(model, 1))))


def block(model: onnx.ModelProto) -> Block:
    (only,) = blocks_of(model)
    return only


# recipes


@pytest.mark.parametrize(
    ("name", "exporter"),
    [pytest.param(name, "ts", marks=[] if name in TS_QUICK else [pytest.mark.slow]) for name in TINY]
    + [(name, "dynamo") for name in sorted(DYNAMO_QUICK)],
)
def test_blocks_of_every_recipe(name: str, exporter: str) -> None:
    found = blocks_of(exported(name, exporter), recipe_feed(name))
    kinds, others, stages = EXPECTED.get(name, ({}, 0, 0))
    assert Counter(str(each.kind) for each in found if each.is_removable) == kinds
    assert sum(not each.is_removable for each in found) == others
    assert {each.stage for each in found} == set(range(stages))
    assert len({each.name for each in found}) == len(found)


@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
def test_a_chain_of_blocks_hands_on_from_one_to_the_next(exporter: str) -> None:
    found = blocks_of(exported("resnet20-a", exporter), recipe_feed("resnet20-a"))
    reasons = [each.reason.split(" (")[0] for each in found]
    assert reasons == ["", *["its shortcut is cut or padded"] * 2]
    model = exported("resnet20-a", exporter)
    first = found[0]
    assert [model.graph.node[index].op_type for index in first.nodes] == ["Conv", "Relu", "Conv", "Add", "Relu"]
    assert model.graph.node[first.nodes[-1]].output[0] == first.output
    assert found[1].input == first.output


def test_a_layer_that_normalises_after_the_sum_goes_from_norm_to_norm() -> None:
    model = exported("bert", "ts")
    attention, forward, layer = blocks_of(model, recipe_feed("bert"))[:3]
    makers = {name: node for node in model.graph.node for name in node.output}
    assert [str(each.kind) for each in (attention, forward, layer)] == ["attention", "feed-forward", "layer"]
    assert layer.parts == (attention.name, forward.name)
    assert set(attention.nodes) | set(forward.nodes) < set(layer.nodes)
    assert makers[layer.input].op_type == makers[layer.output].op_type == "LayerNormalization"
    assert makers[attention.output].op_type == makers[forward.output].op_type == "Add"
    assert layer.input == attention.input
    assert makers[forward.input].input[0] == attention.output


def test_a_layer_that_normalises_before_goes_from_sum_to_sum() -> None:
    first, second, layer = blocks_of(exported("gpt2", "ts"), recipe_feed("gpt2"))[:3]
    assert (layer.input, layer.output) == (first.input, second.output)
    assert second.input == first.output
    assert set(layer.nodes) == set(first.nodes) | set(second.nodes)


# small nets


def relu_net(activation: Callable[[Net, str], str], after: Callable[[Net, str], str] | None = None) -> onnx.ModelProto:
    """A convolution, an activation, a residual block and an activation behind it."""
    net = Net(batch="N")
    x = activation(net, net.conv(net.image(), 3, 4))
    y = net.Add(net.conv(net.conv_relu(x, 4, 4), 4, 4), x)
    net.output(net.conv((after or activation)(net, y), 4, 2))
    return net.model()


def clipped(low: float, high: float) -> Callable[[Net, str], str]:
    return lambda net, x: net.Clip(x, net.const(np.float32(low)), net.const(np.float32(high)))


def relu(net: Net, x: str) -> str:
    return net.Relu(x)


def pooled(net: Net, x: str) -> str:
    return net.MaxPool(net.Relu(x), kernel_shape=[3, 3], pads=[1, 1, 1, 1])


@pytest.mark.parametrize(
    ("before", "after", "last"),
    [
        (relu, None, "Relu"),
        (pooled, relu, "Relu"),
        (clipped(0, 6), None, "Clip"),
        (lambda net, x: net.Identity(net.Relu(x)), relu, "Relu"),
        (clipped(0, 6), clipped(0, 5), "Add"),
        (clipped(0, 6), relu, "Add"),
        (lambda net, x: net.Tanh(x), None, "Add"),
        (lambda net, x: net.Sigmoid(x), relu, "Add"),
        (lambda net, x: net.LeakyRelu(net.Relu(x)), None, "Add"),
    ],
)
def test_an_activation_goes_along_where_it_does_nothing_to_the_input(
    before: Callable[[Net, str], str], after: Callable[[Net, str], str] | None, last: str
) -> None:
    model = relu_net(before, after)
    found = block(model)
    assert found.is_removable
    assert model.graph.node[found.nodes[-1]].op_type == last
    assert model.graph.node[found.nodes[-1]].output[0] == found.output


def test_an_activation_that_is_not_the_sums_only_reader_stays() -> None:
    net = Net(batch="N")
    x = net.Relu(net.conv(net.image(), 3, 4))
    y = net.Add(x, net.conv(x, 4, 4))
    net.output(net.conv(net.Relu(y), 4, 2), net.conv(y, 4, 2))
    assert block(net.model()).output == y


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("kind", ["Add", "Sum"])
def test_either_operand_may_be_the_input(swap: bool, kind: str) -> None:
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 4)
    operands = [x, net.conv_relu(x, 4, 4)]
    net.output(net.conv(net.op(kind, *operands[:: -1 if swap else 1]), 4, 2))
    found = block(net.model())
    assert (found.input, found.kind, found.reason) == (x, BlockKind.RESIDUAL, "")


def joined(shortcut: Callable[[Net, str], str], stride: int = 1) -> onnx.ModelProto:
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 4)
    y = net.Add(shortcut(net, x), net.conv(net.conv_relu(x, 4, 4, strides=[stride] * 2), 4, 4))
    net.output(net.conv(y, 4, 2))
    return net.model()


@pytest.mark.parametrize(
    ("shortcut", "stride", "reason"),
    [
        (lambda net, x: net.conv(x, 4, 4, 1), 1, "its shortcut has weights of its own (n5)"),
        (lambda net, x: net.slice(net.slice(x, 2, 0, 8, 2), 3, 0, 8, 2), 2, "its shortcut is cut or padded (n2)"),
        (lambda net, x: net.AveragePool(x, kernel_shape=[2, 2], strides=[2, 2]), 2, "its shortcut is pooled (n2)"),
        (lambda net, x: net.Neg(x), 1, "its shortcut isn't its input (n2)"),
        (lambda net, x: net.GlobalAveragePool(x), 1, "its shortcut is pooled (n2)"),
    ],
)
def test_another_shortcut_is_listed_with_the_reason(
    shortcut: Callable[[Net, str], str], stride: int, reason: str
) -> None:
    model = joined(shortcut, stride)
    found = block(model)
    assert found.reason == reason.replace("n5", model.graph.node[1].name)
    assert not found.is_removable


def test_an_activation_between_input_and_shortcut_is_no_matter() -> None:
    model = joined(lambda net, x: net.Relu(x))
    assert block(model).reason == ""
    assert block(model).input == next(node.output[0] for node in model.graph.node if node.op_type == "Relu")


def test_a_sum_that_grows_its_input_stays() -> None:
    net = Net(batch="N")
    x = net.GlobalAveragePool(net.conv(net.image(), 3, 4))
    y = net.Add(x, net.transposed(x, 4, 4, k=4))
    net.output(net.conv(y, 4, 2))
    assert block(net.model()).reason == "its input has the shape (1, 4, 1, 1), its output (1, 4, 4, 4)"


def test_an_input_that_is_spread_over_the_batch_stays() -> None:
    net = Net(batch="N")
    prompt = net.input("prompt", 1, 5, 6, batched=False)
    mixed = net.Add(net.linear(prompt, 6, 6), net.input("x", 5, 6))
    net.output(net.linear(net.Add(prompt, net.linear(net.Relu(mixed), 6, 6)), 6, 2))
    found = block(net.model())
    assert found.reason.endswith("one shape at this size only: elsewhere (1, 5, 6) and (2, 5, 6)")


def with_way_out(kind: str) -> onnx.ModelProto:
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 4)
    inner = net.conv(x, 4, 4)
    y = net.Add(x, net.conv(net.Relu(inner), 4, 4))
    if kind == "reader":
        net.output(net.conv(net.Concat(y, inner, axis=1), 8, 2))
    elif kind == "output":
        net.output(net.conv(y, 4, 2), inner)
    else:
        body = helper.make_graph(
            [helper.make_node("Relu", [inner], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
        )
        choice = net.const(True, dtype=bool)
        net.output(net.conv(net.Add(y, net.op("If", choice, then_branch=body, else_branch=body)), 4, 2))
    return net.model()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("reader", "t2 inside it is also read by n6"),
        ("output", "t2 inside it is an output of the model"),
        ("capture", "t2 inside it is also read by n6"),
    ],
)
def test_a_branch_with_another_way_out_stays(kind: str, reason: str) -> None:
    first = blocks_of(with_way_out(kind))[0]
    assert first.reason == reason


def test_an_activation_read_by_others_is_no_way_out_of_the_branch() -> None:
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 4)
    shared = net.Relu(x)
    y = net.Add(x, net.conv(shared, 4, 4))
    net.output(net.conv(net.Concat(y, shared, axis=1), 8, 2))
    model = net.model()
    found = block(model)
    assert found.is_removable
    assert [model.graph.node[index].op_type for index in found.nodes] == ["Conv", "Add"]


@pytest.mark.parametrize("name", ["standard-cached", "projection-cached", "group-query-cached", "multi-head-cached"])
def test_an_attention_with_a_cache_stays(name: str) -> None:
    found = block(prepare(CATALOGUE[name].model("N")).model)
    assert found.kind == BlockKind.ATTENTION
    assert found.reason.endswith("inside it is an output of the model")


@pytest.mark.parametrize("name", ["einsum", "fused-matmul", "group-query-packed", "separate-bare", "llama"])
def test_however_it_is_written_an_attention_is_one(name: str) -> None:
    assert blocks_of(prepare(CATALOGUE[name].model("N")).model)[0].kind == BlockKind.ATTENTION


def no_weights(net: Net, x: str) -> str:
    return net.Add(x, net.Mul(net.Mul(x, x), x))


def embeddings(net: Net, x: str) -> str:
    ids = net.input("ids", 5, dtype=np.int64)
    both = net.Add(net.Gather(net.normal(7, 6), ids, axis=0), net.Gather(net.normal(5, 6), net.const(list(range(5)))))
    return net.Add(net.conv(x, 3, 4), net.reduce("ReduceMean", both, [0, 1, 2], keepdims=0))


def two_inputs(net: Net, x: str) -> str:
    return net.Add(net.conv(x, 3, 4), net.conv(net.input("z", 3, 8, 8), 3, 4))


@pytest.mark.parametrize("made", [no_weights, embeddings, two_inputs])
def test_sums_that_are_no_blocks(made: Callable[[Net, str], str]) -> None:
    net = Net(batch="N")
    net.output(made(net, net.image()))
    assert blocks_of(net.model()) == ()


def attention(net: Net, x: str, width: int, mask: str = "") -> str:
    """One head, with a bias of the logits that is made of the input."""
    query, key, value = (net.linear(x, width, width) for _ in range(3))
    logits = net.MatMul(query, net.Transpose(key, perm=[0, 2, 1]))
    logits = net.Add(logits, net.MatMul(net.linear(x, width, width), net.Transpose(key, perm=[0, 2, 1])))
    return net.linear(net.MatMul(net.Softmax(logits, axis=-1), value), width, width)


def norm(net: Net, x: str, width: int) -> str:
    return net.LayerNormalization(x, net.normal(width, shift=1.0), net.normal(width), epsilon=1e-5)


def mlp(net: Net, x: str, width: int) -> str:
    return net.linear(net.Relu(net.linear(x, width, 2 * width)), 2 * width, width)


@pytest.mark.parametrize("first", ["attention", "feed-forward"])
def test_branches_side_by_side_are_a_block_each_and_a_layer(first: str) -> None:
    net = Net(batch="N")
    x = net.linear(net.input("x", 5, 6), 6, 6)
    normed = norm(net, x, 6)
    parts = [attention(net, normed, 6), mlp(net, normed, 6)][:: 1 if first == "attention" else -1]
    total = net.Add(net.Add(x, parts[0]), parts[1])
    net.output(net.linear(total, 6, 3))
    one, two, layer = blocks_of(net.model())
    assert [str(one.kind), str(layer.kind)] == [first, "layer"]
    assert {str(one.kind), str(two.kind)} == {"attention", "feed-forward"}
    assert (one.input, two.input, two.output) == (x, one.output, total)
    assert (layer.input, layer.output, layer.parts) == (x, total, (one.name, two.name))
    assert set(layer.nodes) > set(one.nodes) | set(two.nodes)  # and the norm
    assert not any(each.reason for each in (one, two, layer))


def test_branches_summed_with_each_other_first_are_one_block() -> None:
    net = Net(batch="N")
    x = net.linear(net.input("x", 5, 6), 6, 6)
    normed = norm(net, x, 6)
    total = net.Add(x, net.Add(attention(net, normed, 6), mlp(net, normed, 6)))
    net.output(net.linear(total, 6, 3))
    assert (block(net.model()).input, block(net.model()).output) == (x, total)


def test_what_lies_between_two_norms_of_one_kind_is_a_sequence() -> None:
    net = Net(batch="N")
    x = norm(net, net.linear(net.input("x", 5, 6), 6, 6), 6)
    y = norm(net, mlp(net, x, 6), 6)
    net.output(net.linear(y, 6, 3))
    found = block(net.model())
    assert (found.kind, found.input, found.output, found.reason) == (BlockKind.SEQUENCE, x, y, "")


@pytest.mark.parametrize("spoil", ["epsilon", "width", "bypass"])
def test_no_sequence_between_norms_that_differ_or_are_passed_by(spoil: str) -> None:
    net = Net(batch="N")
    before = net.linear(net.input("x", 5, 6), 6, 6)
    x = norm(net, before, 6)
    inner = 4 if spoil == "width" else 6
    y = net.linear(net.Relu(net.linear(x, 6, 12)), 12, inner)
    if spoil == "bypass":
        y = net.Mul(y, before)
    epsilon = 1e-3 if spoil == "epsilon" else 1e-5
    y = net.LayerNormalization(y, net.normal(inner), net.normal(inner), epsilon=epsilon)
    net.output(net.linear(y, inner, 3))
    assert blocks_of(net.model()) == ()


def test_sums_inside_fused_norms_stay_and_layers_go() -> None:
    net = Net(batch="N")
    net.domains = {"com.microsoft": 1}

    def add_norm(x: str, y: str) -> str:
        gain, shift = net.normal(6, shift=1.0), net.normal(6)
        return net.op("SkipLayerNormalization", y, x, gain, shift, domain="com.microsoft", epsilon=1e-5)

    x = norm(net, net.linear(net.input("x", 5, 6), 6, 6), 6)
    y = add_norm(x, attention(net, x, 6))
    z = add_norm(y, mlp(net, y, 6))
    net.output(net.linear(z, 6, 3))
    first, second, layer = blocks_of(prepare(net.model()).model)
    assert all(each.reason.startswith("its sum is inside a fused node") for each in (first, second))
    assert (layer.kind, layer.input, layer.output, layer.reason) == (BlockKind.LAYER, x, z, "")
    assert first.stage == second.stage == layer.stage == 0


def test_streams_that_are_not_connected_are_stages_of_their_own() -> None:
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 4)
    for between in (True, False, False):
        x = net.Add(x, net.conv_relu(x, 4, 4))
        x = net.conv(x, 4, 4) if between else net.Relu(x)
    net.output(net.conv(x, 4, 2))
    assert [each.stage for each in blocks_of(net.model())] == [0, 1, 1]


def test_a_block_around_others_names_them() -> None:
    net = Net(batch="N")
    start = x = net.conv(net.image(), 3, 4)
    for _ in range(2):
        x = net.Add(x, net.conv_relu(x, 4, 4))
    net.output(net.conv(net.Add(net.conv(x, 4, 4), start), 4, 2))
    one, two, whole = blocks_of(net.model())
    assert whole.parts == (one.name, two.name)
    assert whole.input == one.input == start
    assert {one.stage, two.stage, whole.stage} == {0}


def test_unknown_shapes_are_a_reason() -> None:
    net = Net(batch="N")
    net.domains = {"custom": 1}
    x = net.op("Mystery", net.conv(net.image(), 3, 4), domain="custom")
    net.output(net.conv(net.Add(x, net.conv_relu(x, 4, 4)), 4, 2))
    model = net.model()
    found = find_blocks(model, Flow(model, trace(model, {"x": (1, 3, 8, 8)})))
    assert [each.reason for each in found] == ["the shape of its input or of its output isn't known"]


def test_an_unnamed_sum_is_named_after_its_output() -> None:
    model = relu_net(relu)
    for node in model.graph.node:
        node.name = ""
    total = next(node.output[0] for node in model.graph.node if node.op_type == "Add")
    assert block(model).name == f"Add({total})"


def test_inspect_lists_blocks() -> None:
    inspection = snp_onnx.inspect(joined(lambda net, x: net.conv(x, 4, 4, 1)))
    (found,) = inspection.blocks
    assert found.reason.startswith("its shortcut has weights")
    assert found.macs_share == pytest.approx((4 * 36 * 2 + 16) / (4 * 36 * 2 + 16 + 3 * 36 + 8 * 9))
    assert '"blocks": [' in to_json(inspection)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(inspection_table(inspection))
    text = console.export_text()
    assert "no: its shortcut has weights of its own" in text
    inspection = snp_onnx.inspect(relu_net(relu))
    assert [(each.kind, each.stage, each.reason) for each in inspection.blocks] == [("residual", 0, "")]
