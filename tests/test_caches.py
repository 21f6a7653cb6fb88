"""Heads of key-value caches: whole unless asked for; then inputs, outputs and metadata say what is left of them."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

import snp_onnx
from snp_onnx import ModelError, PassError
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.passes import prepare
from snp_onnx.tracing import Kind, trace
from snp_onnx.tracing.surface import KEPT, Surface, surface_after, surface_between, surface_of
from snp_onnx.verbs.subject import load_subject
from snp_onnx.verbs.verify import verify
from tests.graphs import Net, feed_for
from tests.oracles import cut, difference, masks, run, tolerance, zeroed
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]
EACH, PAST, NEW = 8, 3, 5

CACHED = {
    "multi-head-cached": 4,
    "projection-cached": 4,
    "group-query-cached": 3,
    "standard-cached": 4,
}
"""Topologies with caches, and their heads of keys and values."""


@cache
def exported(exporter: str) -> bytes:
    """A tiny LLaMA with caches: two layers, two key-value heads, four query heads."""
    pytest.importorskip("torch")
    from models.cached import CachedLlama, cached_surface
    from models.exporting import export
    from models.recipes import build
    from models.tiny import TRANSFORMERS

    llama = build("llama", seed=0, **TRANSFORMERS["llama"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        export(CachedLlama(llama), path, exporter, surface=cached_surface(llama, NEW, PAST, 2))
        return path.read_bytes()


def decoder(exporter: str = "ts") -> onnx.ModelProto:
    return onnx.ModelProto.FromString(exported(exporter))


def caches_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Heads of every cache, as declared."""
    values = [value for value in (*model.graph.input, *model.graph.output) if "." in value.name]
    return {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in values}


def data(count: int = 60, past: int = PAST) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    names = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    given = {name: rng.standard_normal((count, 2, past, EACH)).astype(np.float32) for name in names}
    return {"input_ids": rng.integers(0, 60, (count, NEW)), **given}


@pytest.mark.parametrize("name", CACHED)
def test_fused_attention_gives_up_heads_of_its_caches(name: str) -> None:
    model = prepare(CATALOGUE[name].model()).model
    feed = feed_for(model, 2)
    shapes = {key: array.shape for key, array in feed.items()}
    assert all(group.kind is not Kind.HEADS for group in trace(model, shapes).groups)
    found = trace(model, shapes, caches=True)
    assert [len(group) for group in found.groups if group.kind is Kind.HEADS] == [CACHED[name]]
    for mask in masks(found):
        surface = surface_after(model, found, mask)
        small = cut(model, found, mask)
        surface.declare(small)
        outputs = [value.name for value in model.graph.output]
        expected = surface.cut(dict(zip(outputs, run(zeroed(model, found, mask), feed), strict=True)))
        onnx.checker.check_model(small, full_check=True)
        again = run(small, surface.cut(feed))
        assert difference(list(expected.values()), again) <= tolerance(again)


@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
def test_exported_caches_are_cut_when_asked_for(exporter: str) -> None:
    model = prepare(decoder(exporter)).model
    feed = {key: array[:2] for key, array in data().items()}
    shapes = {key: array.shape for key, array in feed.items()}
    found = trace(model, shapes, caches=True)
    heads = [group for group in found.groups if group.kind is Kind.HEADS]
    assert [len(group) for group in heads] == [2, 2]
    mask = found.alive([heads[1].labels[:1]])
    surface, small = surface_after(model, found, mask), cut(model, found, mask)
    assert set(surface.kept) == {f"{n}.1.{part}" for n in ("past_key_values", "present") for part in ("key", "value")}
    surface.declare(small)
    outputs = [value.name for value in model.graph.output]
    expected = surface.cut(dict(zip(outputs, run(zeroed(model, found, mask), feed), strict=True)))
    again = run(small, surface.cut(feed))
    assert difference(list(expected.values()), again) <= tolerance(again)


def test_caches_stay_whole_unless_asked_for(tmp_path: Path) -> None:
    dense = decoder()
    result = snp_onnx.prune(dense, data(), target_macs=0.7, preset="fast")
    assert list(result.model.graph.input) == list(dense.graph.input)
    assert list(result.model.graph.output) == list(dense.graph.output)
    assert surface_of(result.model).kept == {}
    held = snp_onnx.inspect(dense, input_shapes={name: array[:1].shape for name, array in data().items()})
    assert any("graph input" in stop.reason for stop in held.barriers)
    numbers = result.architecture
    assert numbers is not None
    assert numbers["dense"]["num_attention_heads"] == 4, "a unit is a query head of each key-value head"
    assert numbers["dense"]["num_key_value_heads"] == numbers["num_key_value_heads"] == 2


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_pruned_caches_are_declared_verified_and_told(preset: str, tmp_path: Path) -> None:
    dense = decoder()
    result = snp_onnx.prune(dense, data(), target_macs=0.9, preset=preset, caches=True, units=["heads"])
    left = caches_of(result.model)
    assert sum(left.values()) < sum(caches_of(dense).values())
    kept = surface_between(dense, result.model)
    assert kept is not None
    assert {name: len(axes[1]) for name, axes in kept.kept.items()} == {n: c for n, c in left.items() if c < 2}
    assert {entry.output for entry in result.report.fidelity} == {value.name for value in dense.graph.output}
    numbers = result.architecture
    assert numbers is not None
    assert numbers["dense"]["num_key_value_heads"] == 2
    per_layer = np.broadcast_to(numbers["num_key_value_heads"], 2).tolist()
    assert per_layer == [left["present.0.key"], left["present.1.key"]]
    assert np.broadcast_to(numbers["num_attention_heads"], 2).tolist() == [2 * count for count in per_layer]
    result.save(tmp_path / "small.onnx")
    compared = snp_onnx.compare(dense, tmp_path / "small.onnx", data(), latency=True)
    assert compared.pruned.macs == result.report.pruned.macs
    with pytest.raises(ModelError, match="different inputs"):
        snp_onnx.compare(tmp_path / "small.onnx", dense, data())


def test_a_pruned_decoder_steps_as_it_reads() -> None:
    """Token by token with caches, and all at once: the same logits."""
    result = snp_onnx.prune(decoder(), data(), target_macs=0.6, preset="fast", caches=True)
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    left = {name: count for name, count in caches_of(result.model).items() if name.startswith("past")}
    empty = {name: np.zeros((1, count, 0, EACH), np.float32) for name, count in left.items()}
    tokens = data()["input_ids"][:1]
    whole = session.run(None, {"input_ids": tokens, **empty})[0]
    caches, steps = empty, []
    for place in range(NEW):
        logits, *present = session.run(None, {"input_ids": tokens[:, place : place + 1], **caches})
        caches, steps = dict(zip(left, present, strict=True)), [*steps, logits]
    assert difference([whole], [np.concatenate(steps, axis=1)]) < 1e-4


def test_samples_without_a_past_do_too() -> None:
    result = snp_onnx.prune(decoder(), data(past=0), target_macs=0.85, caches=True, units=["heads"])
    assert min(caches_of(result.model).values()) == 1


def test_a_plan_says_that_caches_were_cut(tmp_path: Path) -> None:
    dense = decoder()
    result = snp_onnx.prune(dense, data(), target_macs=0.9, preset="fast", caches=True, units=["heads"])
    snp_onnx.planning.plan.save_plan(result.plan, tmp_path / "plan.json", result.folds, result.bases)
    again = snp_onnx.prune(dense, plan=tmp_path / "plan.json")
    assert caches_of(again.model) == caches_of(result.model)
    assert surface_of(again.model).record() == surface_of(result.model).record()


def test_pruned_twice_is_told_in_heads_of_the_first_model() -> None:
    model = CATALOGUE["multi-head-cached"].model()
    feed = feed_for(model, 24)
    first = snp_onnx.prune(model, feed, target_macs=0.8, preset="fast", caches=True, units=["heads"])
    surface = surface_between(model, first.model)
    assert surface is not None
    second = snp_onnx.prune(
        first.model, surface.cut(feed), target_macs=0.75, preset="fast", caches=True, units=["heads"]
    )
    whole, step = surface_between(model, second.model), surface_between(first.model, second.model)
    assert whole is not None
    assert step is not None
    for name, axes in whole.kept.items():
        for axis, kept in axes.items():
            before = surface.kept.get(name, {}).get(axis, np.arange(4))
            assert np.array_equal(before[step.kept[name][axis]], kept)
            assert len(kept) < len(before)
    assert surface_between(second.model, first.model) is None


def test_attention_weights_that_are_an_output_are_no_cache() -> None:
    net = Net(opset=17)
    x = net.input("x", 4, 16)
    q, k, v = (net.Transpose(net.reshape(net.linear(x, 16, 16), 0, 0, 4, 4), perm=[0, 2, 1, 3]) for _ in range(3))
    weights = net.Softmax(net.MatMul(q, net.Transpose(k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = net.reshape(net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3]), 0, 0, 16)
    net.output(net.linear(mixed, 16, 8))
    net.output(weights)
    model = prepare(net.model()).model
    shapes = {key: array.shape for key, array in feed_for(model, 2).items()}
    assert all(group.kind is not Kind.HEADS for group in trace(model, shapes, caches=True).groups)


def test_a_surface_that_does_not_fit_is_refused() -> None:
    model = CATALOGUE["multi-head-cached"].model()
    for text in ('{"past_key": {"1": [9]}}', '{"nothing": {"1": [0]}}', '{"past_key": {"1": [0]}}'):
        broken = onnx.ModelProto()
        broken.CopyFrom(model)
        broken.metadata_props.add(key=KEPT, value=text)
        with pytest.raises(PassError, match="inputs differ"):
            verify(model, broken, Runtime(), None)
    broken.metadata_props[-1].value = "not JSON"
    assert surface_of(broken).kept == {}


@pytest.mark.parametrize(
    "kept",
    [
        "[0]",
        "[]",
        "[[0, 1], [2, 3]]",
        "[3, 2, 1, 0]",
        "[-4, 0, 1, 2]",
        "[0, 1, 2, 9999999999]",
        "[1e99]",
        str([10**40]),
    ],
)
def test_metadata_of_another_model_is_not_believed(kept: str) -> None:
    texts = [f'{{"past_key": {{"{axis}": {kept}}}}}' for axis in (1, 9, -1)]
    for text in (*texts, f'{{"nothing": {{"1": {kept}}}}}', kept, "[" * 99999):
        model = CATALOGUE["multi-head-cached"].model()
        model.metadata_props.add(key=KEPT, value=text)
        model.metadata_props.add(key="author", value="somebody")
        dense, _, _ = load_subject(model)
        assert surface_of(dense.proto).kept == {}
        assert "somebody" in {entry.value for entry in dense.proto.metadata_props}
    del model.metadata_props[:]
    model.metadata_props.add(key=KEPT, value='{"past_key": {"1": [0, 1, 2, 5]}}')
    assert surface_of(load_subject(model)[0].proto).kept


def test_surfaces_compose() -> None:
    first = Surface({"a": {1: np.array([0, 2, 3])}})
    second = Surface({"a": {1: np.array([1])}, "b": {0: np.array([5])}})
    both = second.after(first)
    assert both.kept["a"][1].tolist() == [2]
    assert both.kept["b"][0].tolist() == [5]
    back = both.within(first)
    assert back is not None
    assert back.kept["a"][1].tolist() == [1]
