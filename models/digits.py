"""`python -m models.digits`: train the digits sample and write `digits.onnx` and `digits.npz` next to this file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.exporting import export
from models.layers import Residual, conv_bn, global_pool_linear, projection

FOLDER = Path(__file__).parent
TRAIN_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Digits:
    """Grey values 0..16, uint8 `[n, 1, 8, 8]`, and their labels, int64 `[n]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


def load(seed: int) -> Digits:
    """scikit-learn's digits in a stratified split: `TRAIN_ROWS` to train on, the others to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)
    parts = train_test_split(images, labels, train_size=TRAIN_ROWS, stratify=labels, random_state=seed)
    images, test_images, labels, test_labels = parts
    return Digits(images, labels.astype(np.int64), test_images, test_labels.astype(np.int64))


def network() -> nn.Sequential:
    """Stem of 16 channels, a stage with identity shortcuts, one that begins with a projection; wide inside."""
    stage_one = [_block(16, 64, 16, 1) for _ in range(2)]
    stage_two = [_block(16, 80, 32, 2), _block(32, 80, 32, 1), _block(32, 80, 32, 1)]
    return nn.Sequential(conv_bn(1, 16), *stage_one, *stage_two, global_pool_linear(32, 10))


def _block(inner: int, hidden: int, outer: int, stride: int) -> nn.Module:
    body = nn.Sequential(conv_bn(inner, hidden, 3, stride), conv_bn(hidden, outer, activation=None))
    return Residual(body, projection(inner, outer, stride))


def train(module: nn.Module, digits: Digits, epochs: int, seed: int) -> None:
    """One-cycle SGD with cross entropy on randomly shifted images, in place."""
    steps = epochs * (TRAIN_ROWS // 50)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    module.train()
    for images, labels in _batches(digits, epochs, 50, torch.Generator().manual_seed(seed)):
        optimiser.zero_grad()
        torch.autograd.backward(functional.cross_entropy(module(images), labels, label_smoothing=0.05))
        optimiser.step()
        schedule.step()
    module.eval()


def _batches(digits: Digits, epochs: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches in which every image is moved by up to one pixel along both axes."""
    padded = functional.pad(torch.from_numpy(digits.images).float() / 16, (1, 1, 1, 1))
    labels = torch.from_numpy(digits.labels)
    offsets = torch.arange(8)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in (order[start : start + size] for start in range(0, len(order), size)):
            down, right = torch.randint(0, 3, (2, len(rows), 1), generator=generator)
            vertical, horizontal = (down + offsets)[:, :, None], (right + offsets)[:, None, :]
            yield padded[rows[:, None, None], 0, vertical, horizontal][:, None], labels[rows]


@torch.no_grad()
def accuracy(module: nn.Module, digits: Digits) -> float:
    """Fraction of the test images whose largest logit is at their label."""
    logits: Tensor = module(torch.from_numpy(digits.test_images).float() / 16)
    return float((logits.argmax(1).numpy() == digits.test_labels).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, export with the BatchNorms kept, write the data; 0 when both files are there."""
    parser = argparse.ArgumentParser(prog="python -m models.digits", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    digits = load(given.seed)
    torch.manual_seed(given.seed)
    module = network()
    train(module, digits, given.epochs, given.seed)
    path = given.folder / "digits.onnx"
    export(module, path, input_shape=(1, 1, 8, 8), keep_bn=True, output_name="logits")
    arrays = {name: getattr(digits, name) for name in ("images", "labels", "test_images", "test_labels")}
    np.savez_compressed(given.folder / "digits.npz", **arrays)
    parameters = sum(p.numel() for p in module.parameters())
    seconds = time.perf_counter() - start
    print(f"{parameters:,} parameters, test accuracy {accuracy(module, digits):.4f}, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
