"""Folders with a model beside its config.json: pruned as a whole, and refused where parts would not fit together."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.errors import ModelError, PlanError
from snp_onnx.integrations.checkpoint_config import Setting, updated
from snp_onnx.integrations.folder import ModelFolder
from snp_onnx.model_folder import model_file
from tests.command_line import Outcome, call, files, images, small
from tests.graphs import feed_for
from tests.topologies import CATALOGUE

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a small attention, its config, a tokenizer, and data beside the folder."""
    source = tmp_path / "dense"
    (source / "more").mkdir(parents=True)
    model = CATALOGUE["separate"].model("N")
    onnx.save(model, source / "model.onnx")
    np.savez(tmp_path / "data.npz", **feed_for(model, 64, seed=5))
    whole = snp_onnx.prune(model, feed_for(model, 64, seed=5), target_macs=0.7, units=["heads"], preset="fast")
    assert whole.architecture is not None
    dense = whole.architecture["dense"]
    config = {"model_type": "tiny", "n_head": dense["num_attention_heads"], "d_ff": 77, "hidden_size": 16, "text": "é"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    (source / "more" / "merges.txt").write_text("a b")
    return tmp_path


def prune(capsys: Capture, home: Path, *options: object, output: str = "small") -> Outcome:
    asked = (
        "prune",
        home / "dense",
        home / output,
        "--calibration",
        home / "data.npz",
        "--preset",
        "fast",
        "--no-latency",
    )
    return call(capsys, *asked, "--target-macs", 0.5, *options)


def test_a_folder_is_pruned_as_a_whole(home: Path, capsys: Capture) -> None:
    before = files(home)
    outcome = prune(capsys, home, "--units", "heads,channels")
    assert outcome.code == 0, outcome.err
    assert {name: content for name, content in files(home).items() if not name.startswith("small")} == before
    new = files(home / "small")
    assert set(new) == {"config.json", "model.onnx", "model.onnx.config.json", "more/merges.txt", "tokenizer.json"}
    assert len(new["model.onnx"]) < len(before["dense/model.onnx"])
    numbers = json.loads(new["model.onnx.config.json"])
    config, old = json.loads(new["config.json"]), json.loads(before["dense/config.json"])
    assert config == {**old, "n_head": numbers["num_attention_heads"]}
    assert config["n_head"] < old["n_head"]
    assert "config.json keeps its intermediate_size: it holds no such number" in outcome.err
    assert os.stat(home / "small").st_mode == os.stat(home / "dense").st_mode


def test_the_same_in_python(home: Path, capsys: Capture) -> None:
    assert prune(capsys, home).code == 0
    options: dict[str, Any] = {"target_macs": 0.5, "preset": "fast"}
    result = snp_onnx.prune_folder(home / "dense", home / "other", home / "data.npz", **options)
    assert any("config.json keeps" in note for note in result.report.notes)
    first, second = (onnx.load(home / name / "model.onnx") for name in ("small", "other"))
    assert first == second


def test_every_verb_takes_the_folder(home: Path, capsys: Capture) -> None:
    assert prune(capsys, home).code == 0
    inside = call(capsys, "inspect", home / "dense", "--json")
    assert inside.out == call(capsys, "inspect", home / "dense" / "model.onnx", "--json").out
    data = ("--calibration", home / "data.npz", "--json")
    assert json.loads(call(capsys, "compare", home / "dense", home / "small", *data).out)["fidelity"]
    assert snp_onnx.inspect(home / "dense").groups == snp_onnx.inspect(home / "dense" / "model.onnx").groups


def test_an_output_folder_is_empty_or_forced(home: Path, capsys: Capture) -> None:
    (home / "small").mkdir()
    assert prune(capsys, home).code == 0
    (home / "small" / "older.txt").write_text("x")
    refused = prune(capsys, home)
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert "isn't empty" in refused.err
    assert prune(capsys, home, "--force").code == 0
    assert not (home / "small" / "older.txt").exists()
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("dense", (), "lie in each other"),
        ("dense/inner", (), "lie in each other"),
        (".", ("--force",), "lie in each other"),
        ("none/small", (), "create it first"),
        ("small.onnx", (), "name a folder"),
        ("data.npz", (), "name a folder"),
        ("letters", ("--force",), "holds no model"),
        ("small", ("--report", "dense/report.json"), "pruned as a whole"),
        ("small", ("--onnx-file", "other.onnx"), "no file other.onnx"),
        ("small", ("--onnx-file", "../data.npz"), "no file ../data.npz"),
    ],
)
def test_what_would_be_lost_is_refused(home: Path, capsys: Capture, output: str, options: Any, said: str) -> None:
    (home / "letters").mkdir()
    (home / "letters" / "dear.txt").write_text("dear")
    before = files(home)
    options = [home / option if "/report" in option else option for option in options]
    outcome = prune(capsys, home, *options, output=output)
    assert (outcome.code, len(outcome.lines)) == (2, 1)
    assert said in outcome.err
    assert files(home) == before


def test_inputs_in_a_folder_that_is_replaced(home: Path, capsys: Capture) -> None:
    shutil.copytree(home / "dense", home / "small")
    shutil.copy(home / "data.npz", home / "small" / "data.npz")
    asked = (
        "prune",
        home / "dense",
        home / "small",
        "--calibration",
        home / "small" / "data.npz",
        "--target-macs",
        0.5,
    )
    assert "would be replaced" in call(capsys, *asked, "--force").err
    assert (home / "small" / "data.npz").is_file()


def test_a_failure_leaves_no_folder(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune(capsys, home).code == 0
    before = files(home)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("snp_onnx.integrations.folder.shutil.copytree", full)
    outcome = prune(capsys, home, "--force")
    assert (outcome.code, len(outcome.lines)) == (2, 1)
    assert "No space left" in outcome.err
    monkeypatch.undo()
    rename = os.rename

    def only_aside(source: Path, target: Path) -> None:
        if target.name == "small":
            monkeypatch.undo()
            raise OSError(5, "broken")
        rename(source, target)

    monkeypatch.setattr("snp_onnx.writing.moves._exchanged", lambda one, other: False)
    monkeypatch.setattr("snp_onnx.writing.moves.os.rename", only_aside)
    assert prune(capsys, home, "--force").code == 2
    assert files(home) == before
    assert sorted(path.name for path in home.iterdir()) == ["data.npz", "dense", "small"]


@pytest.mark.parametrize("is_full", [False, True])
def test_a_mounted_folder_is_filled(
    home: Path, capsys: Capture, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prune(capsys, home).code == 0
    wanted = files(home / "small")
    out = home / "volume"
    out.mkdir()
    for name in ("old.onnx", "more/old.txt", "config.json") if is_full else ():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("old")
    before = files(home)
    monkeypatch.setattr("snp_onnx.integrations.folder.is_mount", lambda path: path == out)
    number = os.stat(out).st_ino
    assert not is_full or "isn't empty" in prune(capsys, home, output="volume").err
    assert files(home) == before
    assert prune(capsys, home, *(["--force"] if is_full else []), output="volume").code == 0
    assert os.stat(out).st_ino == number
    assert files(out) == wanted
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_linked_folder_is_followed(home: Path, capsys: Capture) -> None:
    (home / "real" / "v1").mkdir(parents=True)
    (home / "small").symlink_to("real/v1")
    assert prune(capsys, home).code == 0
    assert (home / "small").is_symlink()
    assert (home / "real" / "v1" / "model.onnx").is_file()
    (home / "lost").symlink_to("nowhere")
    refused = prune(capsys, home, output="lost")
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert "link to nothing" in refused.err


@pytest.mark.parametrize("kind", ["pipe", "dangling", "loop", "ring"])
def test_what_cannot_be_copied_is_refused_before_any_work(home: Path, capsys: Capture, kind: str) -> None:
    more = home / "dense" / "more"
    if kind == "pipe":
        os.mkfifo(more / "odd")
    elif kind == "dangling":
        (more / "odd").symlink_to("odd2")
    elif kind == "loop":
        (more / "odd").symlink_to("..")
    else:
        (home / "far").mkdir()
        (home / "far" / "back").symlink_to(more)
        (more / "odd").symlink_to(home / "far")
    (home / "data.npz").unlink()
    refused = prune(capsys, home)
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert str(more / "odd") in refused.err
    assert not (home / "small").exists()


# several ONNX files


def test_other_forms_are_left_out_and_other_parts_copied(home: Path, capsys: Capture) -> None:
    source = home / "dense"
    onnx.save(
        onnx.load(source / "model.onnx"),
        source / "model_fp16.onnx",
        save_as_external_data=True,
        location="fp16.data",
        size_threshold=0,
    )
    onnx.save(small(), source / "vision.onnx", save_as_external_data=True, location="vision.data", size_threshold=0)
    outcome = prune(capsys, home)
    assert outcome.code == 0
    names = {path.name for path in (home / "small").iterdir()}
    assert names >= {"model.onnx", "vision.onnx", "vision.data"}
    assert not names & {"model_fp16.onnx", "model_fp16.data"}
    assert "model_fp16.onnx is another form of the dense model: left out" in outcome.err
    assert "vision.onnx is another part of the model: copied as it is" in outcome.err
    assert (home / "small" / "vision.onnx").read_bytes() == (source / "vision.onnx").read_bytes()


@pytest.mark.parametrize(
    ("has_config", "said"), [(True, "tiny has no number"), (False, "vision.onnx would no longer fit")]
)
def test_caches_of_parts_are_refused_before_any_work(home: Path, capsys: Capture, has_config: bool, said: str) -> None:
    if not has_config:
        (home / "dense" / "config.json").unlink()
        onnx.save(small(), home / "dense" / "vision.onnx")
    (home / "data.npz").unlink()
    refused = prune(capsys, home, "--caches")
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert said in refused.err


def test_of_several_files_one_must_be_named(home: Path, capsys: Capture) -> None:
    source = home / "dense"
    (source / "model.onnx").rename(source / "encoder_model.onnx")
    onnx.save(small(), source / "decoder_model.onnx")
    refused = prune(capsys, home)
    assert (refused.code, len(refused.lines)) == (2, 1)
    assert "decoder_model.onnx, encoder_model.onnx" in refused.err
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "encoder_attention_heads": config["n_head"]}))
    outcome = prune(capsys, home, "--onnx-file", "encoder_model.onnx")
    assert outcome.code == 0
    new = json.loads((home / "small" / "config.json").read_text())
    assert new["n_head"] == config["n_head"]  # a number of both parts
    assert new["encoder_attention_heads"] < config["n_head"]
    onnx.save(small(), source / "decoder_with_past_model.onnx")
    twin = prune(capsys, home, "--onnx-file", "decoder_model.onnx", output="third")
    assert (twin.code, len(twin.lines)) == (2, 1)
    assert "would stay dense beside it" in twin.err


def test_the_only_file_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "a" / "onnx").mkdir(parents=True)
    with pytest.raises(ModelError, match="no ONNX file"):
        snp_onnx.inspect(tmp_path / "a")
    onnx.save(small(), tmp_path / "a" / "onnx" / "net.onnx")
    assert snp_onnx.inspect(tmp_path / "a").groups
    options: dict[str, Any] = {"target_macs": 0.6, "preset": "fast"}
    snp_onnx.prune_folder(tmp_path / "a", tmp_path / "b", {"x": images()}, **options)
    assert set(files(tmp_path / "b")) == {"onnx/net.onnx"}
    snp_onnx.prune_folder(
        tmp_path / "a", tmp_path / "c", {"x": images()}, save_as_external_data=True, **options | {"target_macs": 0.95}
    )
    assert [path.name[:9] for path in (tmp_path / "c" / "onnx").glob("*.data")] == ["net.onnx."]
    assert snp_onnx.inspect(tmp_path / "c").groups
    with pytest.raises(ModelError, match="is no folder"):
        model_file(tmp_path / "a" / "onnx" / "net.onnx", "net.onnx")
    with pytest.raises(ModelError, match="no such folder"):
        snp_onnx.prune_folder(tmp_path / "none", tmp_path / "d", {"x": images()}, target_macs=0.6)


@pytest.mark.parametrize("text", ["{", "[]", "\udc80"])
def test_a_config_that_is_none_is_refused(home: Path, text: str) -> None:
    (home / "dense" / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(PlanError, match=r"config\.json"):
        ModelFolder.at(home / "dense")


# the numbers


NUMBERS = {
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "dense": {"num_attention_heads": 4, "intermediate_size": 64},
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_attention_heads": 4, "intermediate_size": 64}, {"num_attention_heads": 2, "intermediate_size": 40}),
        ({"n_head": 4, "n_inner": None}, {"n_head": 2, "n_inner": 40}),
        ({"num_heads": 4, "d_ff": 64, "other": 4}, {"num_heads": 2, "d_ff": 40, "other": 4}),
        ({"n_heads": 8, "hidden_dim": 64}, {"n_heads": 8, "hidden_dim": 40}),
    ],
)
def test_numbers_go_by_the_names_of_the_model_type(config: dict[str, Any], expected: dict[str, Any]) -> None:
    found, notes = updated(config, NUMBERS, Setting())
    assert found == expected
    assert len(notes) == sum(config.get(key) == value for key, value in expected.items() if key == "n_heads")


def test_layers_that_differ_are_left() -> None:
    found, notes = updated(
        {"ffn_dim": 64}, {"intermediate_size": [40, 30], "dense": {"intermediate_size": 64}}, Setting()
    )
    assert found == {"ffn_dim": 64}
    assert "layers differ" in notes[0]


def test_what_the_shape_of_a_cache_follows_from_is_left() -> None:
    """Head counts of queries: what loads the model divides the hidden size by them."""
    numbers = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "dense": {"num_attention_heads": 4, "num_key_value_heads": 2},
    }
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    found, notes = updated(config, numbers, Setting(is_cached=True, lost_cache_heads=True))
    assert found == {**config, "num_key_value_heads": 1}
    assert "empty cache" in notes[0]
    assert updated(config, numbers, Setting())[0]["num_attention_heads"] == 2
    for bad, said in (({"num_attention_heads": 4}, "no such number"), (config, "layers differ")):
        ragged = numbers if bad is not config else {**numbers, "num_key_value_heads": [1, 2]}
        with pytest.raises(PlanError, match=said):
            updated(bad, ragged, Setting(is_cached=True, lost_cache_heads=True))
