"""Encoders as onnxruntime's optimiser rewrites them: pruned after it and before it, with the same outcome."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model

import snp_onnx
from snp_onnx import PruneResult
from tests.graphs import Net
from tests.oracles import difference, run

WIDTH, HEADS, LENGTH, LAYERS = 16, 4, 6, 2
EACH = WIDTH // HEADS


def _heads(net: Net, x: str, order: tuple[int, ...] = (0, 2, 1, 3)) -> str:
    return net.Transpose(net.reshape(net.linear(x, WIDTH, WIDTH), 0, 0, HEADS, EACH), perm=list(order))


def _norm(net: Net, x: str) -> str:
    return net.LayerNormalization(x, net.normal(WIDTH, scale=0.1, shift=1.0), net.normal(WIDTH, scale=0.1))


def _gelu(net: Net, x: str) -> str:
    inner = net.Add(net.Erf(net.Div(x, net.const(2**0.5))), net.const(1.0))
    return net.Mul(net.Mul(x, inner), net.const(0.5))


def _layer(net: Net, x: str, mask: str) -> str:
    q, k, v = _heads(net, x), _heads(net, x, (0, 2, 3, 1)), _heads(net, x)
    weights = net.Softmax(net.Add(net.Div(net.MatMul(q, k), net.const(EACH**0.5)), mask), axis=-1)
    joined = net.reshape(net.Transpose(net.MatMul(weights, v), perm=[0, 2, 1, 3]), 0, 0, WIDTH)
    x = _norm(net, net.Add(net.linear(joined, WIDTH, WIDTH), x))
    hidden = _gelu(net, net.linear(x, WIDTH, 24))
    return _norm(net, net.Add(net.linear(hidden, 24, WIDTH), x))


@cache
def encoder() -> onnx.ModelProto:
    """BERT, as the TorchScript exporter writes it."""
    net = Net(batch="N", seed=11)
    net.output_rank = 3
    x, tokens = net.input("x", LENGTH, 8), net.input("mask", LENGTH, dtype=np.int64)
    masked = net.Sub(net.const(1.0), net.Cast(net.unsqueeze(net.unsqueeze(tokens, 1), 2), to=1))
    mask = net.Mul(masked, net.const(-10000.0))
    x = _norm(net, net.linear(x, 8, WIDTH))
    for _ in range(LAYERS):
        x = _layer(net, x, mask)
    net.output(net.linear(x, WIDTH, 4))
    return net.model()


def optimised(model: onnx.ModelProto, apart: bool = False) -> onnx.ModelProto:
    """By the optimiser for BERT; `apart` keeps the projections outside the attention."""
    options = FusionOptions("bert")
    options.use_multi_head_attention = apart
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    result = optimize_model(
        copy, "bert", num_heads=HEADS, hidden_size=WIDTH, optimization_options=options, opt_level=0, use_gpu=False
    )
    found: onnx.ModelProto = result.model
    return found


def saved_by_the_runtime(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What a session with its extended optimisations would run."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.domain == "com.microsoft")


def data(count: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LENGTH + 1, count)
    tokens = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    return {"x": rng.standard_normal((count, LENGTH, 8)).astype(np.float32), "mask": tokens}


@cache
def pruned(way: str, preset: str) -> PruneResult:
    model = {"plain": encoder, "inside": lambda: optimised(encoder()), "apart": lambda: optimised(encoder(), True)}[
        way
    ]()
    return snp_onnx.prune(model, data(300), target_macs=0.7, preset=preset)


@pytest.mark.parametrize(("apart", "kind"), [(False, "Attention"), (True, "MultiHeadAttention")])
def test_the_same_units_are_found(apart: bool, kind: str) -> None:
    model = optimised(encoder(), apart)
    assert kinds(model) == {kind: LAYERS, "BiasGelu": LAYERS, "SkipLayerNormalization": 2 * LAYERS}
    plain, found = snp_onnx.inspect(encoder()), snp_onnx.inspect(model)
    assert found.dense.macs == plain.dense.macs
    assert [(g.kind, g.before) for g in found.groups] == [(g.kind, g.before) for g in plain.groups]
    assert [(g.kind, g.before) for g in found.groups] == [("heads", HEADS), ("channels", 24)] * LAYERS


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize(("way", "kind"), [("inside", "Attention"), ("apart", "MultiHeadAttention")])
def test_pruned_after_the_optimiser(way: str, kind: str, preset: str) -> None:
    """As close to the dense model as without it, and still in fused operators."""
    feed = data(40, seed=5)
    dense = run(encoder(), feed)
    plain, found = pruned("plain", preset), pruned(way, preset)
    assert kinds(found.model) == {kind: LAYERS, "BiasGelu": LAYERS, "SkipLayerNormalization": 2 * LAYERS}
    assert found.report.pruned.macs <= 0.7 * found.report.dense.macs
    errors = [difference(dense, run(result.model, feed)) for result in (plain, found)]
    assert 0.001 < errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize(("apart", "kind"), [(False, "Attention"), (True, "MultiHeadAttention")])
def test_pruned_before_the_optimiser(apart: bool, kind: str) -> None:
    """What is fused in the dense model is fused in the pruned one, at every layer's own number of heads."""
    plain = pruned("plain", "fast").model
    model = optimised(plain, apart)
    assert kinds(model) == {kind: LAYERS, "BiasGelu": LAYERS, "SkipLayerNormalization": 2 * LAYERS}
    counts = [g.after for g in pruned("plain", "fast").report.groups if g.kind == "heads"]
    heads = [a.i for node in model.graph.node for a in node.attribute if a.name == "num_heads"]
    assert heads == counts
    assert min(counts) < HEADS
    feed = data(40, seed=5)
    assert difference(run(plain, feed), run(model, feed)) < 1e-4


def test_pruned_after_the_runtimes_own_optimisation(tmp_path: Path) -> None:
    """Weights are other initialisers then, and the logits a product with a transposed operand."""
    model = saved_by_the_runtime(encoder(), tmp_path)
    assert {"FusedMatMul", "BiasGelu"} < kinds(model).keys()
    plain, found = snp_onnx.inspect(encoder()), snp_onnx.inspect(model)
    assert [(g.kind, g.before) for g in found.groups] == [(g.kind, g.before) for g in plain.groups]
    result = snp_onnx.prune(model, data(300), target_macs=0.7, preset="fast")
    assert result.report.pruned.macs <= 0.7 * result.report.dense.macs
    feed = data(40, seed=5)
    dense, expected = run(encoder(), feed), run(pruned("plain", "fast").model, feed)
    assert difference(dense, run(result.model, feed)) < 1.2 * difference(dense, expected)
