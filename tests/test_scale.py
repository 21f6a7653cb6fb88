"""Time against size: stages stay close to linear in the nodes, and the bench says what it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from threadpoolctl import threadpool_limits

import snp_onnx
from tools.bench import scale

FEW, MANY = 300, 1200


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_stages_are_close_to_linear_in_the_nodes(kind: str) -> None:
    """Four times the nodes take less than eight times as long (16 is quadratic); CPU time, the best of three."""
    best = dict.fromkeys(scale.STAGES, np.inf)
    with threadpool_limits(1):
        scale.measured(kind, 100)  # imports, and whatever else only comes once
        for _ in range(3):  # a machine under load is given other chances
            few, many = scale.measured(kind, FEW), scale.measured(kind, MANY)
            best = {stage: min(found, many[stage] / few[stage]) for stage, found in best.items()}
            if max(best.values()) < 8.0:
                break
    assert max(best.values()) < 8.0, best


@pytest.mark.parametrize(("kind", "size"), [("chain", 100), ("residual", 101), ("wide", 24)])
def test_the_graphs_have_the_size_asked_for(kind: str, size: int) -> None:
    model = scale.GRAPHS[kind](size)
    onnx.checker.check_model(model, full_check=True)
    if kind == "wide":
        assert list(model.graph.initializer[0].dims) == [scale.ENDS, size]
    else:
        assert size <= len(model.graph.node) <= size + 3


def test_the_exponent_is_that_of_a_power() -> None:
    assert scale.exponent([(size, 5.0 * size**2.5) for size in (10, 70, 300)]) == pytest.approx(2.5)
    assert np.isnan(scale.exponent([(10, 1.0)]))


def test_the_bench_prints_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "scale.svg"
    monkeypatch.setattr(scale, "_in_a_process", scale.measured)
    monkeypatch.setattr(sys, "argv", ["scale", "--nodes", "20", "50", "--units", "32", "64", "--plot", str(drawn)])
    scale.main()
    out = capsys.readouterr().out
    for line in (
        "| chain: nodes |",
        "| residual: nodes |",
        "| wide: units |",
        "| 64 |",
        "exponent of the time together:",
    ):
        assert line in out
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert not drawn.exists()
    else:
        assert drawn.read_text().count("<svg") == 1


@pytest.mark.parametrize("preset", ["paper", "fast", "best"])
def test_a_network_whose_signal_dies_away(preset: str) -> None:
    """Deep down activations are 1e-22, and their squares no numbers of float32: nothing to tell units by, no error."""
    drawing, x = scale.Drawing(), "x"
    for _ in range(100):
        x = drawing.node("Relu", drawing.node("MatMul", x, drawing.weight(8, 8, gain=0.8)))
    model = drawing.model(x, 8, 8)
    rows = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    result = snp_onnx.prune(model, {"x": rows}, target_macs=0.6, preset=preset, threads=1)
    assert result.report.pruned.macs <= 0.6 * result.report.dense.macs
