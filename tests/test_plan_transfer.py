"""Plans on other models: trained anew, exported with other names, or of another structure, which is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.planning.plan import Plan
from snp_onnx.verbs.result import Report
from tests import command_line
from tests.command_line import DIGITS, DIGITS_DATA, bench, call
from tests.graphs import Net
from tests.oracles import difference, run
from tests.plans import CASES, pruned, renumbered

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHARED = Path(os.environ.get("SNP_ONNX_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared"))


def widths(report: Report) -> list[int]:
    return [group.after for group in report.groups]


def few(case: str) -> dict[str, Any]:
    return {name: array[:8] for name, array in CASES[case].data().items()}


# other names


@pytest.mark.parametrize("name", [name for name in CASES if name != "latency"])
def test_groups_are_found_by_their_places_where_names_differ(name: str) -> None:
    case, result = CASES[name], pruned(name)
    model = renumbered(case.model())
    again = snp_onnx.prune(model, case.data(), plan=result.plan)
    assert difference(run(result.model, few(name)), run(again.model, few(name))) < 1e-4
    assert any("matched by their order" in note for note in again.report.notes)
    assert {decision.group[:8] for decision in again.plan.decisions} == {"onnx::W_"}
    kept = [(decision.before, decision.kept) for decision in again.plan.decisions]
    assert kept == [(decision.before, decision.kept) for decision in result.plan.decisions]


@pytest.mark.parametrize("name", ["channels", "heads"])
def test_numbers_that_mean_other_layers_here_are_not_taken_for_names(name: str) -> None:
    """One node more in front and every number names the layer behind: of the same width, it would fit."""
    case = CASES[name]
    result = snp_onnx.prune(renumbered(case.model()), case.data(), **case.options())
    again = snp_onnx.prune(renumbered(case.model(), 102), case.data(), plan=result.plan)
    assert difference(run(result.model, few(name)), run(again.model, few(name))) < 1e-4


def test_the_plan_is_this_model_s_then(tmp_path: Path) -> None:
    """Saved with its folds it is carried out on this model again, without samples and without a word."""
    case = CASES["blocks"]
    model = renumbered(case.model(seed=3))
    again = snp_onnx.prune(model, case.data(), plan=pruned("blocks").plan)
    again.save_plan(tmp_path / "plan.json")
    third = snp_onnx.prune(model, plan=tmp_path / "plan.json")
    assert third.report.warnings == ()
    assert not any("plan" in note for note in third.report.notes)
    assert difference(run(again.model, few("blocks")), run(third.model, few("blocks"))) < 1e-5


# trained anew


@pytest.mark.parametrize("name", [name for name in CASES if name != "latency"])
def test_a_plan_is_carried_out_on_other_weights(name: str) -> None:
    """The widths are the plan's, folds and bases are measured anew: nearer to this model than a cut alone."""
    case, plan = CASES[name], pruned(name).plan
    model = case.model(seed=9)
    again = snp_onnx.prune(model, case.data(), plan=plan)
    assert widths(again.report) == widths(pruned(name).report)
    assert any("kept by number" in note for note in again.report.notes)
    assert again.plan.dense_sha256 != plan.dense_sha256
    if name in ("head-dims", "stream"):
        assert any(not np.array_equal(again.bases[k], v) for k, v in pruned(name).bases.items())
        with pytest.raises(PlanError, match=r"bases|sidecar"):
            snp_onnx.prune(model, plan=plan)
        return
    bare = snp_onnx.prune(model, plan=plan)
    assert any("without folding" in warning for warning in bare.report.warnings)
    assert widths(bare.report) == widths(again.report)
    dense = run(model, few(name))
    assert difference(dense, run(again.model, few(name))) < difference(dense, run(bare.model, few(name)))


def test_widths_alone_choose_units_anew() -> None:
    """The units of another network are arbitrary here: chosen by this one's statistics, they lose less."""
    case, plan = CASES["channels"], pruned("channels").plan
    model = case.model(seed=9)
    planned = snp_onnx.prune(model, case.data(), plan=plan)
    chosen = snp_onnx.prune(model, case.data(), plan=plan, plan_widths=True)
    own = snp_onnx.prune(model, case.data(), **case.options())
    assert [d.after for d in chosen.plan.decisions] == [d.after for d in plan.decisions]
    assert [d.kept for d in chosen.plan.decisions] != [d.kept for d in plan.decisions]
    paths = {d.group: d.order for d in own.plan.decisions}
    assert all(d.order == paths[d.group] for d in chosen.plan.decisions)
    dense = run(model, few("channels"))
    lost = [difference(dense, run(result.model, few("channels"))) for result in (planned, chosen)]
    assert lost[1] < lost[0]
    assert not any("kept by number" in note for note in chosen.report.notes)


def test_a_network_trained_from_another_start_keeps_its_accuracy() -> None:
    """Digits, in another order of channels: the units of the plan are others here, the widths are as good."""
    with np.load(DIGITS_DATA) as arrays:
        images = {"input": arrays["images"][:120]}
        tests = {"input": arrays["test_images"][:300], "labels": arrays["test_labels"][:300]}
    plan = snp_onnx.prune(DIGITS, images, target_macs=0.2, preset="fast", scale=1 / 16).plan
    model = shuffled(onnx.load(DIGITS))

    def top1(**how: Any) -> float:
        result = snp_onnx.prune(model, images, plan=plan, preset="fast", scale=1 / 16, **how)
        found = snp_onnx.compare(model, result.model, tests, label_array="labels", scale=1 / 16).fidelity[0]
        assert found.pruned_accuracy is not None
        return found.pruned_accuracy

    assert top1(plan_widths=True) > top1() + 0.02


def shuffled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with the channels inside every block in another order."""
    rng = np.random.default_rng(1)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    for group in snp_onnx.inspect(model).groups:
        if group.is_stream:
            continue
        name = group.id.rpartition(":")[0]
        first = next(place for place, node in enumerate(convolutions) if node.input[1] == name)
        order = rng.permutation(group.before)
        behind = next(
            node
            for node in model.graph.node
            if node.op_type == "BatchNormalization" and node.input[0] == convolutions[first].output[0]
        )
        for tensor in (name, *behind.input[1:5]):
            arrays[tensor] = arrays[tensor][order]
        reader = convolutions[first + 1].input[1]
        arrays[reader] = arrays[reader][:, order]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(arrays[tensor.name]), tensor.name))
    return model


# refusals


def wider() -> onnx.ModelProto:
    net = Net(batch="N")
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 7)
    net.output(net.conv(x, 7, 4))
    return renumbered(net.model())


def deeper() -> onnx.ModelProto:
    net = Net(batch="N")
    x = net.conv_relu(net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6), 6, 6)
    net.output(net.conv(x, 6, 4))
    return renumbered(net.model())


def forked() -> onnx.ModelProto:
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, 8)
    y = net.Add(net.conv(x, 8, 6), net.conv(x, 8, 6))
    net.output(net.conv(net.Relu(y), 6, 4))
    return renumbered(net.model())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (wider, "group 2 is w2:0 (6 channels, made by 1, 1 layer reads them), here it is onnx::W_102:0 (7 channels"),
        (deeper, "the plan's model has 2 groups, this has 3"),
        (forked, "2 layers read them"),
    ],
)
def test_another_structure_is_refused(model: Any, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        snp_onnx.prune(model(), CASES["channels"].data(), plan=pruned("channels").plan)
    assert said in str(caught.value)


def towers() -> onnx.ModelProto:
    """Two branches that look alike, side by side."""
    net = Net(batch="N")
    x = net.image()
    both = [net.conv(net.conv_relu(x, 3, 8), 8, 4) for _ in range(2)]
    net.output(net.Add(*both))
    return net.model()


def test_what_could_be_either_is_refused() -> None:
    data = CASES["channels"].data()
    plan = snp_onnx.prune(towers(), data, target_macs=0.7, preset="fast").plan
    assert plan.decisions[0].kept != plan.decisions[1].kept
    with pytest.raises(PlanError, match="alike and side by side"):
        snp_onnx.prune(renumbered(towers()), data, plan=plan)
    same = tuple(replace(decision, kept=(0, 1)) for decision in plan.decisions)
    assert snp_onnx.prune(renumbered(towers()), data, plan=replace(plan, decisions=same)).plan.decisions[1].kept == (
        0,
        1,
    )


def test_other_blocks_are_refused() -> None:
    plan = pruned("blocks").plan
    changed = (replace(plan.blocks[0], kind="layer"), *plan.blocks[1:])
    for blocks, said in ((changed, "block 1 is"), (plan.blocks[:-1], "blocks, this has")):
        with pytest.raises(PlanError, match=said):
            snp_onnx.prune(CASES["blocks"].model(), plan=replace(plan, blocks=blocks))


def test_plans_that_know_no_other_groups_go_by_name() -> None:
    plan = replace(pruned("channels").plan, groups=())
    assert snp_onnx.prune(command_line.small(), plan=plan).report.groups[0].after == plan.decisions[0].after
    with pytest.raises(PlanError, match="no such group"):
        snp_onnx.prune(renumbered(command_line.small()), plan=plan)


def test_widths_need_a_plan_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = command_line.small(), CASES["channels"].data()
    with pytest.raises(PlanError, match="--apply-plan"):
        snp_onnx.prune(model, data, target_macs=0.5, plan_widths=True)
    with pytest.raises(CalibrationError, match="--calibration"):
        snp_onnx.prune(model, plan=Plan("", ()), plan_widths=True)
    here = bench(tmp_path, command_line.small(seed=9))
    pruned("channels").save_plan(tmp_path / "plan.json")
    asked = ("prune", here.model, here.output, "--apply-plan", tmp_path / "plan.json", "--calibration", here.data)
    assert "kept by number" in call(capsys, *asked, "--no-latency").err
    first = here.output.read_bytes()
    assert "kept by number" not in call(capsys, *asked, "--no-latency", "--plan-widths").err
    assert here.output.read_bytes() != first


# a real network


@pytest.mark.shared
def test_a_real_network_trained_on_keeps_its_accuracy() -> None:
    """ResNet-20, its weights moved as by a little more training: the old plan, folded anew, is as good as a new one."""
    dense = SHARED / "models" / "resnet20_cifar10_ts.onnx"
    if not dense.is_file():
        pytest.skip(f"{dense.name} is not here: set SNP_ONNX_BENCH_DATA")
    with np.load(SHARED / "data" / "cifar10_train12k.npz") as arrays:
        images = {"input": arrays["images"][:128]}
    with np.load(SHARED / "data" / "cifar10_test5k.npz") as arrays:
        tests = {"input": arrays["images"][:400], "labels": arrays["labels"][:400]}
    how: dict[str, Any] = {"layout": "nhwc", "scale": 1 / 255, "mean": MEAN, "std": STD}
    plan = snp_onnx.prune(dense, images, target_macs=0.6, preset="fast", **how).plan
    moved = jolted(onnx.load(dense), 0.05)

    def top1(model: onnx.ModelProto) -> float:
        found = snp_onnx.compare(moved, model, tests, label_array="labels", batch_size=100, **how).fidelity[0]
        assert found.pruned_accuracy is not None
        return found.pruned_accuracy

    own, carried, bare = (
        top1(snp_onnx.prune(moved, samples, preset="fast", **how, **what).model)
        for samples, what in ((images, {"target_macs": 0.6}), (images, {"plan": plan}), (None, {"plan": plan}))
    )
    assert carried > own - 0.03
    assert carried > bare + 0.2


def jolted(model: onnx.ModelProto, share: float) -> onnx.ModelProto:
    """Every weight moved at random by this share of its layer's spread."""
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.ndim > 1 and array.dtype == np.float32:
            noise = share * array.std() * rng.standard_normal(array.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array((array + noise).astype(np.float32), tensor.name))
    return model
