"""What a CUDA machine shows, in one go: the plan, moments and outputs of the CPU, repeatable; and what it costs.

Every network is pruned on the CPU and on the provider with the same samples; the pruned model is verified there. The
pass is counted in plain passes over the same samples; the latency ratio is pruned over dense, runs interleaved and
bound to the device. Checks come first and warm everything up. A Markdown table is printed, with versions.

    python -m tools.cuda_check                   the digits of this repository, benchmark models where they are found
    python -m tools.cuda_check --provider cpu    the same on the CPU, summed as on a device: shows that the script works
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import snp_onnx
from snp_onnx.calibration import workers
from snp_onnx.calibration.binding import bind
from snp_onnx.calibration.moments import Moments
from snp_onnx.calibration.sessions import CUDA, Runtime, open_session, run
from snp_onnx.errors import SnpError
from snp_onnx.model_io import load
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Part, Preprocess, Samples, open_samples
from snp_onnx.verbs import measure
from tools.bench import material

ROOT = Path(__file__).resolve().parent.parent
WORK = ("calibrate", "decide", "fold", "refit")
PRESETS = ("paper", "fast", "best")
TARGET = 0.5
MOMENTS = 1e-4
OUTPUTS = 2e-3
"""What float32 may differ by, relative to the largest entry of a Gram matrix, and of an output."""


@dataclass(frozen=True, slots=True)
class Case:
    """A network, samples for it, and how they are read."""

    name: str
    model: Path
    source: Any
    options: dict[str, Any]

    def samples(self) -> Samples:
        names = {"scale", "mean", "std", "layout", "input_array"}
        preprocess = Preprocess(**{key: value for key, value in self.options.items() if key in names})
        return open_samples(self.source, input_specs(load(self.model).proto), preprocess, self.options["samples"])


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning gave, and the moments it was decided by."""

    result: snp_onnx.PruneResult
    moments: dict[str, Any]

    @property
    def kept(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(decision.group, decision.kept) for decision in self.result.plan.decisions]

    @property
    def seconds(self) -> float:
        return sum(self.result.report.timings.get(stage, 0.0) for stage in WORK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; 0 where every check passed, 1 where one failed, 2 without the provider."""
    parser = argparse.ArgumentParser(prog="cuda_check", description="Check and time a provider against the CPU.")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64], help="rows of a calibration batch")
    parser.add_argument("--samples", type=int, default=1024, help="samples of each network at most")
    parser.add_argument("--rounds", type=int, default=30, help="timed runs of each model")
    asked = parser.parse_args(arguments)
    problem = _problem(asked.provider)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    rows = [_row(case, asked.provider, batch, asked.rounds) for case in _cases(asked.samples) for batch in asked.batch]
    columns = (
        *("network", "batch", "checks", "moments", "outputs", "MACs", "latency"),
        *("plain pass, ms", *(f"{preset}, in plain passes" for preset in PRESETS)),
    )
    print(f"{_machine(asked.provider)}\n\n{material.table(columns, rows)}")
    return 0 if all(row[2] == "passed" for row in rows) else 1


def _problem(provider: str) -> str:
    """Why nothing can be shown here; nothing where it can."""
    try:
        import onnxruntime
    except ImportError:
        return "onnxruntime is not installed: pip install snp-onnx[gpu]"
    if provider == "cuda" and CUDA not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} has no {CUDA} here: pip install snp-onnx[gpu] on a CUDA machine"
    return ""


def _machine(provider: str) -> str:
    found = []
    for name in ("onnxruntime-gpu", "onnxruntime", "onnx", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"provider {provider}; Python {platform.python_version()}, {', '.join(found)}; {platform.machine()}"


def _cases(samples: int) -> Iterator[Case]:
    """The digits, and what `tools.bench.material` has."""
    folder, given = ROOT / "models", {"samples": samples}
    options = given | {"input_array": "images", "scale": 1 / 16}
    yield Case("digits", folder / "digits.onnx", folder / "digits.npz", options)
    try:
        material.folder()
    except SystemExit:
        return
    images, _ = material.cifar("train12k", samples)
    pictures, _ = material.imagenet()
    options = given | {"layout": "nhwc", **material.CIFAR}
    yield Case("ResNet-56", material.model("resnet56_cifar10_ts.onnx"), {"input": images}, options)
    mobile = {"input": material.nchw(pictures, 1 / 128, 128.0)}
    yield Case("MobileNetV2", material.model("mobilenetv2_1.0_224_imagenet.onnx"), mobile, given)


def _row(case: Case, provider: str, batch: int, rounds: int) -> tuple[object, ...]:
    try:
        with patch.object(workers, "device_of", lambda _: "cpu"):
            expected = _pruned(case, "cpu", batch)
        with _sums_like_a_device(provider):
            found, again = (_pruned(case, provider, batch) for _ in range(2))
            said, moments, outputs = _compared(case, expected, found, again, provider)
            plain = _plain_pass(case, provider, batch)
            passes = [f"{_pruned(case, provider, batch, preset).seconds / plain:.2f}" for preset in PRESETS]
    except SnpError as error:
        return (case.name, batch, f"failed: {error}", *["-"] * (5 + len(PRESETS)))
    facts = found.result.report
    macs, latency = facts.pruned.macs / facts.dense.macs, _latency_ratio(case, found, provider, rounds)
    measured = (f"{moments:.1e}", f"{outputs:.1e}", f"{macs:.3f}", f"{latency:.3f}", f"{plain * 1000:.0f}", *passes)
    return (case.name, batch, said, *measured)


def _sums_like_a_device(provider: str) -> AbstractContextManager[Any]:
    """On the CPU, sums are taken as on a device of its own."""
    return patch.object(workers, "device_of", lambda _: "another") if provider == "cpu" else nullcontext()


def _pruned(case: Case, provider: str, batch: int, preset: str = "fast") -> Pruned:
    """Prune, and keep the moments."""
    seen: dict[str, Any] = {}
    inner = measure.collect

    def collect(*given: Any, **named: Any) -> Any:
        found = inner(*given, **named)
        seen.update(found)
        return found

    with patch.object(measure, "collect", collect):
        result = snp_onnx.prune(
            case.model,
            case.source,
            target_macs=TARGET,
            provider=provider,
            batch_size=batch,
            preset=preset,
            **case.options,
        )
    return Pruned(result, seen)


def _compared(case: Case, expected: Pruned, found: Pruned, again: Pruned, provider: str) -> tuple[str, float, float]:
    """What didn't hold, or `passed`; and the largest differences of moments and of outputs."""
    pairs = [(_squares(found.moments[key]), _squares(moments)) for key, moments in expected.moments.items()]
    moments = max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)
    with case.samples() as samples:
        feed = next(samples.batches(16, Part.HELD_OUT))
    ours, theirs = (
        run(open_session(pruned.result.model, Runtime(where)), feed)
        for pruned, where in ((found, provider), (expected, "cpu"))
    )
    outputs = max(float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs)
    failed = [
        *(["another plan"] if found.kept != expected.kept else []),
        *(["moments"] if not moments <= MOMENTS else []),
        *(["outputs"] if not outputs <= OUTPUTS else []),
        *(["not repeatable"] if found.result.model != again.result.model else []),
    ]
    return "failed: " + ", ".join(failed) if failed else "passed", moments, outputs


def _squares(moments: Moments) -> Any:
    """The Gram matrix, or its diagonal where no more was asked for."""
    return moments.energies if moments.gram_sum is None and moments.rows is None else moments.gram


def _plain_pass(case: Case, provider: str, batch: int) -> float:
    """Seconds for the calibration samples through the dense model, reading included, after a warm-up."""
    session = open_session(case.model, Runtime(provider))
    with case.samples() as samples:
        run(session, next(samples.batches(batch, Part.CALIBRATION)))
        start = time.perf_counter()
        for feed in samples.batches(batch, Part.CALIBRATION):
            run(session, feed)
        return time.perf_counter() - start


def _latency_ratio(case: Case, found: Pruned, provider: str, rounds: int) -> float:
    """The median over interleaved runs of one sample."""
    with case.samples() as samples:
        feed = next(samples.batches(1, Part.HELD_OUT))
    sessions = [open_session(model, Runtime(provider), timed=True) for model in (case.model, found.result.model)]
    dense, pruned = (bind(session, feed) for session in sessions)
    ratios = []
    for round_ in range(rounds + 3):
        times = []
        for bound in (dense, pruned):
            start = time.perf_counter()
            bound.run()
            times.append(time.perf_counter() - start)
        if round_ >= 3:
            ratios.append(times[1] / times[0])
    return float(np.median(ratios))


if __name__ == "__main__":
    sys.exit(main())
