"""Int8 after pruning against int8 alone: top-1 and bytes of a model, whole and pruned, before and after quantisation.

    python -m tools.bench.int8 [--models resnet56,mobilenetv2] [--targets F ...] [--round-to N] [--threads N]
    python -m tools.bench.int8 --settings
    python -m tools.bench.int8 --latency [--batch 1]

The steps are those of docs/howto/quantise.md: preset best, `quant_pre_process`, `quantize_static`; the same images
calibrate pruning and quantising, others judge. The second form compares settings of the quantiser, by the logits on
training images that took no part in it: that is how the ones used here were chosen. The third form times every
model against the dense float one, in turn with it. `--folder` keeps the pruned models, and takes those that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import snp_onnx
from snp_onnx.verbs.result import Comparison
from tools.bench import material
from tools.bench.accuracy import EXPORTS, calibration_images

TARGETS = (0.8, 0.65, 0.5)
WHOLE = 1.0
ROWS = 20
"""Images in a batch that the quantiser reads."""

SETTINGS: Mapping[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
"""What the tables use, with ranges by MinMax."""

OTHERS: Mapping[str, Mapping[str, Any]] = {
    "U8S8, per channel, MinMax": {},
    "weights per tensor": {"per_channel": False},
    "activations S8": {"activation_type": QuantType.QInt8},
    "activations S8, symmetric": {
        "activation_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "7-bit weights (reduce_range)": {"reduce_range": True},
    "ranges by Percentile": {"calibrate_method": CalibrationMethod.Percentile},
}


@dataclass(frozen=True, slots=True)
class Case:
    """A model and its folds; `options` prepare its images, `tuning` are samples of the first folds to calibrate and
    judge settings of the quantiser by, none of them for testing there."""

    name: str
    file: str
    folds: Sequence[material.Fold]
    tuning: Sequence[tuple[material.Floats, material.Floats]]
    options: Mapping[str, Any]

    def floats(self, fold: int) -> material.Floats:
        """A fold's calibration images as the model reads them."""
        images = self.folds[fold][0]["input"]
        return material.standardised(images) if images.dtype == np.uint8 else images


def resnet56() -> Case:
    """1,024 training images calibrate, 5,000 test images judge; settings: 256 and 1,024 training images.

    The quantiser keeps all activations of its samples in memory where it looks at more than their ends.
    """
    (images, labels), own = material.cifar("test5k"), calibration_images(0)
    others = material.standardised(material.cifar("train12k")[0][len(own) : len(own) + 1024])
    folds = [({"input": own}, {"input": images, "labels": labels})]
    options = {"layout": "nhwc", "batch_size": 250, **material.CIFAR}
    return Case("ResNet-56", EXPORTS[0], folds, [(material.standardised(own[:256]), others)], options)


def mobilenetv2() -> Case:
    """One half of the images calibrates, the other judges; settings: 80 and 40 images of the first half."""
    folds = material.imagenet_folds()
    own = folds[0][0]["input"]
    tuning = [(own[:80], own[80:])]
    return Case("MobileNetV2", material.MOBILENET, folds, tuning, {"batch_size": ROWS})


CASES = {"resnet56": resnet56, "mobilenetv2": mobilenetv2}


class Reader(CalibrationDataReader):
    """Batches of an array."""

    def __init__(self, images: material.Floats) -> None:
        self._batches = iter([{"input": images[i : i + ROWS]} for i in range(0, len(images) - ROWS + 1, ROWS)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def quantise(source: Path, output: Path, images: material.Floats, **settings: Any) -> None:
    """`quant_pre_process` and `quantize_static`."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(source, ready)
        quantize_static(ready, output, Reader(images), QuantFormat.QDQ, **{**SETTINGS, **settings})


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the models lie, how many threads make them, and what their widths are multiples of."""

    folder: Path
    threads: int | None
    round_to: int | None = None

    def pruned(self, case: Case, share: float, fold: int) -> Path:
        """The float model with at most this share of the MACs; pruned unless it is there."""
        if share == WHOLE:
            return material.model(case.file)
        path = self._path(case, share, fold)
        if not path.is_file():
            start, options = time.perf_counter(), {n: v for n, v in case.options.items() if n != "batch_size"}
            calibration = case.folds[fold][0]
            result = snp_onnx.prune(
                material.model(case.file),
                calibration,
                target_macs=share,
                threads=self.threads,
                round_to=self.round_to,
                **options,
            )
            assert result.report.pruned.macs <= share * result.report.dense.macs
            result.save(path)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        return path

    def _path(self, case: Case, share: float, fold: int, kind: str = "") -> Path:
        widths = f"_by_{self.round_to}" if self.round_to and share != WHOLE else ""
        return self.folder / f"{case.name}_{share}_{fold}{widths}{kind}.onnx"

    def quantised(self, case: Case, share: float, fold: int) -> tuple[Path, Path]:
        """The float model and its int8 form."""
        plain = self.pruned(case, share, fold)
        small = self._path(case, share, fold, "_int8")
        if not small.is_file():
            quantise(plain, small, case.floats(fold))
        return plain, small

    def accuracy(self, case: Case, share: float) -> tuple[str, ...]:
        """A row: means over the folds."""
        found = []
        for fold, (_, test) in enumerate(case.folds):
            plain, small = self.quantised(case, share, fold)
            judged = snp_onnx.compare(
                plain, small, test, label_array="labels", threads=self.threads, **case.options
            ).fidelity[0]
            assert judged.dense_accuracy is not None
            assert judged.pruned_accuracy is not None
            sizes = plain.stat().st_size, small.stat().st_size
            found.append((judged.dense_accuracy, judged.pruned_accuracy, judged.relative_l2, *sizes))
        plain_top, small_top, error, plain_size, small_size = np.mean(found, axis=0)
        tops = f"{100 * plain_top:.2f}", f"{100 * small_top:.2f}", f"{100 * (small_top - plain_top):+.2f}"
        whole = material.model(case.file).stat().st_size
        name = "1 (dense)" if share == WHOLE else str(share)
        sizes = f"{plain_size / 1e6:.2f}", f"{small_size / 1e6:.2f}", f"{100 * small_size / whole:.0f} %"
        return (case.name, name, *tops, f"{error:.3f}", *sizes)

    def settings(self, case: Case, share: float) -> Iterator[tuple[str, ...]]:
        """Rows: every setting's relative error of the logits on images it hasn't seen, none of them for testing."""
        for name, setting in OTHERS.items():
            errors, start = [], time.perf_counter()
            for fold, (calibration, judges) in enumerate(case.tuning):
                plain, small = self.pruned(case, share, fold), self.folder / "setting.onnx"
                quantise(plain, small, calibration, **setting)
                found = snp_onnx.compare(plain, small, {"input": judges}, batch_size=ROWS, threads=self.threads)
                errors.append(found.fidelity[0].relative_l2)
            seconds = f"{time.perf_counter() - start:.0f}"
            print(case.name, share, name, np.mean(errors), seconds, file=sys.stderr, flush=True)
            yield case.name, str(share), name, f"{np.mean(errors):.4f}", seconds

    def latency(self, case: Case, share: float, batch: int) -> Iterator[tuple[str, ...]]:
        """Rows: the float and the int8 model of a share, each timed in turn with the dense float one."""
        for kind, path in zip(("float", "int8"), self.quantised(case, share, 0), strict=True):
            if path == material.model(case.file):
                continue
            found = self._timed(case, path, batch).latency[-1]
            quartiles = f"{found.ratio_low:.3f} to {found.ratio_high:.3f}"
            yield case.name, str(share), kind, f"{found.dense_ms:.2f}", f"{found.undisturbed:.3f}", quartiles

    def _timed(self, case: Case, path: Path, batch: int) -> Comparison:
        some = {"input": case.folds[0][1]["input"][:batch]}
        options = dict(case.options) | {"batch_size": batch}
        dense = material.model(case.file)
        return snp_onnx.compare(dense, path, some, latency=True, latency_batch=batch, threads=self.threads, **options)


def main() -> None:
    """Print the table that was asked for."""
    given = _parser().parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, given.threads, given.round_to)
        cases = [CASES[name]() for name in given.models.split(",")]
        places = [(case, share) for case in cases for share in (WHOLE, *given.targets)]
        if given.settings:
            columns: tuple[str, ...] = ("model", "MACs kept", "settings", "relative L2 of the logits", "seconds")
            rows = [row for place in places for row in bench.settings(*place)]
        elif given.latency:
            columns = ("model", "MACs kept", "form", "dense float, ms", "ratio", "quartiles of pairs")
            rows = [row for place in places for row in bench.latency(*place, given.batch)]
        else:
            columns = ("model", "MACs kept at most", "top-1 float", "top-1 int8", "int8 - float")
            columns += ("relative L2", "MB float", "MB int8", "of the dense float file")
            rows = [bench.accuracy(*place) for place in places]
        print(material.table(columns, rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.int8", description=__doc__)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--targets", nargs="*", type=float, default=TARGETS, metavar="F")
    parser.add_argument("--round-to", type=int, metavar="N", help="widths are multiples of N")
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of the runtime; all cores unless given")
    parser.add_argument("--folder", type=Path, help="keeps the models; those that are there aren't made again")
    return parser


if __name__ == "__main__":
    main()
