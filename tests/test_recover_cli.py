"""`snp-onnx recover` as a user calls it: what it writes, what it says, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import snp_onnx
from tests.command_line import ROOT, Outcome, call, files, images
from tests.test_recover import COUNT, residual

pytest.importorskip("torch")

Capture = pytest.CaptureFixture[str]
QUICK = ("--epochs", 3, "--batch-size", 16, "--lr", 2e-3, "--threads", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense model, what a crude pruning leaves of it, and data."""
    onnx.save(residual(), tmp_path / "dense.onnx")
    given = {"x": images(40)}
    result = snp_onnx.prune(tmp_path / "dense.onnx", given, target_macs=0.5, preset="fast", fold="none")
    result.save(tmp_path / "pruned.onnx")
    np.savez(tmp_path / "data.npz", x=images(COUNT), classes=np.arange(COUNT) % 4)
    return tmp_path


def arguments(folder: Path, *options: object) -> list[object]:
    models = [folder / name for name in ("dense.onnx", "pruned.onnx", "out.onnx")]
    return ["recover", *models, "--calibration", folder / "data.npz", "--input-array", "x", *QUICK, *options]


def recover(capsys: Capture, folder: Path, *options: object) -> Outcome:
    return call(capsys, *arguments(folder, *options))


def test_the_model_the_report_and_the_table(folder: Path, capsys: Capture) -> None:
    outcome = recover(capsys, folder, "--report", folder / "report.json")
    assert outcome.code == 0, outcome.err
    report = json.loads((folder / "report.json").read_text())
    assert report["changed"]
    assert report["after"][0]["relative_l2"] < report["before"][0]["relative_l2"]
    assert [entry["epoch"] for entry in report["history"]] == [1, 2, 3]
    assert report["options"]["optimiser"] == "adamw"
    assert "held-back error" in outcome.out
    assert f"{report['after'][0]['relative_l2']:.4f}" in outcome.out
    onnx.checker.check_model(str(folder / "out.onnx"), full_check=True)
    assert not (folder / "out.onnx.checkpoint").exists()


def test_quiet_prints_nothing(folder: Path, capsys: Capture) -> None:
    outcome = recover(capsys, folder, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_labels_show_accuracies(folder: Path, capsys: Capture) -> None:
    assert "pruned top-1" in recover(capsys, folder, "--label-array", "classes").out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--augment", "turn"), "--augment 'turn': give one of flip, crop, mix"),
        (("--epochs", -1), "--epochs -1: give a positive number"),
        (("--device", "abacus"), "--device abacus"),
        (("--report", "report.txt"), "give a file name that ends in .json"),
        (("--checkpoint", "missing/state"), "doesn't exist"),
        (("--optimizer", "sgd"), "--optimizer"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    folder: Path, capsys: Capture, options: tuple[object, ...], message: str
) -> None:
    before = files(folder)
    outcome = recover(capsys, folder, *options)
    assert outcome.code == 2
    assert len(outcome.lines) == 1
    assert message in outcome.err
    assert files(folder) == before


@pytest.mark.parametrize("name", ["dense.onnx", "pruned.onnx", "data.npz"])
def test_inputs_are_not_overwritten(folder: Path, capsys: Capture, name: str) -> None:
    before = files(folder)
    models = [folder / "dense.onnx", folder / "pruned.onnx", folder / name]
    outcome = call(capsys, "recover", *models, "--calibration", folder / "data.npz", "--input-array", "x", *QUICK)
    assert outcome.code == 2
    assert files(folder) == before


def test_force_lets_the_output_be_the_pruned_model(folder: Path, capsys: Capture) -> None:
    before = (folder / "pruned.onnx").read_bytes()
    models = [folder / "dense.onnx", folder / "pruned.onnx", folder / "pruned.onnx"]
    data = ("--calibration", folder / "data.npz", "--input-array", "x")
    assert call(capsys, "recover", *models, *data, *QUICK, "--force").code == 0
    assert (folder / "pruned.onnx").read_bytes() != before


def test_an_install_without_torch_is_told(folder: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.util as u; inner = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else inner(name, *rest)\n"
        "from snp_onnx.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments(folder))], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: recover needs torch: pip install 'snp-onnx[torch]'\n"
    assert not (folder / "out.onnx").exists()


def test_a_recovered_model_runs_where_torch_is_not(folder: Path, capsys: Capture) -> None:
    assert recover(capsys, folder).code == 0
    script = (
        "import sys; sys.modules['torch'] = None; import numpy as np, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "print(session.run(None, {'x': np.ones((2, 3, 8, 8), np.float32)})[0].shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "out.onnx")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(2, 4)"


def test_a_kill_loses_no_more_than_an_interval(folder: Path, capsys: Capture) -> None:
    """Killed without a warning, again and again, it ends with the bytes of a run that nothing disturbed."""
    long = ("--epochs", 40, "--every", 0)
    whole = recover(capsys, folder, *long)
    assert whole.code == 0, whole.err
    expected = (folder / "out.onnx").read_bytes()
    (folder / "out.onnx").unlink()
    state = folder / "out.onnx.checkpoint"
    command = [sys.executable, "-m", "snp_onnx.cli", *map(str, arguments(folder, *long, "--resume"))]
    for _ in range(2):
        written = state.stat().st_mtime_ns if state.exists() else 0
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            while not state.exists() or state.stat().st_mtime_ns == written:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(0.2)
            os.kill(process.pid, signal.SIGKILL)
        assert not (folder / "out.onnx").exists()
    outcome = recover(capsys, folder, *long, "--resume")
    assert outcome.code == 0, outcome.err
    assert "resumed in epoch" in outcome.err
    assert (folder / "out.onnx").read_bytes() == expected
