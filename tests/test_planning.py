"""Planning against independent computations: budgets by brute force, statistics from samples, folds by lstsq."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snp_onnx.calibration.runner import Runtime, collect
from snp_onnx.cost import byte_terms, mac_terms, param_terms, total
from snp_onnx.errors import PlanError, TargetError
from snp_onnx.passes import prepare
from snp_onnx.planning.budget import legal_widths, smallest, widths_at, widths_within
from snp_onnx.planning.cost_table import CostTable
from snp_onnx.planning.decide import decide, eligible, ladders_of
from snp_onnx.planning.folding import fold
from snp_onnx.planning.options import Choices, Fold, Preset, Ratios, Target, TargetKind, choices
from snp_onnx.planning.paths import Path, find_paths
from snp_onnx.planning.plan import Plan, UnitDecision, widths
from snp_onnx.planning.readings import Reading, readings
from snp_onnx.planning.statistics import Statistics, unit_columns
from snp_onnx.subspace import Order
from snp_onnx.tracing import Group, Kind, Trace, trace
from snp_onnx.tracing.facts import infer_facts
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.weights import Weights
from tests.graphs import Net, feed_for
from tests.oracles import Mask, cut, half_removed, run, traced
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A prepared model, its trace, and its statistics on `feed`."""

    model: onnx.ModelProto
    trace: Trace
    feed: Mapping[str, Array]
    statistics: Statistics

    def values(self, tensor: str) -> Array:
        """What flows through a tensor, in float64."""
        shown = onnx.ModelProto()
        shown.CopyFrom(self.model)
        del shown.graph.output[:]
        shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
        return run(shown, self.feed)[0].astype(np.float64)

    def paths(self, chosen: Choices = Choices(streams=True)) -> tuple[Path, ...]:  # noqa: B008
        return find_paths(self.flow, eligible(self.trace, chosen), self.statistics, chosen)

    @property
    def flow(self) -> Flow:
        return Flow(self.model, self.trace)


def planned(model: onnx.ModelProto, samples: int = 64) -> Planned:
    prepared = prepare(model).model
    feed = feed_for(prepared, samples)
    found = traced(prepared, {name: array[:1] for name, array in feed.items()})
    wanted = {linear: every_row(reading) for linear, reading in readings(found, found.groups, samples).items()}
    requests = [reading.request for reading in wanted.values()]
    moments = collect(prepared, list({r.key: r for r in requests}.values()), [feed], Runtime())
    return Planned(prepared, found, feed, Statistics(wanted, moments))


def every_row(reading: Reading) -> Reading:
    """The same reading without sub-sampling, so that it can be checked exactly."""
    return replace(reading, request=replace(reading.request, lattice=(1,) * len(reading.request.lattice)))


def topology(name: str, samples: int = 64) -> Planned:
    return planned(CATALOGUE[name].model("N"), samples)


# budget


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 16))
def test_legal_widths_by_their_definition(units: int, least: int, step: int) -> None:
    wanted = [width for width in range(1, units + 1) if width == units or (width % step == 0 and width >= least)]
    assert list(legal_widths(units, least, step)) == wanted


def path_of(group: Group, variance: Array) -> Path:
    return Path(group, np.arange(len(variance)), variance, np.concatenate([[0.0], variance[:-1]]))


@st.composite
def paths_and_costs(draw: st.DrawFn) -> tuple[list[Path], Any, int, int]:
    """Groups with any curve, and a cost that is a sum of products of neighbouring widths."""
    sizes = draw(st.lists(st.integers(2, 9), min_size=1, max_size=4))
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    paths = []
    for size in sizes:
        group = Group("g", Kind.CHANNELS, np.arange(size), (), (), False)
        paths.append(path_of(group, np.cumsum(rng.dirichlet(np.ones(size)))))
    own, pairs = rng.integers(1, 9, len(sizes)), rng.integers(0, 9, len(sizes))

    def cost(w: Array) -> float:
        return float(own @ w + (pairs[1:] * w[1:] * w[:-1]).sum() + 5)

    return paths, cost, draw(st.integers(1, 4)), draw(st.integers(1, 4))


@given(paths_and_costs(), st.floats(0.05, 1.0))
@settings(deadline=None)
def test_no_single_step_fits_beyond_the_budget(drawn: tuple[list[Path], Any, int, int], share: float) -> None:
    paths, cost, least, step = drawn
    dense = np.array([len(path.group) for path in paths])
    limit = share * cost(dense)
    ladders = [legal_widths(len(path.group), least, step) for path in paths]
    found = widths_within(paths, cost, limit, ladders)
    if found is None:
        assert cost(smallest(ladders)) > limit
        return
    assert cost(found) <= limit
    for number, rungs in enumerate(ladders):
        assert found[number] in rungs
        for wider in [rung for rung in rungs if rung > found[number]][:1]:
            tried = found.copy()
            tried[number] = wider
            assert cost(tried) > limit


@given(paths_and_costs(), st.floats(0.01, 1.0))
def test_the_dial_keeps_the_shortest_legal_prefix(drawn: tuple[list[Path], Any, int, int], dial: float) -> None:
    paths, _, least, step = drawn
    ladders = [legal_widths(len(path.group), least, step) for path in paths]
    for path, rungs, width in zip(paths, ladders, widths_at(paths, dial, ladders), strict=True):
        reaching = [rung for rung in rungs if path.variance[rung - 1] >= dial]
        assert width == (reaching[0] if reaching else rungs[-1])


@pytest.mark.parametrize(("dial", "width"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)])
def test_a_share_reached_exactly_is_enough(dial: float, width: int) -> None:
    group = Group("g", Kind.CHANNELS, np.arange(4), (), (), False)
    assert widths_at([path_of(group, np.array([0.25, 0.5, 0.75, 1.0]))], dial, [(1, 2, 3, 4)]).tolist() == [width]


def test_the_budget_spends_on_what_captures_most() -> None:
    steep, flat = np.array([0.9, 0.95, 0.98, 1.0]), np.array([0.25, 0.5, 0.75, 1.0])
    groups = [Group(name, Kind.CHANNELS, np.arange(4), (), (), False) for name in "ab"]
    paths = [path_of(groups[0], steep), path_of(groups[1], flat)]
    found = widths_within(paths, lambda w: float(w.sum()), 5, [(1, 2, 3, 4)] * 2)
    assert found is not None
    assert found.tolist() == [1, 4]


# costs


COSTED = [
    "chain", "conv-bn-relu", "residual-identity", "concat", "dense-net", "depthwise", "grouped", "transposed", "unet",
    "se-gate", "flatten-gemm", "pixel-shuffle", "matmul-bias", "separate", "fused", "key-value-groups", "tied-weights",
    "split", "shuffle-units", "weight-norm", "behind-transpose",
]  # fmt: skip


@pytest.mark.parametrize("name", COSTED)
def test_cost_tables_recount_the_model_that_is_really_cut(name: str) -> None:
    model = prepare(CATALOGUE[name].model("N")).model
    found = traced(model, feed_for(model, 1))
    alive = half_removed(found, seed=2)
    small = cut(model, found, alive)
    kept = np.array([int(alive[group.labels].sum()) for group in found.groups])
    shapes = infer_facts(small, {value.name: found.facts.shapes[value.name] for value in small.graph.input}).shapes
    held = {tensor.name: tuple(tensor.dims) for tensor in small.graph.initializer}
    macs = total(mac_terms(small, shapes), lambda tensor, axis: shapes[tensor][axis])
    params = total(param_terms(small), lambda tensor, axis: held[tensor][axis])
    stored = sum(len(tensor.raw_data) for tensor in small.graph.initializer)
    dense = mac_terms(model, found.facts.shapes)
    assert CostTable(dense, found, found.groups).cost(kept) == macs
    assert CostTable(param_terms(model), found, found.groups).cost(kept) == params
    assert CostTable(byte_terms(model), found, found.groups).cost(kept) == pytest.approx(stored, abs=64)
    assert macs < CostTable(dense, found, found.groups).dense()


def test_costs_of_one_convolution_by_hand() -> None:
    net = Net(batch="N")
    net.output(net.conv(net.conv_relu(net.image(), 3, 8), 8, 4, k=1))
    found = traced(net.model(), feed_for(net.model(), 1))
    table = CostTable(mac_terms(net.model(), found.facts.shapes), found, found.groups)
    for width in range(1, 9):
        assert table.cost(np.array([width])) == 64 * (3 * 9 * width + width * 4)


# statistics


def stacked(values: Array, axis: int) -> Array:
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def test_the_joint_gram_is_that_of_the_stacked_inputs() -> None:
    """A stream read by three layers at two places: each place once, scaled to unit energy."""
    found = topology("residual-identity")
    stream = next(group for group in found.trace.groups if group.is_stream)
    parts = []
    for tensor in dict.fromkeys(linear.input for linear in stream.consumers):
        x = stacked(found.values(tensor), 1)
        parts.append(x.T @ x / np.square(x).sum())
    assert len(parts) > 1
    gram = found.statistics.group_gram(stream)
    assert gram is not None
    assert np.allclose(gram, sum(parts), rtol=1e-4, atol=1e-6)


def test_a_flattened_unit_contributes_every_position() -> None:
    net = Net(batch="N")
    x = net.conv_relu(net.input("x", 3, 4, 4), 3, 5)
    net.output(net.dense(net.Flatten(x), 80, 3))
    found = planned(net.model(), samples=400)
    (group,) = found.trace.groups
    values = found.values(group.consumers[0].input).reshape(400, 5, 16)
    x = values.transpose(0, 2, 1).reshape(-1, 5)
    gram = found.statistics.group_gram(group)
    assert gram is not None
    assert np.allclose(gram, x.T @ x / np.square(x).sum(), rtol=1e-4, atol=1e-6)


def test_unit_columns_of_scattered_units() -> None:
    columns = np.array([4, 9, 4, 7, 9, 7])
    assert unit_columns(columns, np.array([9, 4, 7])).tolist() == [[1, 0, 3], [4, 2, 5]]
    assert unit_columns(columns, np.array([7])).tolist() == [[3], [5]]


def test_what_is_not_finite_counts_as_not_measured() -> None:
    found = topology("chain")
    group = found.trace.groups[0]
    linear = group.consumers[0]
    assert found.statistics.unmeasured(group) == []
    key = found.statistics.readings[linear].key
    moments = dict(found.statistics.moments)
    moments[key] = replace(moments[key], gram_sum=moments[key].gram_sum * np.nan)
    broken = Statistics(found.statistics.readings, moments)
    assert broken.unmeasured(group) == [linear]
    assert broken.group_gram(group) is None


# folding


def folded(found: Planned, alive: Mask, ridge: float = 1e-10) -> Mapping[str, Array]:
    result = fold(found.flow, alive, found.statistics, ridge)
    assert result.unfolded == ()
    return result.values


def assert_least_squares(x: Array, kept: Array, dense: Array, found: Array) -> None:
    """`found` (O, C) is zero where units went, and elsewhere the weights of least output error."""
    solution, *_ = np.linalg.lstsq(x[:, kept], x @ dense.T, rcond=None)
    gone = np.setdiff1d(np.arange(x.shape[1]), kept)
    assert np.all(found[:, gone] == 0)
    scale = np.abs(x @ dense.T).max()
    assert np.allclose(x[:, kept] @ found[:, kept].T, x[:, kept] @ solution, atol=2e-3 * scale)
    error = np.square(x @ (found - dense).T).sum()
    assert error <= 1.001 * np.square(x[:, kept] @ solution - x @ dense.T).sum() + 1e-9
    assert error < np.square(x[:, gone] @ dense[:, gone].T).sum()


@pytest.mark.parametrize("name", ["matmul-bias", "chain", "gemm-bias-row"])
def test_folds_are_least_squares(name: str) -> None:
    found = topology(name, samples=200)
    alive = half_removed(found.trace)
    values = folded(found, alive)
    weights = Weights(found.model)
    seen = 0
    for linear in found.trace.linears:
        kept = np.flatnonzero(alive[found.trace.axes[linear.weight][linear.in_axis]])
        if linear.weight not in values:
            continue
        x = stacked(found.values(linear.input), linear.input_axis)
        dense, now = (
            np.moveaxis(np.asarray(w, dtype=np.float64), linear.in_axis, -1).reshape(-1, x.shape[1])
            for w in (weights.array(linear.weight), values[linear.weight])
        )
        taps = dense.shape[0]
        assert taps > 0
        assert_least_squares(x, kept, dense, now)
        seen += 1
    assert seen == len(values) > 0


@pytest.mark.parametrize("samples", [400, 20])
def test_a_flattened_input_is_folded_by_position_or_by_unit(samples: int) -> None:
    """With rows enough every position is a column of its own; with few, all positions of a unit share theirs."""
    net = Net(batch="N")
    net.output(net.dense(net.Flatten(net.conv_relu(net.input("x", 3, 4, 4), 3, 5)), 80, 3))
    found = planned(net.model(), samples)
    (group,) = found.trace.groups
    alive = found.trace.alive([group.labels[[1, 3]]])
    (now,) = folded(found, alive).values()
    dense = Weights(found.model).array(group.consumers[0].weight).astype(np.float64)
    x = found.values(group.consumers[0].input)
    if samples == 400:
        kept = np.flatnonzero(np.repeat([True, False, True, False, True], 16))
        assert_least_squares(x, kept, dense, now.astype(np.float64))
        return
    by_unit = x.reshape(samples, 5, 16).transpose(0, 2, 1).reshape(-1, 5)
    mixing, *_ = np.linalg.lstsq(by_unit[:, [0, 2, 4]], by_unit, rcond=None)
    expected = np.einsum("oup,ku->okp", dense.reshape(3, 5, 16), mixing)
    assert np.allclose(now.reshape(3, 5, 16)[:, [0, 2, 4]], expected, atol=1e-3)
    assert np.all(now.reshape(3, 5, 16)[:, [1, 3]] == 0)


def test_a_shared_weight_is_folded_once_on_all_its_inputs() -> None:
    net = Net(batch="N")
    first, second = (net.Relu(net.dense(net.input(name, 6), 6, 8)) for name in ("a", "b"))
    joined = net.weight(5, 8, fan_in=8)
    tied = net.Add(first, second)  # ties the units of both
    outs = [net.op("Gemm", x, joined, transB=1) for x in (first, net.Mul(second, net.const(3.0)))]
    net.output(*outs, net.dense(tied, 8, 3))
    prepared = prepare(net.model()).model
    names = [t.name for t in prepared.graph.initializer if tuple(t.dims) == (5, 8)]
    found = planned(net.model(), samples=200)
    (group,) = found.trace.groups
    alive = found.trace.alive([group.labels[:3]])
    values = folded(found, alive)
    shared = [linear for linear in found.trace.linears if linear.weight in names]
    assert len(shared) == 2
    for name in dict.fromkeys(linear.weight for linear in shared):
        readers = [linear for linear in shared if linear.weight == name]
        x = np.concatenate([found.values(linear.input) for linear in readers])
        dense = Weights(found.model).array(name).astype(np.float64)
        assert_least_squares(x, np.arange(3, 8), dense, values[name].astype(np.float64))


def test_nothing_removed_is_nothing_folded() -> None:
    found = topology("chain")
    assert dict(folded(found, found.trace.alive([]))) == {}


# paths and decisions


def test_more_units_never_give_more_error() -> None:
    """Oracle (d), layer by layer: along every path the least-squares error of the consumer falls."""
    found = topology("chain", samples=100)
    for path in found.paths():
        assert np.all(np.diff(path.variance) >= -1e-12)
        assert path.variance[-1] == pytest.approx(1.0)
        assert sorted(path.order.tolist()) == list(range(len(path.group)))
        (linear,) = path.group.consumers
        x = stacked(found.values(linear.input), linear.input_axis)
        dense = np.moveaxis(Weights(found.model).array(linear.weight), linear.in_axis, -1).reshape(-1, x.shape[1])
        errors = []
        for width in range(1, len(path.group) + 1):
            kept = path.kept(width)
            solution, *_ = np.linalg.lstsq(x[:, kept], x @ dense.T.astype(np.float64), rcond=None)
            errors.append(np.square(x[:, kept] @ solution - x @ dense.T).sum())
        assert all(later <= earlier + 1e-6 * errors[0] for earlier, later in itertools.pairwise(errors))


def test_cumulative_variance_by_gram_schmidt() -> None:
    found = topology("chain", samples=100)
    for path in found.paths():
        (linear,) = path.group.consumers
        x = stacked(found.values(linear.input), linear.input_axis)[:, path.order]
        added = np.square(np.diag(np.linalg.qr(x, mode="r")))
        assert np.allclose(path.variance, np.cumsum(added) / added.sum(), atol=2e-3)


def test_thresholds_say_when_a_unit_stays() -> None:
    found = topology("chain", samples=100)
    by_variance, uniform = (found.paths(Choices(ratios=ratios)) for ratios in (Ratios.VARIANCE, Ratios.UNIFORM))
    assert by_variance[0].threshold.tolist() == [0.0, *by_variance[0].variance[:-1].tolist()]
    assert uniform[0].threshold.tolist() == [k / 8 for k in range(8)]


def test_orders_follow_their_scores() -> None:
    found = topology("chain", samples=100)
    read = Weights(found.model).array
    incoming, outgoing = (read(name).astype(np.float64) for name in ("w1", "w2"))
    scores = {
        Order.MAGNITUDE: np.square(incoming).sum(axis=(1, 2, 3)),
        Order.SAW: np.abs(outgoing).sum(axis=(0, 2, 3)),
        Order.NATURAL: -np.arange(8.0),
    }
    for order, score in scores.items():
        path = found.paths(Choices(order=order))[0]
        assert path.order.tolist() == np.argsort(-score, kind="stable").tolist()


def test_eligible_follows_the_options() -> None:
    found = topology("residual-identity").trace
    stream, inner = (next(g for g in found.groups if g.is_stream is flag) for flag in (True, False))
    assert eligible(found, Choices()) == (inner,)
    assert set(eligible(found, Choices(streams=True))) == {stream, inner}
    assert eligible(found, Choices(streams=True, exclude="n")) == ()
    assert eligible(found, Choices(kinds=frozenset({Kind.HEADS}))) == ()
    name = inner.producers[0].op.name
    assert eligible(found, Choices(streams=True, include=f"^{name}$")) == (inner,)
    assert eligible(found, Choices(streams=True, exclude=f"^{name}$")) == (stream,)


def test_an_unreachable_target_names_its_fraction() -> None:
    found = topology("chain")
    paths = found.paths()
    table = CostTable(mac_terms(found.model, found.trace.facts.shapes), found.trace, [path.group for path in paths])
    with pytest.raises(TargetError, match=r"--target-macs 0\.001 can't be reached: .* keeps 0\.\d\d\d of the dense"):
        decide(
            paths, Target(TargetKind.MACS, 0.001), table, table.dense(), Ratios.VARIANCE, ladders_of(paths, Choices())
        )


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("kind", [TargetKind.MACS, TargetKind.PARAMS])
def test_decisions_fill_the_target(share: float, step: int, kind: TargetKind) -> None:
    found = topology("unet")
    chosen = Choices(streams=True, round_to=step)
    paths = found.paths(chosen)
    groups = [path.group for path in paths]
    terms = param_terms(found.model) if kind is TargetKind.PARAMS else mac_terms(found.model, found.trace.facts.shapes)
    table = CostTable(terms, found.trace, groups)
    limit = share * table.dense()
    ladders = ladders_of(paths, chosen)
    now = widths(decide(paths, Target(kind, share), table, table.dense(), chosen.ratios, ladders), groups)
    assert table.cost(now) <= limit
    for number, group in enumerate(groups):
        wider = now.copy()
        wider[number] = min(len(group), now[number] + step)
        assert now[number] == len(group) or table.cost(wider) > limit
        assert now[number] % step == 0 or now[number] == len(group)


# options and plans


def test_options_are_checked_where_they_are_made() -> None:
    assert choices("paper", order="saw", fold=None).order is Order.SAW
    assert choices(Preset.PAPER) == Choices()
    assert choices(fold="none").fold is Fold.NONE
    for bad in (
        {"order": "x"}, {"fold": "x"}, {"ratios": "x"}, {"kinds": ["x"]}, {"kinds": []}, {"include": "("},
        {"exclude": "("}, {"min_units": 0}, {"round_to": 0}, {"round_to": "0"}, {"round_to": "some"}, {"ridge": 0.0},
        {"ridge": float("nan")},
    ):  # fmt: skip
        with pytest.raises(PlanError, match="--"):
            choices(**bad)
    for value in (0.0, -1.0, 1.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="--target-macs"):
            Target(TargetKind.MACS, value)


def plan() -> Plan:
    decision = UnitDecision("w:0", "channels", 4, (0, 2), (2, 0, 1, 3), (0.5, 0.75, 1 / 1.1, 1.0))
    return Plan("ab" * 32, (decision,), {"kind": "macs", "value": 0.5}, {"order": "zca"}, {"x": (1, 3, 8, 8)})


def test_plans_survive_their_json() -> None:
    again = Plan.from_json(plan().to_json())
    assert again == plan()
    assert again.to_json() == plan().to_json()
    assert again.digest() == plan().digest()
    assert again.decisions[0].after == 2
    assert again.decisions[0].error == 0.25
    assert replace(plan(), decisions=()).digest() != plan().digest()


def test_a_plan_is_for_one_graph() -> None:
    net = Net(batch="N")
    net.output(net.conv(net.conv_relu(net.image(), 3, 8), 8, 4))
    found = trace(net.model(), {"x": (1, 3, 8, 8)})
    good = Plan("", (UnitDecision("w1:0", "channels", 8, (0, 5)),))
    alive = good.alive(found)
    assert alive[found.groups[0].labels].tolist() == [True, False, False, False, False, True, False, False]
    assert good.cut_groups(found) == found.groups
    for group, before, kept in (("w1:0", 9, (0,)), ("w7:0", 8, (0,)), ("w1:0", 8, ()), ("w1:0", 8, (8,))):
        with pytest.raises(PlanError, match=group):
            Plan("", (UnitDecision(group, "channels", before, kept),)).alive(found)
