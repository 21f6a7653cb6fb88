"""The command line as a process: interrupted, killed, piped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from snp_onnx import __version__
from snp_onnx.verbs import measure as measure_module
from tests.command_line import (
    DIGITS,
    DIGITS_OPTIONS,
    ROOT,
    Bench,
    files,
)

Capture = pytest.CaptureFixture[str]


# interruptions


def test_an_interruption_leaves_everything_as_it_was(
    here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    here.output.write_bytes(b"an older file")
    before = files(here.folder)
    monkeypatch.setattr(measure_module, "collect", interrupt)
    outcome = here.prune(capsys)
    assert outcome.code == 130
    assert outcome.lines == ["interrupted: nothing was written"]
    assert files(here.folder) == before


PAUSED = """
import pathlib, sys, time
import snp_onnx.{module} as module
from snp_onnx.cli import main

inner = {inner}
def paused(*given, **named):
    pathlib.Path({mark!r}).touch()
    time.sleep(60)
    return inner(*given, **named)
{inner} = paused
main(sys.argv[1:])
"""


def started(here: Bench, module: str, inner: str) -> subprocess.Popen[str]:
    """A real run that stops at a given place, until it is killed."""
    mark = here.folder.parent / f"{here.folder.name}.mark"
    code = PAUSED.format(module=module, inner=inner, mark=str(mark))
    asked = ["prune", here.model, here.output, "--calibration", here.data, "--target-macs", "0.6"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, asked)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits SIG_IGN
    )
    limit = time.monotonic() + 60
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    time.sleep(0.1)
    return process


def test_an_interrupted_calibration_in_a_process_of_its_own(here: Bench) -> None:
    here.output.write_bytes(b"an older file")
    before = files(here.folder)
    process = started(here, "verbs.measure", "module.collect")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "interrupted: nothing was written\n")
    assert files(here.folder) == before


def test_a_kill_in_the_middle_of_writing_leaves_the_old_file_whole(here: Bench) -> None:
    here.output.write_bytes(b"an older file")
    process = started(here, "writing.moves", "module.os.replace")
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert here.output.read_bytes() == b"an older file"


# a process of its own


def shell(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snp_onnx.cli", *map(str, arguments)],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=120, **more,
    )  # fmt: skip


def test_results_go_to_stdout_and_remarks_to_stderr(tmp_path: Path) -> None:
    found = shell("prune", DIGITS, tmp_path / "small.onnx", *DIGITS_OPTIONS, "--target-macs", 0.5, "--samples", 100)
    assert found.returncode == 0, found.stderr
    assert "parameters" in found.stdout
    assert "logits" in found.stdout
    assert found.stderr
    assert all(line.startswith(("note: ", "warning: ")) for line in found.stderr.splitlines())
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx"}


def test_the_first_word_of_a_user(tmp_path: Path) -> None:
    assert shell("--version").stdout.strip() == __version__
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    found = shell("prune", "--help", env=environment, encoding="cp1252")
    assert found.returncode == 0
    for option in (
        "--calibration", "--target-macs", "--target-params", "--target-size", "--variance", "--units", "--preset",
        "--order", "--fold", "--ratios", "--include", "--exclude", "--min-units", "--round-to", "--input-array",
        "--label-array", "--mean", "--std", "--scale", "--layout", "--samples", "--batch-size", "--input-shape",
        "--seed", "--provider", "--threads", "--custom-ops", "--report", "--plan", "--apply-plan", "--dry-run",
        "--save-as-external-data", "--force", "--quiet",
    ):  # fmt: skip
        assert option in found.stdout, option


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_nobody_reads_or_nothing_fits() -> None:
    command = [sys.executable, "-m", "snp_onnx.cli", "inspect", str(DIGITS), "--json", "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
    process.stderr.close()
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == 2
    assert found.stderr.splitlines()[0].startswith("error: ")
    assert "No space left" in found.stderr
