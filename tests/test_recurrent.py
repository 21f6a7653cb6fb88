"""LSTM, GRU and RNN: what they read at a step is cut and folded, hidden units stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.cost import weights
from tests.graphs import Net, feed_for
from tests.oracles import difference, run

STEPS, ROWS = 6, 120
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def reader(kind: str, directions: int, has_bias: bool = True) -> onnx.ModelProto:
    """Eight units in front of a recurrent layer: two are always 1, the second four are the first four again."""
    net = Net(batch="N")
    first, bias = net.rng.standard_normal((3, 8)), net.rng.standard_normal(8)
    first[:, 6:], bias[6:] = 0.0, 1.0
    first[:, 3:6], bias[3:6] = first[:, :3], bias[:3]
    x = net.Relu(net.Add(net.MatMul(net.input("x", STEPS, 3), net.const(first, "first")), net.const(bias, "bias")))
    gates = GATES[kind] * 7
    operands = [net.normal(directions, gates, 8, name="W"), net.normal(directions, gates, 7, scale=0.3, name="R")]
    operands += [net.normal(directions, 2 * gates, name="B")] if has_bias else []
    direction = "bidirectional" if directions == 2 else "forward"
    gated = {"linear_before_reset": 1} if kind == "GRU" else {}  # then the halves of B differ in what they do
    y = net.op(kind, net.Transpose(x, perm=[1, 0, 2]), *operands, hidden_size=7, direction=direction, **gated)
    net.output(net.Transpose(y, perm=[2, 0, 1, 3]))
    return net.model()


def pruned(model: onnx.ModelProto, **options: Any) -> snp_onnx.PruneResult:
    x = np.random.default_rng(0).standard_normal((ROWS, STEPS, 3)).astype(np.float32)
    settings = {"preset": "fast", "ridge": 1e-7, "round_to": 1, "fallback": False, "latency": False} | options
    return snp_onnx.prune(model, {"x": x}, **settings)


def left(result: snp_onnx.PruneResult) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.dims) for name, tensor in weights(result.model)}


@pytest.mark.parametrize("kind", sorted(GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_copies_and_constants_go_without_a_trace(kind: str, directions: int) -> None:
    """Three units say all: what the copies did goes into W, what the constant ones did into the input half of B."""
    model = reader(kind, directions)
    inputs = GATES[kind] * 7 * directions * STEPS
    target = (inputs * (3 + 7) + 3 * 3 * STEPS) / (inputs * (8 + 7) + 3 * 8 * STEPS)
    result = pruned(model, target_macs=target + 1e-3)
    assert left(result)["W"] == (directions, GATES[kind] * 7, 3)
    assert left(result)["R"] == (directions, GATES[kind] * 7, 7)
    for batch in (1, 5):
        feed = feed_for(model, batch)
        assert difference(run(model, feed), run(result.model, feed)) < 1e-4


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_recurrent_layer_without_a_bias_is_folded_too(preset: str) -> None:
    """Three units have copies, and a constant one can stand for the other: four say all."""
    model = reader("LSTM", 1, has_bias=False)
    result = pruned(model, target_macs=0.75, preset=preset)
    assert left(result)["W"] == (1, 28, 4)
    feed = feed_for(model, 2)
    assert difference(run(model, feed), run(result.model, feed)) < 1e-4


def test_a_weight_that_is_computed_as_it_runs_stays_whole() -> None:
    net = Net(batch="N")
    x = net.Transpose(net.Relu(net.linear(net.input("x", STEPS, 3), 3, 8)), perm=[1, 0, 2])
    w = net.Mul(net.normal(1, 28, 8), net.input("gain", batched=False))
    net.output(net.Transpose(net.op("LSTM", x, w, net.normal(1, 28, 7), hidden_size=7), perm=[2, 0, 1, 3]))
    found = snp_onnx.inspect(net.model())
    assert not found.groups
    assert "LSTM carries a state from step to step" in {stop.reason for stop in found.barriers}
