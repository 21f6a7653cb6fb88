"""The size gate passes on small sources, and fails on a long file and on a long function."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import size


def write(root: Path, name: str, lines: list[str]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def function(lines: int) -> list[str]:
    return ["def long():", *["    x = 1"] * (lines - 1)]


def test_sources_at_the_limits_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "snp_onnx/a.py", ["x = 1"] * size.MAX_FILE)
    write(tmp_path, "passes/b.py", function(size.MAX_FUNCTION))
    assert size.main(tmp_path) == 0
    out = capsys.readouterr().out
    assert f"{size.MAX_FILE:6d}  snp_onnx/a.py" in out
    assert f"{size.MAX_FUNCTION:6d}  passes/b.py:1 long" in out


@pytest.mark.parametrize("folder", ["snp_onnx", "passes", "models", "tools"])
def test_a_long_file_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
    write(tmp_path, f"{folder}/a.py", ["x = 1"] * (size.MAX_FILE + 1))
    assert size.main(tmp_path) == 1
    assert f"{folder}/a.py: 401 lines, at most 400" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["snp_onnx/tracing/rules", "tests"])
def test_a_long_function_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
    method = ["class A:", *["    " + line for line in function(size.MAX_FUNCTION + 1)]]
    write(tmp_path, f"{folder}/a.py", method)
    assert size.main(tmp_path) == 1
    assert f"{folder}/a.py:2 long: 61 lines, at most 60" in capsys.readouterr().err


def test_a_long_test_file_passes(tmp_path: Path) -> None:
    write(tmp_path, "tests/test_a.py", ["x = 1"] * (size.MAX_FILE + 1))
    assert size.main(tmp_path) == 0


def test_every_long_function_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(size.SHOWN + 3):
        write(tmp_path, f"tools/a{number:02d}.py", function(size.MAX_FUNCTION + 1))
    assert size.main(tmp_path) == 1
    assert capsys.readouterr().out.count("<- over 60") == size.SHOWN + 3


def test_a_linked_folder_counts_once(tmp_path: Path) -> None:
    write(tmp_path, "passes/b.py", ["x = 1"])
    write(tmp_path, "snp_onnx/a.py", ["x = 1"])
    (tmp_path / "snp_onnx" / "passes").symlink_to("../passes")
    names = [path.relative_to(tmp_path).as_posix() for path in size.sources(tmp_path)]
    assert names == ["snp_onnx/a.py", "passes/b.py"]


def test_a_wrong_root_fails(tmp_path: Path) -> None:
    assert size.main(tmp_path) == 1


def test_this_project_keeps_the_limits() -> None:
    assert size.main(Path(__file__).parents[1]) == 0
