"""Blocks removed by `prune`: in order of similarity, with refits between, alone or jointly with widths."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx import PlanError, TargetError
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.passes import EliminateDead, prepare, rewrite
from snp_onnx.planning.detours import detour
from snp_onnx.planning.options import choices
from snp_onnx.planning.plan import BlockDecision, Plan, save_plan
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Preprocess, open_samples
from snp_onnx.tracing import find_blocks
from snp_onnx.tracing.flow import Flow
from snp_onnx.verbs import depth as depth_module
from snp_onnx.verbs.clocked import block_times
from snp_onnx.verbs.depth import Descent
from snp_onnx.verbs.fidelity import Fidelity
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.result import Stopwatch
from snp_onnx.verbs.subject import load_subject, trace_at
from tests.command_line import call
from tests.graphs import Net, feed_for
from tests.oracles import difference, run, traced

Array = npt.NDArray[Any]
BLOCKS, CHANNELS = 4, 6


def network(stages: int = 2, seed: int = 0, quiet: bool = False) -> onnx.ModelProto:
    """Stages of equal residual blocks, the later ones of each writing less and less; `quiet`: next to nothing."""
    net = Net(batch="N", seed=seed)
    x = net.conv_relu(net.image(3), 3, CHANNELS)
    for stage in range(stages):
        if stage:
            x = net.conv_relu(x, CHANNELS, CHANNELS)
        for place in range(BLOCKS):
            inner = net.conv(net.conv_relu(x, CHANNELS, CHANNELS), CHANNELS, CHANNELS)
            scale = net.const(np.float32(0.01 if quiet and place else 0.5 / (1 + place)))
            x = net.Relu(net.Add(net.Mul(inner, scale), x))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), CHANNELS, 4))
    return net.model()


def images(count: int = 80, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((count, 3, 8, 8)).astype(np.float32)}


def operators(model: onnx.ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


def error(dense: onnx.ModelProto, pruned: onnx.ModelProto, seed: int = 7) -> float:
    """Relative error of the outputs on inputs that nothing was decided on."""
    before, after = (run(model, images(200, seed))[0] for model in (dense, pruned))
    return float(np.linalg.norm(before - after) / np.linalg.norm(before))


def test_blocks_go_until_the_target_is_met() -> None:
    dense = network()
    result = snp_onnx.prune(dense, images(), target_macs=0.6, units=["blocks"])
    report = result.report
    assert report.pruned.macs <= 0.6 * report.dense.macs
    left = [block.macs for block in report.removed]
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(report.pruned.macs / report.dense.macs)
    assert left[-2] > 0.6, "no more went than had to"
    assert operators(result.model, "Add") == 2 * BLOCKS - len(left)
    assert operators(result.model, "Identity") == 0
    assert [d.block for d in result.plan.removed] == [block.block for block in report.removed]
    assert all(block.similarity is not None and 0 < block.similarity <= 1.0 for block in report.removed)
    onnx.checker.check_model(result.model, full_check=True)
    again = snp_onnx.prune(dense, images(), target_macs=0.6, units=["blocks"])
    assert again.model.SerializeToString() == result.model.SerializeToString()


def test_refits_repair_what_removal_breaks() -> None:
    dense = network()
    plain = snp_onnx.prune(dense, images(), target_macs=0.7, units=["blocks"], refine="none")
    repaired = snp_onnx.prune(dense, images(), target_macs=0.7, units=["blocks"])
    assert plain.folds == {}
    assert error(dense, repaired.model) < 0.6 * error(dense, plain.model)


def test_layers_before_a_gap_aim_behind_it() -> None:
    """The sum before a removed block is to be the one behind the last of those removed in a row."""
    model = prepare(network(stages=1)).model
    flow = Flow(model, traced(model, feed_for(model, 2)))
    blocks = find_blocks(model, flow)
    sums = [node.output[0] for node in model.graph.node if node.op_type == "Add"]
    found = detour(flow, blocks[1:3])
    assert found.totals == {sums[0]: sums[2], sums[1]: sums[2]}
    assert found.moved == {block.output for block in blocks[1:3]}
    assert detour(flow, []).totals == {}


@pytest.mark.parametrize("score", ["cka", "debiased-cka", "cosine", "euclidean", "magnitude", "random"])
def test_every_score_ranks(score: str) -> None:
    result = snp_onnx.prune(
        network(), images(60), target_macs=0.8, units=["blocks"], similarity=score, refine="none", ranking_samples=32
    )
    assert result.report.removed
    known = [block.similarity is not None for block in result.report.removed]
    assert all(known) == (score not in ("magnitude", "random"))
    assert result.plan.options["similarity"] == score


def test_the_most_alike_goes_first() -> None:
    """Of blocks of one size the last of a stage writes least: it goes before the first."""
    result = snp_onnx.prune(network(stages=1), images(), target_macs=0.75, units=["blocks"], refine="none")
    dense = network(stages=1)
    adds = [node.name for node in prepare(dense).model.graph.node if node.op_type == "Add"]
    assert adds[0] not in {block.block for block in result.report.removed}


@pytest.mark.parametrize("least", [0, 1, 3])
def test_every_stage_keeps_blocks(least: int) -> None:
    """What is left when no more may go: each block holds the same share of the MACs."""
    model = network()
    share = snp_onnx.inspect(model).blocks[0].macs_share
    left = 1.0 - share * 2 * (BLOCKS - least)
    with pytest.raises(TargetError, match=f"{left:.3f} is left with {least} of every stage"):
        snp_onnx.prune(model, images(40), target_macs=0.001, units=["blocks"], refine="none", min_blocks=least)


def test_a_fidelity_is_kept() -> None:
    dense = network()
    result = snp_onnx.prune(dense, images(), min_fidelity=0.5, units=["blocks"])
    assert result.report.removed
    found: Fidelity = result.report.fidelity[0]
    assert found.held >= 0.3  # other samples than those that chose
    with pytest.raises(TargetError, match="min-fidelity"):
        snp_onnx.prune(dense, images(), min_fidelity=1.0, units=["blocks"])


def test_a_plan_carries_blocks(tmp_path: Path) -> None:
    dense = network(quiet=True)
    result = snp_onnx.prune(dense, images(), target_macs=0.6, units=["channels", "blocks"])
    assert result.plan.removed
    save_plan(result.plan, tmp_path / "plan.json", result.folds, result.bases)
    again = snp_onnx.prune(dense, plan=tmp_path / "plan.json")
    assert difference(run(result.model, images(8)), run(again.model, images(8))) < 1e-5
    anew = snp_onnx.prune(dense, images(), plan=tmp_path / "plan.json")
    assert difference(run(result.model, images(8)), run(anew.model, images(8))) < 1e-3
    (tmp_path / "plan.npz").unlink()
    bare = snp_onnx.prune(dense, plan=tmp_path / "plan.json")
    assert any("without folding" in warning for warning in bare.report.warnings)
    blocks = snp_onnx.prune(dense, images(), target_macs=0.8, units=["blocks"])
    assert snp_onnx.prune(dense, plan=blocks.plan).report.warnings
    assert not snp_onnx.prune(dense, plan=replace(blocks.plan, options={"refine": "none"})).report.warnings
    assert Plan.from_json(result.plan.to_json()) == result.plan
    assert [d.block for d in result.plan.removed] == json.loads(result.plan.summary())["blocks"]
    (words,) = (entry.value for entry in blocks.model.metadata_props if entry.key == "snp_onnx.summary")
    costs = blocks.report.pruned, blocks.report.dense
    assert words.startswith(f"{100 * costs[0].macs / costs[1].macs:.1f} % of the MACs, ")
    assert words.endswith(f" 2 blocks removed, 0 of {len(blocks.report.groups)} groups cut")


def test_a_plan_of_another_model_is_refused() -> None:
    plan = snp_onnx.prune(network(), images(), target_macs=0.8, units=["blocks"], refine="none").plan
    wrong = replace(plan, removed=(BlockDecision("nowhere", "residual", None, 0.9),))
    with pytest.raises(PlanError, match="nowhere"):
        snp_onnx.prune(network(), plan=wrong)
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(plan.to_json().replace('"block":', '"blok":'))


def test_widths_and_depth_share_a_budget() -> None:
    dense = network(quiet=True)
    joint = snp_onnx.prune(dense, images(), target_macs=0.25, units=["channels", "blocks"])
    report = joint.report
    assert report.pruned.macs <= 0.25 * report.dense.macs
    assert report.removed
    assert any(group.after < group.before for group in report.groups)
    narrow = snp_onnx.prune(dense, images(), target_macs=0.25, units=["channels"])
    assert error(dense, joint.model) < error(dense, narrow.model)
    onnx.checker.check_model(joint.model, full_check=True)


def test_without_blocks_widths_are_as_ever() -> None:
    """A network without removable blocks gives with blocks what it gives without."""
    net = Net(batch="N")
    x = net.conv_relu(net.conv_relu(net.image(3), 3, 12), 12, 12)
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 12, 4))
    one = snp_onnx.prune(net.model(), images(), target_macs=0.6, units=["channels", "blocks"])
    other = snp_onnx.prune(net.model(), images(), target_macs=0.6, units=["channels"])
    assert difference(run(one.model, images(8)), run(other.model, images(8))) == 0.0
    with pytest.raises(TargetError, match="can't be reached"):
        snp_onnx.prune(net.model(), images(), target_macs=0.6, units=["blocks"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": ["blocks", "stream"], "target_macs": 0.5}, "run again for stream"),
        ({"units": ["blocks", "head-dims"], "target_macs": 0.5}, "run again for head-dims"),
        ({"units": ["blocks"], "target_size": 0.5}, "--target-macs or --target-params"),
        ({"units": ["blocks", "channels"], "min_fidelity": 0.9}, "--min-fidelity"),
        ({"units": ["blocks"], "target_macs": 0.5, "similarity": "taste"}, "--similarity"),
        ({"units": ["blocks"], "target_macs": 0.5, "min_blocks": -1}, "--min-blocks"),
        ({"units": ["blocks"], "target_macs": 0.5, "ranking_samples": 2}, "--ranking-samples"),
        ({"units": ["blocks"], "target_macs": 0.5, "representation": "nothing"}, "nothing"),
    ],
)
def test_what_does_not_go_is_said(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        snp_onnx.prune(network(), images(40), **options)


def test_params_count_too() -> None:
    result = snp_onnx.prune(network(), images(60), target_params=0.7, units=["blocks"], refine="none")
    assert result.report.pruned.params <= 0.7 * result.report.dense.params


@pytest.mark.parametrize(
    "name", [pytest.param("llama", marks=pytest.mark.slow), "bert", pytest.param("deit-tiny", marks=pytest.mark.slow)]
)
def test_transformers_lose_branches(name: str) -> None:
    pytest.importorskip("torch")
    from tests.transformers import Case, exported

    case = Case(name, "ts", "dynamic")
    dense = onnx.ModelProto.FromString(exported(case))
    data = case.feed(rows=24)
    alone = snp_onnx.prune(dense, data, target_macs=0.8, units=["blocks"])
    assert alone.report.removed
    kinds = {block.kind for block in alone.report.removed}
    assert kinds <= {"attention", "feed-forward", "layer"}
    joint = snp_onnx.prune(dense, data, target_macs=0.6, units=["channels", "heads", "blocks"])
    assert joint.report.pruned.macs <= 0.6 * joint.report.dense.macs
    assert alone.architecture is not None
    assert alone.architecture["removed_blocks"] == [block.block for block in alone.report.removed]
    for model in (alone.model, joint.model):
        onnx.checker.check_model(model, full_check=True)
        assert all(np.isfinite(output).all() for output in run(model, case.other_feed))


def test_dead_weights_of_blocks_are_gone() -> None:
    dense = network()
    result = snp_onnx.prune(dense, images(60), target_macs=0.7, units=["blocks"], refine="none")
    read = {name for node in result.model.graph.node for name in node.input}
    assert {tensor.name for tensor in result.model.graph.initializer} <= read
    sizes = {t.name: numpy_helper.to_array(t).size for t in result.model.graph.initializer}
    assert rewrite(result.model, [EliminateDead()]).model.ByteSize() == result.model.ByteSize()
    assert sum(sizes.values()) < 0.75 * sum(numpy_helper.to_array(t).size for t in dense.graph.initializer)


def test_a_measured_latency_is_a_target() -> None:
    """Convolutions large enough to be timed: the result takes about the time that was asked for."""
    net = Net(batch="N", seed=3)
    x = net.conv_relu(net.input("x", 3, 32, 32), 3, 48)
    for _ in range(4):
        x = net.Relu(net.Add(net.conv(net.conv_relu(x, 48, 48), 48, 48), x))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 48, 4))
    data = {"x": np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)}
    options: dict[str, Any] = {"target_latency": 0.7, "preset": "fast", "threads": 1}
    for units in (["channels"], ["blocks"]):
        result = snp_onnx.prune(net.model(), data, units=units, **options)
        assert result.report.latency[0].undisturbed < 0.8
        assert 0.3 < result.report.pruned.macs / result.report.dense.macs < 0.95
    with pytest.raises(TargetError, match="target-latency"):
        snp_onnx.prune(net.model(), data, units=["channels"], **{**options, "target_latency": 0.001})


def test_the_command_line_takes_every_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks with all their options, to a latency, with caches allowed to go where there are none."""
    onnx.save(network(), tmp_path / "dense.onnx")
    np.savez(tmp_path / "data.npz", **images(40))
    words = ["prune", str(tmp_path / "dense.onnx"), str(tmp_path / "small.onnx")]
    words += ["--calibration", str(tmp_path / "data.npz"), "--units", "blocks", "--refine", "none"]
    words += ["--target-latency", "0.95", "--latency-batch", "4", "--caches", "--report", str(tmp_path / "r.json")]
    words += ["--similarity", "cosine", "--ranking-samples", "16", "--min-blocks", "1"]
    dense = prepare(network()).model
    last = next(node.output[0] for node in dense.graph.node if node.op_type == "Flatten")
    found = call(capsys, *words, "--representation", last)
    assert found.code == 0, found.err
    assert "blocks removed, in order" in found.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["options"]["representation"] == last
    assert report["options"]["caches"] is True
    assert [entry["batch"] for entry in report["latency"]] == [1, 4]
    assert report["removed"][0]["similarity"] > 0.5


def test_blocks_count_for_the_time_they_take() -> None:
    """By the times of their layers, whatever batch the model was traced with."""
    net = Net(batch="N", seed=5)
    x = net.conv_relu(net.input("x", 3, 32, 32), 3, 16)
    for inner in (16, 64):
        for _ in range(2):
            branch = net.conv(net.conv_relu(x, 16, inner), inner, 16)
            x = net.Relu(net.Add(net.Mul(branch, net.const(np.float32(0.1))), x))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 16, 4))
    model = prepare(net.model()).model
    data = {"x": np.random.default_rng(0).standard_normal((24, 3, 32, 32)).astype(np.float32)}
    found = traced(model, {"x": data["x"][:1]})
    blocks = find_blocks(model, Flow(model, found))
    with open_samples(data, input_specs(model), Preprocess()) as samples:
        calibration = Calibration(samples, 8, Runtime(threads=1), Stopwatch(), lambda *_: None)
        subject = load_subject(model)
        whole = trace_at(subject[0], subject[1], subject[2], {"x": (1, 3, 32, 32)}, calibration.runtime)
        times = block_times(whole, blocks, calibration, 2)
    assert len(times) == 4
    thin, wide = (sorted(times[block.name] for block in blocks[start : start + 2]) for start in (0, 2))
    assert 0.0 < thin[-1] < wide[0]


def test_the_slowest_of_equals_goes_first_where_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks save the same MACs; which goes follows the times as soon as the descent is clocked."""
    dense, prepared, notes = load_subject(network())
    data = images(40)
    with open_samples(data, input_specs(dense.proto), Preprocess()) as samples:
        calibration = Calibration(samples, 8, Runtime(threads=1), Stopwatch(), lambda *_: None)
        whole = trace_at(dense, prepared, notes, {"x": (1, 3, 8, 8)}, calibration.runtime)
        blocks = [block.name for block in find_blocks(prepared, whole.flow) if block.is_removable]
        plain = Descent(whole, choices(kinds=["blocks"]), calibration.runtime, calibration)
        by_macs = next(plain.steps()).depth
        assert by_macs is not None
        for slow in blocks[:2]:
            times = {name: 1e9 if name == slow else 1.0 for name in blocks}
            monkeypatch.setattr(depth_module, "block_times", lambda *_, times=times: times)
            clocked = next(replace(plain, is_clocked=True).steps()).depth
            assert clocked is not None
            assert clocked.decisions[0].block == slow
        assert next(plain.steps()).depth.decisions == by_macs.decisions  # type: ignore[union-attr]
