"""A constant that one layer adds and the next bias takes out changes no moment, no decision and no fidelity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx.calibration import runner
from snp_onnx.calibration.moments import MomentRequest, Moments, Squares, View, Window
from snp_onnx.calibration.runner import Runtime, collect
from snp_onnx.calibration.walk import Walk
from snp_onnx.subspace import CentredGram, NormalMatrix
from tests.graphs import Net, feed_for
from tests.test_instrument import im2col, model_of

Array = npt.NDArray[Any]
CPU = Runtime(threads=1)
OFFSETS = [30.0, 1000.0]
"""In units of about the spread of what they are added to."""

# decisions


def _hidden(net: Net, x: str, channels: int, offset: float, rank: int = 0) -> str:
    """Tanh, and a constant for every unit, about `offset` times its spread."""
    shape = (channels, *[1] * rank)
    constant = offset * np.random.default_rng(7).uniform(0.3, 0.6, shape).astype(np.float32)
    return net.Add(net.Tanh(x), net.const(constant, name="offset"))


def _mlp(net: Net, offset: float) -> None:
    x = net.dense(net.input("x", 10), 10, 32)
    x = net.Relu(net.dense(_hidden(net, x, 32, offset), 32, 24))
    net.output(net.dense(x, 24, 5))


def _wide(net: Net, offset: float) -> None:
    """More hidden units than samples."""
    x = net.dense(net.input("x", 10), 10, 150)
    net.output(net.dense(_hidden(net, x, 150, offset), 150, 5))


def _valid(net: Net, offset: float) -> None:
    x = _hidden(net, net.op("Conv", net.image(), net.weight(12, 3, 3, 3, fan_in=27), net.bias(12)), 12, offset, 2)
    x = net.Relu(net.op("Conv", x, net.weight(16, 12, 3, 3, fan_in=108), net.bias(16)))
    net.output(net.dense(net.op("Flatten", net.GlobalAveragePool(x)), 16, 4))


def _padded(net: Net, offset: float) -> None:
    """Windows see a border of zeros before and behind; a constant can be taken out where none is beside it."""
    x = _hidden(net, net.conv(net.image(), 3, 12), 12, offset, 2)
    x = net.Relu(net.conv(net.conv(x, 12, 16, k=1), 16, 10))
    net.output(net.dense(net.op("Flatten", net.GlobalAveragePool(x)), 10, 4))


KINDS: dict[str, Callable[[Net, float], None]] = {"mlp": _mlp, "wide": _wide, "valid": _valid, "padded": _padded}


def shifted(kind: str, offset: float) -> onnx.ModelProto:
    """The network with its offset, which the next bias takes out."""
    net = Net(batch="N", seed=4)
    KINDS[kind](net, offset)
    model = net.model()
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    weight = values["w2"].reshape(len(values["w2"]), values["offset"].size, -1).sum(axis=2)
    bias = (values["b2"] - weight @ values["offset"].ravel()).astype(np.float32)
    for tensor in model.graph.initializer:
        if tensor.name == "b2":
            tensor.CopyFrom(numpy_helper.from_array(bias, "b2"))
    return model


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_changes_no_decision_and_no_fidelity(kind: str, preset: str) -> None:
    samples = feed_for(shifted(kind, 0.0), 120, seed=5)
    found = []
    for offset in [0.0, *OFFSETS]:
        result = snp_onnx.prune(shifted(kind, offset), samples, target_params=0.6, preset=preset, threads=1)
        kept = {decision.group: decision.kept for decision in result.plan.decisions}
        found.append((kept, result.report.fidelity[0].relative_l2, [g.error for g in result.report.groups]))
    assert any(kept for kept in found[0][0].values())
    for kept, error, shares in found[1:]:
        assert kept == found[0][0]
        assert error == pytest.approx(found[0][1], rel=0.02, abs=1e-3)
        assert shares == pytest.approx(found[0][2], rel=0.02, abs=1e-3)


def test_errors_are_shares_of_the_variance_and_count_a_lost_mean() -> None:
    """All but one unit gone: with a free bias no more than the variance is lost, without one the mean besides."""
    samples = {"x": np.random.default_rng(3).standard_normal((200, 10)).astype(np.float32)}
    found = {}
    for bias in (True, False):
        net = Net(batch="N", seed=4)
        x = net.Add(net.Tanh(net.dense(net.input("x", 10), 10, 32)), net.const(np.linspace(2.0, 5.0, 32)))
        net.output(net.dense(x, 32, 5, bias=bias))
        result = snp_onnx.prune(net.model(), samples, target_params=0.05, preset="fast", threads=1)
        (decision,) = result.plan.decisions
        found[bias] = decision
    assert 0.3 < (found[True].error or 0.0) < 1.01
    assert (found[False].error or 0.0) > 1.01
    for decision in found.values():
        assert (np.diff(decision.variance) >= -1e-9).all()
        assert decision.variance[-1] == pytest.approx(1.0)


def test_that_oracle_fails_where_sums_are_taken_around_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "is_far", lambda mean, variance: False)
    with pytest.raises((AssertionError, ValueError)):
        test_an_offset_changes_no_decision_and_no_fidelity("mlp", "fast")


def test_that_oracle_fails_where_the_ridge_is_relative_to_the_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_energy(self: CentredGram, rho: float, is_affine: bool = True, in_place: bool = False) -> NormalMatrix:
        normal = honest(self, rho, is_affine, in_place)
        return replace(normal, ridge=normal.ridge * (1.0 + np.square(self.mean) / self.variance.clip(1e-12)))

    honest = CentredGram.with_ridge
    monkeypatch.setattr(CentredGram, "with_ridge", with_energy)
    with pytest.raises(AssertionError):
        test_an_offset_changes_no_decision_and_no_fidelity("mlp", "fast")


# moments


def offset_model(opset: int = 17) -> onnx.ModelProto:
    """x → Identity → h, and y = h + 5000 x₀; with a mask input."""
    nodes = [onnx.helper.make_node("Identity", ["x"], ["h"]), onnx.helper.make_node("Neg", ["x"], ["y"])]
    return model_of(nodes, {"x": [None] * 4, "mask": [None, None]}, ["y"], opset)


def offset_feeds(count: int = 3, seed: int = 0) -> list[dict[str, Array]]:
    """Maps (2, 3, 6, 5) a thousand times as far from zero as they vary, a channel constant; and a mask of rows."""
    rng = np.random.default_rng(seed)
    far = np.array([1000.0, -300.0, 40.0], dtype=np.float32).reshape(1, 3, 1, 1)
    spread = np.array([1.0, 0.3, 0.0], dtype=np.float32).reshape(1, 3, 1, 1)
    return [{"x": (far + spread * rng.standard_normal((2, 3, 6, 5))).astype(np.float32)} for _ in range(count)]


def channel_rows(batches: Sequence[dict[str, Array]]) -> Array:
    return np.concatenate([np.moveaxis(b["x"].astype(np.float64), 1, -1).reshape(-1, 3) for b in batches])


def assert_covariance(moments: Moments, rows: Array, other: Array | None = None) -> None:
    """To the digits that float32 data of such a spread have, not to those of its offset."""
    expected = np.cov(rows.T, bias=True)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(moments.centred.covariance, expected, atol=2e-6 * scale)
    np.testing.assert_allclose(moments.variance, np.diag(expected), atol=2e-6 * scale)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-7, atol=1e-7 * np.sqrt(scale))
    np.testing.assert_allclose(moments.gram, rows.T @ rows / len(rows), rtol=1e-6)
    np.testing.assert_allclose(moments.energies, np.square(rows).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.block(np.array([0, 1])), expected[:2, :2], atol=2e-6 * scale)
    if other is not None:
        crossed = (rows - rows.mean(axis=0)).T @ (other - other.mean(axis=0)) / len(rows)
        np.testing.assert_allclose(
            moments.cross_covariance(other.mean(axis=0)), crossed, atol=1e-5 * np.abs(crossed).max()
        )


@pytest.mark.parametrize("opset", [9, 13, 17, 18])
def test_covariances_keep_their_digits(opset: int) -> None:
    batches = offset_feeds()
    whole = MomentRequest("h", 1, 4, cross_with="y")
    other = MomentRequest("y", 1, 4, squares=Squares.ENERGIES)
    found = collect(offset_model(opset), [whole, other], batches, CPU)
    rows = channel_rows(batches)
    assert_covariance(found[whole.key], rows, -rows)
    np.testing.assert_allclose(found[other.key].variance, rows.var(axis=0), rtol=1e-5, atol=1e-9)
    alone = collect(offset_model(opset), [whole], batches, CPU)[whole.key]  # Y keeps its offset: digits, not sense
    crossed = alone.cross_covariance(-rows.mean(axis=0))
    np.testing.assert_allclose(crossed, -np.cov(rows.T, bias=True), atol=2e-3)


def test_without_a_pilot_they_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "is_far", lambda mean, variance: False)
    batches = offset_feeds()
    request = MomentRequest("h", 1, 4)
    with pytest.raises(AssertionError):
        assert_covariance(collect(offset_model(), [request], batches, CPU)[request.key], channel_rows(batches))


@pytest.mark.parametrize(
    ("window", "lattice"),
    [
        (Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), ()),  # by displacements, were it not for the offset
        (Window((3, 2), (1, 2), (1, 1), (1, 0, 1, 1)), (2, 1)),
        (Window((2, 2), (1, 1), (1, 1), (0, 0, 0, 0)), ()),
    ],
)
def test_what_is_padded_stays_zero(window: Window, lattice: tuple[int, ...]) -> None:
    batches = offset_feeds(count=1 if lattice else 3)
    request = MomentRequest("h", 1, 4, view=View.PATCHES, window=window, lattice=lattice)
    found = collect(offset_model(), [request], batches, CPU)[request.key]
    steps = lattice or (1, 1)
    maps = [im2col(batch["x"].astype(np.float64), window)[:, :: steps[0], :: steps[1]] for batch in batches]
    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in maps])
    assert found.pilot is not None
    expected = np.cov(rows.T, bias=True)
    np.testing.assert_allclose(found.centred.covariance, expected, atol=2e-6 * np.abs(expected).max())
    inside = rows.min(axis=0) > 900.0  # taps that no border reaches keep all their digits
    np.testing.assert_allclose(found.variance[inside], rows.var(axis=0)[inside], rtol=1e-4)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-6)


def test_slots_and_masks() -> None:
    rng = np.random.default_rng(1)
    far = 1000.0 + rng.standard_normal((3, 6, 12))
    mask = rng.random((3, 6)) > 0.3
    model = model_of([onnx.helper.make_node("Identity", ["x"], ["h"])], {"x": [None, None], "mask": [None]}, ["h"])
    batches = [{"x": x.astype(np.float32), "mask": m.astype(np.int64)} for x, m in zip(far, mask, strict=True)]
    slots = tuple(tuple(range(start, 12, 4)) for start in range(4))
    request = MomentRequest("h", 1, 2, slots=slots, row_mask="mask")
    found = collect(model, [request], batches, CPU)[request.key]
    kept = np.concatenate([batch["x"][m].astype(np.float64) for batch, m in zip(batches, mask, strict=True)])
    rows = np.concatenate([kept[:, list(slot)] for slot in slots])
    assert found.count == len(rows)
    assert_covariance(found, rows)


def test_pilots_do_not_depend_on_who_runs_the_batch() -> None:
    batches, request = offset_feeds(count=5), MomentRequest("h", 1, 4)
    alone = collect(offset_model(), [request], batches, CPU)[request.key]
    with ThreadPoolExecutor(3) as executor:
        found = collect(offset_model(), [request], batches, CPU, executor)[request.key]
    with Walk(offset_model(), batches, CPU) as walk:
        walked = walk.run([request])[request.key]
    for other in (found, walked):
        np.testing.assert_array_equal(other.gram_sum, alone.gram_sum)
        assert other.pilot is not None
        assert alone.pilot is not None
        np.testing.assert_array_equal(other.pilot.own, alone.pilot.own)


@pytest.mark.parametrize("is_far", [True, False])
def test_the_first_batch_runs_once_more_only_where_a_mean_is_far_off(
    is_far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [batch if is_far else {"x": batch["x"] % 1} for batch in offset_feeds(count=4)]
    read, ran, heard, kept = list[int](), list[int](), list[int](), list[int]()
    honest = runner.answers

    def counted(*args: Any) -> Iterator[Any]:
        for found in honest(*args):
            ran.append(1)
            yield found

    def source() -> Iterator[dict[str, Array]]:
        for number, batch in enumerate(batches):
            read.append(number)
            yield batch

    monkeypatch.setattr(runner, "answers", counted)
    request = MomentRequest("h", 1, 4)
    more: dict[str, Any] = {"keep": ["y"], "kept": lambda index, _: kept.append(index)}
    collect(offset_model(), [request], source(), CPU, progress=heard.append, **more)
    assert len(ran) == (5 if is_far else 4)
    assert read == kept == [0, 1, 2, 3]
    assert heard == [0, 1, 2, 3, 4]


def test_moments_around_different_pilots_add_up() -> None:
    first, second = offset_feeds(seed=1), [{"x": b["x"] - 70.0} for b in offset_feeds(seed=2)]
    request = MomentRequest("h", 1, 4)
    parts = [collect(offset_model(), [request], batches, CPU)[request.key] for batches in (first, second)]
    both = parts[0] + parts[1]
    rows = channel_rows([*first, *second])
    assert both.count == len(rows)
    assert_covariance(both, rows)
    energies = MomentRequest("h", 1, 4, squares=Squares.ENERGIES)
    part = collect(offset_model(), [energies], first, CPU)[energies.key]
    with pytest.raises(snp_onnx.PlanError, match="around a pilot"):
        _ = part + part
