"""Padding: positions that the model's mask leaves out take no part in any statistic, nor in the fidelity."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.tracing.padding import has_rows_of, mask_of
from tests.graphs import Net, feed_for
from tests.oracles import traced

SAMPLES, LENGTH, WIDTH = 60, 7, 6


def encoder(is_flat: bool = False, name: str = "attention_mask") -> onnx.ModelProto:
    """A feed-forward block over the positions of x, residual Add included; the mask blanks what it gives."""
    net = Net(opset=20, batch="N", seed=3)
    x = net.input("x", LENGTH, WIDTH)
    mask = net.input(name, LENGTH, dtype=np.int64)
    rows = net.Reshape(x, net.const([-1, WIDTH])) if is_flat else x
    rows = net.Add(net.linear(net.Gelu(net.linear(rows, WIDTH, 16)), 16, WIDTH), rows)
    rows = net.linear(net.Gelu(net.linear(rows, WIDTH, 16)), 16, WIDTH)
    if is_flat:
        rows = net.Reshape(rows, net.const([-1, LENGTH, WIDTH]))
    net.output(net.Mul(rows, net.op("Cast", net.Unsqueeze(mask, net.const([2])), to=onnx.TensorProto.FLOAT)))
    return net.model()


def data(fill: float, name: str = "attention_mask") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    real = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, SAMPLES)[:, None]
    x = rng.standard_normal((SAMPLES, LENGTH, WIDTH))
    return {"x": np.where(real[..., None], x, fill).astype(np.float32), name: real.astype(np.int64)}


@pytest.mark.parametrize("preset", ["paper", "fast", "best"])
@pytest.mark.parametrize("is_flat", [False, True])
def test_what_is_under_the_mask_changes_nothing(preset: str, is_flat: bool) -> None:
    found = [snp_onnx.prune(encoder(is_flat), data(fill), target_macs=0.6, preset=preset) for fill in (0.0, 50.0)]
    assert found[0].model.SerializeToString() == found[1].model.SerializeToString()
    assert found[0].report.fidelity == found[1].report.fidelity


def sequence(opset: int, stride: int = 1) -> onnx.ModelProto:
    """The positions as the last axis, under convolutions of one tap; the last one may leave some of them out."""
    net = Net(opset=opset, batch="N", seed=3)
    rows = net.input("x", WIDTH, LENGTH)
    real = net.op("Cast", net.input("attention_mask", LENGTH, dtype=np.int64), to=onnx.TensorProto.FLOAT)
    real = net.Reshape(real, net.const([-1, 1, LENGTH]))
    for step in (1, stride):
        rows = net.conv(net.Sigmoid(net.conv(rows, WIDTH, 16, k=1, rank=1)), 16, WIDTH, k=1, rank=1, strides=[step])
    net.output(rows if stride > 1 else net.Mul(rows, real))
    return net.model()


def turned(feed: dict[str, Any]) -> dict[str, Any]:
    return feed | {"x": np.ascontiguousarray(feed["x"].transpose(0, 2, 1))}


@pytest.mark.parametrize("opset", [11, 20])
def test_positions_may_be_the_last_axis(opset: int) -> None:
    found = [snp_onnx.prune(sequence(opset), turned(data(fill)), target_macs=0.6).model for fill in (0.0, 50.0)]
    assert found[0].SerializeToString() == found[1].SerializeToString()


def test_behind_a_stride_positions_are_no_longer_the_masks() -> None:
    found = snp_onnx.prune(sequence(17, stride=2), turned(data(0.0)), target_macs=0.6)
    assert found.report.fidelity[0].held > 0.9


def test_without_a_mask_every_row_counts() -> None:
    """The same data under another name: then what lies there does decide."""
    found = [
        snp_onnx.prune(encoder(name="keep"), data(fill, "keep"), target_macs=0.6, preset="fast") for fill in (0.0, 50.0)
    ]
    assert found[0].model.SerializeToString() != found[1].model.SerializeToString()


def test_fidelity_leaves_padding_out() -> None:
    dense = encoder()
    assert snp_onnx.compare(dense, _unmasked(dense), data(3.0)).fidelity[0].relative_l2 == 0.0


def _unmasked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same without the last Mul, the mask still an input."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    last = copy.graph.node[-1]
    assert last.op_type == "Mul"
    last.op_type = "Identity"
    del last.input[1:]
    return copy


def test_a_mask_is_known_by_name_and_shape() -> None:
    assert mask_of(encoder()) == "attention_mask"
    assert mask_of(encoder(name="input_mask")) == "input_mask"
    assert mask_of(encoder(name="padding_mask")) is None
    assert mask_of(encoder(name="ids")) is None


def test_rows_must_be_the_masks_positions() -> None:
    trace = traced(encoder(), feed_for(encoder(), 2))
    assert trace.mask == "attention_mask"
    assert all(trace.row_mask(linear.input, linear.input_axis) for linear in trace.linears)
    assert not has_rows_of((2, 8), (2, 12, 32), 2)
    assert not has_rows_of((2, 8), (2, 4, 8, 8), 3)


def crossing(*names: str) -> onnx.ModelProto:
    """A decoder's rows attend to an encoder's, whose mask is given; `names` are the axes of dec, enc and the mask."""
    net = Net(batch="N", seed=3)
    dec, enc = net.input("dec", names[0], WIDTH), net.input("enc", names[1], WIDTH)
    mask = net.op("Cast", net.input("encoder_attention_mask", names[2], dtype=np.int64), to=onnx.TensorProto.FLOAT)
    gone = net.Mul(net.Sub(net.const(1.0), net.unsqueeze(mask, 1)), net.const(-1e4))
    q, k, v = (net.linear(source, WIDTH, 8) for source in (dec, enc, enc))
    weights = net.Softmax(net.Add(net.MatMul(q, net.Transpose(k, perm=[0, 2, 1])), gone), axis=-1)
    hidden = net.Relu(net.linear(net.MatMul(weights, v), 8, 16))
    net.output(net.linear(hidden, 16, 4))
    return net.model()


def pair(decoder: int, encoder: int, rows: int = 8, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    feed = {"dec": rng.standard_normal((rows, decoder, WIDTH)), "enc": rng.standard_normal((rows, encoder, WIDTH))}
    mask = np.arange(encoder) < rng.integers(2, encoder + 1, rows)[:, None]
    return {name: values.astype(np.float32) for name, values in feed.items()} | {
        "encoder_attention_mask": mask.astype(np.int64)
    }


@pytest.mark.parametrize("names", [("t", "s", "s"), ("a", "b", "c")])
def test_a_mask_speaks_of_its_own_sequence_though_both_have_one_length(names: tuple[str, str, str]) -> None:
    model = crossing(*names)
    trace = traced(model, pair(7, 7))
    rows = {linear.op.name: trace.row_mask(linear.input, linear.input_axis) for linear in trace.linears}
    masked = {op.name for op in trace.ops if op.input(0) == "enc"}
    assert {name for name, mask in rows.items() if mask} == masked
    samples = [pair(7, 7, seed=1), *(pair(5, 7, seed=seed) for seed in range(2, 12))]
    result = snp_onnx.prune(model, samples, target_macs=0.8)
    assert result.report.pruned.macs <= 0.8 * result.report.dense.macs
