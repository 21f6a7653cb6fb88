"""The newcomer's path, but for the wheel and its installation: from images to the table, in this environment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import DIGITS, DIGITS_DATA, ROOT, call
from tools import newcomer


@pytest.mark.slow
def test_the_path_leads_to_a_judged_int8_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = newcomer.Journey(tmp_path).bin
    programs.mkdir(parents=True)
    for name, module in (("python", ""), ("snp-onnx", "-m snp_onnx.cli ")):
        program = programs / name
        program.write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' {module}\"$@\"\n")
        program.chmod(0o755)
    monkeypatch.setattr(newcomer, "install", lambda journey: None)
    monkeypatch.setattr(newcomer, "_empty", lambda folder: folder)
    monkeypatch.setattr(sys, "argv", ["newcomer.py", "--folder", str(tmp_path), "--count", "96"])
    newcomer.main()
    table = capsys.readouterr().out.rpartition("what came out\n")[2].splitlines()
    assert [line.split("  ")[0] for line in table] == [
        "write images", "inspect", "prune", "quantise", "compare small.onnx", "compare int8.onnx", "all",
    ]  # fmt: skip
    for line in table[4:6]:
        dense, pruned = (float(figure) for figure in re.findall(r"([\d.]+) %", line))
        assert dense > 99.0
        assert pruned > 95.0
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (tmp_path / "small.onnx").stat().st_size
    assert (tmp_path / "report.html").is_file()


def test_the_table_has_what_compare_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = np.load(DIGITS_DATA)
    np.savez(tmp_path / "test.npz", images=digits["test_images"][:50], labels=digits["test_labels"][:50])
    asked = ("--input-array", "images", "--label-array", "labels", "--scale", 1 / 16, "--latency", "--threads", 1)
    outcome = call(capsys, "compare", DIGITS, DIGITS, "--calibration", tmp_path / "test.npz", *asked)
    found = re.fullmatch(r"top-1 ([\d.]+ %) -> ([\d.]+ %), ([\d.]+) of the time", newcomer._judgement(outcome.out))
    assert found is not None
    assert found[1] == found[2]
    assert 0.5 < float(found[3]) < 2.0


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    monkeypatch.setattr(sys, "argv", ["newcomer.py", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="not empty"):
        newcomer.main()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
