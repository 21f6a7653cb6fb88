"""The commands `inspect` and `compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from snp_onnx.verbs import job as job_module
from tests.command_line import (
    DIGITS,
    DIGITS_DATA,
    DIGITS_OPTIONS,
    Bench,
    call,
)
from tests.graphs import Net

Capture = pytest.CaptureFixture[str]


# inspect and compare


def test_inspect_shows_groups_costs_and_barriers(capsys: Capture) -> None:
    outcome = call(capsys, "inspect", DIGITS)
    assert outcome.code == 0
    for word in ("4.40 M MACs", "166.71 k parameters", "1.body.0.0.weight:0", "stream", "graph output", "opset 17"):
        assert word in outcome.out
    assert all(line.startswith("note: ") for line in outcome.lines)
    quiet = call(capsys, "inspect", DIGITS, "--json", "--quiet")
    found = json.loads(quiet.out)
    assert quiet.err == ""
    assert found["dense"] == {"macs": 4404544, "params": 166714, "bytes": DIGITS.stat().st_size}
    assert len(found["groups"]) == 7
    assert found["barriers"][0]["reason"] == "graph output"


def pruned_digits(folder: Path, capsys: Capture) -> Path:
    output = folder / "small.onnx"
    assert call(capsys, "prune", DIGITS, output, *DIGITS_OPTIONS, "--target-macs", 0.6, "--samples", 300).code == 0
    return output


def test_compare_shows_cost_fidelity_accuracy_and_latency(tmp_path: Path, capsys: Capture) -> None:
    output = pruned_digits(tmp_path, capsys)
    data = ("--calibration", DIGITS_DATA, "--input-array", "test_images", "--scale", 1 / 16)
    plain = json.loads(call(capsys, "compare", DIGITS, output, *data, "--json").out)
    assert plain["fidelity"][0]["samples"] == 797
    assert plain["fidelity"][0]["dense_accuracy"] is None
    assert plain["latency"] == []
    asked = ("compare", DIGITS, output, *data, "--label-array", "test_labels", "--latency", "--latency-batch", 4)
    found = json.loads(call(capsys, *asked, "--samples", 200, "--json").out)
    assert found["fidelity"][0]["dense_accuracy"] > 0.95
    assert 0.5 < found["fidelity"][0]["pruned_accuracy"] <= 1
    assert [entry["batch"] for entry in found["latency"]] == [1, 4]
    assert all(entry["rounds"] >= 5 for entry in found["latency"])
    assert found["pruned"]["macs"] < 0.6 * found["dense"]["macs"]
    shown = call(capsys, *asked, "--samples", 50)
    for word in ("dense top-1", "latency", "kept", "cosine"):
        assert word in shown.out


def test_a_model_is_like_itself(capsys: Capture) -> None:
    found = json.loads(call(capsys, "compare", DIGITS, DIGITS, *DIGITS_OPTIONS, "--samples", 64, "--json").out)
    entry = found["fidelity"][0]
    assert (entry["relative_l2"], entry["agreement"]) == (0.0, 1.0)
    assert entry["cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("draw", "word"),
    [
        (lambda net: net.output(net.conv(net.image(channels=4), 4, 4)), "different inputs"),
        (lambda net: net.output(net.conv(net.input("y", 3, 8, 8), 3, 4)), "different inputs"),
        (lambda net: net.output(net.conv(net.image(), 3, 4)), "no output"),
    ],
)
def test_models_that_cannot_be_compared(draw: Callable[[Net], None], word: str, here: Bench, capsys: Capture) -> None:
    net = Net(batch="N")
    draw(net)
    other = here.folder / "other.onnx"
    onnx.save(net.model(), other)
    outcome = call(capsys, "compare", here.model, other, "--calibration", here.data)
    assert outcome.code == 2
    assert len(outcome.lines) == 1
    assert word in outcome.err


def test_outputs_of_different_shapes_cannot_be_compared(here: Bench, capsys: Capture) -> None:
    net = Net(batch="N")
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(x, 6, 5))
    onnx.save(net.model(), here.folder / "other.onnx")
    outcome = call(capsys, "compare", here.model, here.folder / "other.onnx", "--calibration", here.data)
    assert outcome.code == 2
    assert "(16, 4, 8, 8)" in outcome.err
    assert "(16, 5, 8, 8)" in outcome.err


def test_compare_checks_its_options(here: Bench, capsys: Capture) -> None:
    pair = ("compare", here.model, here.model)
    assert call(capsys, *pair).code == 2
    assert "--latency-batch 0" in call(capsys, *pair, "--calibration", here.data, "--latency-batch", 0).err
    assert "RANDOM" in call(capsys, *pair, "--calibration", "random").err


def test_a_bug_is_not_the_users(here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "verify", lambda *_: 1 / 0)
    monkeypatch.delenv("SNP_ONNX_TRACEBACK", raising=False)
    assert here.prune(capsys).code == 1
