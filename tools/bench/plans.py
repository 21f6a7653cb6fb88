"""Plans on other models: the plan of one export carried out on the other, and on networks trained anew.

python -m tools.bench.plans
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import snp_onnx
from snp_onnx.planning.plan import Plan
from tools.bench import material
from tools.bench.accuracy import EXPORTS, calibration_images

SEEDS = (1, 2, 3)
SHARES = (0.3, 0.15)
DIGITS = Path(__file__).parents[2] / "models"


def main() -> None:
    """Print both tables: top-1 on the test images."""
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}\n")
    print(material.table(("MACs kept", "preset", "own plan", "the other export's plan"), list(_exports())), "\n")
    columns = ("MACs kept", "preset", "seed", "dense", "cut only", "planned units", "planned widths", "own plan")
    print(material.table(columns, list(_digits())))


def _exports() -> list[tuple[str, ...]]:
    """The plan of the TorchScript export, whose weights are numbered, on the dynamo export of the same network."""
    images = {"input": calibration_images(0)}
    tests, labels = material.cifar("test5k")
    how: dict[str, Any] = {"layout": "nhwc", **material.CIFAR}
    here, there = (material.model(name) for name in reversed(EXPORTS))
    rows = []
    for target, preset in ((0.5, "fast"), (0.5, "best")):
        own = snp_onnx.prune(here, images, target_macs=target, preset=preset, **how)
        other = snp_onnx.prune(there, images, target_macs=target, preset=preset, **how)
        carried = snp_onnx.prune(here, images, plan=other.plan, preset=preset, **how)
        assert any("matched by their order" in note for note in carried.report.notes)
        data = {"input": tests, "labels": labels}
        found = [_top1(here, result.model, data, {"batch_size": 250, **how}) for result in (own, carried)]
        rows.append((f"{target:g}", preset, *found))
    return rows


def _digits() -> list[tuple[str, ...]]:
    """The plan of the digits sample on the same network trained from other seeds."""
    with np.load(DIGITS / "digits.npz") as arrays:
        images, tests = arrays["images"], {"input": arrays["test_images"], "labels": arrays["test_labels"]}
    rows = []
    for share, preset in product(SHARES, ("paper", "fast", "best")):
        how: dict[str, Any] = {"target_macs": share, "preset": preset, "scale": 1 / 16}
        plan = snp_onnx.prune(DIGITS / "digits.onnx", {"input": images}, **how).plan
        for seed in SEEDS:
            rows.append((f"{share:g}", preset, str(seed), *_ways(trained(seed), plan, how, images, tests)))
    return rows


def _ways(model: Path, plan: Plan, how: dict[str, Any], images: Any, tests: Mapping[str, Any]) -> list[str]:
    own = {"preset": how["preset"], "scale": how["scale"]}
    results = [
        onnx.load(model),
        snp_onnx.prune(model, plan=plan, **own).model,
        snp_onnx.prune(model, {"input": images}, plan=plan, **own).model,
        snp_onnx.prune(model, {"input": images}, plan=plan, plan_widths=True, **own).model,
        snp_onnx.prune(model, {"input": images}, **how).model,
    ]
    return [_top1(model, result, tests, {"scale": how["scale"]}) for result in results]


def trained(seed: int, epochs: int = 8) -> Path:
    """The digits network from another start, exported once into the temporary folder."""
    path = Path(tempfile.gettempdir()) / f"snp_onnx_bench_digits_{seed}_{epochs}.onnx"
    if not path.is_file():
        import torch

        from models import digits
        from models.exporting import export

        torch.manual_seed(seed)
        module = digits.network()
        digits.train(module, digits.load(0), epochs, seed)
        export(module, path, input_shape=(1, 1, 8, 8), keep_bn=True, output_name="logits")
    return path


def _top1(dense: Path, model: onnx.ModelProto, tests: Mapping[str, Any], how: Mapping[str, Any]) -> str:
    found = snp_onnx.compare(dense, model, tests, label_array="labels", **how)
    accuracy = found.fidelity[0].pruned_accuracy
    assert accuracy is not None
    return f"{100 * accuracy:.2f}"


if __name__ == "__main__":
    main()
