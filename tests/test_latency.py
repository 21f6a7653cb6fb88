"""Latency: kernels timed alone, what is kept of them, grids, and widths decided by the clock."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.calibration import kernel_times
from snp_onnx.calibration.kernel_times import FOLDER, KernelTimes
from snp_onnx.calibration.kernels import Kernel, Operand, kernel_of, time_kernels
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.cost import mac_terms
from snp_onnx.errors import TargetError
from snp_onnx.passes import prepare
from snp_onnx.planning.budget import widths_by_error
from snp_onnx.planning.latency import LatencyCosts
from snp_onnx.planning.layer_times import LayerTimes, time_layers, timed_widths
from snp_onnx.planning.layers import Grid, Layer, grid_from_cross, inner_places, layers_of
from snp_onnx.planning.options import Target, TargetKind, choices
from snp_onnx.planning.paths import Path
from snp_onnx.tracing import Group, Trace, trace
from snp_onnx.verbs import clocked
from snp_onnx.verbs.latency import Latency, measure_latency
from tests.graphs import Net, feed_for
from tests.oracles import traced
from tests.topologies import CATALOGUE

FLOAT = onnx.TensorProto.FLOAT
ONE = Runtime(threads=1)


def convolution(inner: int, outer: int, side: int = 16, **attributes: Any) -> Kernel:
    node = onnx.helper.make_node("Conv", ["a", "b"], ["c"], name="any", pads=[1, 1, 1, 1], **attributes)
    return kernel_of(
        node, 17, [Operand(FLOAT, (1, inner, side, side), False), Operand(FLOAT, (outer, inner, 3, 3), True)]
    )


# kernels


def test_a_wider_kernel_takes_longer_and_one_that_cannot_run_takes_no_time() -> None:
    wrong = kernel_of(
        onnx.helper.make_node("Conv", ["a", "b"], ["c"]),
        17,
        [Operand(FLOAT, (1, 3, 8, 8), False), Operand(FLOAT, (4, 5, 3, 3), True)],
    )
    narrow, wide, none = time_kernels([convolution(16, 16), convolution(64, 64), wrong], ONE, 1.0)
    assert 0.0 < 4.0 * narrow < wide  # sixteen times the work
    assert np.isnan(none)


def test_kernels_are_the_same_whatever_they_are_called() -> None:
    same, other = convolution(8, 8), convolution(8, 8)
    assert same == other
    assert same.description == other.description
    strided = convolution(8, 8, strides=[2, 2])
    assert same.description != strided.description
    assert same.description != convolution(8, 16).description


def test_times_are_kept_and_asked_for_once(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "kept"))
    asked: list[int] = []

    def timed(kernels: Sequence[Kernel], runtime: Runtime, seconds: float, progress: Any = None) -> list[float]:
        asked.append(len(kernels))
        progress(len(kernels))
        return [float(kernel.operands[1].shape[0]) if kernel.operands[1] else 0.0 for kernel in kernels]

    monkeypatch.setattr(kernel_times, "time_kernels", timed)
    one, two = convolution(4, 8), convolution(4, 16)
    heard: list[tuple[int, int]] = []
    first = KernelTimes(ONE)
    assert first.of([one, two, one], 1.0, lambda *at: heard.append(at)) == {one: 8.0, two: 16.0}
    again = KernelTimes(ONE)
    assert again.of([two], 1.0, lambda *at: heard.append(at)) == {two: 16.0}
    assert again.of([convolution(4, 4)], 1.0, lambda *at: None)[convolution(4, 4)] == 4.0
    assert asked == [2, 1]
    assert heard == [(2, 2)]
    assert KernelTimes(Runtime(threads=2)).path != first.path
    saved = json.loads(first.path.read_text())
    assert saved["key"]["threads"] == 1
    assert len(saved["milliseconds"]) == 3


POISONED = '{"key": KEY, "milliseconds": {"a": VALUE}}'


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"key": {}, "milliseconds": {}}', '{"key": 1}', "[" * 99999),
        *(POISONED.replace("VALUE", value) for value in ("-1", "1e300", "1" + "0" * 400, "Infinity", '"x"', "[]")),
    ],
)
def test_a_damaged_cache_is_no_cache(content: str, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    path = KernelTimes(ONE).path
    path.write_text(content.replace("KEY", json.dumps(KernelTimes(ONE)._key)))
    found = KernelTimes(ONE).of([convolution(4, 4)], 0.1, lambda *at: None)
    assert found[convolution(4, 4)] > 0.0
    assert len(json.loads(path.read_text())["milliseconds"]) == 1


def test_without_a_home_there_is_no_cache(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(kernel_times, "user_cache_path", lambda name: FilePath("~/.cache") / name)
    monkeypatch.chdir(tmp_path)
    assert KernelTimes(ONE).of([convolution(4, 4)], 0.1, lambda *at: None)[convolution(4, 4)] > 0.0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    assert KernelTimes(ONE).of([convolution(4, 4)], 0.1, lambda *at: None)[convolution(4, 4)] > 0.0


# layers and grids


def work_of(kernel: Kernel) -> float:
    """A clock that no machine disturbs: multiply-accumulates of output channels in blocks of 8, and something fixed."""
    x, w = kernel.operands[0], kernel.operands[1]
    assert x is not None
    assert w is not None
    node = onnx.NodeProto.FromString(kernel.node)
    if node.op_type != "Conv":
        return 1e-6 * float(np.prod(x.shape)) * w.shape[-1] + 0.01
    rounded = -(-w.shape[0] // 8) * 8
    return 1e-6 * rounded * float(np.prod(w.shape[1:])) * float(np.prod(x.shape[2:])) + 0.01


def timer(kernels: Sequence[Kernel], seconds: float) -> Mapping[Kernel, float]:
    return {kernel: work_of(kernel) for kernel in kernels}


def chain(widths: Sequence[int] = (32, 48, 64)) -> tuple[onnx.ModelProto, Trace, tuple[Group, ...]]:
    net = Net(batch=1, seed=1)
    x, inner = net.input("x", 3, 16, 16), 3
    for outer in widths:
        x, inner = net.conv_relu(x, inner, outer), outer
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), inner, 4))
    model = net.model()
    found = trace(model, {"x": (1, 3, 16, 16)})
    return model, found, found.groups


def timed_chain() -> tuple[Trace, tuple[Group, ...], LayerTimes, LatencyCosts, list[Layer]]:
    model, found, groups = chain()
    layers = list(layers_of(model, found, groups))
    ladders = [timed_widths(len(group), 1, 1) for group in groups]
    times = time_layers(layers, groups, ladders, timer, 60.0)
    dense = sum(work_of(layer.kernel(layer.dense)) for layer in layers) / 0.8
    terms = mac_terms(model, found.facts.shapes)
    return found, groups, times, LatencyCosts(times, found, groups, terms, dense), layers


@pytest.mark.parametrize("name", CATALOGUE)
def test_layers_become_kernels_that_run(name: str) -> None:
    model = prepare(CATALOGUE[name].model("N")).model
    found = traced(model, feed_for(model, 2))
    layers = list(layers_of(model, found, found.groups))
    for layer in layers:
        whole = layer.kernel(layer.dense)
        for operand, tensor in zip(whole.operands, layer.op.inputs, strict=True):
            assert (operand is None) == (not tensor)
            assert operand is None or operand.shape == found.facts.shapes[tensor]
    kernels = [layer.kernel(values) for layer in layers for values in (layer.dense, [1.0] * len(layer.dense))]
    floats = [k for k in kernels if all(operand is None or operand.dtype == FLOAT for operand in k.operands)]
    assert np.isfinite(time_kernels(floats, ONE, 0.0)).all()


def test_ladders_keep_the_widths_that_save_time() -> None:
    _, groups, times, _, _ = timed_chain()
    assert [len(group) for group in groups] == [32, 48, 64]
    for ladder, group in zip(times.ladders, groups, strict=True):
        assert ladder[-1] == len(group)
        assert ladder == tuple(sorted(set(ladder)))
    # the consumers' time falls with every width, the producers' in blocks of 8: both count
    only_steps = time_layers(
        [layer for layer in times.layers if layer.op.name == times.layers[0].op.name],
        groups,
        times.ladders,
        timer,
        60.0,
    )
    assert all(width % 8 == 0 for width in only_steps.ladders[0])


def test_few_seconds_make_ladders_coarser_but_keep_the_dense_width() -> None:
    model, found, groups = chain()
    layers = list(layers_of(model, found, groups))
    ladders = [timed_widths(len(group), 1, 1) for group in groups]
    slow = time_layers(layers, groups, ladders, lambda kernels, _: {k: 1000 * work_of(k) for k in kernels}, 1.0)
    assert all(len(ladder) <= 4 for ladder in slow.ladders)
    assert [ladder[-1] for ladder in slow.ladders] == [32, 48, 64]


def test_predictions_are_what_the_clock_says() -> None:
    """With layers that make up 0.8 of the time, timed to the digit, and a remainder that no width changes."""
    _, groups, times, costs, layers = timed_chain()
    dense = sum(work_of(layer.kernel(layer.dense)) for layer in layers) / 0.8
    sizes = np.array([len(group) for group in groups])

    def truth(widths: Any) -> float:
        values = [[variable.at(widths) for variable in layer.variables] for layer in layers]
        return sum(work_of(layer.kernel(v)) for layer, v in zip(layers, values, strict=True)) / dense + 0.2

    assert costs.cost(sizes) == pytest.approx(1.0)
    for known in ([ladder[0] for ladder in times.ladders], [ladder[len(ladder) // 2] for ladder in times.ladders]):
        costs.learn(np.array(known), truth(np.array(known)))
        assert costs.cost(np.array(known)) == pytest.approx(truth(np.array(known)))
    for rungs in np.random.default_rng(0).integers(0, 100, (20, 3)):
        widths = np.array([ladder[rung % len(ladder)] for ladder, rung in zip(times.ladders, rungs, strict=True)])
        assert costs.cost(widths) == pytest.approx(truth(widths), abs=0.03)


def test_marginal_costs_see_past_a_step() -> None:
    """Where the last units save nothing, the price is that of the whole step below them."""
    _, groups, times, costs, _ = timed_chain()
    sizes = np.array([len(group) for group in groups])
    price = costs.marginal(sizes)
    assert (price > 0.0).all()
    for number, ladder in enumerate(times.ladders):
        for narrower in ladder[:-1]:
            widths = sizes.copy()
            widths[number] = narrower
            per_unit = (costs.cost(sizes) - costs.cost(widths)) / (sizes[number] - narrower)
            assert per_unit <= price[number] * 1.02 + 1e-9


def test_widths_of_a_budget_are_on_the_ladders() -> None:
    _, groups, times, costs, _ = timed_chain()
    shares = [np.linspace(1.0 / len(group), 1.0, len(group)) for group in groups]
    paths = [Path(g, np.arange(len(g)), share, share - share[0]) for g, share in zip(groups, shares, strict=True)]
    limit = 0.5 * (1.0 + costs.cost(np.array([ladder[0] for ladder in times.ladders])))
    widths = widths_by_error(paths, costs, limit, times.ladders)
    assert widths is not None
    assert costs.cost(widths) <= limit
    assert all(width in ladder for width, ladder in zip(widths, times.ladders, strict=True))
    assert any(width < len(group) for width, group in zip(widths, groups, strict=True))


def test_a_grid_from_a_cross_is_exact_for_products_and_at_its_points() -> None:
    points = np.array([4.0, 8.0, 16.0, 32.0]), np.array([10.0, 20.0, 40.0])
    product = np.outer(points[0] + 3.0, points[1] ** 0.5)
    inside = product[np.ix_([0, 2], [0, 1])]
    grid = grid_from_cross(points, product[:, -1], product[-1], inside)
    np.testing.assert_allclose(grid.times, product)
    bent = product + np.add.outer(points[0], points[1])
    grid = grid_from_cross(points, bent[:, -1], bent[-1], bent[np.ix_([0, 2], [0, 1])])
    np.testing.assert_allclose(grid.times[[0, 2]][:, [0, 1]], bent[np.ix_([0, 2], [0, 1])])
    np.testing.assert_allclose(grid.times[:, -1], bent[:, -1])
    np.testing.assert_allclose(grid.times[-1], bent[-1])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (2, 2), (3, 1), (2, 5)])
def test_grids_of_few_points(rows: int, columns: int) -> None:
    points = np.arange(1.0, rows + 1), np.arange(1.0, columns + 1)
    times = np.outer(points[0], points[1])
    inside = times[np.ix_(inner_places(rows), inner_places(columns))]
    grid = grid_from_cross(points, times[:, -1], times[-1], inside)
    np.testing.assert_allclose(grid.times, times)
    at = grid.at([np.array([1.0, float(rows)]), np.array([1.0, float(columns)])])
    np.testing.assert_allclose(at, [1.0, rows * columns])


def test_a_grid_is_linear_between_its_points_and_flat_outside() -> None:
    line = Grid((np.array([2.0, 4.0, 8.0]),), np.array([1.0, 3.0, 4.0]))
    np.testing.assert_allclose(line.at([np.array([1.0, 3.0, 6.0, 9.0])]), [1.0, 2.0, 3.5, 4.0])


# the whole way


def test_quick_models_run_in_bursts_whose_first_run_does_not_count() -> None:
    calls: list[str] = []

    def sleeper(seconds: float, name: str) -> Callable[[], None]:
        def run() -> None:
            calls.append(name)
            time.sleep(seconds)

        return run

    found = measure_latency(sleeper(0.002, "a"), sleeper(0.001, "b"), batch=3, rounds=8)
    assert found.rounds == 8
    assert found.batch == 3
    assert 0.3 < found.ratio < 0.8
    assert "".join(calls).endswith("aaaaabbbbb")
    calls.clear()
    measure_latency(sleeper(0.03, "a"), sleeper(0.03, "b"), rounds=5)
    assert "".join(calls).endswith("ababab")


def network() -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Convolutions large enough to be timed."""
    net = Net(batch="N", seed=3)
    x = net.conv_relu(net.input("x", 3, 32, 32), 3, 64)
    for _ in range(2):
        x = net.Relu(net.Add(net.conv(net.conv_relu(x, 64, 64), 64, 64), x))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 64, 4))
    return net.model(), {"x": np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_latency_target_is_met_by_the_clock(batch: int) -> None:
    model, data = network()
    options: dict[str, Any] = {"preset": "fast", "threads": 1, "latency_batch": batch}
    result = snp_onnx.prune(model, data, target_latency=0.6, **options)
    found = result.report.latency[-1]
    assert [entry.batch for entry in result.report.latency] == sorted({1, batch})
    assert 0.4 < found.undisturbed < 0.72  # what it aims at is closer; other tests run at the same time
    assert result.report.timings["time layers"] > 0.0
    with pytest.raises(TargetError, match="target-latency"):
        snp_onnx.prune(model, data, target_latency=0.001, **options)


def test_rounding_by_the_clock_takes_the_runtimes_steps() -> None:
    """Only widths that were timed: of 64 every fourth."""
    model, data = network()
    options: dict[str, Any] = {"preset": "fast", "threads": 1, "target_macs": 0.6}
    result = snp_onnx.prune(model, data, round_to="auto", **options)
    assert result.report.options["round_to"] == "auto"
    assert result.report.pruned.macs <= 0.6 * result.report.dense.macs
    widths = {group.after for group in result.report.groups}
    assert all(width % 4 == 0 for width in widths)  # of 64 every fourth width is timed
    assert choices(round_to="8").step == 8
    assert choices(round_to="auto").step == 1


def timed(ratio: float, batch: int = 1, dense_ms: float = 1.0) -> Latency:
    return Latency(batch, 10, dense_ms, ratio * dense_ms, ratio, ratio, ratio, ratio, dense_ms)


@pytest.mark.parametrize(
    ("latency", "macs", "options", "target", "said"),
    [
        ([timed(1.16)], 0.5, {}, None, "takes 1.160 of the dense time with 0.500 of the MACs"),
        ([timed(0.91)], 0.5, {}, Target(TargetKind.MACS, 0.5), "try --round-to auto"),
        ([timed(0.89)], 0.5, {}, None, None),
        ([timed(0.97)], 0.8, {"round_to": "8"}, None, "try --round-to auto"),
        ([timed(0.95)], 0.8, {}, None, None),
        ([timed(1.1), timed(0.6, 8)], 0.5, {}, None, None),  # the batch that was asked for counts
        ([timed(0.6), timed(1.1, 8)], 0.5, {}, None, "takes 1.100"),
        ([timed(1.16)], 0.5, {"round_to": "auto"}, None, None),
        ([timed(1.16, dense_ms=0.04)], 0.5, {}, None, None),
        ([timed(0.66)], 0.5, {}, Target(TargetKind.LATENCY, 0.6), "0.6 was asked for"),
        ([timed(0.64)], 0.5, {}, Target(TargetKind.LATENCY, 0.6), None),
        ([], 0.5, {}, None, None),
    ],
)
def test_a_result_that_is_not_quicker_is_said(
    latency: list[Latency], macs: float, options: dict[str, Any], target: Target | None, said: str | None
) -> None:
    found = clocked.cautions(latency, macs, choices(**options), target, False)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_a_quantised_result_is_told_of_whole_blocks() -> None:
    (said,) = clocked.cautions([timed(1.2)], 0.5, choices(), None, True)
    assert said.endswith("try --round-to 8 or 16")


def test_a_clock_that_varies_costs_some_time_not_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is cut takes a little more than predicted, except the narrowest: that isn't what comes back."""
    model, source = network()
    honest, seen = clocked._timed, list[float]()

    def noisy(work: Any, plan: Any) -> Any:
        found = honest(work, plan)
        ratio = 0.2 if not seen else 0.6 + 0.04 / len(seen)
        seen.append(ratio)
        return replace(found, undisturbed=ratio)

    monkeypatch.setattr(clocked, "_timed", noisy)
    result = snp_onnx.prune(model, source, target_latency=0.6, threads=1, preset="fast", latency=False)
    assert len(seen) > 2
    assert sum(decision.after for decision in result.plan.decisions) > 3 * len(result.plan.decisions)
    assert result.plan.target == {"kind": "latency", "value": 0.6}


def test_an_output_of_another_rank_than_declared_is_timed() -> None:
    """The runtime warns and runs such a model, but refuses to bind its output."""
    net = Net(12, batch="n")
    h = net.linear(net.Relu(net.linear(net.input("x", 5, 6), 6, 12)), 12, 6)
    unknown = net.Cast(net.Cast(net.Shape(h), to=FLOAT), to=onnx.TensorProto.INT64)
    net.output(net.Reshape(h, unknown))
    model = net.model()
    declared = model.graph.output[0].type.tensor_type.shape
    del declared.dim[2:]
    result = snp_onnx.prune(model, feed_for(model, 40), target_macs=0.7, preset="fast", latency=True, threads=1)
    assert result.report.latency[0].dense_ms > 0.0
    assert result.model.graph.output[0] == model.graph.output[0]
