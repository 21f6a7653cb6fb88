"""Few rows and few samples: how ridges grow, when covariances are shrunk, which samples are said to hardly vary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import snp_onnx
from snp_onnx.calibration.moments import Moments
from snp_onnx.planning.paths import Path, clipping
from snp_onnx.planning.scarcity import SCARCITY, Scarcity
from snp_onnx.subspace import CentredGram, FewRows, few_rows, shrink
from snp_onnx.tracing import Group
from tests.graphs import Net, feed_for

Array = npt.NDArray[Any]


def moments_of(x: Array, as_rows: bool = False) -> Moments:
    if as_rows:
        return Moments(None, x.sum(axis=0), len(x), rows=x)
    return Moments(x.T @ x, x.sum(axis=0), len(x))


@pytest.mark.parametrize(
    ("wanted", "columns", "rows", "growth"),
    [(64, 10, 640, 1.0), (64, 10, 320, 2.0), (64, 10, 1, 100.0), (0, 10, 1, 1.0)],
)
def test_the_ridge_of_a_fold_grows_with_missing_rows(wanted: int, columns: int, rows: int, growth: float) -> None:
    assert SCARCITY.caution(wanted, columns, rows) == growth


def test_the_anchor_of_a_refit_grows_with_missing_samples_and_rows() -> None:
    enough = SCARCITY.anchor(1e-3, samples=2000, wanted=256, columns=4, rows=1024)
    assert enough == pytest.approx(SCARCITY.refit_ridge * 1e-3)
    assert SCARCITY.anchor(1e-3, 100, 256, 4, 1024) == pytest.approx(10 * enough)
    assert SCARCITY.anchor(1e-3, 2000, 256, 4, 256) == pytest.approx(4 * enough)
    assert SCARCITY.anchor(1e-3, 2000, 0, 4, 1) == pytest.approx(enough)


@pytest.mark.parametrize("rule", [{"refit_ridge": 100.0}, {"enough_samples": 10**6}])
def test_a_rule_changes_the_refit(rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = mlp(), {"x": np.random.default_rng(0).standard_normal((200, 10)).astype(np.float32)}
    plain = snp_onnx.prune(model, samples, target_params=0.6, threads=1)
    monkeypatch.setattr("snp_onnx.verbs.refit.SCARCITY", replace(SCARCITY, **rule))
    other = snp_onnx.prune(model, samples, target_params=0.6, threads=1)
    assert other.plan.decisions == plain.plan.decisions
    assert other.model.graph.initializer != plain.model.graph.initializer


def test_covariances_of_few_rows_are_shrunk() -> None:
    x = np.random.default_rng(0).standard_normal((8, 20)) + 3.0
    apart = x - x.mean(axis=0)
    found, written = SCARCITY.settled(moments_of(x, as_rows=True)), SCARCITY.settled(moments_of(x))
    assert isinstance(found, FewRows)
    assert isinstance(written, CentredGram)
    np.testing.assert_allclose(written.covariance, shrink(apart.T @ apart / 8, 8), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.dense().covariance, few_rows(x, 8).dense().covariance)
    np.testing.assert_allclose(found.dense().covariance, written.covariance, rtol=1e-9, atol=1e-12)
    many = SCARCITY.settled(moments_of(np.tile(x, (3, 1))))
    assert isinstance(many, CentredGram)
    np.testing.assert_allclose(many.covariance, apart.T @ apart / 8, rtol=1e-9, atol=1e-12)


# samples that hardly vary


def mlp() -> onnx.ModelProto:
    net = Net(batch="N", seed=2)
    x = net.Relu(net.dense(net.input("x", 10), 10, 40))
    net.output(net.dense(net.Relu(net.dense(x, 40, 30)), 30, 5))
    return net.model()


def cnn() -> onnx.ModelProto:
    net = Net(batch="N", seed=2)
    x = net.conv_relu(net.conv_relu(net.conv_relu(net.image(), 3, 24), 24, 24), 24, 24)
    net.output(net.dense(net.op("Flatten", net.GlobalAveragePool(x)), 24, 5))
    return net.model()


def bottleneck() -> onnx.ModelProto:
    """Hidden units that are exact combinations of four: redundant, and no fault of the samples."""
    net = Net(batch="N", seed=2)
    x = net.dense(net.dense(net.dense(net.input("x", 4), 4, 40), 40, 4), 4, 60)
    net.output(net.dense(x, 60, 5))
    return net.model()


def warned(model: onnx.ModelProto, samples: dict[str, Array], preset: str = "fast") -> list[str]:
    found = snp_onnx.prune(model, samples, target_macs=0.7, preset=preset, threads=1)
    return [line for line in found.report.warnings if "hardly vary" in line]


@pytest.mark.parametrize("preset", ["fast", "paper"])
@pytest.mark.parametrize("draw", [mlp, cnn])
def test_constant_and_repeated_samples(draw: Callable[[], onnx.ModelProto], preset: str) -> None:
    samples = feed_for(draw(), 120, seed=1)
    assert warned(draw(), samples, preset) == []
    assert len(warned(draw(), {"x": np.zeros_like(samples["x"])}, preset)) == 1
    if draw is mlp:
        assert len(warned(draw(), {"x": np.repeat(samples["x"][:1], 120, axis=0)}, preset)) == 1
        assert len(warned(draw(), {"x": np.tile(samples["x"][:3], (40, 1))}, preset)) == 1


def test_redundant_networks_are_not_warned_about() -> None:
    assert warned(bottleneck(), feed_for(bottleneck(), 120, seed=1)) == []
    assert warned(mlp(), feed_for(mlp(), 12, seed=1)) == []  # few samples are another matter


def test_the_share_is_a_rule() -> None:
    x = np.random.default_rng(0).standard_normal((100, 3)) @ np.ones((3, 10)) + np.zeros((100, 10))
    seen = [(moments_of(x), 10)]
    assert len(SCARCITY.warnings(seen)) == 1
    assert Scarcity(least_rank=0.05).warnings(seen) == ()
    assert SCARCITY.warnings([*seen, (moments_of(np.random.default_rng(1).standard_normal((100, 10))), 10)]) == ()
    assert SCARCITY.warnings([]) == ()


# clipped moments


def test_clipped_moments_are_counted_in_one_line() -> None:
    group = Group.__new__(Group)
    path = Path(group, np.arange(3), np.ones(3), np.zeros(3), clipped=0.004)
    assert clipping([path, path]) == ()
    (line,) = clipping([path, replace(path, clipped=0.02), replace(path, clipped=0.05)])
    assert "2 group(s)" in line
    assert "5.0%" in line
