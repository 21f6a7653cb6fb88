"""Every recipe, tiny and with random weights, by each preset: more work is not worse, beyond noise.

    OMP_NUM_THREADS=1 python -m tools.bench.recipes [NAME ...] [--samples 800]

Judged is the error of what varies (1 - R²), the mean over the channels of the worst output, on 400 samples that decided
nothing. A preset may have 1.1 times the error of the next simpler one and 0.01 more. Exits with 1 where one has more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

import models
import snp_onnx
from models.recipes import recipe
from models.tiny import TINY
from snp_onnx.planning.options import Preset
from tools.bench import material

Feed = dict[str, npt.NDArray[Any]]

ORDER = (Preset.BEST, Preset.FAST, Preset.PAPER)
TARGET = 0.7
FRESH = 400
"""Samples that judge."""


def main() -> None:
    """Print the table and a verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; all unless given")
    parser.add_argument("--samples", type=int, default=800, help="that calibrate, choose and are reported")
    given = parser.parse_args()
    rows, worse = [], []
    for name in given.names or sorted(TINY):
        model, size = models.export_bytes(name, **TINY[name]), TINY[name]["in_size"]
        try:
            found = errors(model, samples(name, size, given.samples, 1), samples(name, size, FRESH, 2))
        except snp_onnx.TargetError as error:
            rows.append((name, "-", "-", "-", f"declined: {error}".replace("|", "/")))
            continue
        said = "; ".join(wrong_order(found)) or "yes"
        worse += [name] * (said != "yes")
        rows.append((name, *(f"{found[preset]:.3f}" for preset in ORDER), said))
        print(*rows[-1], file=sys.stderr, flush=True)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; --target-macs {TARGET}, {given.samples} samples\n")
    print(material.table(("recipe", *map(str, ORDER), "in order"), rows))
    if worse:
        sys.exit(f"not in order: {', '.join(worse)}")


def samples(name: str, size: int, rows: int, seed: int) -> Feed:
    """`rows` random inputs of a recipe."""
    return {key: values.numpy() for key, values in recipe(name).samples(size, rows, seed).items()}


def errors(model: onnx.ModelProto, calibration: Feed, fresh: Feed) -> dict[Preset, float]:
    """1 - R² by preset: the mean over the channels of the worst output."""
    found = {}
    for preset in ORDER:
        pruned = snp_onnx.prune(model, calibration, preset=preset, target_macs=TARGET, latency=False, threads=1)
        entries = snp_onnx.compare(model, pruned.model, fresh, threads=1).fidelity
        found[preset] = float(np.max([entry.mean_error for entry in entries]))
    return found


def wrong_order(found: Mapping[Preset, float]) -> list[str]:
    """What is worse than the next simpler preset, beyond noise.

    >>> wrong_order({Preset.BEST: 0.1, Preset.FAST: 0.1, Preset.PAPER: 0.08})
    ['fast 0.100, paper 0.080']
    """
    return [
        f"{more} {found[more]:.3f}, {less} {found[less]:.3f}"
        for more, less in pairwise(ORDER)
        if found[more] > 1.1 * found[less] + 0.01
    ]


if __name__ == "__main__":
    main()
