"""Models and data that the benchmarks run on: kept outside the project, found by SNP_ONNX_BENCH_DATA or beside it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Fold = tuple[Mapping[str, Any], Mapping[str, Any]]
"""Calibration arrays; test arrays with labels."""

MOBILENET = "mobilenetv2_1.0_224_imagenet.onnx"
BACKGROUND = 1
"""Classes that MobileNetV2 has before the first of the 1000."""

CIFAR = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Preprocessing of the CIFAR-10 ResNets: (x / 255 - mean) / std, RGB NCHW."""


MAGNITUDE = {"preset": "paper", "order": "magnitude", "ratios": "uniform", "fold": "none"}
"""What most tools do: the smallest weights go, as many everywhere, and nothing takes over."""


def folder() -> Path:
    """The folder with `models/` and `data/`; exits with one line where there is none."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    found = Path(os.environ.get("SNP_ONNX_BENCH_DATA", beside))
    if not (found / "models").is_dir():
        sys.exit(f"error: {found} has no models/: point SNP_ONNX_BENCH_DATA at the benchmark models and data")
    return found


def model(name: str) -> Path:
    """A model file."""
    return folder() / "models" / name


def shaped(name: str) -> Path:
    """A network of `models/` at its full size with drawn weights, exported once into the temporary folder."""
    path = Path(tempfile.gettempdir()) / f"snp_onnx_bench_{name}.onnx"
    if not path.is_file():
        try:
            from models import export_bytes
        except ImportError:
            sys.exit(f"error: {name} is exported by torch: pip install -e .[dev]")
        onnx.save(export_bytes(name, seed=0), path)
    return path


def data(name: str) -> Path:
    """A data file."""
    return folder() / "data" / name


def cifar(name: str, count: int | None = None) -> tuple[Images, npt.NDArray[np.uint8]]:
    """CIFAR-10 images (n, 32, 32, 3) and labels (n,)."""
    with np.load(data(f"cifar10_{name}.npz")) as arrays:
        return arrays["images"][:count], arrays["labels"][:count]


def imagenet(side: tuple[int, int] | None = None) -> tuple[Images, npt.NDArray[np.int64]]:
    """240 ImageNet images (n, height, width, 3), resized if asked for, and labels of the 1000-class numbering."""
    with np.load(data("imagenet_sample_224.npz")) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    if side is None:
        return images, labels
    size = (side[1], side[0])
    resized = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in images]
    return np.stack(resized), labels


def nchw(images: Images, scale: float, shift: float) -> Floats:
    """(x - shift) * scale as float32 NCHW."""
    return ((images.astype(np.float32) - shift) * scale).transpose(0, 3, 1, 2).copy()


def imagenet_folds() -> list[Fold]:
    """Even images calibrate MobileNetV2 and odd ones judge it, then the other way round."""
    pictures, classes = imagenet()
    inputs = nchw(pictures, 1 / 128, 128.0)
    halves = slice(0, None, 2), slice(1, None, 2)
    return [
        ({"input": inputs[own]}, {"input": inputs[other], "labels": classes[other] + BACKGROUND})
        for own, other in (halves, halves[::-1])
    ]


def standardised(images: Images) -> Floats:
    """CIFAR-10 images as the ResNets read them, float32 NCHW."""
    mean, std = (np.array(CIFAR[name], np.float32) for name in ("mean", "std"))
    pixels = images.astype(np.float32) * np.float32(CIFAR["scale"])
    return ((pixels - mean) / std).transpose(0, 3, 1, 2).copy()


def machine() -> str:
    """What the figures were measured on, in words that hold elsewhere."""
    packages = ("onnxruntime", "onnx", "numpy")
    found = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{os.cpu_count()} shared x86-64 cores, CPU provider; Python {platform.python_version()}, {found}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
