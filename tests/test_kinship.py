"""Groups that share a consumer are decided together: of two copies of a feature one goes, not both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import snp_onnx
from snp_onnx.calibration.runner import Runtime, collect
from snp_onnx.planning.folding import fold
from snp_onnx.planning.kinship import clusters
from snp_onnx.planning.options import FAST
from snp_onnx.planning.paths import find_paths
from snp_onnx.planning.readings import losing, readings
from snp_onnx.planning.statistics import Statistics
from snp_onnx.planning.sums import find_sums, with_inputs_beside
from snp_onnx.subspace import CentredGram, Consumer, Rule, Turns, eliminate, few_rows, shrink
from snp_onnx.subspace.elimination import NONE
from tests.graphs import Net, feed_for
from tests.oracles import difference, run
from tests.test_planning import Planned, planned

Array = npt.NDArray[np.float64]
ROWS = 300


# eliminations of several groups


def samples(columns: int, seed: int = 0, rows: int = ROWS) -> Array:
    rng = np.random.default_rng(seed)
    return np.asarray(
        rng.standard_normal((rows, columns)) @ (np.eye(columns) + 0.3 * rng.standard_normal((columns,) * 2))
    )


def moments(x: Array) -> CentredGram:
    return CentredGram.of(x.T @ x / len(x), x.mean(axis=0))


def consumer(x: Array, columns: Any, units: Any = None, seed: int = 9) -> Consumer:
    weight = np.random.default_rng(seed).standard_normal((4, x.shape[1]))
    return Consumer(moments(x), weight, np.array(columns), True, None if units is None else np.array(units))


def single(columns: int) -> Array:
    return np.arange(columns)[:, None]


def turns(groups: Any, least: Any = (0, 0), rule: Rule = Rule.PRICE, prices: Any = (1.0, 1.0)) -> Turns:
    return Turns(np.array(groups), np.array(prices), np.array(least), rule)


def lost(x: Array, one: Consumer, units: list[int]) -> float:
    """Least squares on the samples: what is left of the output's variance without these units (one column each)."""
    kept = np.setdiff1d(np.arange(x.shape[1]), one.columns[units].ravel())
    aim = (x - x.mean(axis=0)) @ one.weight.T
    inputs = (x - x.mean(axis=0))[:, kept]
    return float(np.sum((aim - inputs @ np.linalg.lstsq(inputs, aim, rcond=None)[0]) ** 2) / len(x))


def test_consumers_read_the_units_that_they_name() -> None:
    """Two groups; the first consumer reads both, the second one only the latter: errors are those of least squares."""
    x, y = samples(8), samples(5, seed=1)
    both, latter = consumer(x, single(8)), consumer(y, single(4), [4, 5, 6, 7])
    path = eliminate([both, latter], 1e-12)
    for k in range(9):
        removed = np.setdiff1d(np.arange(8), path.order[:k]).tolist()
        expected = lost(x, both, removed) + lost(y, latter, [unit - 4 for unit in removed if unit >= 4])
        assert path.errors[k] == pytest.approx(expected, rel=1e-7, abs=1e-9 * path.energy)
    parts = [path.of(np.arange(4)), path.of(np.arange(4, 8))]
    assert sum(part.errors[0] for part in parts) == pytest.approx(path.errors[0])
    assert parts[0].energy == pytest.approx((x @ both.weight.T).var(axis=0).sum())
    assert parts[1].energy == pytest.approx(parts[0].energy + (y @ latter.weight.T).var(axis=0).sum())


def test_units_may_have_fewer_columns_than_others() -> None:
    x = samples(9)
    padded = consumer(x, [[0, 1], [2, 3], [4, NONE], [5, NONE], [6, NONE]])
    whole = eliminate([padded], 1e-12)
    for k in range(6):
        removed = np.setdiff1d(np.arange(5), whole.order[:k])
        columns = [column for unit in removed for column in padded.columns[unit] if column != NONE]
        expected = lost(x, consumer(x, single(9)), columns)
        assert whole.errors[k] == pytest.approx(expected, rel=1e-7, abs=1e-9 * whole.energy)


def copied() -> tuple[Array, Consumer]:
    """Units 6 to 11 are copies of the first six."""
    x = np.tile(samples(6), 2)
    return x, consumer(x, single(12))


def by_group(order: npt.NDArray[np.intp], kept: int) -> list[list[int]]:
    """The features that stay of each of two groups of six, by number."""
    return [sorted(int(unit) % 6 for unit in order[:kept] if unit // 6 == group) for group in (0, 1)]


@pytest.mark.parametrize("rule", list(Rule))
@pytest.mark.parametrize("least", [(0, 0), (2, 2), (4, 1), (0, 6)])
def test_one_copy_of_each_goes_whatever_the_turns(rule: Rule, least: tuple[int, int]) -> None:
    _, one = copied()
    path = eliminate([one], 1e-9, turns=turns([0] * 6 + [1] * 6, least, rule))
    left, right = by_group(path.order, 6)
    if rule is Rule.EVEN and max(least) < 4:
        assert len(left) == len(right) == 3
    assert sorted(left + right) == list(range(6))
    assert path.errors[6] < 1e-5 * path.energy < path.errors[5]
    assert (len(left), len(right)) >= least


def test_levels_share_out_the_error_by_energy() -> None:
    """Two uncorrelated groups with consumers of their own: each loses about the same share of its variance."""
    x, y = samples(20), samples(20, seed=3)
    one, other = consumer(x, single(20), range(20)), consumer(30.0 * y, single(20), range(20, 40))
    groups = [0] * 20 + [1] * 20
    level = eliminate([one, other], turns=turns(groups, rule=Rule.LEVEL))
    price = eliminate([one, other], turns=turns(groups))
    for path, is_level in ((level, True), (price, False)):
        went = np.setdiff1d(np.arange(40), path.order[:20])
        shares = [path.of(np.arange(20) + 20 * g) for g in (0, 1)]
        lost = [part.errors[20 - int((went // 20 == g).sum())] / part.energy for g, part in enumerate(shares)]
        assert (max(lost) < 1.5 * min(lost)) == is_level


def test_prices_decide_whose_turn_it_is() -> None:
    x, y = samples(12), samples(12, seed=3)
    consumers = [consumer(x, single(12), range(12)), consumer(y, single(12), range(12, 24))]
    dear = [eliminate(consumers, turns=turns([0] * 12 + [1] * 12, prices=p)) for p in ((1.0, 9.0), (9.0, 1.0))]
    kept = [int((path.order[:12] < 12).sum()) for path in dear]
    assert kept[0] > 6 > kept[1]


def test_groups_alone_are_eliminated_as_before() -> None:
    """Where no consumer reads both, each part is the path of its group, whatever the turns."""
    x, y = samples(10), samples(7, seed=3)
    alone = [eliminate([consumer(x, single(10))]), eliminate([consumer(y, single(7))])]
    groups = [0] * 10 + [1] * 7
    together = [consumer(x, single(10), range(10)), consumer(y, single(7), range(10, 17))]
    for rule in Rule:
        path = eliminate(together, turns=turns(groups, rule=rule))
        for expected, units in zip(alone, (np.arange(10), np.arange(10, 17)), strict=True):
            part = path.of(units)
            assert part.order.tolist() == expected.order.tolist()
            np.testing.assert_allclose(part.errors, expected.errors, rtol=1e-9)
            assert part.energy == pytest.approx(expected.energy)


@pytest.mark.parametrize("rule", list(Rule))
def test_the_dual_form_takes_the_same_turns(rule: Rule) -> None:
    paths = []
    for is_few in (True, False):
        consumers = []
        for seed, units in ((0, np.arange(30)), (1, np.arange(12, 30))):
            x = samples(len(units) + 3, seed, rows=10)
            mean = x.mean(axis=0)
            written = CentredGram(shrink((x - mean).T @ (x - mean) / len(x), len(x)), mean)
            weight = np.random.default_rng(seed).standard_normal((5, x.shape[1]))
            inputs = few_rows(x, len(x)) if is_few else written
            consumers.append(Consumer(inputs, weight, single(len(units)), True, units))
        paths.append(eliminate(consumers, turns=turns([0] * 12 + [1] * 18, (3, 5), rule, (2.0, 1.0))))
    assert paths[0].order.tolist() == paths[1].order.tolist()
    np.testing.assert_allclose(paths[0].errors, paths[1].errors, rtol=1e-6, atol=1e-9 * paths[0].errors[0])
    assert paths[0].energies == pytest.approx(paths[1].energies)
    assert {int((paths[0].order[:8] < 12).sum()), int((paths[0].order[:8] >= 12).sum())} == {3, 5}


# whole models


def dense_branches(net: Net, count: int) -> None:
    """Branches with equal weights, concatenated in front of one product."""
    x, weight, bias = net.input("x", 8), net.rng.normal(size=(12, 8)) * 0.4, net.rng.normal(size=12) * 0.3
    branches = [net.Relu(net.op("Gemm", x, net.const(weight), net.const(bias), transB=1)) for _ in range(count)]
    net.output(net.linear(net.Concat(*branches, axis=1), 12 * count, 6))


def conv_branches(net: Net) -> None:
    x, weight = net.image(), net.rng.normal(size=(8, 3, 3, 3)) * 0.3
    branches = [net.Relu(net.op("Conv", x, net.const(weight), pads=[1] * 4)) for _ in range(2)]
    net.output(net.conv(net.Concat(*branches, axis=1), 16, 4))


def dense_stream(net: Net) -> None:
    """Every layer reads all features before it; the second repeats the first."""
    stem, weight = net.conv_relu(net.image(), 3, 4), net.rng.normal(size=(6, 4, 3, 3)) * 0.2
    layers = [net.Relu(net.op("Conv", stem, net.const(weight), pads=[1] * 4)) for _ in range(2)]
    stream = net.Concat(stem, *layers, axis=1)
    stream = net.Concat(stream, net.conv_relu(stream, 16, 6), axis=1)
    net.output(net.conv(stream, 22, 4))


def of_different_widths(net: Net) -> None:
    """A flattened map, four columns a unit, beside the averages of the same units, one column each: these may go."""
    weight = net.rng.normal(size=(6, 3, 4, 4)) * 0.2
    maps = net.Relu(net.op("Conv", net.image(), net.const(weight), strides=[4, 4]))
    again = net.Relu(net.op("Conv", "x", net.const(weight), strides=[4, 4]))
    both = net.Concat(net.Flatten(maps), net.Flatten(net.GlobalAveragePool(again)), axis=1)
    net.output(net.dense(both, 30, 5))


def added(net: Net, count: int) -> None:
    """Branches with equal weights, each with a product of its own, which are added up."""
    x, weight, bias = net.input("x", 8), net.rng.normal(size=(12, 8)) * 0.4, net.rng.normal(size=12) * 0.3
    branches = [net.Relu(net.op("Gemm", x, net.const(weight), net.const(bias), transB=1)) for _ in range(count)]
    total, *others = [net.linear(branch, 12, 6) for branch in branches]
    for other in others:
        total = net.Add(total, other)
    net.output(net.Tanh(total))


def added_convolutions(net: Net) -> None:
    """Two convolutions of alike maps, and a third map that is added too."""
    x, weight = net.image(), net.rng.normal(size=(8, 3, 3, 3)) * 0.3
    left, right = (net.Relu(net.op("Conv", x, net.const(weight), pads=[1] * 4)) for _ in range(2))
    shortcut = net.conv(x, 3, 4, k=1)
    total = net.Add(net.Add(net.conv(left, 8, 4), shortcut), net.conv(right, 8, 4))
    net.output(net.conv(net.Relu(total), 4, 4))


MODELS: dict[str, tuple[Callable[[Net], None], float]] = {
    "two-branches": (lambda net: dense_branches(net, 2), 0.6),
    "three-branches": (lambda net: dense_branches(net, 3), 0.4),
    "convolutions": (conv_branches, 0.6),
    "dense-stream": (dense_stream, 0.75),
    "two-added": (lambda net: added(net, 2), 0.6),
    "three-added": (lambda net: added(net, 3), 0.4),
    "convolutions-added": (added_convolutions, 0.65),
    "different-widths": (of_different_widths, 0.75),
}
"""Models with copies in different groups, and a share of the MACs that can be reached for nothing."""

SHARED_OUT = ("two-branches", "convolutions")
"""Those in which equal shares of all groups reach it too."""

WAYS = [(name, preset, "budget") for name in MODELS for preset in ("fast", "best")]
WAYS += [(name, "fast", ratios) for name in SHARED_OUT for ratios in ("uniform", "variance")]


def model_of(name: str) -> onnx.ModelProto:
    net = Net(batch="N", seed=3)
    MODELS[name][0](net)
    return net.model()


def loss(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> float:
    other = feed_for(dense, 30, seed=2)
    return difference(run(dense, other), run(pruned, other))


@pytest.mark.parametrize(("name", "preset", "ratios"), WAYS)
def test_copies_in_several_groups_go_for_nothing(name: str, preset: str, ratios: str) -> None:
    model, share = model_of(name), MODELS[name][1]
    options: dict[str, Any] = {"preset": preset, "ratios": ratios, "ridge": 1e-6, "fallback": False}
    result = snp_onnx.prune(model, feed_for(model, 400), target_macs=share, **options)
    assert result.report.pruned.macs <= share * result.report.dense.macs
    assert loss(model, result.model) < 1e-2


def test_at_the_widths_of_a_plan_one_copy_of_each_stays() -> None:
    model = model_of("two-branches")
    feed = feed_for(model, 400)
    plan = snp_onnx.prune(model, feed, target_macs=0.6, preset="fast", ratios="uniform").plan
    halves = replace(plan, decisions=tuple(replace(d, kept=(0, 1, 2, 3, 4, 5)) for d in plan.decisions))
    alike, anew = (
        snp_onnx.prune(model, feed, plan=halves, plan_widths=widths, preset="fast", ridge=1e-6)
        for widths in (False, True)
    )
    assert [len(decision.kept) for decision in anew.plan.decisions] == [6, 6]
    assert loss(model, anew.model) < 1e-3 < 0.1 < loss(model, alike.model)


# who belongs together


def three_groups() -> Planned:
    """The first and the third of three concatenated groups are copies."""
    net = Net(batch="N", seed=5)
    x, weights = net.input("x", 8), [net.rng.normal(size=(6, 8)) * 0.4 for _ in range(2)]
    branches = [net.Relu(net.op("Gemm", x, net.const(weights[n]), transB=1)) for n in (0, 1, 0)]
    net.output(net.dense(net.Concat(*branches, axis=1), 18, 5))
    return planned(net.model())


def test_the_most_correlated_groups_are_joined_where_memory_is_short() -> None:
    found = three_groups()
    whole, two = 8 * 18**2, 8 * 12**2
    for most, expected in ((whole, [(0, 1, 2)]), (whole - 1, [(0, 2), (1,)]), (two - 1, [(0,), (1,), (2,)])):
        assert clusters(found.trace.groups, found.statistics, most) == expected


def test_groups_are_alone_where_no_measured_layer_reads_both() -> None:
    found = three_groups()
    statistics = Statistics(found.statistics.readings, {})
    assert clusters(found.trace.groups, statistics) == [(0,), (1,), (2,)]
    chain = Net(batch="N")
    chain.output(chain.dense(chain.Relu(chain.dense(chain.Relu(chain.dense(chain.input("x", 5), 5, 6)), 6, 7)), 7, 3))
    apart = planned(chain.model())
    assert clusters(apart.trace.groups, apart.statistics) == [(0,), (1,)]


def test_paths_are_in_the_order_of_the_groups() -> None:
    found = three_groups()
    paths = find_paths(found.flow, found.trace.groups, found.statistics, FAST)
    assert [path.group.id for path in paths] == [group.id for group in found.trace.groups]
    assert all(sorted(path.order.tolist()) == list(range(6)) for path in paths)


def test_cheap_units_go_before_dear_ones() -> None:
    """The prices say what a unit of each group frees: where all else is equal, the one that frees more goes."""
    found = three_groups()
    kept = []
    for prices in ([1.0, 1.0, 9.0], [9.0, 1.0, 1.0]):
        first, _, third = find_paths(found.flow, found.trace.groups, found.statistics, FAST, np.array(prices))
        kept.append((first.errors[3], third.errors[3]))
    assert kept[0][1] < 0.1 * kept[0][0]
    assert kept[1][0] < 0.1 * kept[1][1]


# layers that are added up


def sums_of(draw: Callable[[Net], None]) -> list[tuple[list[str], int]]:
    """The weights of the layers of every sum, and how many other terms there are."""
    net = Net(batch="N")
    draw(net)
    found = planned(net.model())
    sums = find_sums(found.flow, losing(found.trace, found.trace.groups))
    return [([linear.weight for linear in each.layers], len(each.terms) - len(each.layers)) for each in sums]


def two_hidden(net: Net) -> tuple[str, str]:
    x = net.input("x", 5)
    return net.Relu(net.dense(x, 5, 6)), net.Relu(net.dense(x, 5, 7))


def test_sums_are_of_layers_that_are_only_added() -> None:
    def plain(net: Net) -> None:
        a, b = two_hidden(net)
        net.output(net.Add(net.Add(net.linear(a, 6, 4), net.dense("x", 5, 4)), net.linear(b, 7, 4, bias=False)))

    def read_elsewhere(net: Net) -> None:
        a, b = two_hidden(net)
        left = net.linear(a, 6, 4)
        net.output(net.Add(left, net.linear(b, 7, 4)), net.Tanh(left))

    def of_one_input(net: Net) -> None:
        a, _ = two_hidden(net)
        net.output(net.Add(net.linear(a, 6, 4), net.linear(a, 6, 4)))

    def activated(net: Net) -> None:
        a, b = two_hidden(net)
        net.output(net.Add(net.Relu(net.linear(a, 6, 4)), net.linear(b, 7, 4)))

    def of_different_windows(net: Net) -> None:
        a, b = net.conv_relu(net.image(), 3, 6), net.conv_relu("x", 3, 6)
        net.output(net.Add(net.conv(a, 6, 4), net.conv(b, 6, 4, k=1)))

    def with_shared_weights(net: Net) -> None:
        x = net.input("x", 5)
        a, b, weight = net.Relu(net.dense(x, 5, 6)), net.Relu(net.dense(x, 5, 6)), net.normal(6, 4)
        net.output(net.Add(net.MatMul(a, weight), net.MatMul(b, weight)))

    assert sums_of(plain) == [(["w3", "w5"], 1)]
    for draw in (read_elsewhere, of_one_input, activated, of_different_windows, with_shared_weights):
        assert sums_of(draw) == []


def test_a_sum_is_folded_as_one_layer_of_all_its_inputs() -> None:
    """Least squares onto the units that stay in both inputs, and a constant that one of the biases takes."""

    def draw(net: Net) -> None:
        a, b = two_hidden(net)
        net.output(net.Add(net.linear(a, 6, 4), net.linear(b, 7, 4)))

    net = Net(batch="N")
    draw(net)
    found = planned(net.model(), samples=300)
    flow, groups = found.flow, found.trace.groups
    sums = find_sums(flow, losing(found.trace, groups))
    wanted = readings(found.trace, groups, 300, patches=True, sums=sums)
    requests = list({reading.key: reading.request for reading in wanted.values()}.values())
    beside = with_inputs_beside(found.model, sums)
    statistics = Statistics(wanted, collect(beside, requests, [found.feed], Runtime()))
    alive = found.trace.alive([groups[0].labels[[1, 4]], groups[1].labels[[0]]])
    values = fold(flow, alive, statistics, 1e-9, affine=True).values
    inputs = [found.values(linear.input) for linear in sums[0].layers]
    weights = [flow.weights.array(linear.weight).astype(np.float64) for linear in sums[0].layers]
    aim = sum(x @ w for x, w in zip(inputs, weights, strict=True))
    kept = np.c_[inputs[0][:, [0, 2, 3, 5]], inputs[1][:, 1:], np.ones(300)]
    solved = np.linalg.lstsq(kept, aim, rcond=None)[0]
    assert np.allclose(values["w3"][[0, 2, 3, 5]], solved[:4], atol=1e-4)
    assert np.allclose(values["w4"][1:], solved[4:-1], atol=1e-4)
    assert np.allclose(values["b3"] - flow.weights.array("b3"), solved[-1], atol=1e-4)
    assert np.abs(solved[4:-1] - weights[1][1:]).max() > 0.01  # the second weight takes over what the first one lost
    assert "b4" not in values
