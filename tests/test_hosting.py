"""The container files and the workflow for a public host: what they name is there, and is what the tests run on."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.command_line import ROOT
from tests.dockerfile import copied, instructions

FILES = sorted((ROOT / "containers").glob("*.Dockerfile"))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def ignored(name: str) -> bool:
    """What .dockerignore says of a file of the top folder; the last line that fits decides."""
    kept_out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(name, line.lstrip("!")):
            kept_out = not line.startswith("!")
    return kept_out


def test_both_are_there() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@each
def test_what_is_copied_exists_and_reaches_the_build(path: Path) -> None:
    assert len(copied(path)) >= 6
    for name in copied(path):
        assert (ROOT / name).exists(), name
        assert not ignored(name.split("/")[0]), name
    assert ignored("models")
    assert ignored(".git")


@each
def test_an_image_runs_the_command_as_a_plain_user_with_a_cache_that_stays(path: Path) -> None:
    steps = instructions(path)
    last = {step.name: step for step in steps}
    assert last["ENTRYPOINT"].text == '["snp-onnx"]'
    assert int(last["USER"].text) > 0
    caches = [step.text.partition("=")[2] for step in steps if step.text.startswith("SNP_ONNX_CACHE=")]
    assert caches == [last["VOLUME"].text]
    made = next(step.text for step in steps if "install --directory" in step.text)
    assert {caches[0], last["WORKDIR"].text} <= set(made.split())
    order = [step.name for step in steps]
    assert order.index("USER") > max(place for place, name in enumerate(order) if name == "RUN")


@each
def test_bases_have_versions_and_packages_are_pinned(path: Path) -> None:
    steps = instructions(path)
    for step in steps:
        if step.name == "FROM":
            assert re.search(r":\d[\w.-]+( AS \w+)?$", step.text), step.text
    (installing,) = (step.text for step in steps if "pip install" in step.text)
    given = re.findall(r"--constraint /tmp/(\S+)", installing)
    names = {"constraints.txt": "dev.txt"}
    assert [names.get(name, name) for name in given] == [
        Path(name).name for name in copied(path) if name.endswith(".txt")
    ]


@pytest.mark.parametrize("text", ["COPY a b\nFROM x:1\n", "FROM x:1\nRUNN true\n", "FROM x:1\nUSER\n"])
def test_a_broken_file_is_noticed(tmp_path: Path, text: str) -> None:
    (tmp_path / "Dockerfile").write_text(text)
    with pytest.raises(ValueError, match="no instruction"):
        instructions(tmp_path / "Dockerfile")


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def needed(requirement: Requirement, seen: set[str]) -> set[str]:
    """A requirement and all that it brings along, by name."""
    name = canonicalize_name(requirement.name)
    found = {name}
    for text in importlib.metadata.distribution(name).requires or ():
        further = Requirement(text)
        extras = requirement.extras or {""}
        if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
            key = str(further)
            if key not in seen:
                seen.add(key)
                found |= needed(further, seen)
    return found


def test_everything_that_an_image_installs_is_pinned() -> None:
    pinned = pins("requirements/dev.txt")
    wanted = needed(Requirement("snp-onnx[cpu,report]"), set()) - {"snp-onnx"}
    assert {"onnxruntime", "jinja2", "numpy", "protobuf", "markupsafe"} <= wanted
    assert wanted <= set(pinned), sorted(wanted - set(pinned))
    assert pins("containers/cuda.txt") == {"onnxruntime-gpu": pinned["onnxruntime"]}


# the workflow


def workflow() -> dict[str, Any]:
    found = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [line for step in job["steps"] for line in str(step.get("run", "")).splitlines()]


def test_the_workflow_runs_what_ci_runs() -> None:
    """Its targets are in the Makefile, and are those of .ci/run."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    jobs = workflow()["jobs"]
    asked = [line.split()[1] for line in commands(jobs["check"]) if line.startswith("make ")]
    ours = re.findall(r"^make (\S+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert asked == ours
    assert {"check", "demo"} <= set(asked) <= targets
    assert "python -m build" in commands(jobs["build"])


def test_files_that_the_workflow_names_exist() -> None:
    for job in workflow()["jobs"].values():
        for step in job["steps"]:
            for name in str(step.get("with", {}).get("cache-dependency-path", "")).split():
                assert (ROOT / name).is_file(), name
            for name in re.findall(r"--constraint (\S+)", str(step.get("run", ""))):
                assert (ROOT / name).is_file(), name
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"]), step["uses"]


def test_the_workflow_covers_the_supported_pythons_and_releases_tags_only() -> None:
    jobs = workflow()["jobs"]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    least = re.search(r'requires-python = ">=([\d.]+)"', text)
    assert least is not None
    assert jobs["check"]["strategy"]["matrix"]["python"][0] == least.group(1)
    assert jobs["release"]["needs"] == ["check", "build"]
    assert jobs["release"]["if"] == "github.ref_type == 'tag'"
    assert jobs["release"]["permissions"] == {"id-token": "write"}
    assert workflow()["permissions"] == {"contents": "read"}
