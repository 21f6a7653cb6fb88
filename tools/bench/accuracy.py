"""Accuracy on ResNet-56 at equal MACs: every preset, and single steps of them; no labels, no fine-tuning.

python -m tools.bench.accuracy
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import snp_onnx
from tools.bench import material

EXPORTS = ("resnet56_cifar10_ts.onnx", "resnet56_cifar10_dynamo.onnx")
TARGETS = (0.8, 0.65, 0.5, 0.4)
SAMPLES = 1024

WAYS: Mapping[str, Mapping[str, Any]] = {
    "magnitude order, uniform, no folding": {"order": "magnitude", "ratios": "uniform", "fold": "none"},
    "ZCA order, no folding": {"fold": "none"},
    "paper": {},
    "paper, streams cut too": {"streams": True},
    "paper with folding of windows": {"fold": "patch"},
    "fast": {"preset": "fast"},
    "fast, streams cut too": {"preset": "fast", "streams": True},
}


def main() -> None:
    """Print both tables: top-1 on the 5,000 test images."""
    images, _ = material.cifar("train12k", SAMPLES)
    tests, labels = material.cifar("test5k")
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {SAMPLES} training images\n")

    def row(export: str, options: Mapping[str, Any]) -> list[str]:
        return [f"{_accuracy(export, images, tests, labels, target, options):.2f}" for target in TARGETS]

    columns = ("MACs kept at most", *map(str, TARGETS))
    print(material.table(columns, [(name, *row(EXPORTS[0], options)) for name, options in WAYS.items()]))
    print("\nThe other export:\n")
    print(material.table(columns, [(name, *row(EXPORTS[1], WAYS[name])) for name in ("paper", "fast")]))


def _accuracy(
    export: str, images: object, tests: object, labels: object, target: float, options: Mapping[str, Any]
) -> float:
    dense = material.model(export)
    result = snp_onnx.prune(dense, {"input": images}, target_macs=target, layout="nhwc", **material.CIFAR, **options)
    assert result.report.pruned.macs <= target * result.report.dense.macs
    judged: dict[str, Any] = {"label_array": "labels", "layout": "nhwc", "batch_size": 250, **material.CIFAR}
    found = snp_onnx.compare(dense, result.model, {"input": tests, "labels": labels}, **judged)
    accuracy = found.fidelity[0].pruned_accuracy
    assert accuracy is not None
    return 100 * accuracy


if __name__ == "__main__":
    main()
