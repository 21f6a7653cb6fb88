"""Accuracy on ResNet-56 at equal MACs: every preset, and single steps of them; no labels, no fine-tuning.

python -m tools.bench.accuracy [--seeds N]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

import snp_onnx
from tools.bench import material

EXPORTS = ("resnet56_cifar10_ts.onnx", "resnet56_cifar10_dynamo.onnx")
TARGETS = (0.8, 0.65, 0.5, 0.4, 0.3)
SAMPLES = 1024
SEEDS = 3

WAYS: Mapping[str, Mapping[str, Any]] = {
    "magnitude order, uniform, no folding": material.MAGNITUDE,
    "ZCA order, no folding": {"preset": "paper", "fold": "none"},
    "paper": {"preset": "paper"},
    "paper, streams cut too": {"preset": "paper", "streams": True},
    "paper with folding of windows": {"preset": "paper", "fold": "patch"},
    "fast": {"preset": "fast"},
    "fast, streams cut too": {"preset": "fast", "streams": True},
    "best, streams cut too": {"preset": "best", "streams": True},
}


def main() -> None:
    """Print the tables: top-1 on the 5,000 test images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="draws of calibration images for the preset best")
    seeds = parser.parse_args().seeds
    tests, labels = material.cifar("test5k")
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {SAMPLES} training images\n")

    def row(export: str, images: object, options: Mapping[str, Any]) -> list[float]:
        return [_accuracy(export, images, tests, labels, target, options) for target in TARGETS]

    columns = ("MACs kept at most", *map(str, TARGETS))
    draws = [calibration_images(seed) for seed in range(seeds)]
    found = [row(EXPORTS[0], images, {"preset": "best"}) for images in draws]
    print(material.table(columns, [(f"best, draw {seed}", *_texts(line)) for seed, line in enumerate(found)]))
    spread = [f"{mean:.2f} ± {std:.2f}" for mean, std in zip(np.mean(found, 0), np.std(found, 0), strict=True)]
    print(f"\nMean and standard deviation of {seeds} draws: {', '.join(spread)}\n", flush=True)
    rows = [(name, *_texts(row(EXPORTS[0], draws[0], way))) for name, way in WAYS.items()]
    print(material.table(columns, [*rows, ("best", *_texts(found[0]))]))
    print("\nThe other export:\n", flush=True)
    names = ("paper", "fast", "best")
    print(material.table(columns, [(name, *_texts(row(EXPORTS[1], draws[0], {"preset": name}))) for name in names]))


def _texts(figures: Sequence[float]) -> list[str]:
    return [f"{figure:.2f}" for figure in figures]


def calibration_images(seed: int) -> material.Images:
    """The first training images; for a seed above 0 a draw from all of them."""
    images, _ = material.cifar("train12k")
    places = np.arange(len(images)) if seed == 0 else np.random.default_rng(seed).permutation(len(images))
    return images[np.sort(places[:SAMPLES])]


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
