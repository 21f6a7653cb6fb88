"""How much the accuracy of a pruned ResNet-56 depends on its calibration data: how many, which, how clean.

Every seed draws its own training images, the smaller counts from the larger; means and standard deviations are over
the seeds. Spoiled copies of the clean images show what data from elsewhere would cost.

    python -m tools.bench.sensitivity [--preset NAME ... | --preset all] [--counts N ...] [--seeds N] [--threads N]
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image, ImageFilter

import snp_onnx
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.planning.options import Preset
from tools.bench import material

MODEL = "resnet56_cifar10_ts.onnx"
TARGET = 0.5
COUNTS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
SPOILED_COUNT = 1024
SEEDS = 5
DEFAULT_PRESET = str(inspect.signature(snp_onnx.prune).parameters["preset"].default)
NORMAL: Mapping[str, Any] = {"layout": "nhwc", **material.CIFAR}

Score = tuple[float, float]
"""Top-1 in percent, and the mean cosine of the logits to the dense model's."""
Spoiler = Callable[[material.Images, np.random.Generator], material.Floats]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print two tables for every preset."""
    given = _parser().parse_args(arguments)
    presets = [str(preset) for preset in Preset] if "all" in given.preset else given.preset
    judge = Judge.load(given.threads)
    measured = f"{material.machine()}; {MODEL}, --target-macs {TARGET}, {given.seeds} seeds"
    print(f"{datetime.now(UTC):%Y-%m-%d}; {measured}; dense {judge.score(judge.dense)[0]:.2f}")
    for preset in presets:
        row = partial(_row, judge, preset, range(given.seeds))
        print(f"\nPreset {preset}: training images\n")
        rows = [row(str(count), count) for count in given.counts]
        print(material.table(("images", "top-1", "cosine"), rows), flush=True)
        print(f"\nPreset {preset}: {SPOILED_COUNT} images, spoiled\n")
        rows = [row(name, SPOILED_COUNT, spoil=spoil) for name, spoil in SPOILERS.items()]
        rows.append(row("standard normal numbers", SPOILED_COUNT, is_random=True))
        print(material.table(("calibration", "top-1", "cosine"), rows), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.sensitivity", description=__doc__)
    known = [*map(str, Preset), "all"]
    parser.add_argument("--preset", nargs="+", choices=known, default=[DEFAULT_PRESET], metavar="NAME")
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, metavar="N")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--threads", type=int, help="of the runtime; all cores unless given")
    return parser


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """The dense model, and the test images made ready once with what the dense model says about them."""

    dense: onnx.ModelProto
    runtime: Runtime
    tests: material.Floats
    labels: npt.NDArray[np.uint8]
    expected: material.Floats
    pool: material.Images

    @classmethod
    def load(cls, threads: int | None) -> Judge:
        """Read everything and run the dense model."""
        dense, runtime = onnx.load(material.model(MODEL)), Runtime(threads=threads)
        images, labels = material.cifar("test5k")
        mean, std = (np.asarray(NORMAL[name], np.float32) for name in ("mean", "std"))
        tests = material.nchw(images, NORMAL["scale"], 0.0)
        tests = (tests - mean[:, None, None]) / std[:, None, None]
        return cls(dense, runtime, tests, labels, _logits(dense, tests, runtime), material.cifar("train12k")[0])

    def score(self, model: onnx.ModelProto) -> Score:
        """Top-1 and cosine of a model on the test images."""
        logits = _logits(model, self.tests, self.runtime)
        lengths = np.linalg.norm(logits, axis=1) * np.linalg.norm(self.expected, axis=1)
        cosine = (logits * self.expected).sum(axis=1) / lengths
        return 100 * float((logits.argmax(axis=1) == self.labels).mean()), float(cosine.mean())


def _logits(model: onnx.ModelProto, tests: material.Floats, runtime: Runtime) -> material.Floats:
    session = open_session(model, runtime)
    parts = [tests[start : start + 250] for start in range(0, len(tests), 250)]
    return np.concatenate([next(iter(run(session, {"input": part}).values())) for part in parts])


def _row(
    judge: Judge,
    preset: str,
    seeds: range,
    label: str,
    count: int,
    *,
    spoil: Spoiler | None = None,
    is_random: bool = False,
) -> tuple[str, str, str]:
    """Top-1 and cosine over the seeds' models."""
    scores, start = [], time.perf_counter()
    for seed in seeds:
        source: Any = "random"
        if not is_random:
            generator = np.random.default_rng(seed)
            drawn = judge.pool[generator.permutation(len(judge.pool))[:count]]
            source = {"input": drawn if spoil is None else spoil(drawn, generator)}
        options: dict[str, Any] = {"samples": count, "seed": seed, "threads": judge.runtime.threads, **NORMAL}
        result = snp_onnx.prune(judge.dense, source, target_macs=TARGET, preset=preset, **options)
        assert result.report.pruned.macs <= TARGET * result.report.dense.macs
        scores.append(judge.score(result.model))
    seconds = (time.perf_counter() - start) / len(scores)
    tops = [f"{top:.2f}" for top, _ in scores]
    print(f"{preset}, {label}: {tops}, {seconds:.0f} s each", file=sys.stderr, flush=True)
    return (label, *_spread(scores))


def _spread(scores: Sequence[Score]) -> tuple[str, str]:
    """Mean ± standard deviation over the seeds of both figures; the mean alone for one seed."""
    values = np.asarray(scores)
    means, deviations = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else (None, None)
    cells = zip(means, deviations, (2, 4), strict=True)
    top, cosine = (f"{m:.{digits}f}" + ("" if d is None else f" ± {d:.{digits}f}") for m, d, digits in cells)
    return top, cosine


def _noise(images: material.Images, generator: np.random.Generator, sigma: float) -> material.Floats:
    """Normal noise of standard deviation `sigma` of the range, clipped to the range 0..255."""
    noise = np.float32(255 * sigma) * generator.standard_normal(images.shape, dtype=np.float32)
    noisy: material.Floats = np.clip(images + noise, 0, 255)
    return noisy


def _blur(images: material.Images, _: np.random.Generator, radius: float) -> material.Floats:
    """Gaussian blur of standard deviation `radius` pixels."""
    kernel = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(image).filter(kernel), np.float32) for image in images])


SPOILERS: Mapping[str, Spoiler] = {
    **{f"noise, σ = {sigma} of the range": partial(_noise, sigma=sigma) for sigma in (0.05, 0.1, 0.2)},
    **{f"Gaussian blur, radius {radius}": partial(_blur, radius=radius) for radius in (1, 2)},
}


if __name__ == "__main__":
    main()
