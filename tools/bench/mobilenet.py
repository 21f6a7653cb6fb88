"""MobileNetV2 in two folds: one half of the 240 ImageNet images calibrates, the other judges, then they swap.

The settings given by --set hold for every preset, and are compared with the presets as they are.

    python -m tools.bench.mobilenet [--preset NAME ...] [--targets F ...] [--set key=value ...] [--threads N]
"""

from __future__ import annotations

import argparse
import ast
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

import snp_onnx
from snp_onnx.planning.options import Preset
from tools.bench import material

MODEL = material.MOBILENET
TARGETS = (0.8, 0.65)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table: figures over both folds."""
    given = _parser().parse_args(arguments)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {MODEL}, two folds of 120 images\n")
    settings = dict(given.set)
    ways = [
        {"preset": preset, **options} for preset in given.preset for options in ([{}, settings] if settings else [{}])
    ]
    folds = material.imagenet_folds()
    rows = [_row(folds, way, target, given.threads) for way in ways for target in given.targets]
    columns = ("settings", "MACs kept at most", "top-1 dense", "top-1 pruned", "kept, %", "agreement, %", "cosine")
    print(material.table(columns, rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.mobilenet", description=__doc__)
    presets = [str(preset) for preset in Preset]
    parser.add_argument("--preset", nargs="+", choices=presets, default=presets, metavar="NAME")
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS, metavar="F")
    parser.add_argument("--set", nargs="+", type=_setting, default=(), metavar="key=value")
    parser.add_argument("--threads", type=int, help="of the runtime; all cores unless given")
    return parser


def _setting(text: str) -> tuple[str, Any]:
    """`key=value` as an option of `snp_onnx.prune`; the value is a Python literal or else a string."""
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _row(folds: Sequence[material.Fold], way: Mapping[str, Any], target: float, threads: int | None) -> tuple[str, ...]:
    name, start = ", ".join(f"{key} {value}" for key, value in way.items() if key != "preset"), time.perf_counter()
    label = f"{way['preset']}{', ' * bool(name)}{name}"
    try:
        found = np.mean(list(_figures(folds, way, target, threads)), axis=0)  # folds are of one size
    except snp_onnx.TargetError as error:
        return (label, str(target), *("-",) * 4, f"declined: {error}")
    print(f"{label} {target}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    dense, pruned, agreement, cosine = found
    shares = [f"{100 * share:.2f}" for share in (dense, pruned, pruned / dense, agreement)]
    return (label, str(target), *shares, f"{cosine:.4f}")


def _figures(
    folds: Sequence[material.Fold], way: Mapping[str, Any], target: float, threads: int | None
) -> Iterator[tuple[float, ...]]:
    """Each fold's dense and pruned top-1, agreement of the two, and mean cosine of the logits."""
    model = material.model(MODEL)
    for calibration, test in folds:
        result = snp_onnx.prune(model, calibration, target_macs=target, threads=threads, **way)
        assert result.report.pruned.macs <= target * result.report.dense.macs
        (found,) = snp_onnx.compare(model, result.model, test, label_array="labels", threads=threads).fidelity
        assert found.dense_accuracy is not None
        assert found.pruned_accuracy is not None
        assert found.agreement is not None
        yield found.dense_accuracy, found.pruned_accuracy, found.agreement, found.cosine


if __name__ == "__main__":
    main()
