"""Falling back where folding or refitting harms the samples held back, and the least model above a fidelity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.special import log_softmax

import snp_onnx
from snp_onnx import PlanError, PruneResult, TargetError
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.planning.folding import Folding
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Part, Preprocess, open_samples
from snp_onnx.verbs import carry_out
from snp_onnx.verbs.fidelity import Fidelity, fidelity_between, worst
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.output_sums import log_classes
from snp_onnx.verbs.result import Stopwatch
from snp_onnx.verbs.settle import Errors, errors_of, first_harmless, held_back_fidelity, mean_error, trial_error
from tests.command_line import DIGITS, DIGITS_DATA, Bench, call
from tests.graphs import Net


def digits(**options: Any) -> PruneResult:
    return snp_onnx.prune(
        DIGITS, DIGITS_DATA, input_array="images", scale=1 / 16, samples=300, threads=1, **{"latency": False, **options}
    )


def weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: tensor.raw_data for tensor in model.graph.initializer}


# falling back


@pytest.fixture
def spoiled_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding that turns the signs of the weights it writes."""
    honest = carry_out.fold

    def spoiled(*arguments: Any) -> Folding:
        found = honest(*arguments)
        return replace(found, values={name: -values for name, values in found.values.items()})

    monkeypatch.setattr(carry_out, "fold", spoiled)


@pytest.fixture
def spoiled_refit(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = carry_out.refit_layers
    monkeypatch.setattr(
        carry_out, "refit_layers", lambda *given: {name: -values for name, values in honest(*given).items()}
    )


@pytest.mark.usefixtures("spoiled_fold")
def test_a_fold_that_harms_is_left_out_and_said(tmp_path: Path) -> None:
    result = digits(preset="paper", target_macs=0.6)
    (warning,) = [line for line in result.report.warnings if "set apart for choosing" in line]
    assert warning.startswith("without fold:")
    bare = digits(preset="paper", target_macs=0.6, fold="none")
    assert weights(result.model) == weights(bare.model)
    assert result.report.fidelity == bare.report.fidelity
    assert (result.plan.options["fold"], result.folds) == ("none", {})
    result.save_plan(tmp_path / "plan.json")
    again = snp_onnx.prune(DIGITS, plan=tmp_path / "plan.json")
    assert weights(again.model) == weights(result.model)
    assert again.report.warnings == ()


@pytest.mark.usefixtures("spoiled_refit")
def test_a_refit_that_harms_is_left_out_and_said() -> None:
    result = digits(target_macs=0.6)
    (warning,) = [line for line in result.report.warnings if "set apart for choosing" in line]
    assert warning.startswith("without refit:")
    folded = digits(target_macs=0.6, refine="none")
    assert weights(result.model) == weights(folded.model)
    assert (result.plan.options["fold"], result.plan.options["refine"]) == ("patch", "none")
    assert result.report.pruned.bytes == len(result.model.SerializeToString())


def test_what_helps_stays() -> None:
    result = digits(target_macs=0.6)
    assert result.report.warnings == ()
    assert result.plan.options["refine"] == "sequential"
    worse = digits(target_macs=0.6, refine="none").report.fidelity[0].relative_l2
    assert result.report.fidelity[0].relative_l2 < worse


@pytest.mark.usefixtures("spoiled_fold")
def test_without_a_fallback_what_harms_stays(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    stubborn = digits(preset="paper", target_macs=0.6, fallback=False)
    assert not any("set apart for choosing" in line for line in stubborn.report.warnings)
    assert stubborn.plan.options["fold"] == "channel"
    careful = digits(preset="paper", target_macs=0.6)
    assert stubborn.report.fidelity[0].error > careful.report.fidelity[0].error
    for flags, fold in (((), "none"), (("--no-fallback",), "channel"), (("--fallback",), "none")):
        plan = here.folder / f"plan{''.join(flags)}.json"
        assert here.prune(capsys, "--preset", "paper", "--plan", plan, *flags).code == 0
        assert json.loads(plan.read_text())["options"]["fold"] == fold


def noisy(count: int, *means: float, spread: float = 0.3, seed: int = 0) -> Errors:
    """Errors of several ways on the same samples, which differ more than the ways do."""
    rng = np.random.default_rng(seed)
    shared = rng.lognormal(0.0, 0.5, count)
    return np.stack([mean * shared * rng.lognormal(0.0, spread, count) for mean in means])


@pytest.mark.parametrize("seed", range(5))
def test_few_noisy_samples_keep_what_was_asked_for_and_many_take_the_better(seed: int) -> None:
    assert first_harmless(noisy(4, 1.1, 1.0, spread=0.1, seed=seed)) == 0
    assert first_harmless(noisy(400, 1.2, 1.0, seed=seed)) == 1
    assert first_harmless(noisy(400, 1.0, 1.2, seed=seed)) == 0
    assert first_harmless(noisy(400, 1.5, 1.2, 1.0, seed=seed)) == 2
    assert first_harmless(noisy(400, 1.5, 1.0, 1.2, seed=seed)) == 1


def test_errors_that_are_alike_keep_what_was_asked_for() -> None:
    assert first_harmless(np.stack([np.full(10_000, 1.01), np.ones(10_000)])) == 0
    assert first_harmless(np.stack([np.full(10_000, 1.03), np.ones(10_000)])) == 1
    assert first_harmless(np.zeros((3, 8))) == 0
    assert first_harmless(np.zeros((3, 0))) == 0


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_worse_than_anything_that_is() -> None:
    broken = noisy(6, 1.0)[0].copy()
    broken[2] = np.inf
    fine = np.full(6, 1e6)
    assert first_harmless(np.stack([broken, fine])) == 1
    assert first_harmless(np.stack([fine, broken])) == 0
    assert first_harmless(np.stack([broken, broken, fine])) == 2
    assert first_harmless(np.stack([broken, broken])) == 0


def saturated(gain: float, spoiled: float = 0.0) -> onnx.ModelProto:
    """Classes whose logits lie far apart, and a probability near 1; `spoiled` is added to the smallest logits."""
    net = Net(batch="N")
    x = net.input("x", 6)
    logits = net.Add(net.Mul(net.dense(x, 6, 3), net.const(gain)), net.const([600.0, spoiled, -600.0]))
    net.output(net.Softmax(logits), net.Sigmoid(net.Add(net.dense(x, 6, 1), net.const(60.0))))
    return net.model()


@pytest.mark.filterwarnings("error")
def test_errors_are_looked_at_in_front_of_what_saturates() -> None:
    dense = saturated(1.0)
    x = np.random.default_rng(0).standard_normal((120, 6)).astype(np.float32)
    with open_samples({"x": x}, input_specs(dense), Preprocess()) as samples:
        calibration = Calibration(samples, 7, Runtime(threads=1), Stopwatch(), lambda *_: None)
        others = [saturated(1.0), saturated(1.1), saturated(0.0), saturated(np.nan)]
        assert all(entry.agreement in (1.0, None) for entry in held_back_fidelity(dense, others[2], calibration))
        found = errors_of(dense, others, calibration, calibration.batches(Part.CALIBRATION))
        rows = np.concatenate([feed["x"] for feed in calibration.batches(Part.CALIBRATION)])
    assert found.shape == (4, len(rows))
    w, b = (numpy_helper.to_array(t) for t in dense.graph.initializer[:2])
    logits = rows.astype(np.float64) @ w.T + b
    variation = np.square(logits - logits.mean(axis=0)).sum(axis=1).mean()
    assert found[0].max() == 0.0
    for way, off in ((1, 0.1), (2, 1.0)):  # the mean of two outputs, of which the probability is exact
        np.testing.assert_allclose(found[way], off**2 * np.square(logits).sum(axis=1) / variation / 2, rtol=1e-2)
    assert np.isinf(found[3]).all()
    assert first_harmless(found[[1, 0]]) == 1


# the least model above a fidelity


def held_where_chosen(model: onnx.ModelProto) -> float:
    """R² of the worst class on the samples that choose."""
    dense = onnx.load(DIGITS)
    with open_samples(DIGITS_DATA, input_specs(dense), Preprocess(input_array="images", scale=1 / 16), 300) as samples:
        return worst(fidelity_between(dense, model, samples, 16, Runtime(threads=1), Part.CHOOSING))


@pytest.mark.parametrize(("preset", "bounds"), [("fast", (0.8, 0.95)), ("best", (0.95,))])
def test_the_bound_holds_closely(preset: str, bounds: tuple[float, ...]) -> None:
    results = [digits(preset=preset, min_fidelity=bound) for bound in bounds]
    macs = [result.report.pruned.macs for result in results]
    for bound, result in zip(bounds, results, strict=True):
        assert held_where_chosen(result.model) >= bound
        assert result.report.fidelity[0].held >= bound - 0.03  # other samples than those that chose
        assert result.report.target == {"kind": "fidelity", "value": bound}
    assert macs == sorted(set(macs))
    assert macs[-1] < 0.9 * results[0].report.dense.macs
    # one tenth of the MACs less is too little
    share = 0.9 * macs[-1] / results[-1].report.dense.macs
    assert held_where_chosen(digits(preset=preset, target_macs=share).model) < bounds[-1]


def test_calibration_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from snp_onnx.verbs import job as verb

    calls: list[int] = []
    honest = verb.measure
    monkeypatch.setattr(verb, "measure", lambda *given: (calls.append(1), honest(*given))[1])
    digits(preset="fast", min_fidelity=0.95)
    assert calls == [1]


def test_a_bound_that_nothing_meets_is_a_missed_target(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TargetError, match="--min-fidelity 1"):
        digits(preset="fast", min_fidelity=1.0)
    outcome = call(capsys, "prune", here.model, here.folder / "o.onnx", "--calibration", here.data, "--min-fidelity", 1)
    assert outcome.code == 3
    assert not (here.folder / "o.onnx").exists()


def test_a_bound_is_a_target_like_the_others() -> None:
    with pytest.raises(PlanError, match="2 targets given"):
        digits(min_fidelity=0.9, target_macs=0.5)
    with pytest.raises(PlanError, match=r"--min-fidelity 1\.5"):
        digits(min_fidelity=1.5)
    with pytest.raises(PlanError, match=r"--repair -1\.0:"):
        digits(target_macs=0.5, repair=-1.0)


def test_worst_and_mean_are_over_outputs() -> None:
    entries = [
        Fidelity(name, 9, 1.0, 0.0, error=e, mean_error=m) for name, e, m in (("a", 0.1, 0.05), ("b", 0.5, 0.25))
    ]
    assert (mean_error(entries), worst(entries)) == (pytest.approx(0.15), 0.5)
    broken = [*entries, Fidelity("c", 9, 1.0, 0.0, error=np.inf, mean_error=np.inf)]
    assert (mean_error(broken), worst(broken)) == (np.inf, -np.inf)
    unknown = [*entries, Fidelity("c", 1, 1.0, 0.0)]
    assert worst(unknown) == -np.inf  # one sample doesn't tell: no bound is held
    assert (mean_error([]), worst([])) == (np.inf, -np.inf)
    words = Fidelity("d", 9, 1.0, 0.0, agreement=0.75, decision="equal entries")
    assert worst([words]) == 0.75
    apart = Fidelity("e", 9, np.nan, np.nan, compared=0.0)
    assert worst([*entries, apart]) == 0.5  # its size depends on the data


def test_a_trial_is_judged_on_all_samples_it_did_without() -> None:
    """Every second batch decides: the others and those that choose judge, by the divergence of the classes."""
    model = digits(target_macs=0.6, preset="fast").model
    dense = onnx.load(DIGITS)
    with open_samples(DIGITS_DATA, input_specs(dense), Preprocess(input_array="images", scale=1 / 16), 300) as samples:
        whole = Calibration(samples, 10, Runtime(threads=1), Stopwatch(), lambda *_: None)
        trial = replace(whole, every=2)
        used, unused = (sum(len(next(iter(b.values()))) for b in batches) for batches in _both(trial))
        assert used + unused == samples.count - samples.part_count(Part.HELD_OUT)
        assert sum(len(next(iter(b.values()))) for b in whole.unused()) == samples.part_count(Part.CHOOSING)
        (name,) = (value.name for value in dense.graph.output)
        runs = [[run(open_session(m, Runtime()), b)[name] for b in trial.unused()] for m in (dense, model)]
        p, q = (log_softmax(np.concatenate(outputs).astype(np.float64), axis=1) for outputs in runs)
        wanted = float((np.exp(p) * (p - q)).sum(axis=1).mean())
        assert trial_error(dense, model, trial) == pytest.approx(wanted, rel=1e-4)
        assert trial_error(dense, dense, trial) == pytest.approx(0.0, abs=1e-9)


def _both(calibration: Calibration) -> tuple[Any, Any]:
    return calibration.batches(Part.CALIBRATION), calibration.unused()


def test_classes_that_are_probabilities_stay_what_they_are() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(np.exp(log_classes(probabilities)), probabilities, atol=1e-9)
    np.testing.assert_allclose(log_classes(np.log(probabilities[:1]) + 3.0), np.log(probabilities[:1]))
