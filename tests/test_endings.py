"""What lies in front of a graph's outputs: where their values arise, the axis of classes, sizes that data decide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest

from snp_onnx.tracing.endings import Ending, endings, read_outs, with_outputs
from tests.graphs import Net, feed_for
from tests.oracles import run


def ending(net: Net, output: str) -> Ending:
    net.output(output)
    (found,) = endings(net.model())
    return found


def hidden(net: Net, width: int = 6) -> str:
    """A computed tensor (N, width)."""
    return net.Relu(net.dense(net.inputs[0].name if net.inputs else net.input("x", 5), 5, width))


# where values arise


def joined(net: Net, a: str, b: str) -> str:
    return net.Concat(net.Sigmoid(a), net.Transpose(net.Transpose(b, perm=[1, 0]), perm=[1, 0]), axis=1)


def split(net: Net, a: str, b: str) -> str:
    left, right = net.split(net.Concat(a, b, axis=1), [5, 7])
    return net.Concat(net.Softmax(left), net.LogSoftmax(right), axis=1)


def reshaped(net: Net, a: str, b: str) -> str:
    return net.Concat(net.reshape(net.unsqueeze(a, 1), -1, 6), net.slice(net.Flatten(b), 1, 0, 3), axis=1)


def beside_an_input(net: Net, a: str, b: str) -> str:
    return net.Concat(net.HardSigmoid(a), "x", b, net.Identity(net.const(np.zeros((1, 6)))), axis=1)


@pytest.mark.parametrize("draw", [joined, split, reshaped])
def test_values_arise_behind_what_joins_moves_and_saturates(draw: Callable[[Net, str, str], str]) -> None:
    net = Net(batch="N")
    a, b = hidden(net), hidden(net)
    assert ending(net, draw(net, a, b)).sources == (a, b)


def test_inputs_of_the_model_and_constants_hide_no_others() -> None:
    net = Net(batch=1)
    a, b = hidden(net), hidden(net)
    assert ending(net, beside_an_input(net, a, b)).sources[:2] == (a, b)
    alone = Net(batch="N")
    output = alone.Sigmoid(alone.input("x", 5))
    assert ending(alone, output).sources == (output,)


def test_a_table_of_constants_is_where_values_arise() -> None:
    net = Net(batch="N")
    place = net.op("ArgMax", hidden(net), axis=1, keepdims=0)
    looked_up = net.Gather(net.normal(6, 3), place)
    assert ending(net, net.Sigmoid(looked_up)).sources == (looked_up,)
    computed = Net(batch="N")
    a = hidden(computed)
    assert ending(computed, computed.Gather(a, computed.const([1, 0]), axis=1)).sources == (a,)


def test_what_computes_new_values_is_a_source() -> None:
    for draw in (lambda net, a: net.Mul(a, a), lambda net, a: net.op("Sigmoid", a, domain="com.microsoft")):
        net = Net(batch="N")
        net.domains["com.microsoft"] = 1
        output = draw(net, hidden(net))
        assert ending(net, output).sources == (output,)


def test_boxes_are_picked_from_boxes_and_scores() -> None:
    net = Net(batch=1)
    x = net.input("x", 5)
    boxes, scores = net.dense(x, 5, 24), net.dense(x, 5, 12)
    found = ending(net, picked(net, net.reshape(boxes, 1, 6, 4), net.Sigmoid(net.reshape(scores, 1, 2, 6))))
    assert found.sources == (boxes, scores)
    assert (found.is_data_sized, found.is_picked) == (True, True)


def test_entries_are_picked_by_what_is_compared_with_a_bound() -> None:
    for kind, has_values in (("NonZero", False), ("Compress", True)):
        net = Net(batch=1)
        values = hidden(net)
        is_kept = net.Greater(net.reshape(values, 6), net.const(0.0))
        found = ending(net, net.op(kind, *((values, is_kept) if has_values else (is_kept,))))
        assert found.sources == ((values, is_kept) if has_values else (is_kept,))


def picked(net: Net, boxes: str, scores: str) -> str:
    return net.NonMaxSuppression(boxes, scores, net.const([3]), net.const([0.5]), net.const([0.2]))


# classes


@pytest.mark.parametrize(
    ("opset", "attributes", "axis"),
    [(11, {}, 1), (12, {}, 1), (13, {}, -1), (17, {}, -1), (13, {"axis": 1}, 1), (11, {"axis": 2}, 2)],
)
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_the_axis_of_classes_is_the_softmaxs(kind: str, opset: int, attributes: dict[str, int], axis: int) -> None:
    net = Net(opset=opset, batch="N")
    output = net.op(kind, net.conv(net.image(), 3, 4), **attributes)
    assert ending(net, net.op("Cast", net.Identity(output), to=onnx.TensorProto.FLOAT16)).classes == axis


def test_without_a_softmax_at_the_very_end_there_are_no_classes() -> None:
    for draw in (lambda net, a: net.Sigmoid(a), lambda net, a: net.Mul(net.Softmax(a), a), lambda net, a: a):
        net = Net(batch="N")
        assert ending(net, draw(net, hidden(net))).classes is None


def test_declared_extents() -> None:
    net = Net(batch="N")
    assert ending(net, net.conv(net.image(), 3, 4)).shape == (None, 4, 8, 8)
    model = Net(batch="N")
    model.output(hidden(model))
    proto = model.model()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert endings(proto)[0].shape is None


# sizes that data decide


def nowhere(net: Net, a: str) -> str:
    return net.Sigmoid(a)


def nonzero(net: Net, a: str) -> str:
    return net.NonZero(a)


def behind_more(net: Net, a: str) -> str:
    return net.Cast(net.Transpose(net.NonZero(net.Greater(a, net.const(0.0)))), to=onnx.TensorProto.FLOAT)


def compressed(net: Net, a: str) -> str:
    is_kept = net.Greater(net.ReduceSum(a, net.const([0]), keepdims=0), net.const(0.0))
    return net.Mul(net.Compress(a, is_kept, axis=1), net.const(2.0))


def compressed_alike(net: Net, a: str) -> str:
    return net.Compress(a, net.const([True, False, True]), axis=1)


def picked_by_an_input(net: Net, a: str) -> str:
    places = net.NonZero(net.Greater("x", net.const(0.0)))
    return net.Gather(a, net.op("Gather", places, net.const(0), axis=0), axis=0)


def largest(net: Net, a: str) -> str:
    """As many of the largest entries as are positive."""
    count = net.ReduceSum(net.Cast(net.Greater(a, net.const(0.0)), to=onnx.TensorProto.INT64), keepdims=0)
    return net.op("TopK", a, net.reshape(count, 1), outputs=2, axis=0)


def cut_at_the_count(net: Net, a: str) -> str:
    count = net.slice(net.Shape(net.NonZero(net.Greater(a, net.const(0.0)))), 0, 1, 2)
    return net.op("Slice", a, net.const([0]), count, net.const([0]))


def resized(net: Net, a: str) -> str:
    """Sizes from the shape of a computed tensor."""
    return net.op("Expand", net.unsqueeze(a, 1), net.op("Shape", net.unsqueeze(a, 1)))


def written_into(net: Net, a: str) -> str:
    """x[mask] = value, as torch exports it: of the size of x."""
    places = net.Transpose(net.NonZero(net.Greater(a, net.const(0.0))))
    return net.ScatterND(a, places, net.op("ConstantOfShape", net.slice(net.Shape(places), 0, 0, 1)))


def strange(net: Net, a: str) -> str:
    net.domains["com.example"] = 1
    return net.Mul(net.op("Strange", a, domain="com.example"), a)


def fused(net: Net, a: str) -> str:
    net.domains["com.microsoft"] = 1
    return net.op("Gelu", a, domain="com.microsoft")


@pytest.mark.parametrize(
    ("draw", "is_sized", "is_picked"),
    [
        (nowhere, False, False),
        (nonzero, True, True),
        (behind_more, True, True),
        (compressed, True, True),
        (compressed_alike, False, False),
        (picked_by_an_input, False, False),
        (largest, True, True),
        (cut_at_the_count, True, True),
        (resized, False, False),
        (written_into, False, False),
        (strange, True, False),
        (fused, False, False),
    ],
)
def test_whether_data_decide_the_size(draw: Callable[[Net, str], str], is_sized: bool, is_picked: bool) -> None:
    net = Net(batch="N")
    found = ending(net, draw(net, hidden(net)))
    assert (found.is_data_sized, found.is_picked) == (is_sized, is_picked)


def test_a_branch_may_decide_a_size() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3] x, bool c) => (float[N, 3] y, float[N, 3] z) {
            h = If (c) <then_branch = t () => (float[N, 3] p) { p = Relu(x) },
                        else_branch = e () => (float[N, 3] q) { q = Abs(x) }>
            y = Neg(h)
            z = Neg(x)
        }
    """)
    assert [(found.name, found.is_data_sized, found.is_picked) for found in endings(model)] == [
        ("y", True, False),
        ("z", False, False),
    ]


# reading them


def test_sources_are_read_where_all_models_have_them() -> None:
    net = Net(batch="N")
    a, b = hidden(net), hidden(net)
    net.output(net.Softmax(a), net.Concat(net.Sigmoid(a), b, axis=1))
    model = net.model()
    renamed = onnx.ModelProto.FromString(model.SerializeToString())
    for node in renamed.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == b else name for name in names]
    known = endings(model)
    assert read_outs(known, [model, model]) == (a, b)
    assert read_outs(known, [model, renamed]) == (a, known[1].name)


def test_a_model_that_gives_more_is_another_one() -> None:
    net = Net(batch="N")
    a = hidden(net)
    net.output(net.Softmax(a))
    model = net.model()
    before = model.SerializeToString()
    more = with_outputs(model, [a, model.graph.output[0].name])
    assert model.SerializeToString() == before
    assert [value.name for value in more.graph.output] == [model.graph.output[0].name, a]
    feed = feed_for(model, 3)
    softmax, values = run(more, feed)
    np.testing.assert_allclose(softmax, np.exp(values) / np.exp(values).sum(axis=1, keepdims=True), rtol=1e-5)
    assert with_outputs(model, [model.graph.output[0].name]) is model
