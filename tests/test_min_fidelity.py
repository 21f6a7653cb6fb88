"""--min-fidelity holds R² of the worst channel; of what the data pick, that of the tensors it is picked from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx import TargetError
from snp_onnx.report.table import fidelity_figures
from snp_onnx.verbs.fidelity import worst
from tests.command_line import bench, call
from tests.graphs import Net
from tests.oracles import run
from tests.test_fidelity import drawn, trunk

# the bound that is held


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_bound_on_one_probability_keeps_the_model(preset: str) -> None:
    net, h = trunk(width=64)
    net.output(net.Sigmoid(net.dense(net.Relu(net.dense(h, 64, 48)), 48, 1)))
    dense = net.model()
    result = snp_onnx.prune(dense, drawn(600, 8), preset=preset, min_fidelity=0.95)
    assert result.report.pruned.macs < result.report.dense.macs
    fresh = {"x": drawn(1000, 8, seed=9)}
    a, b = (run(model, fresh)[0].astype(np.float64) for model in (dense, result.model))
    assert np.square(b - a).sum() / np.square(a - a.mean()).sum() < 0.1


@pytest.mark.parametrize(("count", "chosen"), [(2, 2), (200, 10)])
def test_a_bound_that_few_samples_chose_is_warned_about(count: int, chosen: int) -> None:
    net, h = trunk(width=32)
    net.output(net.dense(net.Relu(net.dense(h, 32, 32)), 32, 4))
    result = snp_onnx.prune(net.model(), drawn(count, 8), preset="fast", min_fidelity=0.5)
    told = f"R² of 0.5 was held on the {chosen} samples that chose"
    assert any(line.startswith(told) for line in result.report.warnings) == (chosen < 8)


def test_the_bound_is_on_the_worst_channel() -> None:
    net, h = trunk(width=48)
    net.output(net.Concat(net.dense(h, 48, 4), net.Mul(net.dense(h, 48, 2), net.const(1e-3)), axis=1))
    dense = net.model()
    result = snp_onnx.prune(dense, drawn(600, 8), preset="fast", min_fidelity=0.9)
    (found,) = result.report.fidelity
    assert result.report.pruned.macs < result.report.dense.macs
    assert 0.8 < found.held < 0.99
    assert found.cosine > 0.94


def test_a_bound_is_refused_where_nothing_can_be_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, h = trunk()
    net.output(net.dense(h, 24, 1))
    with pytest.raises(TargetError, match=r"--min-fidelity 0\.5"):
        snp_onnx.prune(net.model(), drawn(1, 8), min_fidelity=0.5)
    here = bench(tmp_path, net.model(), {"x": drawn(1, 8)})
    outcome = call(capsys, "prune", here.model, here.output, "--calibration", here.data, "--min-fidelity", 0.5)
    assert outcome.code == 3
    assert not here.output.exists()


# sizes that data decide


def detector() -> onnx.ModelProto:
    """Boxes (1, 4, 4) and scores (1, 2, 4) that NonMaxSuppression picks from."""
    net = Net(batch=1)
    h = net.Relu(net.dense(net.Relu(net.dense(net.input("x", 8), 8, 24)), 24, 24))
    boxes = net.reshape(net.Sigmoid(net.dense(h, 24, 16)), 1, 4, 4)
    scores = net.reshape(net.Sigmoid(net.dense(h, 24, 8)), 1, 2, 4)
    picked = net.NonMaxSuppression(boxes, scores, net.const([9]), net.const([0.5]), net.const([0.4]))
    net.output(picked)
    model = net.model()
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_what_is_picked_is_judged_by_what_it_is_picked_from(preset: str) -> None:
    data = {"x": drawn(200, 8)}
    result = snp_onnx.prune(detector(), data, preset=preset, target_macs=0.6)
    selected, boxes, scores = result.report.fidelity
    assert selected.compared == 0.0
    assert "not compared" in fidelity_figures(selected)[0]
    made = {name: node.op_type for node in detector().graph.node for name in node.output}
    assert [made[entry.output] for entry in (boxes, scores)] == ["Gemm", "Gemm"]
    assert all(0.0 < entry.error < 1.0 for entry in (boxes, scores))
    assert worst(result.report.fidelity) == min(boxes.held, scores.held)


def test_a_bound_is_held_by_what_is_picked_from() -> None:
    held = snp_onnx.prune(detector(), {"x": drawn(200, 8)}, preset="fast", min_fidelity=0.8)
    assert held.report.pruned.macs < held.report.dense.macs
    assert 0.6 < worst(held.report.fidelity) < 0.95


def nonzero() -> onnx.ModelProto:
    net, h = trunk()
    places = net.NonZero(net.Relu(net.dense(h, 24, 4)))
    net.output(net.Mul(net.Cast(places, to=onnx.TensorProto.FLOAT), net.const(2.0)))  # values of its own
    return net.model()


def test_places_of_entries_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = bench(tmp_path, nonzero(), {"x": drawn(200, 8)})
    outcome = here.prune(capsys, target=0.6)
    assert outcome.code == 0, outcome.err
    assert "not compared" in " ".join((outcome.out + outcome.err).split())
    outcome = here.prune(capsys, "--min-fidelity", 0.9, target=None)
    assert outcome.code == 3
    assert len(outcome.lines) == 1
    assert "--min-fidelity 0.9" in outcome.err


def test_a_comparison_says_what_is_not_compared() -> None:
    found = snp_onnx.compare(nonzero(), nonzero(), drawn(40, 8))
    assert any("is not compared: how many entries it has depends on the data" in line for line in found.warnings)
