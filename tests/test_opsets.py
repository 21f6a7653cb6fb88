"""Old operator sets: 7 and 8 are raised to 9 and that is said; whatever is put into a graph is of its opset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import snp_onnx
from snp_onnx.errors import ModelError
from snp_onnx.passes import prepare
from snp_onnx.passes.raise_opset import raise_opset
from tests.graphs import Net, feed_for
from tests.oracles import difference, run


def old_net(opset: int, **norm: int) -> onnx.ModelProto:
    """A network of the first exporters: scales and `spatial` as attributes, initialisers among the inputs."""
    net = Net(opset, batch="n", ir=3)
    net.lists_initialisers = True
    x = net.conv(net.image(), 3, 8)
    mean, variance = net.normal(8, scale=0.2), net.const(net.rng.uniform(0.5, 2.0, 8))
    x = net.Relu(net.op("BatchNormalization", x, net.normal(8), net.normal(8), mean, variance, **norm))
    scales = {"scales": [1.0, 1.0, 2.0, 2.0]}
    x = net.op("Upsample", x, **scales) if opset < 9 else net.op("Upsample", x, net.const(scales["scales"]))
    net.output(net.conv(net.conv_relu(x, 8, 6), 6, 4))
    return net.model()


def opset_of(model: onnx.ModelProto) -> int:
    return int(model.opset_import[0].version)


@pytest.mark.parametrize("opset", [7, 8])
def test_old_models_are_raised_to_the_same_function(opset: int) -> None:
    source = old_net(opset, spatial=1)
    before = source.SerializeToString()
    raised, (note,) = raise_opset(source)
    assert source.SerializeToString() == before
    assert opset_of(raised) == 9
    assert note.text == f"opset {opset}: converted to opset 9, which the result is written in"
    onnx.checker.check_model(raised, full_check=True)
    feed = feed_for(source, 2)
    np.testing.assert_array_equal(run(raised, feed)[0], run(source, feed)[0])
    assert raise_opset(raised) == (raised, ())


def test_bodies_are_raised_too() -> None:
    scaled = helper.make_node("Upsample", ["x"], ["big"], scales=[1.0, 1.0, 2.0, 2.0])
    big = helper.make_tensor_value_info("big", onnx.TensorProto.FLOAT, None)
    net = Net(8, batch=1)
    choice = net.Cast(net.input("choice", dtype="int64", batched=False), to=onnx.TensorProto.BOOL)
    net.input("x", 3, 4, 4)
    body = helper.make_graph([scaled], "body", [], [big])
    net.output(net.op("If", choice, then_branch=body, else_branch=body))
    source = net.model()
    raised, _ = raise_opset(source)
    feed = feed_for(source, 1)
    np.testing.assert_array_equal(run(raised, feed)[0], run(source, feed)[0])


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_an_old_model_is_pruned_and_that_is_said(preset: str) -> None:
    source = old_net(7)
    said = "opset 7: converted to opset 9"
    assert any(said in note for note in snp_onnx.inspect(source).notes)
    result = snp_onnx.prune(source, feed_for(source, 40), target_macs=0.7, preset=preset)
    assert any(said in note for note in result.report.notes)
    assert opset_of(result.model) == 9
    assert result.report.pruned.macs < result.report.dense.macs
    onnx.checker.check_model(result.model, full_check=True)


def changed(model: onnx.ModelProto, **attributes: object) -> onnx.ModelProto:
    """The model with another opset, or none."""
    for name, value in attributes.items():
        if value is None:
            del model.opset_import[:]
        else:
            setattr(model.opset_import[0], name, value)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: old_net(8, spatial=0), r"opset 8, and node n2 \(BatchNormalization\) has no form of opset 9"),
        (lambda: changed(old_net(9), version=6), "the model is of opset 6: convert it to opset 9 or later"),
        (lambda: changed(old_net(9), version=None), "imports no opset of the default domain"),
    ],
)
def test_what_cannot_be_raised_is_refused_by_inspect_and_prune_alike(model, reason: str, tmp_path: Path) -> None:
    source = model()
    with pytest.raises(ModelError, match=reason):
        snp_onnx.inspect(source)
    with pytest.raises(ModelError):
        snp_onnx.prune(source, feed_for(source, 40), target_macs=0.7)
    with pytest.raises(ModelError, match=reason):
        prepare(source)


def test_the_scan_of_opset_8_is_refused() -> None:
    net = Net(8, batch=2)
    body = helper.make_graph([], "body", [], [])
    net.output(net.op("Scan", "", net.input("x", 3, 4), body=body, num_scan_inputs=1))
    model = helper.make_model(
        helper.make_graph(net.nodes, "g", net.inputs, []), opset_imports=[helper.make_opsetid("", 8)]
    )
    with pytest.raises(ModelError, match=r"\(Scan\) has no form of opset 9"):
        raise_opset(model)


def plain_layers(net: Net) -> None:
    """Gemm, which must have its third input before opset 11."""
    x = net.input("x", 6)
    for cin, cout in ((6, 12), (12, 10)):
        x = net.Relu(net.dense(x, cin, cout, trans=False))
    net.output(net.dense(x, 10, 4))


def strided(net: Net) -> None:
    """Convolutions with strides, whose way back can't be cut by a Slice before opset 10."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 8, strides=[2, 2])
    net.output(net.conv(net.conv_relu(x, 8, 6, strides=[2, 1]), 6, 4))


def sequence(net: Net) -> None:
    x = net.Tanh(net.linear(net.Relu(net.linear(net.input("x", 5, 6), 6, 12)), 12, 8))
    net.output(net.linear(x, 8, 4))


def slices_at_run_time(net: Net) -> None:
    """Bounds from an extent: the inference of opset 10 then knows no extents, and takes them to stay behind a Slice."""
    x = net.conv_relu(net.image(), 3, 8)
    x = net.Slice(x, net.const([0]), net.Div(net.extent(x, 1), net.const([2])), net.const([1]))
    net.output(net.conv(net.conv_relu(x, 4, 6), 6, 4))


@pytest.mark.parametrize("draw", [plain_layers, strided, sequence])
@pytest.mark.parametrize("opset", [9, 10])
def test_best_puts_nothing_newer_than_the_opset_in(draw, opset: int) -> None:
    net = Net(opset, batch="n")
    draw(net)
    source = net.model()
    result = snp_onnx.prune(source, feed_for(source, 400), target_macs=0.7, preset="best")
    assert opset_of(result.model) == opset
    assert result.report.timings["refit"] > 0
    assert difference(run(source, feed_for(source, 8)), run(result.model, feed_for(source, 8))) < 0.5


def test_slices_of_opset_10_do_not_mislead_the_runtime() -> None:
    net = Net(10, batch="n")
    slices_at_run_time(net)
    source = net.model()
    result = snp_onnx.prune(source, feed_for(source, 64), target_macs=0.7, preset="best")
    assert result.report.pruned.macs < result.report.dense.macs
