"""Recovery of ResNet-56 by distillation on 12,000 unlabelled training images, judged on the 5,000 test images.

python -m tools.bench.recover [--targets 0.5,0.4] [--minutes 20] [--threads 2] [--model NAME] [--images N]

The settings below were found on training images alone, by the loss of batches before they are trained on. `--images`
leaves out the last training images, to look at settings without the test images: they are judged instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import onnx

import snp_onnx
from tools.bench import material
from tools.bench.accuracy import SAMPLES

SETTINGS: Mapping[str, Any] = {
    "epochs": 1000,  # the minutes decide
    "batch_size": 64,
    "optimiser": "sgd",
    "lr": 0.1,
    "output_weight": 0.1,
    "augment": ("flip", "crop"),
    "precision": "bfloat16",
}


def main() -> None:
    """Print the table: top-1 before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="0.5,0.4")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="resnet56_cifar10_ts.onnx")
    parser.add_argument("--images", type=int)
    parser.add_argument("--save", help="a prefix for the recovered models")
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}, {given.threads} threads, {given.minutes:g} minutes\n")
    rows = [_row(float(target), given) for target in given.targets.split(",")]
    columns = ("MACs kept at most", "dense", "pruned", "recovered", "passes", "images/s", "wall s", "CPU s", "error")
    print(material.table(columns, rows))


def _row(target: float, given: argparse.Namespace) -> tuple[object, ...]:
    dense, (images, labels) = material.model(given.model), material.cifar("train12k")
    options: dict[str, Any] = {"layout": "nhwc", "threads": given.threads, **material.CIFAR}
    pruned = snp_onnx.prune(dense, {"input": images[:SAMPLES]}, target_macs=target, **options).model
    tests = material.cifar("test5k") if given.images is None else (images[given.images :], labels[given.images :])
    wall, used = time.perf_counter(), time.process_time()
    result = snp_onnx.recover(
        dense, pruned, {"input": images[: given.images]}, time_limit=given.minutes, **SETTINGS, **options
    )
    wall, used = time.perf_counter() - wall, time.process_time() - used
    report = result.report
    for entry in report.history:
        print({name: round(value, 4) for name, value in entry.items()}, flush=True)
    passes = report.passes
    speed = passes * report.samples / report.timings["train"]
    if given.save:
        result.save(f"{given.save}{target}.onnx")
    before, after = (_accuracy(dense, model, tests, options) for model in (pruned, result.model))
    error = f"{report.before[0].relative_l2:.4f} → {report.after[0].relative_l2:.4f}"
    return (
        target,
        before[0],
        before[1],
        after[1],
        f"{passes:.1f}",
        f"{speed:.0f}",
        f"{wall:.0f}",
        f"{used:.0f}",
        error,
    )


def _accuracy(dense: Any, model: onnx.ModelProto, tests: Any, options: Mapping[str, Any]) -> tuple[str, str]:
    """Top-1 of the dense model and of this one."""
    data = {"input": tests[0], "labels": tests[1]}
    found = snp_onnx.compare(dense, model, data, label_array="labels", batch_size=250, **options).fidelity[0]
    assert found.dense_accuracy is not None
    assert found.pruned_accuracy is not None
    return f"{100 * found.dense_accuracy:.2f}", f"{100 * found.pruned_accuracy:.2f}"


if __name__ == "__main__":
    main()
