"""The preset `fast`: marginal costs, widths by error, folds of whole windows with the bias, and the whole road."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import snp_onnx
from snp_onnx import PruneResult, TargetError
from snp_onnx.calibration.moments import View, Window
from snp_onnx.calibration.runner import Runtime, collect
from snp_onnx.cost import byte_terms, mac_terms, param_terms
from snp_onnx.passes import prepare
from snp_onnx.planning.budget import legal_widths, smallest, widths_by_error
from snp_onnx.planning.cost_table import CostTable, WithRemainder
from snp_onnx.planning.decide import decide, ladders_of
from snp_onnx.planning.folding import fold, free_bias
from snp_onnx.planning.options import FAST, Target, TargetKind
from snp_onnx.planning.paths import Path, find_paths
from snp_onnx.planning.readings import readings, shows_spread
from snp_onnx.planning.statistics import Statistics
from snp_onnx.planning.windows import PATCH_COLUMNS, conv_window
from snp_onnx.tracing import Group, Kind, Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.weights import Weights
from tests.command_line import DIGITS, DIGITS_DATA, bench, call, done, images, small
from tests.graphs import Net, feed_for
from tests.oracles import assert_valid, difference, run, traced
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]


# marginal costs


@pytest.mark.parametrize("terms", ["macs", "params", "bytes"])
@pytest.mark.parametrize("name", ["chain", "residual-identity", "unet", "dense-net", "depthwise", "flatten-gemm"])
def test_marginal_costs_are_the_derivative(name: str, terms: str) -> None:
    model = prepare(CATALOGUE[name].model("N")).model
    found = traced(model, feed_for(model, 1))
    kinds = {"macs": mac_terms(model, found.facts.shapes), "params": param_terms(model), "bytes": byte_terms(model)}
    table = CostTable(kinds[terms], found, found.groups)
    rng = np.random.default_rng(0)
    at = np.array([int(rng.integers(1, len(group) + 1)) for group in found.groups])
    marginal = table.marginal(at)
    assert (WithRemainder(table, 99.0).marginal(at) == marginal).all()
    for group in range(len(at)):
        tried = [np.where(np.arange(len(at)) == group, width, at) for width in range(6)]
        curve = np.polynomial.Polynomial.fit(range(6), [table.cost(widths) for widths in tried], 3)
        assert marginal[group] == pytest.approx(curve.deriv()(at[group]), rel=1e-6)


def test_one_more_unit_costs_its_marginal_where_cost_is_linear() -> None:
    found = traced(small(), feed_for(small(), 1))
    table = CostTable(mac_terms(small(), found.facts.shapes), found, found.groups)
    for at in itertools.product(range(1, 8), range(1, 6)):
        here = np.array(at)
        steps = [table.cost(here + np.eye(2, dtype=np.int64)[group]) - table.cost(here) for group in (0, 1)]
        assert table.marginal(here).tolist() == pytest.approx(steps)
    assert table.marginal(np.array([8, 6])).tolist() == [64 * 9 * (3 + 6), 64 * 9 * (8 + 4)]


# widths by error


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A sum of own costs and products of neighbouring widths."""

    own: Array
    pairs: Array

    def cost(self, w: Array) -> float:
        return float(self.own @ w + (self.pairs * w[1:] * w[:-1]).sum() + 5)

    def marginal(self, w: Array) -> Array:
        slope = self.own.astype(np.float64)
        slope[1:] += self.pairs * w[:-1]
        slope[:-1] += self.pairs * w[1:]
        return slope


def path_of(variance: Array, energy: float = 1.0) -> Path:
    group = Group("g", Kind.CHANNELS, np.arange(len(variance)), (), (), False)
    return Path(group, np.arange(len(variance)), variance, np.concatenate([[0.0], variance[:-1]]), energy)


def drawn(seed: int) -> tuple[list[Path], Chain]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 10, rng.integers(1, 5))
    paths = [path_of(np.cumsum(rng.dirichlet(np.full(size, 0.5))), rng.uniform(0.1, 10)) for size in sizes]
    return paths, Chain(rng.integers(1, 9, len(sizes)), rng.integers(0, 9, len(sizes) - 1))


def hulls(paths: list[Path], least: int, step: int) -> list[dict[int, float]]:
    """By definition: the lowest chord between any two legal widths, at every legal width."""
    result = []
    for path in paths:
        rungs = legal_widths(len(path.group), least, step)
        e = {rung: float(path.errors[rung - 1]) for rung in rungs}
        chords = {k: [e[k]] for k in rungs}
        for a, b in itertools.combinations(rungs, 2):
            for k in rungs:
                if a <= k <= b:
                    chords[k].append(e[a] + (e[b] - e[a]) * (k - a) / (b - a))
        result.append({k: min(values) for k, values in chords.items()})
    return result


def error(curves: list[dict[int, float]], widths: Any) -> float:
    return sum(curve[int(width)] for curve, width in zip(curves, widths, strict=True))


@pytest.mark.parametrize(("least", "step"), [(1, 1), (3, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.3])
def test_widths_by_error_against_brute_force(share: float, least: int, step: int) -> None:
    excess = []
    for seed in range(20):
        paths, chain = drawn(seed)
        limit = share * chain.cost(np.array([len(path.group) for path in paths]))
        rungs = [legal_widths(len(path.group), least, step) for path in paths]
        found = widths_by_error(paths, chain, limit, rungs)
        fitting = [combo for combo in itertools.product(*rungs) if chain.cost(np.array(combo)) <= limit]
        assert (found is None) == (not fitting)
        if found is None:
            assert chain.cost(smallest(rungs)) > limit
            continue
        assert tuple(found.tolist()) in fitting
        for number, legal in enumerate(rungs):
            for wider in [rung for rung in legal if rung > found[number]][:1]:
                assert chain.cost(np.where(np.arange(len(found)) == number, wider, found)) > limit
        curves = hulls(paths, least, step)
        best, none = min(error(curves, combo) for combo in fitting), error(curves, [legal[0] for legal in rungs])
        if none > best:
            excess.append((error(curves, found) - best) / (none - best))
    assert min(excess) >= -1e-12
    assert np.mean(excess) < 0.025  # what is seen is .022 at most
    assert max(excess) < 0.15  # .128, of 20 x 12 drawn budgets


def test_a_steep_step_with_flat_ones_behind_it_is_taken_where_all_of_them_pay() -> None:
    """Three units of the first group cost .5 together, though the first of them costs all of it."""
    paths, costs = (
        [path_of(np.array([0.5, 0.5, 0.5, 1.0])), path_of(np.array([0.4, 0.6, 0.8, 1.0]))],
        Chain(np.array([1, 1]), np.array([0])),
    )
    found = widths_by_error(paths, costs, costs.cost(np.array([4, 4])) - 3, ladders_of(paths, FAST))
    assert found is not None
    assert found.tolist() == [1, 4]


def test_what_a_unit_frees_is_counted_at_the_widths_of_its_neighbours() -> None:
    """Once the second group is narrow, units of the first free an eighth of what they did: the third loses its own."""
    slopes = [0.1, 0.01, 0.11]
    paths = [path_of(1.0 - np.arange(7, -1, -1) * slope) for slope in slopes]
    costs = Chain(np.array([0, 0, 8]), np.array([1, 0]))
    found = widths_by_error(paths, costs, 54.0, ladders_of(paths, FAST))
    assert found is not None
    assert found.tolist() == [8, 1, 5]


def test_redundant_groups_pay_for_irreplaceable_ones() -> None:
    redundant, irreplaceable = np.array([0.97, 0.98, *np.linspace(0.985, 1, 6)]), np.linspace(1 / 8, 1, 8)
    paths, chain = [path_of(redundant), path_of(irreplaceable)], Chain(np.array([3, 3]), np.array([1]))
    found = widths_by_error(paths, chain, chain.cost(np.array([4, 4])), ladders_of(paths, FAST))
    assert found is not None
    curves = hulls(paths, 1, 1)
    assert error(curves, found) < 0.5 * error(curves, (4, 4))
    assert found[1] > 4 > found[0]


def test_a_coarse_step_that_overshoots_is_left_to_finer_groups() -> None:
    """Four heads of which one costs as much as half of the hidden units: the target falls between two heads."""
    heads, hidden = path_of(np.array([0.97, 0.98, 0.99, 1.0])), path_of(np.linspace(0.9, 1.0, 40), 0.3)
    costs = Chain(np.array([100, 5]), np.array([0]))
    found = widths_by_error(
        [heads, hidden], costs, costs.cost(np.array([4, 40])) - 60, ladders_of([heads, hidden], FAST)
    )
    assert found is not None
    assert found.tolist() == [4, 28]


def test_an_unreachable_budget_is_a_target_error() -> None:
    paths, chain = drawn(3)
    with pytest.raises(TargetError, match=r"--target-macs 0\.001 can't be reached"):
        decide(paths, Target(TargetKind.MACS, 0.001), chain, 1000.0, FAST.ratios, ladders_of(paths, FAST))


# windows


WINDOWS: dict[str, tuple[int, dict[str, Any], tuple[Any, ...] | None]] = {
    "strides": (3, {"strides": [2, 1]}, ((3, 3), (2, 1), (1, 1), (0, 0, 0, 0))),
    "dilations": (3, {"dilations": [1, 2]}, ((3, 3), (1, 1), (1, 2), (0, 0, 0, 0))),
    "pads": (3, {"pads": [0, 1, 2, 1]}, ((3, 3), (1, 1), (1, 1), (0, 1, 2, 1))),
    "valid": (3, {"auto_pad": "VALID"}, ((3, 3), (1, 1), (1, 1), (0, 0, 0, 0))),
    "upper": (4, {"auto_pad": "SAME_UPPER"}, ((4, 4), (1, 1), (1, 1), (1, 1, 2, 2))),
    "lower": (4, {"auto_pad": "SAME_LOWER"}, ((4, 4), (1, 1), (1, 1), (2, 2, 1, 1))),
    "upper-strided": (3, {"auto_pad": "SAME_UPPER", "strides": [2, 3]}, ((3, 3), (2, 3), (1, 1), (0, 0, 1, 1))),
    "point": (1, {}, None),
    "strided-point": (1, {"strides": [2, 2]}, ((1, 1), (2, 2), (1, 1), (0, 0, 0, 0))),
}


def pair(k: int, bias: bool = True, units: int = 6, **attributes: Any) -> onnx.ModelProto:
    """A convolution of some units and its consumer with a k x k window."""
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, units)
    inputs = [x, net.weight(4, units, k, k, fan_in=units * k * k)] + ([net.bias(4)] if bias else [])
    net.output(net.op("Conv", *inputs, **attributes))
    return net.model()


@pytest.mark.parametrize("case", WINDOWS)
def test_windows_of_convolutions(case: str) -> None:
    k, attributes, expected = WINDOWS[case]
    model = pair(k, **attributes)
    found = traced(model, feed_for(model, 1))
    window = conv_window(found, found.groups[0].consumers[0])
    assert window == (None if expected is None else Window(*expected))
    (reading,) = readings(found, found.groups, 5, patches=True).values()
    assert (reading.request.view is View.PATCHES) == (expected is not None)
    assert len(reading.columns) == 6 * k * k
    if window is not None and any(window.pads):
        dense = run(model, feed_for(model, 1))[0]
        del model.graph.node[-1].attribute[:]
        given = {"strides": window.strides, "dilations": window.dilations, "pads": window.pads}
        model.graph.node[-1].attribute.extend(onnx.helper.make_attribute(n, list(v)) for n, v in given.items())
        assert difference([dense], run(model, feed_for(model, 1))) < 1e-6


def test_a_wide_window_needs_rows() -> None:
    model = pair(3, units=128)  # 1,152 columns
    found = traced(model, feed_for(model, 1))
    positions = int(np.prod(found.facts.shapes[found.groups[0].consumers[0].output][2:]))
    enough = -(-4 * 1152 // positions)
    for samples, view in ((enough, View.PATCHES), (enough - 1, View.CHANNELS)):
        (reading,) = readings(found, found.groups, samples, patches=True).values()
        assert reading.request.view is view


def test_windows_of_too_many_columns_are_read_by_channel() -> None:
    for units, view in ((PATCH_COLUMNS // 9, View.PATCHES), (PATCH_COLUMNS // 9 + 1, View.CHANNELS)):
        model = pair(3, units=units)
        found = traced(model, feed_for(model, 1))
        assert [r.request.view for r in readings(found, found.groups, 5000, patches=True).values()] == [view]


# folding


def statistics(model: onnx.ModelProto, found: Trace, feed: Mapping[str, Array], patches: bool) -> Statistics:
    """Moments of every position."""
    wanted = {
        linear: replace(reading, request=replace(reading.request, lattice=()))
        for linear, reading in readings(found, found.groups, 200, patches).items()
    }
    requests = {reading.key: reading.request for reading in wanted.values()}
    return Statistics(wanted, collect(model, list(requests.values()), [feed], Runtime()))


def patches_of(values: Array, stride: int, pad: int) -> Array:
    padded = np.pad(values, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    return seen.transpose(0, 2, 3, 1, 4, 5).reshape(-1, values.shape[1] * 9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("stride", "pad"), [(1, 1), (2, 1), (1, 0), (2, 0)])
def test_patch_folds_are_least_squares_with_a_constant(stride: int, pad: int, bias: bool) -> None:
    model = pair(3, bias, strides=[stride] * 2, pads=[pad] * 4)
    feed = feed_for(model, 200)
    found = traced(model, feed_for(model, 1))
    (group,) = found.groups
    (consumer,) = group.consumers
    alive = found.alive([group.labels[[1, 4]]])
    by_patch, by_channel = (
        fold(Flow(model, found), alive, statistics(model, found, feed, patches), 1e-10, affine=patches).values
        for patches in (True, False)
    )
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output[0].CopyFrom(onnx.helper.make_empty_tensor_value_info(consumer.input))
    x = patches_of(run(shown, feed)[0].astype(np.float64), stride, pad)
    kept = np.flatnonzero(np.repeat([True, False, True, True, False, True], 9))
    dense = Weights(model).array(consumer.weight).astype(np.float64).reshape(4, -1)
    columns = np.c_[x[:, kept], np.ones(len(x))] if bias else x[:, kept]
    target = x @ dense.T
    best, *_ = np.linalg.lstsq(columns, target, rcond=None)
    now = by_patch[consumer.weight].astype(np.float64).reshape(4, -1)
    assert np.allclose(now[:, kept].T, best[:36], atol=3e-3)
    assert not np.delete(now, kept, axis=1).any()
    shift = np.zeros(4)
    if bias:
        shift = by_patch["b2"].astype(np.float64) - Weights(model).array("b2").astype(np.float64)
        assert np.allclose(shift, best[36], atol=3e-3)
        assert np.abs(shift).max() > 0.01
    assert set(by_patch) == {consumer.weight} | ({"b2"} if bias else set())
    assert set(by_channel) == {consumer.weight}
    channel, cut = by_channel[consumer.weight].reshape(4, -1).astype(np.float64), np.zeros_like(dense)
    cut[:, kept] = dense[:, kept]
    errors = [np.square(x @ w.T + s - target).sum() for w, s in ((now, shift), (channel, 0), (cut, 0))]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("bias", [True, False])
def test_errors_are_shares_of_the_spread_that_the_inputs_show(bias: bool) -> None:
    """No tap on the output: its variance follows from the moments of the windows."""
    model = pair(3, bias, pads=[1] * 4)
    feed = feed_for(model, 50)
    found = traced(model, feed_for(model, 1))
    flow = Flow(model, found)
    (consumer,) = found.groups[0].consumers
    wanted = readings(found, found.groups, 50, patches=True)
    assert shows_spread(flow, consumer, wanted[consumer])
    measured = statistics(model, found, feed, patches=True)
    (path,) = find_paths(flow, found.groups, measured, FAST)
    assert path.energy == pytest.approx(1.0, rel=1e-3)
    output = run(model, feed)[0].astype(np.float64)
    total = measured.inputs([consumer]).output_variance(flow.weights.array(consumer.weight).reshape(4, -1))
    assert total == pytest.approx(output.var(axis=(0, 2, 3)).sum(), rel=1e-3)


def consumer_bias(net: Net) -> str | None:
    model = net.model()
    found = traced(model, feed_for(model, 1))
    moments = statistics(model, found, feed_for(model, 8), patches=True)
    return free_bias(Flow(model, found), list(found.groups[0].consumers)[:1], moments)


def test_only_an_own_plain_bias_takes_a_constant() -> None:
    def dense(beta: float) -> Net:
        net = Net(batch="N")
        x = net.Relu(net.dense(net.input("x", 5), 5, 6))
        net.output(net.op("Gemm", x, net.weight(4, 6, fan_in=6), net.bias(4), transB=1, beta=beta))
        return net

    def shared(count: int) -> Net:
        net = Net(batch="N")
        x, bias = net.conv_relu(net.image(), 3, 6), net.bias(4)
        for _ in range(count):
            net.output(net.op("Conv", x, net.weight(4, 6, 3, 3, fan_in=54), bias, pads=[1] * 4))
        return net

    product = Net(batch="N")
    product.output(product.linear(product.Relu(product.linear(product.input("x", 5), 5, 6)), 6, 4))
    assert [consumer_bias(dense(beta)) for beta in (1.0, 0.5)] == ["b2", None]
    assert [consumer_bias(shared(count)) for count in (1, 2)] == ["b2", None]
    assert consumer_bias(product) == "b2"  # the Add behind a MatMul
    product = Net(batch="N")
    x = product.Relu(product.linear(product.input("x", 5), 5, 6))
    product.output(product.Add(product.linear(x, 6, 4, bias=False), product.normal(1, 4)))
    assert consumer_bias(product) is None


# the whole road


def digits(**options: Any) -> PruneResult:
    return snp_onnx.prune(DIGITS, DIGITS_DATA, input_array="images", scale=1 / 16, samples=400, **options)


@pytest.mark.parametrize("kind", ["macs", "params", "size"])
def test_fast_reaches_every_target(kind: str) -> None:
    report = digits(preset="fast", **{f"target_{kind}": 0.5}).report
    measure = {"macs": "macs", "params": "params", "size": "bytes"}[kind]
    dense, pruned = getattr(report.dense, measure), getattr(report.pruned, measure)
    assert 0.4 * dense < pruned <= 0.5 * dense


def test_fast_is_closer_than_paper_at_equal_cost() -> None:
    fast, paper = (digits(preset=preset, target_macs=0.5).report for preset in ("fast", "paper"))
    assert fast.pruned.macs == pytest.approx(paper.pruned.macs, rel=0.03)
    assert fast.fidelity[0].cosine > paper.fidelity[0].cosine
    assert fast.fidelity[0].relative_l2 < 0.9 * paper.fidelity[0].relative_l2


@pytest.mark.parametrize("name", [name for name, t in CATALOGUE.items() if t.groups or t.heads])
def test_fast_on_every_topology(name: str) -> None:
    model = CATALOGUE[name].model("N" if "N" in CATALOGUE[name].batches else 2)
    feeds = [feed_for(model, 2, seed) for seed in range(12)]
    result = snp_onnx.prune(model, feeds, target_params=0.9, preset="fast", streams=True, threads=1)
    assert result.report.pruned.params <= 0.9 * result.report.dense.params
    assert_valid(result.model, feeds[0], full_check=not CATALOGUE[name].is_deprecated)
    dense, pruned = run(model, feeds[1]), run(result.model, feeds[1])
    assert [output.shape for output in dense] == [output.shape for output in pruned]


def test_a_plan_and_its_sidecar_hold_the_biases_too(tmp_path: FilePath, capsys: pytest.CaptureFixture[str]) -> None:
    here, plan, again = bench(tmp_path), tmp_path / "plan.json", tmp_path / "again.onnx"
    done(here, capsys, "--preset", "fast", "--plan", plan)
    with np.load(plan.with_suffix(".npz")) as arrays:
        assert {"w2", "b2", "w3", "b3"} <= set(arrays.files)
    for calibration in ((), ("--preset", "fast", "--calibration", here.data)):
        outcome = call(capsys, "prune", here.model, again, "--apply-plan", plan, *calibration, "--quiet")
        assert (outcome.code, outcome.err) == (0, "")
        assert again.read_bytes() == here.output.read_bytes()


def test_every_single_choice_counts() -> None:
    x = images(96)
    fast, paper = {"preset": "fast"}, {"preset": "paper"}
    single = [{"order": "output", "ratios": "uniform"}, paper | {"fold": "patch"}, paper | {"ratios": "budget"}]
    models = [snp_onnx.prune(small(), x, target_macs=0.6, **options).model for options in (paper, fast, *single)]  # type: ignore[arg-type]
    held = [[tensor.raw_data for tensor in model.graph.initializer] for model in models]
    assert all(a != b for a, b in itertools.combinations(held, 2))


def test_a_plan_with_calibration_is_folded_as_it_was_made(tmp_path: FilePath) -> None:
    made = digits(preset="fast", target_macs=0.5)
    made.save_plan(tmp_path / "plan.json")
    again = digits(plan=tmp_path / "plan.json")
    assert again.model.SerializeToString() == made.model.SerializeToString()
    other = digits(plan=tmp_path / "plan.json", fold="channel")
    assert other.model.SerializeToString() != made.model.SerializeToString()
