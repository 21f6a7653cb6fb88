"""What pyproject.toml lists is what the checkout holds: a forgotten subpackage would be missing from the wheel only."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import snp_onnx.passes
from snp_onnx._version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages(folder: Path, name: str) -> set[str]:
    """The packages below `folder`, by their installed names, links not followed."""
    found = set()
    for parent, children, names in os.walk(folder, followlinks=False):
        children[:] = [child for child in children if child != "__pycache__"]
        if any(file.endswith(".py") for file in names):
            found.add(".".join([name, *Path(parent).relative_to(folder).parts]))
    return found


def test_every_package_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages(ROOT / "snp_onnx", "snp_onnx") | packages(ROOT / "passes", "snp_onnx.passes")


def test_a_forgotten_package_is_noticed(tmp_path: Path) -> None:
    for name in ("a.py", "inner/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert packages(tmp_path, "snp_onnx") == {"snp_onnx", "snp_onnx.inner"}


def test_passes_have_one_identity() -> None:
    link = ROOT / "snp_onnx" / "passes"
    assert link.is_symlink()
    assert os.readlink(link) == "../passes"
    assert snp_onnx.passes.__name__ == "snp_onnx.passes"


def test_the_version_has_one_source() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "snp_onnx._version.__version__"}
    assert [part.isdigit() for part in __version__.split(".")[:2]] == [True, True]


def test_every_other_file_of_the_package_is_listed() -> None:
    given = PROJECT["tool"]["setuptools"]["package-data"]
    listed = {
        path
        for package, patterns in given.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    suffixes = {".py", ".pyc"}
    there = {path for path in (ROOT / "snp_onnx").rglob("*") if path.is_file() and path.suffix not in suffixes}
    assert there == listed


def test_the_changelog_begins_with_the_version() -> None:
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line[:3] == "## "]
    assert headings[0].split()[1] == __version__
