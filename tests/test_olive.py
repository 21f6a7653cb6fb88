"""SnpPrune in real workflows of olive-ai: what comes out, what every option does, and what is refused."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.errors import CalibrationError, ModelError, PlanError, TargetError
from snp_onnx.integrations.olive import package
from snp_onnx.integrations.olive.data import named_batches
from snp_onnx.integrations.olive.options import CHOICES, DATA, LEFT_OUT, OWN, ROWS, RUNNING, TARGETS, as_given
from snp_onnx.verbs.prune import CHOICE_OPTIONS
from snp_onnx.verbs.settings import DATA_OPTIONS
from tests.command_line import DIGITS, DIGITS_DATA, ROOT, classifier, images
from tests.graphs import feed_for
from tests.oracles import run
from tests.topologies import CATALOGUE

pytestmark = [
    pytest.mark.skipif(find_spec("olive") is None, reason="olive-ai is not installed"),
    pytest.mark.slow,  # importing Olive alone takes seconds
]

QUIET = {"CI": "true", "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
FAST = {"preset": "fast", "threads": 1}


@pytest.fixture(scope="module")
def olive() -> Iterator[SimpleNamespace]:
    """Olive, imported with nothing sent and nothing fetched, and our pass."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        from olive.data.registry import Registry
        from olive.hardware.accelerator import AcceleratorSpec
        from olive.model import CompositeModelHandler, DistributedOnnxModelHandler, ONNXModelHandler
        from olive.package_config import OlivePackageConfig
        from olive.passes.olive_pass import create_pass_from_dict
        from olive.workflows import run

        from snp_onnx.integrations.olive.prune_pass import SnpPrune

        Registry.register_dataset("snp_pictures")(pictures)
        yield SimpleNamespace(
            AcceleratorSpec=AcceleratorSpec,
            Composite=CompositeModelHandler,
            Distributed=DistributedOnnxModelHandler,
            Handler=ONNXModelHandler,
            PackageConfig=OlivePackageConfig,
            create=create_pass_from_dict,
            run=run,
            SnpPrune=SnpPrune,
        )


def pictures(count: int = 48, form: str = "dict") -> list[Any]:
    """Samples of the small classifier, with labels, as a dataset gives them."""
    if form == "tokens":
        return [({"input_ids": np.arange(7), "attention_mask": np.ones(7, np.int64)}, 0) for _ in range(count)]
    rows = images(count) if form != "llama" else feed_for(CATALOGUE["llama"].model(), count)["x"]
    return [({"x": row} if form != "array" else row, number % 4) for number, row in enumerate(rows)]


def data(**params: Any) -> dict[str, Any]:
    return {
        "name": "pictures",
        "load_dataset_config": {"type": "snp_pictures", "params": params},
        "dataloader_config": {"params": {"batch_size": 6}},
    }


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small classifier; the working folder has a file of the same name, as where a workflow begins."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    onnx.save(classifier(), path)
    return path


def pruned(olive: SimpleNamespace, model: Path, accelerator: Any = None, **options: Any) -> tuple[Any, Path]:
    """The handler and the folder that the pass alone leaves, of `fast` with half of the MACs unless told otherwise."""
    given = FAST | {"data_config": data()} | options
    if not {"plan", *(row.name for row in TARGETS)} & given.keys():
        given["target_macs"] = 0.5
    made = olive.create(olive.SnpPrune, given, disable_search=True, accelerator_spec=accelerator)
    folder = model.parent / f"out{len(list(model.parent.glob('out*')))}"
    return made.run(olive.Handler(str(model)), str(folder)), folder


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "snp_report.json").read_text())
    return found


def page_files(folder: Path) -> None:
    """The files of the how-to page, with what it takes for granted."""
    text = (ROOT / "docs" / "howto" / "olive.md").read_text(encoding="utf-8")
    for name, body in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', text, re.DOTALL):
        (folder / name).write_text(body, encoding="utf-8")
    shutil.copy(DIGITS, folder / "model.onnx")
    shutil.copy(DIGITS_DATA, folder / "digits.npz")


def accuracy(model: onnx.ModelProto) -> float:
    with np.load(DIGITS_DATA) as held:
        logits = run(model, {"input": held["test_images"].astype(np.float32) / 16})[0]
        return float((logits.argmax(1) == held["test_labels"]).mean())


# Workflows


def test_the_workflow_of_the_page_prunes_and_quantises(
    olive: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    workflow = json.loads((tmp_path / "workflow.json").read_text())
    workflow["evaluators"]["digits"]["metrics"][1]["sub_types"][0]["metric_config"]["repeat_test_num"] = 3
    workflow["passes"]["prune"] |= FAST
    olive.run(workflow, package_config=package.package_config())
    small, dense = onnx.load(tmp_path / "small" / "model.onnx"), onnx.load(DIGITS)
    int8 = sum(int(np.prod(t.dims)) for t in small.graph.initializer if t.data_type == onnx.TensorProto.INT8)
    facts = report(tmp_path / "small")
    assert facts["pruned"]["macs"] <= 0.5 * facts["dense"]["macs"]
    assert (
        0.95 * facts["pruned"]["params"] < int8 < 1.05 * facts["pruned"]["params"]
    )  # of the pruned one, not the dense
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in small.graph.node}
    assert (tmp_path / "small" / "model.onnx").stat().st_size < 0.25 * DIGITS.stat().st_size
    assert accuracy(small) > accuracy(dense) - 0.01
    before, after = (
        json.loads((tmp_path / "small" / name).read_text()) for name in ("input_model_metrics.json", "metrics.json")
    )
    assert before["top1-accuracy_score"]["value"] == pytest.approx(accuracy(dense), abs=0.002)
    # integer kernels for processors without VNNI may saturate, and turn a few of the 797 images
    assert after["top1-accuracy_score"]["value"] == pytest.approx(accuracy(small), abs=0.005)
    assert min(before["milliseconds-min"]["value"], after["milliseconds-min"]["value"]) > 0
    assert after["size-bytes"]["value"] < 0.25 * before["size-bytes"]["value"]
    assert (tmp_path / "small" / "snp_plan.npz").exists()


def test_the_command_with_our_pass_alone_gives_what_prune_gives(tmp_path: Path) -> None:
    page_files(tmp_path)
    options = {"preset": "fast", "target_macs": 0.6, "samples": 200, "threads": 1}
    workflow = json.loads((tmp_path / "workflow.json").read_text())
    workflow["passes"] = {"prune": {"type": "SnpPrune", "data_config": "calibration", **options}}
    del workflow["evaluator"], workflow["evaluators"]
    (tmp_path / "alone.json").write_text(json.dumps(workflow))
    command = [sys.executable, "-m", "olive", "run", "--config", "alone.json", "--package-config", package.OURS]
    ended = subprocess.run(
        command, cwd=tmp_path, env=os.environ | QUIET | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    with np.load(DIGITS_DATA) as held:
        expected = snp_onnx.prune(DIGITS, {"input": held["images"].astype(np.float32) / 16}, **options)
    assert (tmp_path / "small" / "model.onnx").read_bytes() == expected.model.SerializeToString()
    assert (
        f"SnpPrune: macs {expected.report.dense.macs} -> {expected.report.pruned.macs}" in ended.stdout + ended.stderr
    )
    assert sorted(path.name for path in (tmp_path / "small").glob("snp_*")) == [
        "snp_plan.json",
        "snp_plan.npz",
        "snp_report.json",
    ]


def test_a_search_over_targets_leaves_out_what_cannot_be(olive: SimpleNamespace, model: Path) -> None:
    size = {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}
    workflow = {
        "input_model": {"type": "OnnxModel", "model_path": str(model)},
        "data_configs": [data()],
        "passes": {"prune": {"type": "SnpPrune", **FAST, "data_config": "pictures", "target_macs": [0.7, 0.4, 1e-4]}},
        "evaluators": {"size": {"type": "OnnxEvaluator", "metrics": [size]}},
        "evaluator": "size",
        "search_strategy": {"execution_order": "joint", "sampler": "sequential", "max_iter": 4},
        "output_dir": "found",
    }
    olive.run(workflow, package_config=str(package.OURS))
    facts = report(model.parent / "found")
    assert facts["pruned"]["macs"] <= 0.4 * facts["dense"]["macs"]  # the smallest that can be
    nodes = json.loads((model.parent / "found" / "footprint.json").read_text())
    targets = {
        (node.get("pass_run_config") or {}).get("target_macs") for node in (nodes.get("nodes") or nodes).values()
    }
    assert targets - {None} == {0.7, 0.4}


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({"target_macs": 1e-4}, TargetError, r"^--target-macs 0\.0001 can't be reached: .+"),
        ({"target_macs": 0.5, "perset": "fast"}, PlanError, "^SnpPrune has no option 'perset': did you mean preset[?]"),
    ],
)
def test_what_cannot_be_ends_the_workflow(
    olive: SimpleNamespace, model: Path, wrong: dict[str, Any], kind: type[Exception], said: str
) -> None:
    workflow = {
        "input_model": {"type": "OnnxModel", "model_path": str(model)},
        "data_configs": [data()],
        "passes": {"prune": {"type": "SnpPrune", **FAST, "data_config": "pictures", **wrong}},
        "output_dir": "found",
    }
    with pytest.raises(kind, match=said):
        olive.run(workflow, package_config=str(package.OURS))
    assert not list((model.parent / "found").glob("*.onnx"))


# The schema


def test_every_option_of_prune_is_taken_or_left_out_for_a_reason() -> None:
    named = [p.name for p in inspect.signature(snp_onnx.prune).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [row.name for row in (*TARGETS, *CHOICES, *RUNNING)]
    assert len(known) == len(set(known))
    assert {*known, *LEFT_OUT} == {*named, *DATA_OPTIONS, *CHOICE_OPTIONS}
    assert not set(known) & set(LEFT_OUT)
    assert not {*known, *LEFT_OUT} & {row.name for row in OWN}


def test_the_schema_holds_every_row(olive: SimpleNamespace) -> None:
    schema = olive.SnpPrune.default_config(olive.AcceleratorSpec("cpu"))
    assert list(schema) == [*(row.name for row in ROWS), DATA]
    assert {row.name: schema[row.name].default_value for row in ROWS} == {row.name: row.default for row in ROWS}
    assert all(param.description for param in schema.values())


VALUES: dict[str, Any] = {
    "preset": "best",
    "units": ["channels"],
    "order": "saw",
    "fold": "channel",
    "refine": "none",
    "ratios": "uniform",
    "ridge": 0.02,
    "repair": 0.25,
    "fallback": False,
    "weigh": "layers",
    "streams": True,
    "caches": True,
    "include": "n",
    "exclude": "absent",
    "min_units": 2,
    "round_to": 2,
    "similarity": "cosine",
    "representation": "y",
    "ranking_samples": 8,
    "min_blocks": 2,
    "latency_batch": 2,
    "samples": 30,
    "batch_size": 5,
    "seed": 4,
    "provider": "CPUExecutionProvider",
}


def test_choices_are_those_of_the_report(olive: SimpleNamespace, model: Path) -> None:
    """What `prune` itself says it used."""
    _, folder = pruned(olive, model, **VALUES)
    used = report(folder)["options"]
    recorded = {"kinds": ["channels"], **{name: value for name, value in VALUES.items() if name in used}}
    assert {name: used[name] for name in recorded} == recorded
    assert VALUES.keys() - used.keys() == {"preset", "units"}
    plain = report(pruned(olive, model)[1])["options"]
    same = [name for name in recorded if plain[name] == used[name] and name not in ("refine", "provider")]
    assert same == []  # each value differs from what it is without


@pytest.mark.parametrize("row", [*TARGETS, *CHOICES, *RUNNING], ids=lambda row: row.name)
def test_an_option_reaches_prune(
    olive: SimpleNamespace, model: Path, monkeypatch: pytest.MonkeyPatch, row: Any
) -> None:
    class ReachedError(Exception):
        pass

    given: dict[str, Any] = {}

    def stop(path: str, feeds: Any, **options: Any) -> None:
        given.update(options)
        raise ReachedError

    more = {"input_shapes": {"x": [1, 3, 8, 8]}, "threads": 3, "custom_ops": [str(model)], "plan": str(model)}
    more["plan_widths"] = True
    beside = {"plan": str(model)} if row.name == "plan_widths" else {}
    value = (VALUES | more | {target.name: 0.75 for target in TARGETS} | {"latency": True, "outlook": True})[row.name]
    monkeypatch.setattr("snp_onnx.integrations.olive.prune_pass.prune", stop)
    with pytest.raises(ReachedError):
        pruned(olive, model, **{row.name: value}, **beside)
    assert given[row.name] == value


def test_targets_options_and_data_change_what_comes_out(olive: SimpleNamespace, model: Path) -> None:
    def after(**options: Any) -> list[int]:
        return [group["after"] for group in report(pruned(olive, model, **options)[1])["groups"]]

    plain = after()
    assert after(target_params=0.8) != plain != after(variance=0.9, preset="paper")
    assert after(exclude="n1")[0] == 8 > plain[0]
    with pytest.raises(TargetError, match="can't be reached"):
        after(min_units=8)
    assert all(width % 4 == 0 for width in after(round_to=4))
    assert report(pruned(olive, model, samples=20)[1])["options"]["samples"] == 20
    assert report(pruned(olive, model, data_config=data(count=30))[1])["options"]["samples"] == 30
    timed = report(pruned(olive, model, latency=True, outlook=True)[1])
    assert timed["latency"]
    assert timed["outlook"]


def test_files_beside_the_model(olive: SimpleNamespace, model: Path) -> None:
    handler, folder = pruned(olive, model)
    names = ["snp_plan.json", "snp_plan.npz", "snp_report.json"]
    assert sorted(path.name for path in folder.iterdir()) == ["model_pruned.onnx", *names]
    assert handler.model_attributes["additional_files"] == [str(folder / name) for name in names]
    assert handler.model_attributes["snp_onnx"]["macs"] <= 0.5
    assert report(folder)["pruned"]["bytes"] == (folder / "model_pruned.onnx").stat().st_size
    assert (
        snp_onnx.prune(model, plan=folder / "snp_plan.json").model.SerializeToString()
        == (folder / "model_pruned.onnx").read_bytes()
    )
    handler, folder = pruned(olive, model, report=False, save_plan=False)
    assert [path.name for path in folder.iterdir()] == ["model_pruned.onnx"]
    assert Path(handler.get_resource("model_path")) == folder / "model_pruned.onnx"
    assert not handler.model_attributes
    handler, folder = pruned(olive, model, page=True, save_plan=False)
    assert "<html" in (folder / "snp_report.html").read_text()
    assert not (folder / "snp_plan.json").exists()
    handler, folder = pruned(olive, model, report=False, save_plan=False, save_as_external_data=True)
    assert len(list(folder.iterdir())) == 2
    assert Path(handler.get_resource("model_path")) == folder
    assert run(handler.load_model(), {"x": images(2)})[0].shape == (2, 4)


def test_weights_beside_the_input_model_are_read(olive: SimpleNamespace, model: Path) -> None:
    apart = model.parent / "apart"
    apart.mkdir()
    onnx.save(classifier(), apart / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    whole, _ = pruned(olive, model)
    made = olive.create(olive.SnpPrune, FAST | {"data_config": data(), "target_macs": 0.5}, disable_search=True)
    handler = made.run(olive.Handler(str(apart / "model.onnx")), str(model.parent / "other"))
    feed = {"x": images(4)}
    assert np.array_equal(run(handler.load_model(), feed)[0], run(whole.load_model(), feed)[0])


def test_a_plan_is_carried_out_with_and_without_data(olive: SimpleNamespace, model: Path) -> None:
    handler, folder = pruned(olive, model)
    plan = str(folder / "snp_plan.json")
    for given in (None, data()):
        again, _ = pruned(olive, model, plan=plan, data_config=given)
        widths = [[tuple(t.dims) for t in h.load_model().graph.initializer] for h in (handler, again)]
        assert widths[0] == widths[1]


def test_a_second_pass_keeps_the_files_of_the_first(olive: SimpleNamespace, model: Path) -> None:
    first, _ = pruned(olive, model, target_macs=0.8)
    made = olive.create(olive.SnpPrune, FAST | {"data_config": data(), "target_macs": 0.7}, disable_search=True)
    second = made.run(first, str(model.parent / "second"))
    names = {Path(path).name for path in second.model_attributes["additional_files"]}
    assert names > {Path(path).name for path in first.model_attributes["additional_files"]} >= {"snp_report.json"}
    assert names > {"snp2_report.json", "snp2_plan.json"}
    assert all((model.parent / "second" / name).exists() for name in names)
    assert Path(second.model_path).name == "model_pruned_pruned.onnx"


def test_head_counts_of_the_attributes_follow(olive: SimpleNamespace, model: Path) -> None:
    onnx.save(CATALOGUE["llama"].model(), model)
    made = olive.create(
        olive.SnpPrune, FAST | {"data_config": data(form="llama"), "target_macs": 0.6}, disable_search=True
    )
    given = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 6, "model_type": "llama"}
    handler = made.run(olive.Handler(str(model), model_attributes=given), str(model.parent / "out"))
    written = json.loads((model.parent / "out" / "model_pruned.onnx.config.json").read_text())
    found = handler.model_attributes
    assert found["num_attention_heads"] == written["num_attention_heads"] != 6
    assert found["num_key_value_heads"] == written["num_key_value_heads"] != 3
    assert (found["hidden_size"], found["model_type"]) == (6, "llama")
    assert "intermediate_size" in written
    assert "intermediate_size" not in found
    assert str(model.parent / "out" / "model_pruned.onnx.config.json") in found["additional_files"]
    assert given["num_attention_heads"] == 6


# The data


class Tensor:
    """What a torch tensor is to us."""

    shape = (2, 3)

    def __init__(self, dtype: str, done: tuple[str, ...] = ()) -> None:
        self.dtype, self.done = dtype, done

    def detach(self) -> Tensor:
        return Tensor(self.dtype, (*self.done, "detach"))

    def float(self) -> Tensor:
        return Tensor(self.dtype, (*self.done, "float"))


def test_batches_in_every_form() -> None:
    array = np.ones((2, 3))
    forms: list[Any] = [array, (array, 1), [array, 1], [array], {"x": array}, ({"x": array}, 1), ([array], 1)]
    for form in forms:
        (found,) = named_batches([form], ["x"], "the data")
        assert list(found) == ["x"]
        assert found["x"] is array
    (found,) = named_batches([([array, 2 * array], 1)], ["a", "b"], "the data")
    assert (found["a"][0, 0], found["b"][0, 0]) == (1, 2)
    (found,) = named_batches([{"x": Tensor("torch.bfloat16"), "id": Tensor("torch.int64")}], ["x"], "the data")
    assert (found["x"].done, found["id"].done) == (("detach", "float"), ("detach",))


@pytest.mark.parametrize(
    ("batch", "inputs", "said"),
    [
        ({"y": 1}, ["x"], "batch 0 of the data holds y, and the model's inputs are x: name them so in the data config"),
        ({}, ["x"], "batch 0 of the data holds nothing"),
        ((1, 2, 3), ["x"], "batch 0 of the data has 3 parts: give inputs, or (inputs, labels)"),
        (np.ones(3), ["a", "b"], "batch 0 of the data has 1 arrays without names, and the model's inputs are a, b"),
    ],
)
def test_batches_that_are_not_inputs(batch: Any, inputs: list[str], said: str) -> None:
    with pytest.raises(CalibrationError, match=f"^{re.escape(said)}"):
        list(named_batches([batch], inputs, "the data"))


def test_inputs_without_names_come_through_olive(olive: SimpleNamespace, model: Path) -> None:
    named, plain = (pruned(olive, model, data_config=data(form=form))[1] for form in ("dict", "array"))
    assert (named / "model_pruned.onnx").read_bytes() == (plain / "model_pruned.onnx").read_bytes()


def test_what_a_cache_needs_is_filled_in(olive: SimpleNamespace, model: Path) -> None:
    """As Olive does for its quantisers: past keys and values, the mask of them, and positions."""
    from snp_onnx.integrations.olive.prune_pass import _feeds

    past = [f"past_key_values.0.{kind}" for kind in ("key", "value")]
    names = ["input_ids", "attention_mask", "position_ids", *past]
    types, heads = ["int64"] * 3 + ["float32"] * 2, ["batch", 3, "past", 5]
    io_config = {
        "input_names": names,
        "input_types": types,
        "input_shapes": [["batch", "tokens"]] * 3 + [heads] * 2,
        "output_names": ["logits", "present.0.key", "present.0.value"],
        "output_types": ["float32"] * 3,
        "output_shapes": [["batch", "tokens", 9], heads, heads],
    }
    handler = SimpleNamespace(io_config=io_config, model_path=str(model))
    first = next(_feeds(data(form="tokens"), handler))
    assert {name: first[name].shape for name in names} == {
        "input_ids": (6, 7),
        "attention_mask": (6, 8),
        "position_ids": (6, 7),
        **dict.fromkeys(past, (6, 3, 1, 5)),
    }
    assert first["attention_mask"][0].tolist() == [0] + 7 * [1]
    assert {str(first[name].dtype) for name in past} == {"float32"}


# What is refused


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"target_params": 0.5, "target_macs": 0.5}, PlanError, "2 targets given: give exactly one of --target-macs"),
        ({"target_macs": None}, PlanError, "no target given: give exactly one of --target-macs"),
        ({"target_macs": 1.5}, PlanError, "--target-macs 1.5: give a fraction above 0 and up to 1"),
        ({"target_mac": 0.5}, PlanError, "SnpPrune has no option 'target_mac': did you mean target_macs?"),
        ({"colour": 1}, PlanError, "SnpPrune has no option 'colour': known are "),
        ({"mean": [0.5]}, PlanError, "SnpPrune doesn't take mean: the data config prepares the samples"),
        ({"min_units": "many"}, PlanError, "SnpPrune: min_units is 'many': give a whole number: keep at least so many"),
        ({"units": "heads"}, PlanError, "SnpPrune: units is 'heads': give a list of words: kinds that may be removed"),
        (
            {"data_config": 3},
            PlanError,
            "SnpPrune: data_config is 3: give the name of one of the workflow's data_configs",
        ),
        ({"preset": "worst"}, PlanError, "--preset 'worst': not known; choose from best, fast, paper"),
        ({"units": ["wheels"]}, PlanError, "--units 'wheels': not known; choose from "),
        ({"threads": 0}, PlanError, "--threads 0: give a positive number"),
        ({"data_config": None}, CalibrationError, "SnpPrune has no data_config: name one of the workflow's"),
        ({"plan": "plan.json", "target_macs": 0.5}, PlanError, "SnpPrune has a plan and a target: give one of them"),
        ({"plan_widths": True}, PlanError, "SnpPrune has plan_widths: give a plan, and in data_config the samples"),
        ({"include": "("}, PlanError, "--include '(': not a regular expression"),
    ],
)
def test_options_are_refused_before_anything_runs(
    olive: SimpleNamespace, options: dict[str, Any], kind: type[Exception], said: str
) -> None:
    given = {"target_macs": 0.5, "data_config": data()} | options
    with pytest.raises(kind, match=f"^{re.escape(said)}") as failure:
        olive.create(olive.SnpPrune, given, disable_search=True)
    assert "\n" not in str(failure.value)


def test_a_page_needs_its_package(olive: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"target_macs": 0.5, "data_config": data(), "page": True}
    spec = olive.AcceleratorSpec("cpu")
    config = olive.SnpPrune.generate_config(spec, given, disable_search=True)
    assert olive.SnpPrune.validate_config(config, spec)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PlanError, match="HTML reports need jinja2"):
        olive.SnpPrune.validate_config(config, spec)


def test_models_of_several_parts_are_refused(olive: SimpleNamespace, model: Path) -> None:
    made = olive.create(olive.SnpPrune, {"target_macs": 0.5, "data_config": data()}, disable_search=True)
    one = olive.Handler(str(model))
    with pytest.raises(ModelError, match=r"^SnpPrune takes one ONNX model, not a CompositeModelHandler"):
        made.run(olive.Composite([one, one], ["a", "b"]), str(model.parent / "out"))
    ranks = model.parent / "ranks"
    ranks.mkdir()
    shutil.copy(model, ranks / "model_00.onnx")
    with pytest.raises(ModelError, match=r"^SnpPrune takes one ONNX model, not a DistributedOnnxModelHandler"):
        made.run(olive.Distributed(str(ranks), "model_{:02d}.onnx", 1), str(model.parent / "out"))
    (ranks / "weights.npz").touch()
    adapted = olive.Handler(str(ranks), "model_00.onnx", external_initializers_file_name="weights.npz")
    with pytest.raises(ModelError, match="some weights are kept apart from the model: prune before ExtractAdapters"):
        made.run(adapted, str(model.parent / "out"))
    with pytest.raises(ModelError, match="operators of onnxruntime-extensions: give their library in custom_ops"):
        made.run(olive.Handler(str(model), use_ort_extensions=True), str(model.parent / "out"))
    assert not (model.parent / "out").exists()


def test_the_provider_is_the_accelerators(
    olive: SimpleNamespace, model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snp_onnx.integrations.olive.prune_pass import _provider

    monkeypatch.setattr(
        "snp_onnx.integrations.olive.prune_pass.runtime_module",
        lambda: SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]),
    )
    spec = olive.AcceleratorSpec
    assert _provider({}, spec("cpu")) == "CPUExecutionProvider"
    assert _provider({}, spec("cpu", "CPUExecutionProvider")) == "CPUExecutionProvider"
    assert _provider({}, spec("gpu")) == "CUDAExecutionProvider"
    assert _provider({"provider": "cpu"}, spec("gpu")) == "cpu"
    with caplog.at_level(logging.WARNING, "olive"):
        logging.getLogger("olive").propagate = True
        assert _provider({}, spec("npu", "QNNExecutionProvider")) == "CPUExecutionProvider"
    assert "has no QNNExecutionProvider: calibrating on the CPU" in caplog.text
    for clock in ({"target_latency": 0.5}, {"round_to": "auto"}, {"latency": True}):
        with pytest.raises(PlanError, match=r"^the onnxruntime of this machine has no QNNExecutionProvider"):
            _provider(clock, spec("npu", "QNNExecutionProvider"))
    assert not olive.SnpPrune.is_accelerator_agnostic(spec("cpu"))


# Searches and names


def test_what_a_search_tries(olive: SimpleNamespace) -> None:
    def space(**options: Any) -> dict[str, Any]:
        config = {"data_config": data(), **options}
        searched = olive.SnpPrune.get_config_params(olive.AcceleratorSpec("cpu"), config, False)[2]
        return {name: value.get_support() for name, value in searched.items()}

    assert space() == {"target_macs": [0.8, 0.65, 0.5]}
    assert space(target_params=0.5) == {}
    assert space(target_macs=0.5, preset=["fast", "best"], round_to=[1, 8]) == {
        "preset": ["fast", "best"],
        "round_to": [1, 8],
    }
    assert space(target_macs=0.5, units=["channels", "heads"]) == {}
    with pytest.raises(PlanError, match=r"^--preset 'worst'"):
        space(preset="worst")


def test_words_that_name_files_stay_words(olive: SimpleNamespace, model: Path) -> None:
    (model.parent / "fast").mkdir()
    (model.parent / "channels").touch()
    found = as_given({"preset": str(model.parent / "fast"), "custom_ops": [str(model)], "seed": 1}, model.parent)
    assert found == {"preset": "fast", "custom_ops": [str(model)], "seed": 1}
    workflow = {
        "input_model": {"type": "OnnxModel", "model_path": str(model)},
        "data_configs": [data()],
        "passes": {
            "p": {"type": "SnpPrune", **FAST, "data_config": "pictures", "target_macs": 0.5, "units": ["channels"]}
        },
        "output_dir": "found",
    }
    olive.run(workflow, package_config=str(package.OURS))
    assert report(model.parent / "found")["options"]["kinds"] == ["channels"]


# The package configuration


def test_the_package_configuration_has_olives_passes_and_ours(olive: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "package.json"
    assert package.main([str(path)]) == 0
    found = olive.PackageConfig.parse_file_or_obj(str(path))
    assert found.import_pass_module("snpprune") is olive.SnpPrune
    theirs = olive.PackageConfig.load_default_config()
    assert found.passes.keys() - theirs.passes.keys() == {"snpprune"}
    assert found.extra_dependencies == theirs.extra_dependencies
    alone = olive.PackageConfig.parse_file_or_obj(str(package.OURS))
    assert list(alone.passes) == ["snpprune"]
    assert olive.SnpPrune.supported_accelerators >= {"cpu", "gpu", "npu"}


def test_the_package_command_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert package.main(["a.json", "b.json"]) == 2
    assert package.main([str(tmp_path / "absent" / "package.json")]) == 2
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    assert package.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 3
    assert "error: no olive-ai with a list of passes is installed: pip install olive-ai" in err
