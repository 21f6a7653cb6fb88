"""Every oracle on every topology of the catalogue, and every oracle on something broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import snp_onnx.tracing.driver
from snp_onnx.errors import TRACEBACK
from snp_onnx.passes import prepare
from snp_onnx.tracing import Trace
from snp_onnx.tracing.groups import Kind, Mask
from snp_onnx.tracing.rules import RULES, Rule
from snp_onnx.tracing.rules.elementwise import unary
from tests.graphs import Batch, feed_for
from tests.oracles import (
    assert_counts,
    assert_same_surface,
    assert_valid,
    cut,
    difference,
    half_removed,
    masks,
    run,
    tolerance,
    traced,
    zeroed,
)
from tests.topologies import CATALOGUE

ALL = [pytest.param(name, batch, id=f"{name}-{batch}") for name, t in CATALOGUE.items() for batch in t.batches]
on_every_topology = pytest.mark.parametrize(("name", "batch"), ALL)
BORDERS = {"graph input", "graph output"}


@pytest.fixture(autouse=True)
def run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass runs twice, and is held to its contract."""
    monkeypatch.setenv(TRACEBACK, "1")


@dataclass(frozen=True, eq=False)
class Subject:
    """One topology, prepared and traced, and its cut forms."""

    source: onnx.ModelProto
    source_bytes: bytes
    prepared: onnx.ModelProto
    trace: Trace
    cuts: tuple[tuple[Mask, onnx.ModelProto], ...]
    """Different masks, half of every group removed first; empty where nothing may go."""


def subject_of(source: onnx.ModelProto) -> Subject:
    """Prepared, traced at a batch of one where it is dynamic, and cut by several masks."""
    before = source.SerializeToString()
    prepared = prepare(source).model
    trace = traced(prepared, feed_for(source, batch=1))
    different = {mask.tobytes(): mask for mask in masks(trace) if not mask.all()}
    cuts = tuple((mask, cut(prepared, trace, mask)) for mask in different.values())
    return Subject(source, before, prepared, trace, cuts)


@cache
def subject(name: str, batch: Batch) -> Subject:
    return subject_of(CATALOGUE[name].model(batch))


def assert_cut_equals_zeroed(prepared: onnx.ModelProto, trace: Trace, mask: Mask, result: onnx.ModelProto) -> None:
    """Oracle (a), at the traced batch and, where it is dynamic, at another one."""
    silent = zeroed(prepared, trace, mask)
    for batch in (1, 3):
        feed = feed_for(prepared, batch)
        expected = run(silent, feed)
        assert difference(expected, run(result, feed)) <= tolerance(expected)


@on_every_topology
def test_what_may_go_and_what_stays_is_as_expected(name: str, batch: Batch) -> None:
    expected, trace = CATALOGUE[name], subject(name, batch).trace
    found = {kind: {group.id: len(group) for group in trace.groups if group.kind == kind} for kind in Kind}
    plain = {Kind.CHANNELS: dict(expected.groups), Kind.HEADS: dict(expected.heads)}
    assert {kind: units for kind, units in found.items() if units} == {
        kind: units for kind, units in plain.items() if units
    }
    assert {barrier.reason for barrier in trace.barriers} - BORDERS == set(expected.barriers)


@on_every_topology
def test_cut_equals_zeroed(name: str, batch: Batch) -> None:
    model = subject(name, batch)
    for mask, result in model.cuts:
        assert_cut_equals_zeroed(model.prepared, model.trace, mask, result)


@on_every_topology
def test_a_cut_is_felt(name: str, batch: Batch) -> None:
    """Otherwise the other oracles would hold for any cut whatever."""
    model = subject(name, batch)
    feed = feed_for(model.source, batch=1)
    for _, result in model.cuts[:1]:
        assert difference(run(model.prepared, feed), run(result, feed)) > 0.01


@on_every_topology
def test_a_cut_model_is_valid(name: str, batch: Batch) -> None:
    model = subject(name, batch)
    for _, result in model.cuts:
        assert_valid(result, feed_for(result, batch=2), full_check=not CATALOGUE[name].is_deprecated)


@on_every_topology
def test_preparing_and_keeping_everything_change_nothing(name: str, batch: Batch) -> None:
    model = subject(name, batch)
    feed = feed_for(model.source, batch=2)
    dense, prepared = run(model.source, feed), run(model.prepared, feed)
    assert difference(dense, prepared) <= tolerance(dense)
    everything = np.ones(model.trace.label_count, dtype=np.bool_)
    assert difference(prepared, run(cut(model.prepared, model.trace, everything), feed)) == 0.0


@on_every_topology
def test_parameters_and_macs_follow_the_formula(name: str, batch: Batch) -> None:
    model = subject(name, batch)
    for mask, result in model.cuts:
        assert_counts(model.prepared, model.trace, mask, result, feed_for(model.source, batch=1))


@on_every_topology
def test_the_source_stays_and_its_surface_is_kept(name: str, batch: Batch) -> None:
    model = subject(name, batch)
    assert model.source.SerializeToString() == model.source_bytes
    surface = CATALOGUE[name].model(batch)
    for result in (model.prepared, *(result for _, result in model.cuts)):
        assert_same_surface(surface, result)


@on_every_topology
def test_the_same_input_gives_the_same_bytes(name: str, batch: Batch) -> None:
    model, again = subject(name, batch), subject_of(CATALOGUE[name].model(batch))
    assert [b.SerializeToString() for _, b in model.cuts] == [b.SerializeToString() for _, b in again.cuts]
    assert model.trace.barriers == again.trace.barriers


@on_every_topology
def test_a_cut_model_can_be_cut_again(name: str, batch: Batch) -> None:
    first = subject(name, batch)
    for mask, result in first.cuts[:1]:
        second = subject_of(onnx.ModelProto.FromString(result.SerializeToString()))
        widths = {g.id: int(mask[g.labels].sum()) for g in first.trace.groups}
        # the last group of a grouped convolution is an ordinary convolution; of the last two, positions go
        alike = sum(x.is_equal for x in first.trace.linears) == sum(x.is_equal for x in second.trace.linears)
        if min(widths.values()) > 1 and alike:
            assert {g.id: len(g) for g in second.trace.groups} == widths
        for again, smaller in second.cuts[:1]:
            assert_cut_equals_zeroed(second.prepared, second.trace, again, smaller)


DIGEST = """
import hashlib
from tests.test_topologies import subject
found = hashlib.sha256()
for name in ("shuffle-units", "unet-sizes", "separate-computed", "extent-as-number", "if-captures-extent"):
    model = subject(name, "N")
    found.update(repr(model.trace.barriers).encode() + b"".join(b.SerializeToString() for _, b in model.cuts))
print(found.hexdigest())
"""


def test_the_bytes_do_not_depend_on_the_order_of_sets() -> None:
    digests = set()
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        ran = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, check=True)
        digests.add(ran.stdout)
    assert len(digests) == 1


SWEPT = (
    "constant-nodes",
    "conv-bn-relu",
    "flatten-by-batch",
    "flatten-computed",
    "gather-channels",
    "matmul-bias",
    "mean-dropped",
    "open-slice",
    "option-a",
    "reduced-over-tokens",
    "residual-projection",
    "separate-computed",
    "shuffle-dynamic",
    "shuffle-units",
    "slice-channels",
    "sum-dropped",
    "unet",
    "unsqueezed",
)


@pytest.mark.parametrize("opset", range(9, 27))
def test_every_opset(opset: int) -> None:
    """From the oldest to the newest that both onnx and onnxruntime know."""
    too_new = {"option-a": 10, "unsqueezed": 11}  # steps of a Slice, negative axes
    for name in (name for name in SWEPT if opset >= too_new.get(name, 9)):
        source = CATALOGUE[name].model("N", opset)
        prepared = prepare(source).model
        trace = traced(prepared, feed_for(source, batch=1))
        assert sorted(len(group) for group in trace.groups) == widths_of(name), name
        mask = half_removed(trace)
        result = cut(prepared, trace, mask)
        assert_cut_equals_zeroed(prepared, trace, mask, result)
        assert_valid(result, feed_for(result, batch=2))
        assert_same_surface(source, result)


def widths_of(name: str) -> list[int]:
    return sorted([*CATALOGUE[name].groups.values(), *CATALOGUE[name].heads.values()])


@pytest.mark.parametrize("name", [name for name, topology in CATALOGUE.items() if "N" in topology.batches])
def test_the_traced_batch_does_not_matter(name: str) -> None:
    """A dynamic batch of three seen while tracing gives the same groups, and the cut model runs at one."""
    source = CATALOGUE[name].model("N")
    prepared = prepare(source).model
    trace = traced(prepared, feed_for(source, batch=3))
    assert sorted(len(group) for group in trace.groups) == widths_of(name)
    mask = half_removed(trace)
    assert_cut_equals_zeroed(prepared, trace, mask, cut(prepared, trace, mask))


OF_ANY_SIZE = (
    "chain",
    "conv-bn-relu",
    "dense-net",
    "depthwise",
    "expand-to-own-extent",
    "extent-as-number",
    "gather-channels",
    "global-pools",
    "group-norm-in-parts",
    "mean-dropped",
    "mean-kept",
    "open-slice",
    "option-a",
    "pixel-shuffle",
    "se-gate",
    "repeated-by-channel",
    "se-gate-dense",
    "shuffle-dynamic",
    "shuffle-units",
    "slice-to-own-extent",
    "space-to-depth",
    "split",
    "tiled-over-pixels",
    "transposed-grouped",
    "unet",
    "unet-transposed",
    "width-from-shape",
)


@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_the_traced_size_does_not_matter(name: str) -> None:
    """Batch and both sides are dynamic: traced at one size, run at another."""
    source = CATALOGUE[name].model("N", has_dynamic_sides=True)
    prepared = prepare(source).model
    trace = traced(prepared, feed_for(source, batch=1, sides={"h": 8, "w": 8}))
    assert sorted(len(group) for group in trace.groups) == widths_of(name)
    mask = half_removed(trace)
    result, silent = cut(prepared, trace, mask), zeroed(prepared, trace, mask)
    feed = feed_for(source, batch=2, sides={"h": 12, "w": 16})
    expected = run(silent, feed)
    assert difference(expected, run(result, feed)) <= tolerance(expected)
    assert_valid(result, feed)


# every oracle fails on something broken


def weight_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def change(model: onnx.ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = weight_of(model, name)
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)), name))


def broken(name: str, weight: str, edit: Callable[[np.ndarray], np.ndarray]) -> tuple[Subject, Mask, onnx.ModelProto]:
    """A topology's first cut with one initialiser changed."""
    model = subject(name, 2)
    mask, result = model.cuts[0]
    copy = onnx.ModelProto.FromString(result.SerializeToString())
    change(copy, weight, edit)
    return model, mask, copy


def test_a_misaligned_channel_is_noticed() -> None:
    model, mask, result = broken("chain", "w2", lambda w: np.roll(w, 1, axis=1))
    with pytest.raises(AssertionError):
        assert_cut_equals_zeroed(model.prepared, model.trace, mask, result)


def test_a_wrong_mask_is_noticed() -> None:
    model = subject("chain", 2)
    (_, result), (other, _) = model.cuts[0], model.cuts[3]
    with pytest.raises(AssertionError):
        assert_cut_equals_zeroed(model.prepared, model.trace, other, result)


def test_another_width_is_noticed_in_the_counts() -> None:
    model, mask, result = broken("chain", "w3", lambda w: w[:, :-1])
    with pytest.raises(AssertionError):
        assert_counts(model.prepared, model.trace, mask, result, feed_for(model.source, batch=1))


def test_a_model_that_does_not_fit_together_is_noticed() -> None:
    _, _, result = broken("chain", "w3", lambda w: w[:, :-1])
    with pytest.raises(Fail, match="not equal to kernel channels"):
        assert_valid(result, feed_for(result, batch=2))


def test_a_result_that_is_not_finite_is_noticed() -> None:
    _, _, result = broken("chain", "b3", lambda b: b * np.float32(np.nan))
    with pytest.raises(AssertionError):
        assert_valid(result, feed_for(result, batch=2))


def test_a_changed_surface_is_noticed() -> None:
    source = CATALOGUE["chain"].model()
    for spoil in (
        lambda m: m.metadata_props.pop(),
        lambda m: m.graph.ClearField("doc_string"),
        lambda m: m.graph.node[1].ClearField("doc_string"),
        lambda m: m.graph.output[0].ClearField("type"),
        lambda m: m.graph.input.add(name="w1"),
        lambda m: m.opset_import.add(domain="other", version=1),
    ):
        copy = onnx.ModelProto.FromString(source.SerializeToString())
        assert_same_surface(source, copy)
        spoil(copy)
        with pytest.raises(AssertionError):
            assert_same_surface(source, copy)


def test_the_difference_sees_shapes_types_and_what_is_not_finite() -> None:
    x = np.array([1.0, 2.0], dtype=np.float32)
    assert difference([x], [x.copy()]) == 0.0
    assert difference([x], [x + np.float32(0.02)]) == pytest.approx(0.01, rel=1e-3)
    for other in (x[:1], x.astype(np.float64), np.array([1.0, np.nan], dtype=np.float32)):
        assert difference([x], [other]) == float("inf")
    assert tolerance([x]) < 1e-4 < tolerance([x.astype(np.float16)]) < 0.05


def with_rules(monkeypatch: pytest.MonkeyPatch, **rules: Rule | None) -> None:
    changed: dict[tuple[str, str], Rule | None] = {**RULES, **{("", name): rule for name, rule in rules.items()}}
    monkeypatch.setattr(
        snp_onnx.tracing.driver, "RULES", {key: rule for key, rule in changed.items() if rule is not None}
    )


def test_a_silently_declined_topology_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rules(monkeypatch, Concat=None)
    trace = subject_of(CATALOGUE["concat"].model(2)).trace
    assert trace.groups == ()
    assert {barrier.reason for barrier in trace.barriers} == {"no rule for operator Concat", "graph output"}


@pytest.mark.parametrize(
    ("name", "kind"), [("softmax-channels", "Softmax"), ("lrn", "LRN"), ("cumulated", "CumSum"), ("layer-norm", "Relu")]
)
def test_a_rule_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    """Operators that work over channels taken for position-by-position ones; the last is right, and passes."""
    with_rules(monkeypatch, **{kind: unary})
    model = subject_of(CATALOGUE[name].model(2))
    mask, result = model.cuts[0]
    if kind == "Relu":
        assert_cut_equals_zeroed(model.prepared, model.trace, mask, result)
        return
    with pytest.raises(AssertionError):
        assert_cut_equals_zeroed(model.prepared, model.trace, mask, result)
