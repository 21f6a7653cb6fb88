"""Calling the command line as a user does, but in this process; and the small models and data to call it on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from snp_onnx.cli.run import run
from tests.graphs import Batch, Net

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "models" / "digits.onnx"
DIGITS_DATA = ROOT / "models" / "digits.npz"
DIGITS_OPTIONS = ("--calibration", DIGITS_DATA, "--input-array", "images", "--label-array", "labels", "--scale", 1 / 16)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run `snp-onnx` with the arguments."""
    capsys.readouterr()
    code = run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, byte for byte; links by where they point."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def small(batch: Batch = "N", dtype: npt.DTypeLike = np.float32, seed: int = 0) -> onnx.ModelProto:
    """Three convolutions with two groups, w1:0 of 8 units (node n1) and w2:0 of 6 (node n3)."""
    net = Net(batch=batch, dtype=dtype, seed=seed)
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
    net.output(net.conv(x, 6, 4))
    return net.model()


def classifier(batch: Batch = "N", seed: int = 0) -> onnx.ModelProto:
    """A convolutional classifier of four classes: groups w1:0 (8) and w2:0 (12, a flattened axis behind it)."""
    net = Net(batch=batch, seed=seed)
    x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 12)
    net.output(net.dense(net.Flatten(x), 768, 4))
    return net.model()


def images(count: int = 48, seed: int = 3, channels: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal((count, channels, 8, 8)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder with a small model, data for it, and an old file where the output goes."""

    folder: Path
    model: Path
    data: Path
    output: Path

    def prune(self, capsys: pytest.CaptureFixture[str], *options: object, target: object = 0.6) -> Outcome:
        """`prune MODEL OUTPUT --calibration DATA --target-macs target`, then the options."""
        share = () if target is None else ("--target-macs", target)
        return call(capsys, "prune", self.model, self.output, "--calibration", self.data, *share, *options)


def bench(folder: Path, model: onnx.ModelProto | None = None, arrays: Mapping[str, Array] | None = None) -> Bench:
    """Set up the folder."""
    path = folder / "model.onnx"
    onnx.save(model or small(), path)
    np.savez(folder / "data.npz", **dict(arrays or {"x": images()}))  # type: ignore[arg-type]
    return Bench(folder, path, folder / "data.npz", folder / "out.onnx")


@dataclass(frozen=True, slots=True)
class Done:
    """A successful run: what it printed, the model, and the report."""

    outcome: Outcome
    model: onnx.ModelProto
    report: dict[str, Any]

    @property
    def widths(self) -> dict[str, int]:
        return {group["id"]: group["after"] for group in self.report["groups"]}

    def weight(self, number: int) -> Array:
        return onnx.numpy_helper.to_array(self.model.graph.initializer[number])


def done(here: Bench, capsys: pytest.CaptureFixture[str], *options: object, target: object = 0.6) -> Done:
    outcome = here.prune(capsys, "--report", here.folder / "report.json", *options, target=target)
    assert outcome.code == 0, outcome.err
    report = json.loads((here.folder / "report.json").read_text())
    return Done(outcome, onnx.load(here.output), report)
