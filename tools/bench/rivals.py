"""Rivals on ResNet-56 at equal MACs: the same model, images and count of MACs for all; no labels, no fine-tuning.

python -m tools.bench.rivals [--only TEXT]... [--json FILE] [--plot FILE]

The tools compared against are optional: `pip install snp-onnx[bench]`. A missing one gives a row that says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import snp_onnx
from snp_onnx.planning.options import Preset
from tools.bench import material, plot, rivals_low_rank, rivals_onnxsim, rivals_torch
from tools.bench.rivals_judge import SAMPLES, Bench, Point, Way, judge

TARGETS = (0.8, 0.65, 0.5, 0.4, 0.3)
PLOT = Path(__file__).with_name("accuracy_resnet56.svg")
FAR_BELOW = 0.01  # MACs this far below the target are shown


@dataclass(frozen=True, slots=True)
class Rival:
    """A row: `prepare` does what all targets share; `requires` names modules, and what pip installs them from."""

    family: str
    name: str
    prepare: Callable[[Bench], Way]
    requires: tuple[tuple[str, ...], str] = ((), "")


@dataclass(frozen=True, slots=True)
class Row:
    """A rival's points, one a target."""

    family: str
    name: str
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        """What it is called in the table."""
        return f"{self.family}, {self.name}"

    @property
    def curve(self) -> tuple[tuple[float, float], ...]:
        """(share of MACs, accuracy) of the points that have both."""
        return tuple((p.share, p.accuracy) for p in self.points if p.share is not None and p.accuracy is not None)


def _ours(options: Mapping[str, Any]) -> Callable[[Bench], Way]:
    def prepare(bench: Bench) -> Way:
        given = {"layout": "nhwc", **material.CIFAR, **options}
        return lambda target: snp_onnx.prune(bench.path, {"input": bench.images}, target_macs=target, **given).model

    return prepare


def rivals() -> list[Rival]:
    """Every row, in the order of the table."""
    return [*_own_rows(), *_onnxsim_rows(), *_torch_rows(), *_low_rank_rows()]


def _own_rows() -> list[Rival]:
    steps: dict[str, Mapping[str, Any]] = {
        "SNP's order and widths, no folding": {"preset": "paper", "fold": "none"},
        "magnitude order, uniform, channel folding": {**material.MAGNITUDE, "fold": "channel"},
        "magnitude order, uniform, no folding": material.MAGNITUDE,
    }
    presets = [Rival("snp-onnx", f"preset {name}", _ours({"preset": name})) for name in Preset]
    return presets + [Rival("single steps", name, _ours(options)) for name, options in steps.items()]


def _onnxsim_rows() -> list[Rival]:
    ways: dict[str, Callable[[Bench], Way]] = {
        "L2": rivals_onnxsim.magnitude,
        "L2, global": partial(rivals_onnxsim.magnitude, pooled=True),
        "Wanda": rivals_onnxsim.wanda,
    }
    return [Rival("onnxsim", name, way, rivals_onnxsim.REQUIRES) for name, way in ways.items()]


def _torch_rows() -> list[Rival]:
    ways = {
        "magnitude, local": partial(rivals_torch.magnitude, pooled=False),
        "magnitude, global": partial(rivals_torch.magnitude, pooled=True),
        "magnitude, streams too": partial(rivals_torch.magnitude, pooled=False, streams=True),
        "Taylor, local": partial(rivals_torch.taylor, pooled=False),
        "Taylor, global": partial(rivals_torch.taylor, pooled=True),
    }
    return [Rival("Torch-Pruning", name, way, rivals_torch.REQUIRES) for name, way in ways.items()]


def _low_rank_rows() -> list[Rival]:
    ways = {
        "spatial SVD, equal energy": (rivals_low_rank.spatial, rivals_low_rank.equal_energy),
        "channel SVD, equal energy": (rivals_low_rank.channel, rivals_low_rank.equal_energy),
        "output PCA, equal energy": (rivals_low_rank.response, rivals_low_rank.equal_energy),
        "output PCA, energy against MACs": (rivals_low_rank.response, rivals_low_rank.equal_gain),
    }
    make = rivals_low_rank.low_rank
    return [
        Rival("low rank", name, partial(make, factorise=factorise, ranks=ranks))
        for name, (factorise, ranks) in ways.items()
    ]


def measure(bench: Bench, rival: Rival) -> Row:
    """All points of one rival; a missing package becomes the problem of every point."""
    modules, packages = rival.requires
    if any(find_spec(module) is None for module in modules):
        problem = f"not installed: pip install {packages}"
        return Row(rival.family, rival.name, tuple(Point(target, problem=problem) for target in TARGETS))
    started = time.perf_counter()
    way = rival.prepare(bench)
    row = Row(rival.family, rival.name, tuple(judge(bench, way, target) for target in TARGETS))
    print(f"{row.label}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return row


def table(rows: Sequence[Row]) -> str:
    """The Markdown table, and below it what went wrong."""
    columns = ("rival", *(f"≤ {target}" for target in TARGETS))
    lines = [material.table(columns, [(row.label, *map(_cell, row.points)) for row in rows])]
    problems: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for point in row.points:
            if point.problem:
                problems.setdefault(point.problem, {}).setdefault(row.label, []).append(str(point.target))
    for problem, where in problems.items():
        rows_hit = "; ".join(f"{label} at {', '.join(at)}" for label, at in where.items())
        lines.append(f"- {problem} ({rows_hit})")
    return "\n\n".join((lines[0], "\n".join(lines[1:]))).strip()


def _cell(point: Point) -> str:
    if point.accuracy is None or point.share is None:
        return "not installed" if point.problem.startswith("not installed") else "fails"
    is_far = point.share < point.target - FAR_BELOW
    return f"{point.accuracy:.2f}" + (f" (at {point.share:.2f})" if is_far else "")


def read_rows(path: Path | None) -> dict[tuple[str, str], Row]:
    """Rows measured earlier, by family and name; none where there is no such file."""
    if path is None or not path.exists():
        return {}
    found = [
        Row(entry["family"], entry["name"], tuple(Point(**point) for point in entry["points"]))
        for entry in json.loads(path.read_text())
    ]
    return {(row.family, row.name): row for row in found}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """The rows as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def versions() -> str:
    """The rivals' versions, where installed."""
    found = []
    for name in ("onnxsim", "torch-pruning", "torch"):
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def main() -> None:
    """Measure, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="measure only rows whose name contains this text")
    parser.add_argument("--json", type=Path, help="keep rows here; rows found here are not measured again")
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"where to draw (default {PLOT.name} beside this file)")
    given = parser.parse_args()
    known = read_rows(given.json)
    bench = Bench.load()
    dense = bench.accuracy(bench.dense)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {versions()}; {SAMPLES} training images\n")
    for rival in rivals():
        key = (rival.family, rival.name)
        asked = any(text in f"{rival.family}, {rival.name}" for text in given.only)
        if asked or (not given.only and key not in known):
            known[key] = measure(bench, rival)
            if given.json is not None:
                write_rows(given.json, list(known.values()))
    keys = [(rival.family, rival.name) for rival in rivals()]
    rows = [known[key] for key in keys if key in known]
    print(f"Dense: {dense:.2f} %. Top-1 on the {len(bench.tests)} test images, by MACs kept.\n\n{table(rows)}")
    if given.json is not None or not given.only:
        plot.draw([(row.family, row.name, row.curve) for row in rows], dense, given.plot)


if __name__ == "__main__":
    main()
