"""Prune some, recover, prune more: the iterative schedule of arXiv 2405.17081, section 3, with our two verbs.

Every step prunes what the last one left to an equal fraction of its MACs, then distils the dense model into it, always
the first one. Options are JSON objects of keyword arguments; `--data` goes to both verbs.

    python -m tools.iterate dense.onnx small.onnx --calibration data.npz --target-macs 0.4 --steps 3
        --data '{"input_array": "images", "scale": 0.0625}' --prune '{"units": ["channels", "blocks"], "samples": 1024}'
        --recover '{"epochs": 10, "augment": ["flip", "crop"]}'
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

import snp_onnx

Source = str | os.PathLike[str] | onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Step:
    """One round: the share of the dense model's MACs that is left, and both results."""

    macs: float
    pruned: snp_onnx.PruneResult
    recovered: snp_onnx.RecoverResult


def iterate(
    dense: Source,
    calibration: Any,
    target_macs: float,
    steps: int,
    prune: Mapping[str, Any] | None = None,
    recover: Mapping[str, Any] | None = None,
) -> Iterator[Step]:
    """Yield every round; the last one's recovered model meets the target.

    >>> [round(share, 3) for share in shares(0.5, 3)]
    [0.794, 0.63, 0.5]
    """
    model, whole, left = dense, 0, 1.0
    for share in shares(target_macs, steps):
        pruned = snp_onnx.prune(model, calibration, target_macs=min(1.0, share / left), **(prune or {}))
        whole = whole or pruned.report.dense.macs
        left = pruned.report.pruned.macs / whole
        recovered = snp_onnx.recover(dense, pruned.model, calibration, **(recover or {}))
        model = recovered.model
        yield Step(left, pruned, recovered)


def shares(target: float, steps: int) -> list[float]:
    """What is left after every step, in equal fractions of what was left before."""
    return [target ** ((number + 1) / steps) for number in range(steps)]


def main() -> None:
    """Run the schedule and write the last model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--target-macs", type=float, required=True)
    parser.add_argument("--steps", type=int, default=3)
    for name in ("data", "prune", "recover"):
        parser.add_argument(f"--{name}", type=json.loads, default={}, help="keyword arguments as JSON")
    given = parser.parse_args()
    both = ({**given.data, **given.prune}, {**given.data, **given.recover})
    for number, step in enumerate(iterate(given.dense, given.calibration, given.target_macs, given.steps, *both)):
        before, after = (
            report[0].relative_l2 for report in (step.recovered.report.before, step.recovered.report.after)
        )
        print(f"step {number + 1}: {step.macs:.3f} of the MACs, held-back error {before:.4f} → {after:.4f}", flush=True)
        step.recovered.save(given.output)


if __name__ == "__main__":
    main()
