"""Accuracy of preset `paper` on ResNet-56: both exports, residual streams kept and cut, no labels, no fine-tuning.

python -m tools.bench.paper
"""

from __future__ import annotations

from datetime import UTC, datetime

import snp_onnx
from tools.bench import material

EXPORTS = ("resnet56_cifar10_ts.onnx", "resnet56_cifar10_dynamo.onnx")
SAMPLES = 1024


def main() -> None:
    """Print the table: top-1 on the 5,000 test images."""
    images, _ = material.cifar("train12k", SAMPLES)
    tests, labels = material.cifar("test5k")
    rows = []
    for target in (0.8, 0.65, 0.5):
        for streams in (False, True):
            cells = [_accuracy(export, images, tests, labels, target, streams) for export in EXPORTS]
            rows.append((target, "cut" if streams else "kept", *(f"{cell:.2f}" for cell in cells)))
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {SAMPLES} training images\n")
    print(material.table(("MACs kept at most", "residual streams", *EXPORTS), rows))


def _accuracy(export: str, images: object, tests: object, labels: object, target: float, streams: bool) -> float:
    dense = material.model(export)
    result = snp_onnx.prune(
        dense, {"input": images}, target_macs=target, preset="paper", streams=streams, layout="nhwc", **material.CIFAR
    )
    assert result.report.pruned.macs <= target * result.report.dense.macs
    options = {"label_array": "labels", "layout": "nhwc", "batch_size": 250, **material.CIFAR}
    found = snp_onnx.compare(dense, result.model, {"input": tests, "labels": labels}, **options)
    accuracy = found.fidelity[0].pruned_accuracy
    assert accuracy is not None
    return 100 * accuracy


if __name__ == "__main__":
    main()
