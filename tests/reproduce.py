"""`python -m tests.reproduce FOLDER WAY`: every case of plans pruned by one way of giving samples, and what came out.

A program of its own: `tests/test_reproducible.py` runs it in processes that differ in all that must not matter.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import snp_onnx
from snp_onnx.report.json_report import to_json
from tests.graphs import Array
from tests.plans import CASES, Case

RUNS = (
    *(("heads", preset) for preset in ("paper", "fast", "best")),
    ("channels", "best"),
    ("head-dims", "best"),
    ("stream", "best"),
    ("blocks", "fast"),
)
MEASURED = ("timings", "latency")
"""What a report says of the clock."""

LOADER = """
import numpy as np

def load_data():
    with np.load({path!r}) as arrays:
        whole = {{name: arrays[name] for name in arrays.files}}
    for start in range(0, {rows}, 10):  # a size of its own: not that of the batches
        yield {{name: array[start : start + 10] for name, array in whole.items()}}
"""


def main(folder: Path, way: str) -> None:
    """Print a digest of everything that was written, by run and file."""
    found = {}
    for name, preset in RUNS:
        place = folder / f"{name}-{preset}"
        place.mkdir(parents=True)
        found |= {f"{name} {preset} {file}": value for file, value in _run(CASES[name], preset, way, place).items()}
    print(json.dumps(found))


def _run(case: Case, preset: str, way: str, place: Path) -> dict[str, str]:
    onnx.save(case.model(), place / "model.onnx")
    result = snp_onnx.prune(place / "model.onnx", _source(case.data(), way, place), **case.options(preset))
    result.save(place / "small.onnx")
    result.save_plan(place / "plan.json")
    report: dict[str, Any] = json.loads(to_json(result.report))
    kept = {name: value for name, value in report.items() if name not in MEASURED}
    written = {file: (place / file).read_bytes() for file in ("small.onnx", "plan.json", "plan.npz")}
    written["report"] = json.dumps(kept, sort_keys=True).encode()
    return {file: hashlib.sha256(content).hexdigest() for file, content in written.items()}


def _source(data: dict[str, Array], way: str, place: Path) -> Any:
    if way == "arrays":
        return data
    np.savez(place / "data.npz", **data)  # type: ignore[arg-type]
    if way == "file":
        return place / "data.npz"
    rows = len(next(iter(data.values())))
    (place / "loader.py").write_text(LOADER.format(path=str(place / "data.npz"), rows=rows))
    return place / "loader.py"


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
