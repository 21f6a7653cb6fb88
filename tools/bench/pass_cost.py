"""What the pass costs: calibration and decisions as a multiple of one plain onnxruntime pass, and peak memory.

Medians over interleaved runs. Reading the samples is part of both sides; imports, session creation and verification
are reported apart. On a machine that other work shares, the ratio of the CPU times says more: that of the whole run,
shared out by the stages' seconds.

    python -m tools.bench.pass_cost
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import snp_onnx
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.model_io import load
from snp_onnx.planning.options import Preset
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Part, Preprocess, open_samples
from tools.bench import material

ROUNDS = 3
WORK = ("calibrate", "decide", "fold", "refit")


def main() -> None:
    """Print both tables; with arguments, one memory probe."""
    if len(sys.argv) > 1:
        _probe(int(sys.argv[1]))
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; medians of {ROUNDS} interleaved runs\n")
    pictures, _ = material.imagenet()
    mobile = {"input": material.nchw(pictures, 1 / 128, 128.0)}
    images, _ = material.cifar("train12k", 4096)
    cases: list[tuple[Path, Any, dict[str, Any]]] = [
        (material.model("resnet56_cifar10_ts.onnx"), {"input": images}, {"layout": "nhwc", **material.CIFAR}),
        (material.model("mobilenetv2_1.0_224_imagenet.onnx"), mobile, {}),
        (material.shaped("resnet50"), mobile, {}),
    ]
    columns = (
        *("preset", "model", "samples", "calibrate + decide + fold + refit, in plain passes", "the same in CPU time"),
        *("apart: session", "prepare", "trace", "rewrite", "settle", "verify"),
    )
    print(material.table(columns, [_measure(preset, *case) for preset in Preset for case in cases]))
    print()
    peaks = [(count, _peak(count)) for count in (128, 512, 2048)]
    print(material.table(("samples", "peak memory, MB"), peaks))


def _measure(preset: Preset, model: Path, source: Any, options: dict[str, Any]) -> tuple[object, ...]:
    rows = []
    for _ in range(ROUNDS):
        before = time.process_time()
        plain = _plain_pass(model, source, options)
        between = time.process_time()
        timings = snp_onnx.prune(model, source, target_macs=0.5, preset=str(preset), **options).report.timings
        work, spent = sum(timings.get(stage, 0.0) for stage in WORK), sum(timings.values())
        processor = (time.process_time() - between) * work / spent / (between - before)
        apart = [timings[stage] for stage in ("open session", "prepare", "trace", "rewrite", "settle", "verify")]
        rows.append([work / plain, processor, *(seconds / plain for seconds in apart)])
    figures = [f"{share:.3f}" for share in np.median(rows, axis=0)]
    row = (preset, model.stem, len(next(iter(source.values()))), *figures)
    print(*row, file=sys.stderr, flush=True)
    return row


def _plain_pass(model: Path, source: Any, options: dict[str, Any]) -> float:
    """All samples of the calibration set through the dense model, with the same reading."""
    preprocess = Preprocess(**options)
    session = open_session(model, Runtime())
    with open_samples(source, input_specs(load(model).proto), preprocess) as samples:
        start = time.perf_counter()
        for batch in samples.batches(32, Part.ALL):
            run(session, batch)
        return time.perf_counter() - start


def _peak(samples: int) -> str:
    """Peak resident memory of a fresh process that prunes ResNet-56 from a file with so many samples."""
    command = [sys.executable, "-m", "tools.bench.pass_cost", str(samples)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _probe(samples: int) -> None:
    source = material.data("cifar10_train12k.npz")
    model = material.model("resnet56_cifar10_ts.onnx")
    snp_onnx.prune(
        model, source, target_macs=0.5, samples=samples, input_array="images", layout="nhwc", **material.CIFAR
    )
    status = Path("/proc/self/status").read_text()  # not getrusage: its peak is inherited from the parent process
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"{int(peak.split()[1]) / 1024:.0f}")


if __name__ == "__main__":
    main()
