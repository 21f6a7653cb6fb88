"""What every rival is measured with: one model, one set of images, one way to count MACs and top-1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx

import snp_onnx
from tools.bench import material
from tools.bench.material import Floats, Images

MODEL = "resnet56_cifar10_ts.onnx"
SAMPLES = 1024
BATCH = 250
STRIDE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """The dense model, calibration images as they are and as the model takes them, and the test split."""

    path: Path
    dense: onnx.ModelProto
    images: Images
    inputs: Floats
    tests: Floats
    labels: Any
    dense_macs: int

    @classmethod
    def load(cls) -> Self:
        path = material.model(MODEL)
        images, _ = material.cifar("train12k", SAMPLES)
        tests, labels = material.cifar("test5k")
        dense = onnx.load(path)
        return cls(path, dense, images, _as_input(images), _as_input(tests), labels, macs(dense))

    def share(self, model: onnx.ModelProto) -> float:
        """The share of the dense model's MACs."""
        return macs(model) / self.dense_macs

    def accuracy(self, model: onnx.ModelProto) -> float:
        """Top-1 on the test split in per cent; raises where an output is not finite."""
        session = open_session(model)
        batches = [self.tests[at : at + BATCH] for at in range(0, len(self.tests), BATCH)]
        logits = np.concatenate([session.run(None, {"input": batch})[0] for batch in batches])
        if not np.isfinite(logits).all():
            raise FloatingPointError("an output is not finite")
        return float(100 * (logits.argmax(axis=1) == self.labels).mean())


@dataclass(frozen=True, slots=True)
class Point:
    """One model of one rival: what was asked for, what it costs, how good it is; or the problem with it."""

    target: float
    share: float | None = None
    accuracy: float | None = None
    problem: str = ""


Way = Callable[[float], onnx.ModelProto]
"""Makes the model for a share of the dense MACs."""


def judge(bench: Bench, way: Way, target: float) -> Point:
    """Make one model and measure it; whatever goes wrong in foreign code becomes the point's problem."""
    try:
        model = way(target)
        onnx.checker.check_model(model, full_check=True)
        share = bench.share(model)
        if share > target:
            return Point(target, share, None, f"keeps {share:.3f} of the MACs, above the target")
        return Point(target, share, bench.accuracy(model))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a rival may fail in any way: its row says how
        return Point(target, None, None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}")


def least(cost: Callable[[float], float], target: float, steps: int) -> float:
    """The first x of 0, 1/steps, ... below 1 with cost(x) <= target; ValueError if none.

    A scan by STRIDE, then bisection: near x = 1 some tools fall back to cutting nothing, so the cost may rise again.
    """
    found = next((at for at in range(0, steps, STRIDE) if cost(at / steps) <= target), None)
    if found is None:
        raise ValueError(f"no setting keeps at most {target} of the MACs")
    low, high = found - STRIDE, found
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle / steps) <= target else (middle, high)
    return high / steps


def macs(model: onnx.ModelProto) -> int:
    """MACs for one image, by the rule of snp_onnx.cost."""
    return snp_onnx.inspect(model).dense.macs


def open_session(model: onnx.ModelProto) -> Any:
    """A quiet CPU session."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others may use the cores too
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _as_input(images: Images) -> Floats:
    """((x / 255) - mean) / std as float32 NCHW."""
    mean, std = (np.asarray(material.CIFAR[name], np.float32) for name in ("mean", "std"))
    scaled = (images.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)
