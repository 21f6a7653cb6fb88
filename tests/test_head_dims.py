"""Dimensions inside attention heads: bases that change nothing, units that may go, and logits that lose least."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.errors import PlanError
from snp_onnx.passes import rewrite
from snp_onnx.passes.turn_heads import Turn, TurnHeads, digest
from snp_onnx.planning.head_statistics import logits_of
from snp_onnx.planning.heads import logits_energy
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Part, Preprocess, open_samples
from snp_onnx.tracing import Kind
from snp_onnx.verbs.bases import change_bases
from snp_onnx.verbs.measure import Calibration, measure
from snp_onnx.verbs.result import Stopwatch
from snp_onnx.verbs.subject import Subject, load_subject, resolve_shapes, trace_at
from tests.graphs import Array, Batch, Net, feed_for
from tests.oracles import assert_counts, assert_valid, cut, difference, masks, run, tolerance, zeroed
from tests.topologies import CATALOGUE
from tests.topologies_attention import EACH, HEADS, WIDTH

DIMS = frozenset((Kind.CHANNELS, Kind.HEAD_DIMS))

ATTENTIONS = {
    "separate": {"w2:1": 3, "w4:1": 3},
    "separate-bare": {"w2:1": 3, "w4:1": 3},
    "separate-computed": {"w2:1": 3, "w4:1": 3},
    "fused": {"w2:1": 3},
    "fused-bare": {"w2:1": 3},
    "fused-split": {"w2:1": 3, "w2:1/2": 3},
    "key-value-groups": {"w2:1": 3, "w4:1": 3},
    "normalised": {"w2:1": 3, "w4:1": 3},
    "llama": {"w4:1": 4},
    "half-separate": {"w2:1": 3, "w4:1": 3},
}
"""Groups of head dimensions by topology; with rotary positions only the values' may go."""

CASES = [pytest.param(name, batch, id=f"{name}-{batch}") for name in ATTENTIONS for batch in (2, "N")]
on_every_attention = pytest.mark.parametrize(("name", "batch"), CASES)


@dataclass(frozen=True, eq=False)
class Both:
    """A model before and after its bases were changed, the one traced plainly."""

    plain: Subject
    turned: Subject


def turned(model: onnx.ModelProto, rows: int = 64, given: Any = None, calibrate: bool = True) -> Both:
    """The model turned on random rows, ready to lose dimensions."""
    dense, prepared, notes = load_subject(model)
    feed = feed_for(model, batch=rows, seed=5)
    with open_samples(feed, input_specs(prepared), Preprocess(), None, 0, {}) as samples:
        calibration = Calibration(samples, 16, Runtime(), Stopwatch(), lambda stage, done, total: None)
        shapes = resolve_shapes(prepared, {}, samples.largest_shapes)
        plain = trace_at(dense, prepared, notes, shapes, Runtime())
        return Both(plain, change_bases(plain, DIMS, Runtime(), calibration if calibrate else None, given))


def both(name: str, batch: Batch) -> Both:
    return turned(CATALOGUE[name].model(batch), rows=64 if batch == "N" else int(batch))


@on_every_attention
def test_turning_changes_no_output(name: str, batch: Batch) -> None:
    found = both(name, batch)
    bound = 20 * tolerance([np.zeros(1, np.float16)]) if name == "half-separate" else 1e-5
    for rows in (2,) if batch == 2 else (1, 3):
        feed = feed_for(found.plain.prepared, rows)
        assert difference(run(found.plain.prepared, feed), run(found.turned.prepared, feed)) <= bound
    assert found.turned.bases
    assert found.turned.prepared != found.plain.prepared


@on_every_attention
def test_what_may_go_are_the_same_dimensions_of_every_head(name: str, batch: Batch) -> None:
    trace = both(name, batch).turned.trace
    found = {group.id: len(group) for group in trace.groups if group.kind is Kind.HEAD_DIMS}
    assert found == ATTENTIONS[name]
    assert not any(group.kind is Kind.HEADS for group in trace.groups)
    plain = {group.id: len(group) for group in trace.groups if group.kind is Kind.CHANNELS}
    assert plain == CATALOGUE[name].groups


@on_every_attention
def test_cut_equals_zeroed(name: str, batch: Batch) -> None:
    """Oracle (a): the scale of the logits, among other things, is that of the dense model."""
    subject = both(name, batch).turned
    for mask in masks(subject.trace):
        if mask.all():
            continue
        small = cut(subject.prepared, subject.trace, mask)
        silent = zeroed(subject.prepared, subject.trace, mask)
        for rows in (2,) if batch == 2 else (1, 3):
            feed = feed_for(subject.prepared, rows)
            expected = run(silent, feed)
            assert difference(expected, run(small, feed)) <= 4 * tolerance(expected)
        feed = feed_for(subject.prepared, 2)
        assert_valid(small, feed)
        if batch == 2:
            assert_counts(subject.prepared, subject.trace, mask, small, feed)


def test_what_is_kept_is_told_apart_from_what_is_not() -> None:
    """The oracle fails on a model whose other dimensions were cut."""
    subject = both("separate", "N").turned
    group = next(group for group in subject.trace.groups if group.products)
    feed = feed_for(subject.prepared, 2)
    right = subject.trace.alive([group.labels[-1:]])
    wrong = subject.trace.alive([group.labels[:1]])
    assert difference(run(zeroed(subject.prepared, subject.trace, right), feed),
                      run(cut(subject.prepared, subject.trace, wrong), feed)) > 1e-3  # fmt: skip


# planted redundancy


def planted(net: Net, rank: int = 2, each: int = 5, fused: bool = False) -> None:
    """Heads of five dimensions whose logits and outputs have a rank of two, in subspaces of their own.

    Neither queries nor keys, values nor output weights are of that rank themselves. The biases of the keys lie
    anywhere: what they add is the same for all keys.
    """
    width, heads, rng = 12, 3, net.rng
    blocks: dict[str, list[Array]] = {name: [] for name in "qkvo"}
    biases: dict[str, list[Array]] = {name: [] for name in "qkvo"}
    for _ in range(heads):
        for pair in ("qk", "vo"):
            U = np.linalg.qr(rng.standard_normal((each, each)))[0]
            for name, extra in zip(pair, ([rank], list(range(rank + 1, each))), strict=True):
                span = U[:, [*range(rank), *extra]].T
                blocks[name].append(rng.standard_normal((width, len(span))) @ span / 2)
                within = rng.standard_normal(len(span)) @ span
                biases[name].append(rng.standard_normal(each) if name == "k" else within)
    W, b = ({name: np.concatenate(parts[name], axis=-1) for name in "qkvo"} for parts in (blocks, biases))
    x = net.input("x", 5, width)
    if fused:
        weight = net.const(np.concatenate([W[name] for name in "qkv"], axis=1), "w_qkv")
        bias = net.const(np.concatenate([b[name] for name in "qkv"]))
        parts = net.split(net.Add(net.MatMul(x, weight), bias), [heads * each] * 3, axis=-1)
    else:
        parts = [net.Add(net.MatMul(x, net.const(W[name], f"w_{name}")), net.const(b[name])) for name in "qkv"]
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    apart = [
        net.Transpose(net.reshape(part, 0, -1, heads, each), perm=order)
        for part, order in zip(parts, orders, strict=True)
    ]
    weights = net.Softmax(net.Mul(net.MatMul(apart[0], apart[1]), net.const(0.4)), axis=-1)
    context = net.Transpose(net.MatMul(weights, apart[2]), perm=[0, 2, 1, 3])
    mixed = net.MatMul(net.reshape(context, 0, -1, heads * each), net.const(W["o"].T, "w_o"))
    net.output(net.linear(net.Add(x, net.Add(mixed, net.bias(width))), width, 4))


def modelled(draw: Callable[..., None], batch: Batch = "N", **options: Any) -> onnx.ModelProto:
    net = Net(17, batch)
    draw(net, **options)
    return net.model()


@pytest.mark.parametrize("fused", [False, True])
def test_planted_logits_vanish_down_to_their_rank(fused: bool) -> None:
    """The keys' bias adds the same to all logits of a query: what it has outside the subspace changes nothing."""
    subject = turned(modelled(planted, fused=fused), rows=256).turned
    group = next(group for group in subject.trace.groups if group.products)
    feed = feed_for(subject.prepared, 4)
    dense = run(subject.prepared, feed)
    errors = [
        difference(dense, run(cut(subject.prepared, subject.trace, subject.trace.alive([group.labels[width:]])), feed))
        for width in (1, 2)
    ]
    assert errors[1] <= 2e-3
    assert errors[0] > 0.02


def test_planted_values_vanish_down_to_their_rank() -> None:
    result = snp_onnx.prune(
        modelled(planted),
        {"x": feed_for(modelled(planted), 300, seed=5)["x"]},
        target_macs=0.75,
        units=["head-dims"],
        preset="fast",
    )
    after = {group.id: group.after for group in result.report.groups if group.kind == "head-dims"}
    assert after == {"w_q:1": 2, "w_v:1": 2} or sorted(after.values()) >= [2, 2]
    feed = feed_for(modelled(planted), 4)
    assert difference(run(modelled(planted), feed), run(result.model, feed)) <= 5e-3
    for tensor in result.model.graph.initializer:
        if tensor.name == "w_o":
            assert tensor.dims[0] == 3 * after["w_v:1"]


def test_planted_logits_cost_nothing_in_the_plan() -> None:
    result = snp_onnx.prune(
        modelled(planted), feed_for(modelled(planted), 300, seed=5), target_macs=0.75, units=["head-dims"]
    )
    for decision in result.plan.decisions:
        assert 1.0 - decision.variance[1] < 1e-4
        assert 1.0 - decision.variance[0] > 1e-3


# the scale


def scaled_by_shape(net: Net) -> None:
    """scaled_dot_product_attention as torch exports it: the scale is computed from the shape of the queries."""
    x = net.input("x", 5, WIDTH)
    parts = [net.reshape(net.linear(x, WIDTH, WIDTH), 0, -1, HEADS, EACH) for _ in range(3)]
    q, k, v = (net.Transpose(part, perm=[0, 2, 1, 3]) for part in parts)
    size = net.slice(net.Shape(q), 0, -1, 2**31)
    root = net.Sqrt(net.Cast(size, to=net.element_type))
    scale = net.Sqrt(net.Div(net.const([1.0]), root))
    weights = net.Softmax(net.MatMul(net.Mul(q, scale), net.Mul(net.Transpose(k, perm=[0, 1, 3, 2]), scale)), axis=-1)
    joined = net.reshape(net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3]), 0, -1, WIDTH)
    net.output(net.linear(net.Add(x, net.linear(joined, WIDTH, WIDTH)), WIDTH, 4))


def test_a_scale_computed_from_the_dimensions_is_written_out() -> None:
    model = modelled(scaled_by_shape)
    found = turned(model)
    assert sum("written out" in note.text for note in found.turned.notes) == 2
    assert {group.id: len(group) for group in found.turned.trace.groups if group.kind is Kind.HEAD_DIMS} == {
        "w1:1": 3,
        "w3:1": 3,
    }
    feed = feed_for(model, 3)
    assert difference(run(model, feed), run(found.turned.prepared, feed)) <= 1e-5
    group = next(group for group in found.turned.trace.groups if group.products)
    mask = found.turned.trace.alive([group.labels[1:]])
    expected = run(zeroed(found.turned.prepared, found.turned.trace, mask), feed)
    small = cut(found.turned.prepared, found.turned.trace, mask)
    assert difference(expected, run(small, feed)) <= tolerance(expected)


def test_a_scale_computed_from_another_extent_is_left_alone() -> None:
    """Attention that divides by the number of positions goes on to do so."""

    def draw(net: Net) -> None:
        x = net.input("x", "t", WIDTH)
        parts = [net.reshape(net.linear(x, WIDTH, WIDTH), 0, -1, HEADS, EACH) for _ in range(3)]
        q, k, v = (net.Transpose(part, perm=[0, 2, 1, 3]) for part in parts)
        rows = net.Cast(net.slice(net.Shape(q), 0, 2, 3), to=net.element_type)
        weights = net.Softmax(net.Div(net.MatMul(q, net.Transpose(k, perm=[0, 1, 3, 2])), rows), axis=-1)
        joined = net.reshape(net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3]), 0, -1, WIDTH)
        net.output(net.linear(joined, WIDTH, 4))

    dense, prepared, notes = load_subject(modelled(draw))
    x = np.random.default_rng(0).standard_normal((64, 5, WIDTH)).astype(np.float32)
    with open_samples({"x": x}, input_specs(prepared), Preprocess(), None, 0, {}) as samples:
        calibration = Calibration(samples, 16, Runtime(), Stopwatch(), lambda stage, done, total: None)
        plain = trace_at(dense, prepared, notes, resolve_shapes(prepared, {}, samples.largest_shapes), Runtime())
        subject = change_bases(plain, DIMS, Runtime(), calibration)
    assert not any("written out" in note.text for note in subject.notes)
    longer = {"x": np.random.default_rng(1).standard_normal((2, 9, WIDTH)).astype(np.float32)}
    assert difference(run(prepared, longer), run(subject.prepared, longer)) <= 1e-5


# what may not turn


def attending(net: Net, between: Callable[[Net, str], str] = lambda net, x: x, shared: bool = False) -> None:
    x = net.input("x", 5, WIDTH)
    weight = net.weight(WIDTH, WIDTH, fan_in=WIDTH)
    names = [weight, weight if shared else net.weight(WIDTH, WIDTH, fan_in=WIDTH), net.weight(WIDTH, WIDTH, fan_in=3)]
    parts = [net.reshape(net.MatMul(x, name), 0, -1, HEADS, EACH) for name in names]
    q, k, v = (net.Transpose(part, perm=[0, 2, 1, 3]) for part in parts)
    weights = net.Softmax(net.MatMul(between(net, q), net.Transpose(k, perm=[0, 1, 3, 2])), axis=-1)
    joined = net.reshape(net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3]), 0, -1, WIDTH)
    net.output(net.linear(net.Add(x, net.linear(joined, WIDTH, WIDTH)), WIDTH, 4))


BARRED: Sequence[tuple[str, dict[str, Any], str]] = (
    ("a function between", {"between": lambda net, x: net.Tanh(x)}, "more than moves and scales"),
    ("gains between", {"between": lambda net, x: net.Mul(x, net.normal(EACH))}, "more than moves and scales"),
    ("shared", {"shared": True}, "is shared"),
)


@pytest.mark.parametrize(("options", "reason"), [case[1:] for case in BARRED], ids=[case[0] for case in BARRED])
def test_queries_and_keys_that_cannot_turn_stay_whole(options: dict[str, Any], reason: str) -> None:
    model = modelled(attending, **options)
    found = turned(model)
    assert any(reason in note.text for note in found.turned.notes)
    assert {stop.weight for stop in found.turned.trace.stops} > {"w1"}
    groups = [group for group in found.turned.trace.groups if group.kind is Kind.HEAD_DIMS]
    assert [len(group.products) for group in groups] == [0]  # the values' may go all the same
    feed = feed_for(model, 3)
    assert difference(run(model, feed), run(found.turned.prepared, feed)) <= 1e-5


def test_nothing_is_turned_where_nothing_attends() -> None:
    model = CATALOGUE["conv-bn-relu"].model("N")
    found = turned(model, rows=8)
    assert found.turned.bases == {}
    assert found.turned.prepared == found.plain.prepared


def test_a_pass_turns_nothing_twice() -> None:
    model = modelled(attending)
    name = "w1"
    values = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
    matrix = np.diag([2.0, 3.0, 4.0])
    step = TurnHeads({name: (Turn(1, np.arange(3), matrix),)}, {name: digest(values)})
    once = rewrite(model, [step])
    assert len(once.notes) == 1
    found = numpy_helper.to_array(next(t for t in once.model.graph.initializer if t.name == name))
    np.testing.assert_allclose(found[:, :3], values[:, :3] * [2.0, 3.0, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 3:], values[:, 3:])
    again = rewrite(once.model, [step])
    assert again.notes == ()
    assert again.model == once.model


# logits that lose dimensions


def test_the_loss_of_logits_is_what_a_run_shows() -> None:
    """M against the logits themselves, of all pairs of queries and keys, without the mean over the keys."""
    model = modelled(planted)
    dense, prepared, notes = load_subject(model)
    feed = feed_for(model, 64, seed=5)
    with open_samples(feed, input_specs(prepared), Preprocess(), None, 0, {}) as samples:
        calibration = Calibration(samples, 16, Runtime(), Stopwatch(), lambda stage, done, total: None)
        plain = trace_at(dense, prepared, notes, resolve_shapes(prepared, {}, samples.largest_shapes), Runtime())
        subject = change_bases(plain, DIMS, Runtime(), calibration)
        group = next(group for group in subject.trace.groups if group.products)
        measured = measure(subject, [group], True, calibration)
        used = np.concatenate([batch["x"] for batch in calibration.batches(Part.CALIBRATION)])
    (logits,) = logits_of(subject.trace, [group])
    M = logits_energy(logits, measured.statistics.heads)
    q, k = (seen(subject.prepared, side.operand.tensor, {"x": used}) for side in (logits.queries, logits.keys))
    k = k.swapaxes(2, 3)
    for gone in ([4], [3, 4], [0, 2]):
        energy = 0.0
        for head in range(q.shape[1]):
            left, right = (part[:, head].reshape(-1, part.shape[-1]).astype(np.float64)[:, gone] for part in (q, k))
            energy += np.square(left @ (right - right.mean(axis=0)).T).mean()
        assert M[np.ix_(gone, gone)].sum() == pytest.approx(energy, rel=0.02, abs=1e-6 * M.sum())


def seen(model: onnx.ModelProto, tensor: str, feed: dict[str, Array]) -> Array:
    """One tensor of a run."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(tensor))
    return run(shown, feed)[0]


# plans


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_plan_is_carried_out_on_its_own_bases(tmp_path: Path, preset: str) -> None:
    model = CATALOGUE["separate"].model("N")
    feed = feed_for(model, 64, seed=5)
    made = snp_onnx.prune(model, feed, target_macs=0.7, units=["channels", "head-dims"], preset=preset)
    kinds = {decision.kind for decision in made.plan.decisions if decision.after < decision.before}
    assert "head-dims" in kinds
    made.save_plan(tmp_path / "plan.json")
    again = snp_onnx.prune(model, plan=tmp_path / "plan.json")
    assert again.model == made.model
    assert again.report.warnings == ()
    anew = snp_onnx.prune(model, feed, plan=made.plan, preset=preset)
    assert anew.model == made.model
    (tmp_path / "plan.npz").unlink()
    with pytest.raises(PlanError, match="bases"):
        snp_onnx.prune(model, plan=tmp_path / "plan.json")


def test_bases_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = CATALOGUE["separate"].model("N")
    bases = {name: array[:1] for name, array in turned(model).turned.bases.items()}
    with pytest.raises(PlanError, match="don't fit"):
        turned(model, given=bases)


def test_heads_go_where_dimensions_may_not() -> None:
    """Heads and a fixed batch merged into one axis: dimensions can't be told apart, so whole heads stay the units."""
    model = CATALOGUE["merged-with-batch"].model(2)
    found = turned(model, rows=2)
    assert {group.kind for group in found.turned.trace.groups} == {Kind.CHANNELS, Kind.HEADS}


def test_runs_without_head_dims_are_as_they_were() -> None:
    model = CATALOGUE["separate"].model("N")
    result = snp_onnx.prune(model, feed_for(model, 64, seed=5), target_macs=0.7, preset="fast")
    assert result.bases == {}
    assert {group.kind for group in result.report.groups} == {"channels", "heads"}
