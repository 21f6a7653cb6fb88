"""Peak memory and time of pruning decoders with the shapes of OPT: `python -m tools.bench.large 125m 350m 1.3b`.

Each model is written with random weights into a folder (--folder, else a temporary one; twice its size must fit there
and twice in TMPDIR), pruned in a process of its own, saved with external data, and run by plain onnxruntime in another.
Peak memory is the maximum resident set of the pruning process as the kernel counts it, mapped file pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.decoder import ELEMENTS, SHAPES, write_decoder

MARGIN = 4 * 2**30
"""Bytes above the model's size that pruning may take."""


def rows(name: str, count: int) -> np.ndarray[Any, Any]:
    """Random token rows."""
    shape = SHAPES[name]
    return np.random.default_rng(1).integers(0, shape.vocabulary, (count, shape.sequence))


def prune(name: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prune and save, in this process; what it took."""
    import snp_onnx

    start = time.perf_counter()
    given = {"target_macs": options.target_macs, "preset": options.preset, "threads": options.threads}
    result = snp_onnx.prune(path, {"ids": rows(name, options.rows)}, **given)
    output = path.with_name(f"pruned-{path.name}")
    size = result.save(output, save_as_external_data=True)
    report = result.report
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in report.timings.items()},
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "dense": report.dense.bytes,
        "pruned": size,
        "macs": round(report.pruned.macs / report.dense.macs, 4),
        "cosine": report.fidelity[0].cosine,
        "held_back": report.fidelity[0].samples,
    }


def outputs(path: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What plain onnxruntime says, with the model's file and nothing of this package."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": ids})[0], dtype=np.float64)


def check(name: str, path: Path) -> dict[str, Any]:
    """Dense and pruned file on rows that nobody has seen, one after the other."""
    ids = np.random.default_rng(2).integers(0, SHAPES[name].vocabulary, (2, SHAPES[name].sequence))
    dense, pruned = outputs(path, ids).ravel(), outputs(path.with_name(f"pruned-{path.name}"), ids).ravel()
    return {"fresh_cosine": float(dense @ pruned / np.linalg.norm(dense) / np.linalg.norm(pruned))}


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write, prune and check one model; the pruning process sees nothing but the file."""
    path = folder / f"opt-{name}-{options.elements}.onnx"
    if not path.exists():
        write_decoder(path, replace(SHAPES[name], elements=options.elements))
    found: dict[str, Any] = {"model": name, "elements": options.elements, "preset": options.preset}
    for step in ("prune", "check") if options.elements != "bfloat16" else ("prune",):
        command = [sys.executable, "-m", "tools.bench.large", name, "--step", step, "--folder", str(folder)]
        command += [f"--{key}={getattr(options, key.replace('-', '_'))}" for key in PASSED]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if done.returncode:
            raise SystemExit(f"{name}: {step} failed\n{done.stderr}")
        found |= json.loads(done.stdout.splitlines()[-1])
    found["within"] = found["peak"] < found["dense"] + MARGIN
    return found


PASSED = ("rows", "preset", "target-macs", "threads", "elements")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=SHAPES)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--preset", default="best")
    parser.add_argument("--target-macs", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--elements", choices=ELEMENTS, default="float32")
    parser.add_argument("--step", choices=("prune", "check"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name in options.models:
            if options.step:
                path = folder / f"opt-{name}-{options.elements}.onnx"
                found = prune(name, path, options) if options.step == "prune" else check(name, path)
            else:
                found = measure(name, folder, options)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
