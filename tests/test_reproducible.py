"""The same inputs give the same bytes: in another process, folder and order of hashes, from any form of source."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.command_line import ROOT
from tests.reproduce import RUNS

WAYS = ("file", "arrays", "loader")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What each process wrote; they run at once, each with its own seed of hashes, folder and locale."""
    started = {}
    for number, way in enumerate(WAYS):
        home = tmp_path_factory.mktemp(f"at{number}" + "x" * number)
        environment = {
            **os.environ,
            "PYTHONHASHSEED": str(number * 77),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TZ": ("UTC", "Asia/Tokyo")[number % 2],
        }
        started[way] = subprocess.Popen(
            [sys.executable, "-m", "tests.reproduce", "out", way],
            cwd=home,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    found = {}
    for way, process in started.items():
        out, err = process.communicate()
        assert process.returncode == 0, err
        found[way] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("run", [f"{name} {preset}" for name, preset in RUNS])
def test_every_file_is_the_same(found: dict[str, dict[str, str]], run: str, way: str) -> None:
    first, second = (
        {name: digest for name, digest in found[w].items() if name.startswith(f"{run} ")} for w in (WAYS[0], way)
    )
    assert set(first) == {f"{run} {file}" for file in ("small.onnx", "plan.json", "plan.npz", "report")}
    assert first == second


def test_the_runs_differ_from_each_other(found: dict[str, dict[str, str]]) -> None:
    """The digests would tell: no two runs wrote the same model."""
    models = [digest for name, digest in found["file"].items() if name.endswith("small.onnx")]
    assert len(set(models)) == len(RUNS)
