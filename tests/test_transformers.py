"""Every oracle on transformers as both exporters write them, static and dynamic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from models.tiny import TRANSFORMERS
from snp_onnx.tracing.groups import Group, Kind
from tests.oracles import assert_counts, assert_same_surface, assert_valid, cut, difference, run, tolerance, zeroed
from tests.torch_form import torch_outputs
from tests.transformers import EACH, LAYERS, UNITS, Case, Subject, exported, floats, subject, subject_of

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

BATCHES = ("static", "dynamic")
QUICK_DYNAMO = ("deit-tiny", "bert", "gpt2", "llama-fused")
"""One for each way in which the dynamo exporter writes attention; the others are slow tests."""
ALIKE = ("opt-relative", "llama-fused", "llama-interleaved")
"""Recipes that differ from another one by little: some of their tests are slow ones."""
OPTIMISED = ("optimise", True)
OPTIMISED_QUICKLY = ("deit-tiny", "bert", "gpt2", "llama")
FUSED_BY_TORCH = ("deit-tiny", "bert", "gpt2", "opt", "whisper-encoder")
VARIANTS = [
    Case("deit-tiny", "ts", "dynamic", (("gelu", "tanh"),)),
    Case("deit-tiny", "ts", "dynamic", (("opset", 13),)),
    Case("bert", "ts", "dynamic", (("opset", 16), ("pooled", True))),
    *(Case(name, "ts", "dynamic", (("sdpa", True),)) for name in ("bert", "gpt2", "opt", "llama")),
    Case("gpt2", "ts", "dynamic", (("gelu", "none"),)),
    *(Case("llama", "ts", "dynamic", (("kv_heads", heads),)) for heads in (1, 4)),
    *(Case(name, "ts", "dynamic", (OPTIMISED,)) for name in OPTIMISED_QUICKLY),
    Case("bert", "ts", "static", (OPTIMISED,)),
    Case("whisper-encoder", "ts", "dynamic", (OPTIMISED, ("sdpa", True))),
    Case("llama", "dynamo", "dynamic", (("opset", 23), ("sdpa", True))),
]
SLOW_VARIANTS = [
    *(Case(name, "dynamo", "dynamic", (("sdpa", True),)) for name in ("deit-tiny", "bert", "gpt2", "opt", "llama")),
    Case("bert", "dynamo", "dynamic", (("opset", 20),)),
    *(Case("llama", "dynamo", "dynamic", (("opset", opset), ("sdpa", "gqa"))) for opset in (18, 23)),
    *(Case(name, "dynamo", "dynamic", (("opset", 23), ("sdpa", True))) for name in FUSED_BY_TORCH),
    *(Case(name, "dynamo", "dynamic", (OPTIMISED,)) for name in ("deit-tiny", "bert", "gpt2", "opt", "llama")),
    *(Case(name, "ts", "dynamic", (OPTIMISED,)) for name in TRANSFORMERS if name not in OPTIMISED_QUICKLY),
]
FUSED: Mapping[str, tuple[str, ...]] = {
    "bert-ts-dynamic-optimise=True": ("EmbedLayerNormalization", "Attention", "SkipLayerNormalization", "BiasGelu"),
    "bert-ts-static-optimise=True": ("Attention", "SkipLayerNormalization", "BiasGelu"),
    "gpt2-ts-dynamic-optimise=True": ("SkipLayerNormalization", "FastGelu"),
    "llama-ts-dynamic-optimise=True": ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    "whisper-encoder-ts-dynamic-optimise=True-sdpa=True": ("Attention", "Gelu"),
    "llama-dynamo-dynamic-opset=23-sdpa=True": ("Attention", "RMSNormalization"),
}
"""Operators that must come out of the optimiser or the exporter, or the case would test nothing new."""


def _param(case: Case, slow: bool = False) -> Any:
    return pytest.param(case, id=case.id, marks=[pytest.mark.slow] if slow else [])


CASES = [
    *(
        _param(Case(name, "ts", batch), slow=batch == "static" and name in ALIKE)
        for name in TRANSFORMERS
        for batch in BATCHES
    ),
    *(_param(case) for case in VARIANTS),
    *(
        _param(Case(name, "dynamo", batch), slow=batch == "static" or name not in QUICK_DYNAMO)
        for name in TRANSFORMERS
        for batch in BATCHES
    ),
    *(_param(case, slow=True) for case in SLOW_VARIANTS),
]
on_every_case = pytest.mark.parametrize("case", CASES)


def width_of(group: Group) -> tuple[Kind, int]:
    return group.kind, len(group)


@on_every_case
def test_export_computes_what_torch_computes(case: Case) -> None:
    import torch

    from models.recipes import build

    model = onnx.ModelProto.FromString(exported(case))
    if not case.is_optimised:  # those use operators that the checker doesn't know
        onnx.checker.check_model(model, full_check=True)
    assert set(FUSED.get(case.id, ())) <= {node.op_type for node in model.graph.node}
    options = {key: value for key, value in case.options if key not in ("opset", "optimise")}
    module = build(case.name, **{**TRANSFORMERS[case.name], **options})
    feed = case.other_feed
    with torch.no_grad():
        expected = module(*(torch.from_numpy(array) for array in feed.values())).numpy()
    assert 0.1 < expected.std() < 100
    assert difference([expected], run(model, feed)) <= 3 * tolerance([expected])
    assert difference([expected], torch_outputs(model, feed)) <= 3 * tolerance([expected])


@on_every_case
def test_every_layer_offers_heads_and_hidden_units(case: Case) -> None:
    units, found = UNITS[case.name], subject(case).trace.groups
    heads = {0: units.heads, 1: 4}.get(dict(case.options).get("kv_heads", 0), 4)
    expected = [(Kind.HEADS, heads)] * LAYERS
    expected += [(Kind.CHANNELS, units.hidden)] * LAYERS + [(Kind.CHANNELS, width) for width in units.others]
    assert sorted(map(width_of, found)) == sorted(expected)
    assert not any(group.is_stream for group in found)


@on_every_case
def test_cut_equals_zeroed(case: Case) -> None:
    """At the traced extents and, where they are dynamic, at others."""
    model = subject(case)
    for mask, result in model.cuts:
        assert_cut_equals_zeroed(model, mask, result)


def assert_cut_equals_zeroed(model: Subject, mask: Any, result: onnx.ModelProto) -> None:
    silent = zeroed(model.prepared, model.trace, mask)
    for feed in (model.case.feed(), model.case.other_feed):
        expected = run(silent, feed)
        assert difference(expected, run(result, feed)) <= tolerance(expected)


@on_every_case
def test_a_cut_is_felt_and_keeping_everything_is_not(case: Case) -> None:
    model, feed = subject(case), case.feed()
    dense = run(model.source, feed)
    assert difference(dense, run(model.prepared, feed)) <= tolerance(dense)
    assert difference(dense, run(model.cuts[0][1], feed)) > 0.01
    everything = np.ones(model.trace.label_count, dtype=np.bool_)
    assert difference(run(model.prepared, feed), run(cut(model.prepared, model.trace, everything), feed)) == 0.0


@on_every_case
def test_a_cut_model_is_valid_and_counts_what_the_formula_says(case: Case) -> None:
    model, units = subject(case), UNITS[case.name]
    bias = EACH if case.id.startswith("whisper") and "Attention" in FUSED.get(case.id, ()) else 0  # zeros for the keys
    each = {Kind.HEADS: units.per_head + bias, Kind.CHANNELS: units.per_hidden}
    for mask, result in model.cuts[:2]:
        assert_valid(case.complete(result), case.feed(), full_check=not case.is_optimised)
        assert_counts(model.prepared, model.trace, mask, result, case.feed())
        gone = {group.id: int((~mask[group.labels]).sum()) for group in model.trace.groups}
        expected = sum(gone[g.id] * units.others.get(len(g), each[g.kind]) for g in model.trace.groups)
        if "kv_heads" not in dict(case.options):
            assert floats(model.prepared) - floats(result) == expected


@on_every_case
def test_the_source_stays_and_the_same_input_gives_the_same_bytes(case: Case) -> None:
    model = subject(case)
    again = subject_of(case, onnx.ModelProto.FromString(model.source_bytes), len(model.cuts))
    assert model.source.SerializeToString() == model.source_bytes == again.source.SerializeToString()
    for (_, first), (_, second) in zip(model.cuts, again.cuts, strict=True):
        assert_same_surface(model.source, first)
        assert first.SerializeToString() == second.SerializeToString()


@on_every_case
def test_a_cut_model_can_be_cut_again(case: Case) -> None:
    first = subject(case)
    mask, result = first.cuts[0]
    second = subject_of(case, onnx.ModelProto.FromString(result.SerializeToString()), 1)
    left = [(group.kind, int(mask[group.labels].sum())) for group in first.trace.groups]
    lone = UNITS[case.name].queries  # under a single key-value head, its query heads are the units
    expected = [(kind, lone if kind is Kind.HEADS and width == 1 else width) for kind, width in left]
    assert sorted(map(width_of, second.trace.groups)) == sorted(pair for pair in expected if pair[1] > 1)
    for again, smaller in second.cuts:
        assert_cut_equals_zeroed(second, again, smaller)


PRUNED = [
    *(_param(Case(name, "ts", "dynamic"), slow=name in ALIKE) for name in TRANSFORMERS),
    _param(Case("bert", "ts", "dynamic", (OPTIMISED,))),
    _param(Case("gpt2", "dynamo", "dynamic")),
    _param(Case("llama", "dynamo", "dynamic", (("opset", 23), ("sdpa", True)))),
]


@pytest.mark.parametrize("case", PRUNED)
def test_pruned_saved_loaded_pruned(case: Case, tmp_path: Path) -> None:
    """With folding and refit, twice; the result runs at another batch and sequence length."""
    calibration = [case.feed(rows=4, seed=seed) for seed in range(8)]
    model = onnx.ModelProto.FromString(exported(case))
    first = snp_onnx.prune(model, calibration, target_params=0.85, input_shapes=shapes_of(case))
    path = tmp_path / "small.onnx"
    first.save(path)
    second = snp_onnx.prune(path, calibration, target_params=0.9, input_shapes=shapes_of(case))
    assert floats(model) > floats(first.model) > floats(second.model)
    assert_valid(case.complete(second.model), case.other_feed, full_check=not case.is_optimised)


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in case.feed().items()}


def test_a_wrong_head_is_noticed() -> None:
    """The oracles fail where the value heads are cut differently from the query heads."""
    model = subject(Case("bert", "ts", "dynamic"))
    mask, result = model.cuts[0]
    heads = next(group for group in model.trace.groups if group.kind is Kind.HEADS)
    broken = onnx.ModelProto.FromString(result.SerializeToString())
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name == heads.consumers[0].weight)
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 8, axis=0), weight.name))
    with pytest.raises(AssertionError):
        assert_cut_equals_zeroed(model, mask, broken)


def test_a_state_dict_replaces_random_weights() -> None:
    from models.recipes import build

    tiny = TRANSFORMERS["gpt2"]
    state = build("gpt2", seed=3, **tiny).state_dict()
    assert {"wte.weight", "h.1.attn.c_attn.weight", "ln_f.bias"} <= set(state)
    given = build("gpt2", state=state, **tiny).state_dict()
    assert all((given[key] == values).all() for key, values in state.items())
    assert (build("gpt2", **tiny).state_dict()["wte.weight"] != state["wte.weight"]).any()
    state["wte"] = state.pop("wte.weight")
    with pytest.raises(ValueError, match=r"weights don't fit recipe 'gpt2'.*Missing key"):
        build("gpt2", state=state, **tiny)


def test_command_line_optimises_and_loads_weights(tmp_path: Path) -> None:
    import torch

    from models.build import main
    from models.recipes import build

    out, weights = tmp_path / "small.onnx", tmp_path / "state.pt"
    torch.save(build("deit-tiny", seed=2, width=0.34, in_size=32).state_dict(), weights)
    assert main(["deit-tiny", str(out), "--width", "0.34", "--in-size", "32", "--weights", str(weights)]) == 0
    plain = onnx.load(out)
    assert main(["deit-tiny", str(out), "--width", "0.34", "--in-size", "32", "--seed", "2", "--optimise"]) == 0
    fused = onnx.load(out)
    assert "BiasGelu" not in {node.op_type for node in plain.graph.node}
    assert "BiasGelu" in {node.op_type for node in fused.graph.node}
    feed = {"input": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}
    expected = run(plain, feed)
    assert difference(expected, run(fused, feed)) <= tolerance(expected)
    for wrong in (["mlp", str(out), "--optimise"], ["deit-tiny", str(out), "--weights", str(weights)]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
