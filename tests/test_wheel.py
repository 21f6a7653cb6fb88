"""The wheel and the sdist: built from a copy of the checkout, compared with it file by file, and used as users do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

from snp_onnx import __version__
from tests.command_line import DIGITS, DIGITS_OPTIONS, ROOT, files
from tests.dockerfile import copied

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout: it says which files belong to it"),
]

NAME = f"snp_onnx-{__version__}"
INFO = f"{NAME}.dist-info"
LINK = "snp_onnx/passes"
MADE = {"PKG-INFO", "setup.cfg"}


@dataclass(frozen=True, slots=True)
class Built:
    """What belongs to the checkout, and what was built from it and from the sdist."""

    tracked: frozenset[str]
    sdist: Path
    in_sdist: frozenset[str]
    wheel: Path
    wheel_of_sdist: Path


def run(*command: object, cwd: Path, **more: str) -> str:
    """What a command printed; it sees the folder that it runs in, and nothing of this checkout."""
    hidden = ("PYTHONPATH", "SNP_ONNX_CACHE", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden} | more
    found = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    return found.stdout


def build(source: Path, kinds: tuple[str, ...], into: Path) -> str:
    """Run the build of a release, with one date for all files."""
    command = (sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", into, source)
    return run(*command, cwd=into.parent, SOURCE_DATE_EPOCH="1700000000")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    room = tmp_path_factory.mktemp("build")
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]
    for name in tracked:
        target = room / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    said = build(room / "checkout", ("--sdist", "--wheel"), room / "dist")
    assert "absent from the `packages` configuration" not in said
    with tarfile.open(room / "dist" / f"{NAME}.tar.gz") as archive:
        archive.extractall(room / "unpacked", filter="data")
    sdist, wheel = room / "unpacked" / NAME, f"{NAME}-py3-none-any.whl"
    in_sdist = frozenset(files(sdist))
    build(sdist, ("--wheel",), room / "again")
    return Built(frozenset(tracked), sdist, in_sdist, room / "dist" / wheel, room / "again" / wheel)


def expected(tracked: frozenset[str]) -> set[str]:
    """The files of the wheel: the package with the passes in their place, and what pip wants to know."""
    inside = {name for name in tracked if name.startswith("snp_onnx/") and name != LINK}
    passes = {f"snp_onnx/{name}" for name in tracked if name.startswith("passes/")}
    made = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    return inside | passes | {f"{INFO}/{name}" for name in made}


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        assert set(wheel.namelist()) == expected(built.tracked)
        assert {"snp_onnx/py.typed", "snp_onnx/passes/slice_units.py", "snp_onnx/report/templates/page.html.j2"} <= set(
            wheel.namelist()
        )
        for entry in wheel.infolist():
            assert (entry.external_attr >> 28) in (0, 8), f"{entry.filename} is not a plain file"
        for name in sorted(built.tracked):
            home = f"snp_onnx/{name}" if name.startswith("passes/") else name
            if home in wheel.namelist():
                assert wheel.read(home) == (ROOT / name).read_bytes()


def test_the_sdist_is_the_checkout(built: Built) -> None:
    """But for dot files, the link and what the build notes down; the wheel made from it is the same, byte by byte."""
    there = {name for name in built.in_sdist if not name.startswith("snp_onnx.egg-info/")}
    wanted = {name for name in built.tracked if "/." not in f"/{name}" and name != LINK}
    assert there - MADE == wanted
    for name in sorted(wanted):
        assert (built.sdist / name).read_bytes() == (ROOT / name).read_bytes()
    assert built.wheel_of_sdist.read_bytes() == built.wheel.read_bytes()


def test_the_container_files_copy_all_that_the_wheel_is_made_of(built: Built, tmp_path: Path) -> None:
    stages = [copied(path, stage=0) for path in sorted((ROOT / "containers").glob("*.Dockerfile"))]
    assert stages[0] == stages[1]
    for name in built.tracked:
        if any(name == source or name.startswith(f"{source}/") for source in stages[0]):
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "source" / name, follow_symlinks=False)
    build(tmp_path / "source", ("--wheel",), tmp_path / "dist")
    assert (tmp_path / "dist" / built.wheel.name).read_bytes() == built.wheel.read_bytes()


def test_the_metadata_are_what_an_index_accepts(built: Built) -> None:
    from packaging.metadata import Metadata

    with zipfile.ZipFile(built.wheel) as wheel:
        raw = wheel.read(f"{INFO}/METADATA")
        points = wheel.read(f"{INFO}/entry_points.txt").decode()
    found = Metadata.from_email(raw, validate=True)
    assert str(found.version) == __version__
    assert str(found.requires_python) == ">=3.11"
    assert found.license_expression == "Apache-2.0"
    assert {"cpu", "gpu", "torch", "dask", "report"} <= set(found.provides_extra or ())
    assert points.split() == ["[console_scripts]", "snp-onnx", "=", "snp_onnx.cli:main"]
    plain = [requirement.name for requirement in found.requires_dist or () if requirement.marker is None]
    assert not {"torch", "onnxruntime", "onnxruntime-gpu", "jinja2"} & set(plain)
    message = message_from_bytes(raw)
    assert message["Description-Content-Type"] == "text/markdown"
    assert (found.description or "").startswith("# snp-onnx")


def environment(built: Built, room: Path) -> tuple[Path, Path]:
    """An environment that has the wheel and nothing else: its Python, and the folder of its packages."""
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=room)
    python = room / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, built.wheel, cwd=room)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=room).strip()
    assert Path(packages, "snp_onnx").is_dir()
    return python, Path(packages)


OURS = Path(sysconfig.get_path("purelib"))


def test_the_installed_wheel_prunes_outside_the_checkout(
    built: Built, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python, packages = environment(built, tmp_path_factory.mktemp("installed"))
    (packages / "others.pth").write_text(
        f"{OURS}\n", encoding="utf-8"
    )  # the packages of this environment, without ours
    program = python.with_name("snp-onnx")
    assert run(program, "--version", cwd=tmp_path).strip() == __version__
    where = run(python, "-c", "import snp_onnx.passes as p; print(p.__name__, p.__file__)", cwd=tmp_path)
    assert where.startswith(f"snp_onnx.passes {packages}")
    asked = (DIGITS, "small.onnx", *DIGITS_OPTIONS, "--target-macs", 0.5, "--samples", 200, "--report", "report.html")
    assert "parameters" in run(program, "prune", *asked, "--preset", "fast", cwd=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "report.html"}


CONSUMER = """
from pathlib import Path

import numpy as np
import snp_onnx
from snp_onnx import Plan, PlanError, PruneResult

images = np.zeros((8, 1, 8, 8), np.float32)
result: PruneResult = snp_onnx.prune("model.onnx", {"input": images}, target_macs=0.5)
cosine: float = result.report.fidelity[0].cosine
plan: Plan = result.plan
size: int = result.save(Path("small.onnx"))
blocks: int = len(snp_onnx.inspect("model.onnx").blocks)
agreement: float | None = snp_onnx.compare("model.onnx", "small.onnx", {"input": images}).fidelity[0].agreement
try:
    snp_onnx.prune_static("model.onnx", "small.onnx", [{"input": images}], nodes_to_exclude=["head"])
except PlanError as error:
    print(error)
version: str = snp_onnx.__version__
"""

MISUSE = {
    'snp_onnx.prune("model.onnx", None, target_macs="half")': "arg-type",
    'snp_onnx.prune("model.onnx", None, target_macs=0.5).report.fidelty': "attr-defined",
    'name: str = snp_onnx.prune("model.onnx", None).plan': "assignment",
    'snp_onnx.prune_static("model.onnx", "small.onnx")': "call-arg",
}


def test_types_reach_the_users_of_the_wheel(
    built: Built, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A script on the public surface is clean under `mypy --strict`; each wrong line is flagged, and nothing else."""
    python, packages = environment(built, tmp_path_factory.mktemp("typed"))
    for name in ("numpy", "onnx"):  # the types that the surface mentions: all packages would take a minute
        (packages / name).symlink_to(OURS / name)
    (tmp_path / "right.py").write_text(CONSUMER, encoding="utf-8")
    (tmp_path / "wrong.py").write_text("\n".join(["import snp_onnx", *MISUSE]), encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "right.py", "wrong.py"],
        cwd=tmp_path, text=True, capture_output=True, timeout=300, check=False,
        env={key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")},
    )  # fmt: skip
    flagged = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", found.stdout, re.MULTILINE)
    assert flagged == [("wrong", str(line), code) for line, code in enumerate(MISUSE.values(), 2)], found.stdout
