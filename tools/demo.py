"""The main job on a real network: prune the digits sample, then compare it with the dense one on unseen images.

Runs the same commands that a user types, and shows them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCALE = "0.0625"  # the digits have 0..16


def main() -> None:
    """Prune to half the MACs, compare, and say where the result is."""
    folder = ROOT / "build" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    pruned = folder / "digits-half.onnx"
    _snp_onnx("inspect", "models/digits.onnx")
    _snp_onnx(
        *("prune", "models/digits.onnx", str(pruned.relative_to(ROOT)), "--force"),
        *("--calibration", "models/digits.npz", "--input-array", "images", "--scale", SCALE, "--target-macs", "0.5"),
        *("--round-to", "auto"),  # widths that save time on this machine
    )
    _snp_onnx(
        *("compare", "models/digits.onnx", str(pruned.relative_to(ROOT)), "--calibration", "models/digits.npz"),
        *("--input-array", "test_images", "--label-array", "test_labels", "--scale", SCALE, "--latency"),
        *("--latency-batch", "64"),
    )
    print(f"the pruned model is {pruned.relative_to(ROOT)}")


def _snp_onnx(*arguments: str) -> None:
    """One command, shown and run from the project's folder."""
    print(f"\n$ snp-onnx {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "snp_onnx.cli", *arguments], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
