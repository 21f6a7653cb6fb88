"""Models that other people made: what their users would look at, dense against pruned, beside what the report says.

SNP_ONNX_BENCH_REAL names a folder with NAME.onnx, NAME_cal.npz (or NAME_cal.py, a loader) and NAME_test.npz of each
model. `judge.py`, there or in the folder that SNP_ONNX_BENCH_JUDGE names, has a function `judge(folder, name, pruned)`
that gives a measure in words and its value: 1 is as the dense model, of a measure that begins with "error" 0 is.

    OMP_NUM_THREADS=1 python -m tools.bench.real [NAME ...] [--presets fast,best] [--target-macs 0.7]
    OMP_NUM_THREADS=1 python -m tools.bench.real --min-fidelity 0.95
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import Any

import snp_onnx
from snp_onnx.planning.options import Preset
from snp_onnx.report.remarks import counted
from snp_onnx.verbs.fidelity import Fidelity
from tools.bench import material

Judge = Callable[[Path, str, str], tuple[str, float]]

TARGET = 0.7
"""Share of the MACs to keep unless asked otherwise."""

NOISE = 0.02
"""Judged values that differ by less are alike: one decision in 50, as the sets that judge have."""

LONGEST = 80
"""Characters that are shown of a warning."""

COLUMNS = ("model", "preset", "MACs kept", "measure", "judged", "worst 1 - R²", "mean 1 - R²", "agreement", "cosine")


@dataclass(frozen=True, slots=True)
class Judged:
    """What came out of one model by one preset: the cells of its row, and the value (None where it was refused)."""

    cells: tuple[str, ...]
    measure: str = ""
    value: float | None = None


def main() -> None:
    """Print the table, and whether `best` is at least `fast`."""
    given = _parser().parse_args()
    folder = _folder()
    judge = _judge(folder)
    names = given.names or sorted(path.stem for path in folder.glob("*.onnx"))
    presets = given.presets.split(",")
    held = given.min_fidelity is not None
    target = {"min_fidelity": given.min_fidelity} if held else {"target_macs": given.target_macs}
    found: dict[str, dict[str, Judged]] = {}
    for name in names:
        found[name] = {}
        for preset in presets:
            row = found[name][preset] = _judged(folder, name, preset, target, judge)
            print(*row.cells, sep=" | ", file=sys.stderr, flush=True)
    asked = ", ".join(f"--{key.replace('_', '-')} {value}" for key, value in target.items())
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {asked}, one thread\n")
    rows = [row.cells for by_preset in found.values() for row in by_preset.values()]
    print(material.table((*COLUMNS, "warnings"), rows))
    if {Preset.FAST, Preset.BEST} <= set(presets):
        print(f"\n{_verdict(found)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models of the folder; all unless given")
    parser.add_argument("--presets", default=f"{Preset.FAST},{Preset.BEST}")
    targets = parser.add_mutually_exclusive_group()
    targets.add_argument("--target-macs", type=float, default=TARGET)
    targets.add_argument("--min-fidelity", type=float)
    return parser


def _folder() -> Path:
    """The folder of the models; exits with one line where there is none."""
    named = os.environ.get("SNP_ONNX_BENCH_REAL", "")
    if not named or not Path(named).is_dir():
        sys.exit("error: point SNP_ONNX_BENCH_REAL at a folder with NAME.onnx, NAME_cal.npz and NAME_test.npz")
    return Path(named).resolve()


def _judge(folder: Path) -> Judge:
    """The function `judge` of judge.py; exits with one line where there is no such file."""
    home = Path(os.environ.get("SNP_ONNX_BENCH_JUDGE", folder)).resolve()
    if not (home / "judge.py").is_file():
        sys.exit(f"error: {home} has no judge.py: point SNP_ONNX_BENCH_JUDGE at its folder")
    sys.path.insert(0, str(home))
    found: Judge = importlib.import_module("judge").judge
    return found


def _judged(folder: Path, name: str, preset: str, target: Mapping[str, float], judge: Judge) -> Judged:
    loader, arrays = (folder / f"{name}_cal{ending}" for ending in (".py", ".npz"))
    options: dict[str, Any] = {"preset": preset, "threads": 1, "latency": False, **target}
    try:
        result = snp_onnx.prune(folder / f"{name}.onnx", loader if loader.is_file() else arrays, **options)
    except snp_onnx.SnpError as error:
        blank = ["-"] * (len(COLUMNS) - 2)
        return Judged((name, preset, *blank, f"refused: {error}".replace("|", "/")))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{name}.onnx"
        result.save(path)
        measure, value = judge(folder, name, str(path))
    report = result.report
    kept = f"{report.pruned.macs / report.dense.macs:.3f}"
    told = "; ".join(counted(map(_short, report.warnings))) or "-"
    cells = (name, preset, kept, measure, f"{value:.3f}", *_told(report.fidelity), told)
    return Judged(tuple(cell.replace("|", "/") for cell in cells), measure, value)


def _told(fidelity: Sequence[Fidelity]) -> Iterator[str]:
    """What the report says of the output that is worst by each figure."""
    compared = [entry for entry in fidelity if entry.compared > 0.0]
    yield _figure(max, [entry.error for entry in compared])
    yield _figure(max, [entry.mean_error for entry in compared])
    yield _figure(min, [entry.agreement for entry in compared])
    yield _figure(min, [entry.cosine for entry in compared])


def _figure(worst: Callable[[list[float]], float], values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None and not isnan(value)]
    return f"{worst(found):.4f}" if found else "-"


def _short(warning: str) -> str:
    """The beginning of a warning, without its advice."""
    told = warning.rpartition(": ")[0] or warning
    return told if len(told) <= LONGEST else f"{told[:LONGEST]}…"


def is_at_least(measure: str, value: float, other: float) -> bool:
    """Whether a judged value is as good as another, or better, but for noise.

    >>> is_at_least("top-1 agreement", 0.83, 0.84), is_at_least("error of the worst output", 0.6, 0.5)
    (True, False)
    """
    return value <= other + NOISE if measure.startswith("error") else value >= other - NOISE


def _verdict(found: Mapping[str, Mapping[str, Judged]]) -> str:
    """In one sentence: is `best` at least `fast` on every model?"""
    worse = []
    count = 0
    for name, row in found.items():
        fast, best = row[Preset.FAST], row[Preset.BEST]
        if fast.value is None or best.value is None:
            continue
        count += 1
        if not is_at_least(best.measure, best.value, fast.value):
            worse.append(f"{name} ({best.value:.3f}, fast {fast.value:.3f})")
    said = "yes" if not worse else f"no, not on {', '.join(worse)}"
    return f"best at least fast, within {NOISE}, where both prune (models: {count}): {said}."


if __name__ == "__main__":
    main()
