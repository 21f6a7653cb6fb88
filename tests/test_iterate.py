"""The iterative schedule: prune some, recover, prune more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import snp_onnx
from tests.command_line import ROOT, images
from tests.test_recover import COUNT, residual
from tools.iterate import iterate, shares

pytest.importorskip("torch")

PRUNE = {"preset": "fast", "fold": "none"}
RECOVER = {"epochs": 3, "batch_size": 16, "lr": 2e-3, "threads": 1}


def test_shares_are_equal_fractions() -> None:
    found = shares(0.4, 3)
    assert found[-1] == pytest.approx(0.4)
    assert np.ptp(np.divide(found, [1.0, *found[:-1]])) < 1e-9


def test_every_step_is_smaller_and_the_last_meets_the_target() -> None:
    dense = residual()
    steps = list(iterate(dense, {"x": images(COUNT)}, 0.45, 2, PRUNE, RECOVER))
    assert steps[0].macs > steps[1].macs
    assert steps[1].macs <= 0.45
    cost = snp_onnx.inspect(steps[1].recovered.model, input_shapes={"x": (1, 3, 8, 8)}).dense.macs
    assert cost == steps[1].pruned.report.pruned.macs
    assert all(step.recovered.report.changed for step in steps)


def test_the_command(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "dense.onnx")
    np.savez(tmp_path / "data.npz", x=images(60))
    command = ["-m", "tools.iterate", str(tmp_path / "dense.onnx"), str(tmp_path / "out.onnx")]
    command += ["--calibration", str(tmp_path / "data.npz"), "--target-macs", "0.6", "--steps", "2"]
    command += ["--prune", '{"preset": "fast"}', "--recover", '{"epochs": 1}']
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["step 1", "step 2"]
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
