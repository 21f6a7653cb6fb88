"""The command line as a process: interrupted, killed, piped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from snp_onnx import __version__
from snp_onnx.cli.interruption import Interruption
from snp_onnx.cli.run import run
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


def started(here: Bench, module: str, inner: str, **environment: str) -> subprocess.Popen[str]:
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
        env={**os.environ, **environment},
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


def test_a_terminated_run_cleans_up(here: Bench) -> None:
    (here.folder / "tmp").mkdir()
    process = started(here, "verbs.measure", "module.collect", TMPDIR=str(here.folder / "tmp"))
    assert list((here.folder / "tmp").glob("snp_onnx-*"))
    before = sorted(path.name for path in here.folder.iterdir())
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, "", "interrupted: nothing was written\n")
    assert not list((here.folder / "tmp").glob("snp_onnx-*"))
    assert sorted(path.name for path in here.folder.iterdir()) == before


EARLY = """
import os, signal, sys

class Finder:
    def find_spec(name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, Finder)
from snp_onnx.cli import main
main(["--version"])
"""


@pytest.mark.parametrize("name", ["snp_onnx.cli.run", "typer", "numpy", "scipy"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_libraries_are_loaded(name: str, number: signal.Signals) -> None:
    code = EARLY.format(name=name, signal=number.name)
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (128 + number, "", "interrupted: nothing was written\n")


def test_too_little_memory_is_said() -> None:
    line = f"ulimit -v 400000; exec {sys.executable} -m snp_onnx.cli --version"
    found = subprocess.run(line, shell=True, cwd=ROOT, text=True, capture_output=True, check=False, timeout=60)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert found.stderr.startswith("error: only 390 MB may be used")


def test_an_interruption_after_the_last_file(here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("snp_onnx.cli.commands.pruning_table", interrupt)
    outcome = here.prune(capsys)
    assert (outcome.code, outcome.lines) == (130, ["interrupted: everything was written"])
    assert onnx.load(here.output).graph.node


def test_an_interruption_that_a_library_swallows(here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it makes of it is no bug, and what comes out of it isn't written."""
    told = Interruption(number=signal.SIGINT)
    monkeypatch.chdir(here.folder)
    for target in ("0.6", "1e-9"):
        asked = ["prune", "model.onnx", "out.onnx", "--calibration", "data.npz", "--target-macs", target]
        assert run(asked, told) == 130
        assert capsys.readouterr().err == ("interrupted: nothing was written\n" if target == "0.6" else "")
    assert not here.output.exists()


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


def test_closed_streams(here: Bench) -> None:
    """A descriptor that is closed isn't given to a file of ours, and what has nowhere to go is said."""
    prune = ("prune", here.model, here.output, "--calibration", here.data, "--target-macs", "0.6", "--preset", "fast")
    for asked, closed, code, said in (
        (("inspect", DIGITS, "--json"), ">&-", 2, "error: standard output is closed"),
        (("inspect", DIGITS, "--json", "--quiet"), "2>&- | head -1", 0, "{"),
        ((*prune, "--no-latency"), ">&- <&-", 0, "warning: standard output is closed"),
        ((*prune, "--quiet"), ">&- 2>&- <&-", 0, ""),
    ):
        here.output.unlink(missing_ok=True)
        line = " ".join(map(str, (sys.executable, "-m", "snp_onnx.cli", *asked, closed)))
        found = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert found.returncode == code, found
        assert said in found.stdout + found.stderr
        if asked[0] == "prune":
            assert onnx.load(here.output).graph.node


LOADER = """
import atexit, os, subprocess
import numpy as np

def load_data():
    os.chdir({elsewhere!r})
    print("from the loader")
    subprocess.run(["echo", "from its child"])
    atexit.register(print, "at the end")
    for seed in range(20):
        assert os.getcwd() == {elsewhere!r}
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        yield {{"x": np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)}}

def leave():
    yield from list(load_data())[:3]
    os._exit(0)
"""


def test_what_a_loader_does_stays_with_it(here: Bench) -> None:
    (here.folder / "elsewhere").mkdir()
    (here.folder / "feeds.py").write_text(LOADER.format(elsewhere=str(here.folder / "elsewhere")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "snp_onnx.cli"]

    def called(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments],
            cwd=here.folder, env=environment, text=True, capture_output=True, check=False, timeout=120,
        )  # fmt: skip

    target = ("--target-macs", "0.6", "--preset", "fast", "--no-latency")
    found = called("prune", "model.onnx", "out.onnx", "--calibration", "feeds.py", *target)
    assert found.returncode == 0, found.stderr
    assert here.output.is_file()
    compared = called("compare", "model.onnx", "out.onnx", "--calibration", "feeds.py", "--json")
    assert json.loads(compared.stdout)["fidelity"]
    assert {"from the loader", "from its child", "at the end"} <= set(compared.stderr.splitlines())
    here.output.unlink()
    refused = called("prune", "model.onnx", "out.onnx", "--calibration", "feeds.py:leave", *target)
    assert refused.returncode == 2
    assert "feeds.py:19 raised SystemExit: os._exit(0)" in refused.stderr
