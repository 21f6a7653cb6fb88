"""onnxslim and onnxsim before and after pruning: both orders give valid models that do what they should."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from models.tiny import TINY
from snp_onnx import PruneResult
from snp_onnx.passes import prepare
from tests.command_line import DIGITS, DIGITS_DATA
from tests.exports import export_bytes
from tests.graphs import feed_for
from tests.oracles import Feed, assert_valid, cut, difference, half_removed, run, tolerance, traced
from tests.topologies import CATALOGUE

Simplify = Callable[[onnx.ModelProto], onnx.ModelProto]
SHARED = Path(os.environ.get("SNP_ONNX_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared")) / "models"
OWN = {"snp_onnx.version", "snp_onnx.summary", "snp_onnx.plan", "snp_onnx.dense_sha256"}

REFUSED = {
    ("onnxsim", "group-norm-by-group"): "refuses an operator that ONNX withdrew",
    ("onnxslim", "squeeze-everything"): "breaks off (IndexError) on Squeeze without axes, on the dense model too",
    ("onnxslim", "split-to-sequence"): "breaks off (UnboundLocalError) on sequences without a shape",
}
"""(tool, topology): why the tool itself can do nothing with the model, cut or not."""

INVALID = {("onnxslim", "einsum"): "declares a shape of the output that the checker refuses, of the dense model too"}
"""(tool, topology): why what the tool makes of the dense model is already invalid."""

QUICK = (
    "chain", "conv-bn-relu", "residual-projection", "option-a", "concat", "dense-net", "split", "slice-channels",
    "depthwise", "grouped", "shuffle-dynamic", "transposed", "unet", "se-gate", "prelu", "pixel-shuffle",
    "flatten-gemm", "matmul-bias", "tied-weights", "shared-bias", "weight-as-output", "if-captures-constant",
    "custom-operator", "listed-initialisers-ir3", "separate", "fused", "llama", "multi-head", "half-option-a", "einsum",
    "squeeze-everything", "group-norm-by-group", "split-to-sequence",
)  # fmt: skip
"""One of every family; the others are marked slow."""

TOPOLOGIES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CATALOGUE]


@pytest.fixture(params=["onnxslim", "onnxsim"])
def tool(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


def simplify(tool: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """What the tool makes of a copy, by its defaults."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if tool == "onnxslim":
        import onnxslim

        return onnxslim.slim(copy)
    import onnxsim

    return onnxsim.simplify(copy)[0]


def metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("snp_onnx.")}


def assert_same_outputs(before: onnx.ModelProto, after: onnx.ModelProto, feed: Feed) -> None:
    expected = run(before, feed)
    assert difference(expected, run(after, feed)) <= tolerance(expected)


def units(model: onnx.ModelProto, feed: Feed) -> int:
    return sum(len(group) for group in traced(prepare(model).model, feed).groups)


def test_the_catalogue_has_what_is_quick() -> None:
    assert set(QUICK) <= CATALOGUE.keys()
    assert {name for _, name in (*REFUSED, *INVALID)} <= set(QUICK)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_topology_in_both_orders(name: str, tool: str) -> None:
    topology = CATALOGUE[name]
    dense = topology.model(topology.batches[-1])
    feed = feed_for(dense, batch=1)
    if (tool, name) in REFUSED:
        with pytest.raises((RuntimeError, IndexError, UnboundLocalError)):
            simplify(tool, dense)
        return
    prepared = prepare(dense).model
    trace = traced(prepared, feed)
    pruned = cut(prepared, trace, half_removed(trace))
    assert_same_outputs(pruned, simplify(tool, pruned), feed)

    first = simplify(tool, dense)
    assert_same_outputs(dense, first, feed)
    prepared_first = prepare(first).model
    trace_first = traced(prepared_first, feed)
    assert sum(map(len, trace_first.groups)) >= sum(map(len, trace.groups))
    pruned_first = cut(prepared_first, trace_first, half_removed(trace_first))
    if (tool, name) in INVALID:
        with pytest.raises(onnx.shape_inference.InferenceError):
            onnx.checker.check_model(first, full_check=True)
        run(pruned_first, feed)
        return
    assert_valid(pruned_first, feed, full_check=not topology.is_deprecated)


def both_orders(tool: str, dense: onnx.ModelProto, calibration: Any, **options: Any) -> tuple[PruneResult, PruneResult]:
    """prune(dense), which the tool may simplify without any change, and prune(simplified dense), which is as good."""
    feed = feed_for(dense, batch=1)
    plain = snp_onnx.prune(dense, calibration, threads=1, **options)
    after = simplify(tool, plain.model)
    onnx.checker.check_model(after, full_check=True)
    assert_same_outputs(plain.model, after, feed)
    assert metadata(after) == metadata(plain.model)
    assert metadata(after).keys() == OWN

    simplified = simplify(tool, dense)
    first = snp_onnx.prune(simplified, calibration, threads=1, **options)
    onnx.checker.check_model(first.model, full_check=True)
    run(first.model, feed)
    assert units(simplified, feed) >= units(dense, feed)
    assert first.report.pruned.macs <= options["target_macs"] * first.report.dense.macs
    assert first.report.dense.macs <= plain.report.dense.macs
    return plain, first


def errors(result: PruneResult) -> Iterator[float]:
    return (output.relative_l2 for output in result.report.fidelity)


def test_the_digits_sample_in_both_orders(tool: str) -> None:
    with np.load(DIGITS_DATA) as data:
        images, rows = data["images"][:256] / np.float32(16), data["test_images"] / np.float32(16)
        labels = data["test_labels"]
    results = both_orders(tool, onnx.load(DIGITS), images, target_macs=0.5)
    for result in results:
        (logits,) = run(result.model, {"input": rows})
        assert np.mean(logits.argmax(axis=1) == labels) > 0.98
    left, right = (max(errors(result)) for result in results)
    assert right <= 1.1 * left + 0.01


RECIPES: Mapping[tuple[str, str], list[pytest.MarkDecorator]] = {
    ("resnet20-a", "ts"): [],
    ("densenet40", "ts"): [],
    ("deit-tiny", "ts"): [],
    ("shufflenetv2", "dynamo"): [],
    ("se-resnet18", "ts"): [pytest.mark.slow],
    ("unet-bilinear", "ts"): [pytest.mark.slow],
    ("mobilenetv2", "dynamo"): [pytest.mark.slow],
    ("llama", "ts"): [pytest.mark.slow],
}


@cache
def exported(name: str, exporter: str) -> onnx.ModelProto:
    return export_bytes(name, exporter, **TINY[name])


@pytest.mark.parametrize(
    ("name", "exporter"), [pytest.param(*case, marks=marks, id="-".join(case)) for case, marks in RECIPES.items()]
)
def test_a_recipe_in_both_orders(name: str, exporter: str, tool: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    dense = exported(name, exporter)
    shapes = {value.name: (1, TINY[name]["in_size"]) for value in dense.graph.input if name == "llama"}
    options: dict[str, Any] = {"target_macs": 0.7, "preset": "fast", "samples": 256, "input_shapes": shapes}
    plain, first = both_orders(tool, dense, "random", **options)
    assert max(errors(first)) <= 1.2 * max(errors(plain)) + 0.01  # of 25 samples held back


REAL: Mapping[str, dict[str, tuple[int, ...]]] = {
    "resnet20_cifar10_ts": {},
    "resnet56_cifar10_dynamo": {},
    "resnet8large_cifar10_mlperftiny": {},
    "stories260k_llama_ts": {"input_ids": (1, 24)},
    "ultraface_rfb320": {},
}


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_a_real_network_in_both_orders(name: str, tool: str) -> None:
    path = SHARED / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here: set SNP_ONNX_BENCH_DATA")
    options = {"target_macs": 0.8, "preset": "fast", "samples": 24, "batch_size": 8, "input_shapes": REAL[name]}
    plain, first = both_orders(tool, onnx.load(path), "random", **options)
    assert max(errors(first)) <= 1.2 * max(errors(plain)) + 0.01
