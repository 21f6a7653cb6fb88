"""Fidelity as it is measured and held: the share of the variation kept, channel by channel, and what is decided."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx.report.json_report import to_json
from snp_onnx.tracing.endings import Ending
from snp_onnx.verbs import output_sums
from snp_onnx.verbs.fidelity import Fidelity, measure_fidelity, remarks, worst
from tests.graphs import Batch, Net
from tests.oracles import run

Array = npt.NDArray[Any]
pytestmark = pytest.mark.filterwarnings("error")


def drawn(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def trunk(batch: Batch = "N", width: int = 24) -> tuple[Net, str]:
    """A net and a hidden tensor (N, width) of its input x (N, 8)."""
    net = Net(batch=batch)
    return net, net.Relu(net.dense(net.input("x", 8), 8, width))


def with_values(model: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    """A copy with other values in the initialisers named."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            found = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(found * 0 + np.asarray(values[tensor.name], found.dtype), tensor.name)
            )
    return copy


def scaled(model: onnx.ModelProto, name: str, factors: Any) -> onnx.ModelProto:
    """A copy in which an initialiser's rows are multiplied."""
    (values,) = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)
    rows = np.asarray(factors, np.float32).reshape(-1, *(1,) * (values.ndim - 1))
    return with_values(model, **{name: values * rows})


def measured(dense: onnx.ModelProto, other: onnx.ModelProto, data: Any, **options: Any) -> Fidelity:
    (found,) = snp_onnx.compare(dense, other, data, **options).fidelity
    return found


# what a cosine hides


def test_one_probability_a_sample() -> None:
    net, h = trunk()
    net.output(net.Sigmoid(net.dense(h, 24, 1)))
    found = measured(net.model(), with_values(net.model(), w2=0.0), drawn(200, 8))
    assert found.cosine == pytest.approx(1.0)
    assert found.error > 0.99
    assert worst([found]) < 0.01


def test_a_large_constant_part() -> None:
    net, h = trunk()
    net.output(net.Add(net.dense(h, 24, 4), net.const([300.0, 200.0, 50.0, 400.0])))
    dense = net.model()
    other = with_values(dense, w2=0.0)
    x = drawn(300, 8)
    found = measured(dense, other, x)
    assert found.cosine > 0.99
    assert found.mean_error > 0.99
    a, b = (run(model, {"x": x})[0].astype(np.float64) for model in (dense, other))
    lost = np.square(b - a).sum(axis=0) / np.square(a - a.mean(axis=0)).sum(axis=0)
    assert (found.error, found.mean_error) == (pytest.approx(lost.max()), pytest.approx(lost.mean()))
    assert found.channel == f"axis 1, channel {lost.argmax()}"


def test_small_channels_beside_large_ones() -> None:
    net, h = trunk()
    net.output(net.Concat(net.dense(h, 24, 4), net.Mul(net.dense(h, 24, 2), net.const(1e-3)), axis=1))
    dense = net.model()
    found = measured(dense, scaled(dense, "w3", [1.0, 0.0]), drawn(300, 8))
    assert found.cosine > 1.0 - 1e-5
    assert found.relative_l2 < 1e-2
    assert found.channel == "axis 1, channel 5"
    assert found.error > 0.9
    assert found.mean_error == pytest.approx(found.error / 6, rel=1e-3)


def test_a_dead_channel_is_measured_against_the_others() -> None:
    net, h = trunk()
    net.output(net.Relu(net.Add(net.dense(h, 24, 3), net.const([0.0, 0.0, -1e3]))))
    dense = net.model()
    found = measured(dense, with_values(dense, c1=[0.0, 0.0, -2.0]), drawn(300, 8))
    assert found.channel == "axis 1, channel 2"
    assert 0.0 < found.error < 10.0


# axes


def test_channels_of_maps_are_those_of_every_fixed_axis() -> None:
    net = Net(batch="N")
    net.output(net.conv(net.Relu(net.conv(net.image(), 3, 8)), 8, 5))
    dense = net.model()
    found = measured(dense, scaled(dense, "w2", [1, 1, 1, 0.5, 1]), drawn(40, 3, 8, 8))
    assert (found.channel, found.decision, found.agreement) == ("axis 1, channel 3", "", None)
    assert found.error == pytest.approx(0.25, abs=0.05)


def test_classes_of_positions_agree() -> None:
    net = Net(batch="N")
    net.output(net.linear(net.Relu(net.linear(net.input("x", "T", 6), 6, 12)), 12, 5))
    dense = net.model()
    other = scaled(dense, "b2", [1, 1, 6, 1, 1])
    x = drawn(30, 7, 6)
    found = measured(dense, other, x)
    a, b = (run(model, {"x": x})[0].argmax(axis=2) for model in (dense, other))
    assert 0.3 < found.agreement < 0.99  # type: ignore[operator]
    assert (found.agreement, found.decision) == (pytest.approx((a == b).mean()), "largest entry")
    assert found.channel == "axis 2, channel 2"


def time_major(batch: Batch) -> Net:
    """As CTC decoders read it: (T, N, C)."""
    net = Net()
    x = net.input("x", batch, 9, 6, batched=False)
    net.output(net.Softmax(net.Transpose(net.linear(x, 6, 5), perm=[1, 0, 2])))
    return net


@pytest.mark.parametrize("batch", ["N", 1])
def test_classes_of_time_steps_agree(batch: Batch) -> None:
    net = time_major(batch)
    dense = net.model()
    other = with_values(dense, b1=[0, 0, 1, 0, 0])
    data = {"x": drawn(24, 9, 6)}
    found = measured(dense, other, data)
    a, b = (
        np.concatenate([run(model, {"x": row[None]})[0].argmax(axis=2) for row in data["x"]])
        for model in (dense, other)
    )
    assert found.samples == 24
    assert (a == b).mean() < 0.9
    assert (found.agreement, found.decision) == (pytest.approx((a == b).mean()), "largest entry")
    assert found.channel.startswith("axis 2, channel")


def test_masks_agree_where_they_are_above_a_half() -> None:
    net = Net(batch="N")
    net.output(net.Sigmoid(net.Add(net.conv(net.Relu(net.conv(net.image(), 3, 8)), 8, 1), net.const(-2.0))))
    dense = net.model()
    other = with_values(dense, c1=-1.0)
    x = drawn(20, 3, 8, 8)
    found = measured(dense, other, x)
    a, b = (run(model, {"x": x})[0] > 0.5 for model in (dense, other))
    assert found.decision == "above 0.5"
    assert found.agreement == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found.agreement < 0.95


@pytest.mark.parametrize("kind", ["int64", "bool"])
def test_integers_and_truths_are_equal_or_not(kind: str) -> None:
    net, h = trunk()
    y = net.dense(h, 24, 6)
    net.output(net.op("ArgMax", y, axis=1) if kind == "int64" else net.Greater(y, net.const(0.5)))
    if kind == "bool":
        net._correct_type = lambda value: setattr(value.type.tensor_type, "elem_type", onnx.TensorProto.BOOL)  # type: ignore[method-assign]
    dense = net.model()
    other = scaled(dense, "b2", [1, 1, 9, 1, 1, 1])
    x = drawn(100, 8)
    found = measured(dense, other, x)
    a, b = (run(model, {"x": x})[0] for model in (dense, other))
    assert found.agreement == pytest.approx((a == b).mean()) != 1.0
    assert (found.decision, found.divergence) == ("equal entries", None)
    assert np.isnan(found.error)
    assert worst([found]) == found.agreement


def test_probabilities_that_hardly_vary_decide_nothing_beside_others() -> None:
    net, h = trunk()
    logits = net.Mul(net.dense(h, 24, 3), net.const([2.0, 2.0, 1e-3]))
    net.output(net.Sigmoid(net.Add(logits, net.const([0.0, 0.0, -6.0]))))
    dense = net.model()
    other = scaled(dense, "w2", [1.0, 0.9, 0.0])
    found = measured(dense, other, drawn(200, 8))
    assert found.channel == "axis 1, channel 1"
    assert found.error < 0.1
    alone = Net(batch="N")
    h = alone.Relu(alone.dense(alone.input("x", 8), 8, 24))
    alone.output(alone.Sigmoid(alone.Mul(alone.dense(h, 24, 3), alone.const(1e-3))))
    assert measured(alone.model(), with_values(alone.model(), w2=0.0), drawn(200, 8)).error > 0.9


# what isn't finite


def logarithm() -> onnx.ModelProto:
    net, h = trunk()
    y = net.dense(h, 24, 3)
    net.output(net.Log(y), net.Reciprocal(net.Relu(y)))
    return net.model()


def test_what_the_dense_model_makes_not_finite_does_not_count() -> None:
    dense = logarithm()
    x = drawn(200, 8)
    for other, most in ((dense, 0.0), (scaled(dense, "w2", [1.0, 1.0, 0.999]), np.inf)):
        entries = snp_onnx.compare(dense, other, x).fidelity
        for entry, values in zip(entries, run(dense, {"x": x}), strict=True):
            assert entry.compared == pytest.approx(np.isfinite(values).mean())
            assert 0.1 < entry.compared < 0.9
            assert not np.isnan([entry.error, entry.cosine, entry.mean_error]).any()
            assert entry.error <= most


def test_an_output_without_a_finite_entry_is_not_compared() -> None:
    net, h = trunk()
    net.output(net.Log(net.Neg(net.Exp(net.dense(h, 24, 3)))))
    found = measured(net.model(), net.model(), drawn(20, 8))
    assert (found.compared, worst([found])) == (0.0, -np.inf)
    assert remarks([found], None) == [f"output {found.output} is not compared: it has no finite entry"]
    assert np.isnan([found.cosine, found.relative_l2, found.error]).all()


def test_what_is_not_finite_in_the_pruned_model_alone_is_an_infinite_error() -> None:
    net, h = trunk()
    net.output(net.Log(net.Add(net.op("Abs", net.dense(h, 24, 3)), net.const(1.0))))
    dense = net.model()
    comparison = snp_onnx.compare(dense, with_values(dense, c1=-1.0), drawn(200, 8))
    (found,) = comparison.fidelity
    assert (found.error, found.compared, worst([found])) == (np.inf, 1.0, -np.inf)
    (entry,) = json.loads(to_json(comparison))["fidelity"]
    assert (entry["error"], entry["relative_l2"], entry["compared"]) == (None, None, 1.0)


# which entries and samples count


@pytest.mark.parametrize("cast", [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64])
def test_padding_does_not_count(cast: int) -> None:
    def model(name: str) -> onnx.ModelProto:
        net = Net(batch="N")
        x, mask = net.input("x", "T", 6), net.input(name, "T", dtype=np.float32)
        hidden = net.Sub(net.const(1.0), net.unsqueeze(mask, 2))
        y = net.Add(net.linear(x, 6, 3), net.Mul(hidden, net.const(0.0)))
        net.output(net.op("Cast", net.Mul(y, net.const(10.0)), to=cast))
        return net.model()

    mask = (np.arange(9) < np.random.default_rng(0).integers(3, 9, 40)[:, None]).astype(np.float32)
    for name, is_padding in (("attention_mask", True), ("weights", False)):
        dense = model(name)
        found = measured(dense, with_values(dense, c3=50.0), {"x": drawn(40, 9, 6), name: mask})
        figure = found.agreement if cast == onnx.TensorProto.INT64 else 1.0 - found.error
        assert (figure == 1.0) == is_padding
        assert found.compared == 1.0


def test_samples_of_different_shapes() -> None:
    net = Net(batch="N")
    net.output(net.linear(net.Relu(net.linear(net.input("x", "T", 6), 6, 12)), 12, 4))
    dense = net.model()
    other = scaled(dense, "w2", np.linspace(0.5, 1.5, 12))
    feeds = [{"x": drawn(3, length, 6, seed=length)} for length in (4, 5, 9)]
    found = measured(dense, other, feeds)
    a, b = (
        np.concatenate([run(model, f)[0].reshape(-1, 4) for f in feeds]).astype(np.float64) for model in (dense, other)
    )
    lost = np.square(b - a).sum(axis=0) / np.square(a - a.mean(axis=0)).sum(axis=0)
    assert found.samples == 9
    assert (found.error, found.mean_error) == (pytest.approx(lost.max()), pytest.approx(lost.mean()))
    assert found.channel == f"axis 2, channel {lost.argmax()}"


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_few_samples(count: int) -> None:
    """Below eight the mean is taken over positions too, where it can be."""
    net = Net(batch="N")
    net.output(net.conv(net.Relu(net.conv(net.image(), 3, 8)), 8, 5))
    dense = net.model()
    other = scaled(dense, "w2", [1.0, 0.8, 1.0, 1.0, 1.0])
    x = drawn(count, 3, 8, 8)
    found = measured(dense, other, x)
    a, b = (run(model, {"x": x})[0].astype(np.float64) for model in (dense, other))
    mean = a.mean(axis=0 if count >= 8 else (0, 2, 3), keepdims=True)
    lost = np.square(b - a).sum(axis=(0, 2, 3)) / np.square(a - mean).sum(axis=(0, 2, 3))
    assert (found.error, found.channel) == (pytest.approx(lost.max()), "axis 1, channel 1")


def test_one_sample_of_a_few_numbers_is_judged_as_a_whole() -> None:
    net, h = trunk()
    net.output(net.dense(h, 24, 4))
    dense = net.model()
    found = measured(dense, with_values(dense, w2=0.0), drawn(1, 8))
    assert (found.samples, found.channel) == (1, "")
    assert found.error > 0.5
    single, h = trunk()
    single.output(single.dense(h, 24, 1))
    found = measured(single.model(), with_values(single.model(), w2=0.0), drawn(1, 8))
    assert np.isnan(found.error)
    assert worst([found]) == -np.inf


def test_sums_by_channel_of_very_large_outputs_are_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(batch="N")
    net.output(net.Softmax(net.conv(net.Relu(net.conv(net.input("x", 3, "h", "w"), 3, 8)), 8, 5), axis=1))
    dense = net.model()
    other = scaled(dense, "w2", [1.0, 0.6, 1.1, 1.0, 1.0])
    x = drawn(60, 3, 8, 8)
    exact = measured(dense, other, x)
    monkeypatch.setattr(output_sums, "MOST_ELEMENTS", 4)
    monkeypatch.setattr(output_sums, "ROWS_AT_ONCE", 500)
    large = measured(dense, other, x)
    assert large != exact
    for name in ("channel", "agreement", "decision", "compared", "samples"):
        assert getattr(large, name) == getattr(exact, name)
    for name in ("error", "mean_error", "cosine", "relative_l2"):
        assert getattr(large, name) == pytest.approx(getattr(exact, name), rel=0.15)  # the border counts as variation
    mixed = [{"x": drawn(9, 3, side, 8, seed=side)} for side in (1, 8)]
    monkeypatch.setattr(output_sums, "MOST_ELEMENTS", 100)  # one of two shapes is kept by channel
    assert measured(dense, other, mixed).channel.startswith("axis 1, channel")


def test_feeds_that_are_whole() -> None:
    net = Net()
    nodes, edges = net.input("x", "V", 6, batched=False), net.input("e", "V", "V", batched=False)
    h = net.Relu(net.linear(net.MatMul(edges, nodes), 6, 12))
    net.output(net.Softmax(net.linear(net.MatMul(edges, h), 12, 4)))
    dense = net.model()
    other = scaled(dense, "b2", [1, 1, 6, 1])
    feeds = [{"x": drawn(n, 6, seed=n), "e": np.abs(drawn(n, n, seed=n)) / n} for n in (5, 6, 7, 8, 9, 11)]
    found = measured(dense, other, feeds)
    a, b = (np.concatenate([run(model, f)[0] for f in feeds]).astype(np.float64) for model in (dense, other))
    lost = np.square(b - a).sum(axis=0) / np.square(a - a.mean(axis=0)).sum(axis=0)
    assert found.samples == len(feeds)
    assert (found.error, found.channel) == (pytest.approx(lost.max()), f"axis 1, channel {lost.argmax()}")
    assert (found.agreement, found.decision) == (
        pytest.approx((a.argmax(1) == b.argmax(1)).mean()),
        "largest entry",
    )


# sizes that data decide

BRANCH = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3] x, bool[N] c) => (float[M, 3] y)
    <float[3] k = {1.0, 1.0, 1.0}> {
        all = Cast<to = 6>(c)
        least = ReduceMin<keepdims = 0>(all)
        every = Cast<to = 9>(least)
        h = If (every) <then_branch = t () => (float[A, 3] p) { p = Mul(x, k) },
                        else_branch = e () => (float[B, 3] q) { q = Neg(x) }>
        y = Neg(h)
    }
"""


def test_what_only_may_differ_in_size_is_compared_where_it_does_not() -> None:
    dense = onnx.parser.parse_model(BRANCH)
    feeds = [{"x": drawn(20, 3, seed=seed), "c": np.ones(20, dtype=bool)} for seed in range(3)]
    found = measured(dense, with_values(dense, k=0.5), feeds)
    assert (found.mean_error, found.compared) == (pytest.approx(0.25, abs=0.02), 1.0)


def test_as_many_of_the_largest_entries_as_the_data_say_are_compared_where_they_lie() -> None:
    net, h = trunk(batch=1)
    scores = net.dense(h, 24, 12)
    count = net.ReduceSum(net.Cast(net.Greater(scores, net.const(0.0)), to=onnx.TensorProto.INT64), keepdims=0)
    net.output(net.op("TopK", scores, net.reshape(count, 1), outputs=2))
    dense = net.model()
    other = scaled(dense, "w2", np.linspace(0.1, 1.5, 12))
    feeds = [{"x": drawn(1, 8, seed=seed)} for seed in range(20)]
    picked, inner = snp_onnx.compare(dense, other, feeds).fidelity
    assert (picked.compared, inner.output, inner.compared) == (0.0, scores, 1.0)
    assert remarks([picked], None)[0].endswith("how many entries it has depends on the data")
    assert 0.1 < inner.error < 2.0
    pruned = snp_onnx.prune(dense, calibration=feeds, target_macs=0.6, latency=False).model
    sizes = [[run(model, feed)[0].shape[1] for feed in feeds] for model in (dense, pruned)]
    assert sizes[0] != sizes[1]


class Answers:
    """A session that gives these arrays, one after the other."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.left = list(arrays)

    def get_inputs(self) -> list[Any]:
        return [type("Input", (), {"name": "x", "type": "tensor(float)"})]

    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"name": "y"})]

    def run(self, names: Any, feed: Mapping[str, Array]) -> list[Array]:
        return [self.left.pop(0)]


def test_outputs_of_other_shapes_are_an_error_where_no_data_decide_them() -> None:
    known = (Ending("y", (None, 4), None, ("y",)),)
    with pytest.raises(snp_onnx.ModelError, match="output y has shape"):
        measure_fidelity(Answers([drawn(3, 4)]), Answers([drawn(3, 5)]), [{"x": drawn(3, 8)}], known=known)
