"""Robustness: dense and pruned ResNet-56 on spoiled test images, as layer pruning is judged in arXiv 2405.17081.

Gaussian noise, blur, JPEG, and one step of the fast gradient sign method (arXiv 1412.6572) against each model itself,
through its torch form.

    python -m tools.bench.robustness [--images 2000] [NAME=model.onnx ...]
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from PIL import Image, ImageFilter
from torch.nn import functional

import snp_onnx
from snp_onnx.recovery.graph import GraphModule
from tools.bench import material
from tools.bench.accuracy import calibration_images

MODEL = "resnet56_cifar10_ts.onnx"
BATCH = 250
WAYS: Mapping[str, Mapping[str, Any]] = {
    "best, 0.5 of the MACs": {"target_macs": 0.5},
    "blocks, 0.7 of the MACs": {"target_macs": 0.7, "units": ["blocks"]},
    "magnitude, 0.8 of the MACs": {"target_macs": 0.8, **material.MAGNITUDE},
}

Spoil = Callable[[material.Images], npt.NDArray[np.float32]]


def main() -> None:
    """Print the table: top-1 for every model and every way to spoil images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=model.onnx", help="further models to judge")
    parser.add_argument("--images", type=int, default=2000)
    given = parser.parse_args()
    images, labels = material.cifar("test5k", given.images)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {len(images)} test images\n")
    models = {"dense": onnx.load(material.model(MODEL))}
    data = {"input": calibration_images(0)}
    for name, options in WAYS.items():
        models[name] = snp_onnx.prune(models["dense"], data, layout="nhwc", **material.CIFAR, **options).model
    for text in given.models:
        name, _, path = text.partition("=")
        models[name] = onnx.load(Path(path))
    rows = []
    for name, model in models.items():
        figures = [_top1(model, _fed(spoil(images)), labels) for spoil in SPOILS.values()]
        figures += [_top1(model, _attacked(model, images, labels, step), labels) for step in STEPS]
        rows.append((name, *(f"{figure:.2f}" for figure in figures)))
        print(*rows[-1], file=sys.stderr, flush=True)
    print(material.table(("model", *SPOILS, *(f"FGSM {step}/255" for step in STEPS)), rows))


def _plain(images: material.Images) -> npt.NDArray[np.float32]:
    return images.astype(np.float32)


def _noise(images: material.Images, sigma: float) -> npt.NDArray[np.float32]:
    noise = 255 * sigma * np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    return np.asarray(np.clip(images + noise, 0, 255), dtype=np.float32)


def _blur(images: material.Images, radius: float) -> npt.NDArray[np.float32]:
    blurred = [Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)) for image in images]
    return np.stack([np.asarray(image, dtype=np.float32) for image in blurred])


def _jpeg(images: material.Images, quality: int) -> npt.NDArray[np.float32]:
    def through(image: material.Images) -> npt.NDArray[np.float32]:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        return np.asarray(Image.open(stream), dtype=np.float32)

    return np.stack([through(image) for image in images])


SPOILS: Mapping[str, Spoil] = {
    "clean": _plain,
    "noise 0.05": partial(_noise, sigma=0.05),
    "noise 0.1": partial(_noise, sigma=0.1),
    "blur 1": partial(_blur, radius=1.0),
    "JPEG 50": partial(_jpeg, quality=50),
    "JPEG 20": partial(_jpeg, quality=20),
}
STEPS = (1, 2, 4)
"""Of the attack, in grey levels."""


def _fed(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Pixels from 0 to 255 as the network takes them."""
    mean, std = (np.array(material.CIFAR[name], dtype=np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((images / 255 - mean) / std).transpose(0, 3, 1, 2))


def _attacked(model: onnx.ModelProto, images: material.Images, labels: Any, step: float) -> npt.NDArray[np.float32]:
    """Images one step up the gradient's sign of the loss of the true class, clipped to the range of pixels."""
    module, std = GraphModule(model, trains=False), np.array(material.CIFAR["std"], dtype=np.float32)
    low, high = (_fed(np.full((1, 32, 32, 3), level, dtype=np.float32)) for level in (0, 255))
    found = []
    for start in range(0, len(images), BATCH):
        clean = _fed(images[start : start + BATCH].astype(np.float32))
        given = torch.from_numpy(clean).requires_grad_()
        logits = module({module.inputs[0]: given})[module.outputs[0]]
        loss = functional.cross_entropy(logits, torch.from_numpy(labels[start : start + BATCH].astype(np.int64)))
        (slope,) = torch.autograd.grad(loss, given)
        moved = clean + step / 255 / std.reshape(1, 3, 1, 1) * np.sign(slope.numpy())
        found.append(np.clip(moved, low, high))
    return np.concatenate(found)


def _top1(model: onnx.ModelProto, fed: npt.NDArray[np.float32], labels: Any) -> float:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    logits = [session.run(None, {name: fed[at : at + BATCH]})[0] for at in range(0, len(fed), BATCH)]
    return float(100 * (np.concatenate(logits).argmax(axis=1) == labels[: len(fed)]).mean())


if __name__ == "__main__":
    main()
