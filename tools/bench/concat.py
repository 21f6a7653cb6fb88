"""Networks with concatenation, trained here on CIFAR-10, under every preset; and streams cut in width.

Each network is trained once with torch on the 12,000 training images (minutes on one core) and kept in the folder
that SNP_ONNX_BENCH_CACHE names, ~/.cache/snp-onnx-bench without it. Delete its file after changing a network.

    python -m tools.bench.concat [--networks NAME ...] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import snp_onnx
from models.densenet import densenet
from models.exporting import export
from models.squeezenet import squeezenet
from snp_onnx.planning.options import Preset
from tools.bench import material

TARGETS = (0.8, 0.65, 0.5)
SAMPLES = 1024
SEED, BATCH, PEAK_RATE, MARGIN = 0, 100, 0.1, 4
SIDE = 32

WAYS: Mapping[str, Mapping[str, Any]] = {
    "magnitude order, uniform, no folding": material.MAGNITUDE,
    **{str(preset): {"preset": str(preset)} for preset in Preset},
}


@dataclass(frozen=True, slots=True)
class Network:
    """A network to train: its name, which names its file too, its builder, and how often it sees every image."""

    name: str
    builder: Callable[[], nn.Module]
    epochs: int


NETWORKS = (
    Network(
        "squeezenet6",
        partial(squeezenet, width=0.75, classes=10, stages=((16, 16), (32, 32), (48, 48)), cifar=True),
        30,
    ),
    Network("densenet9", partial(densenet, classes=10, stages=(3, 3, 3), growth=8, bottleneck=False, cifar=True), 10),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what isn't there, then print a table for each network and one for the streams of ResNet-20."""
    given = _parser().parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; {SAMPLES} training images")
    judge = Judge(given.threads)
    columns: tuple[str, ...] = ("MACs kept at most", *map(str, TARGETS), f"groups cut at {TARGETS[-1]}")
    for network in (found for found in NETWORKS if found.name in given.networks):
        path = trained(network)
        rows = [(name, *_row(judge, path, options)) for name, options in WAYS.items()]
        print(f"\n{network.name}: dense {judge.accuracy(path, path):.2f}\n")
        print(material.table(columns, rows), flush=True)
    print("\nresnet20_cifar10_ts.onnx with its residual streams kept whole and cut in width\n")
    columns = ("preset", "MACs kept at most", "streams kept", "streams cut", "width of the streams")
    print(material.table(columns, list(_streams(judge))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.concat", description=__doc__)
    names = [network.name for network in NETWORKS]
    parser.add_argument("--networks", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--threads", type=int, help="of training and of the runtime; all cores unless given")
    return parser


class Judge:
    """Prunes with the training images and finds top-1, in percent, on the 5,000 test images."""

    def __init__(self, threads: int | None) -> None:
        self.options: Mapping[str, Any] = {"layout": "nhwc", "threads": threads, **material.CIFAR}
        self.images, _ = material.cifar("train12k", SAMPLES)
        tests, labels = material.cifar("test5k")
        self.test = {"input": tests, "labels": labels}

    def prune(self, model: Path, target: float, options: Mapping[str, Any]) -> snp_onnx.PruneResult:
        """The model at `target` of its MACs."""
        result = snp_onnx.prune(model, {"input": self.images}, target_macs=target, **self.options, **options)
        assert result.report.pruned.macs <= target * result.report.dense.macs
        return result

    def accuracy(self, dense: Path, pruned: Any) -> float:
        """Top-1 of `pruned`."""
        judged: dict[str, Any] = {"label_array": "labels", "batch_size": 250, **self.options}
        found = snp_onnx.compare(dense, pruned, self.test, **judged).fidelity[0].pruned_accuracy
        assert found is not None
        return 100 * found


def _row(judge: Judge, model: Path, options: Mapping[str, Any]) -> list[str]:
    """Top-1 at every target, and how many groups the last of them cut."""
    cells, cut = [], "-"
    for target in TARGETS:
        try:
            result = judge.prune(model, target, options)
        except snp_onnx.TargetError as error:
            cells.append(f"declined: {error}")
            continue
        cells.append(f"{judge.accuracy(model, result.model):.2f}")
        if target == TARGETS[-1]:
            groups = result.report.groups
            cut = f"{sum(group.after < group.before for group in groups)} of {len(groups)}"
    return [*cells, cut]


def _streams(judge: Judge) -> Iterator[tuple[str, ...]]:
    """Each preset at each target: top-1 either way, and every stream's width before and after."""
    model = material.model("resnet20_cifar10_ts.onnx")
    for preset in map(str, Preset):
        for target in TARGETS:
            results = [judge.prune(model, target, {"preset": preset, "streams": cut}) for cut in (False, True)]
            accuracies = [f"{judge.accuracy(model, result.model):.2f}" for result in results]
            streams = [group for group in results[1].report.groups if group.is_stream]
            widths = ", ".join(f"{group.id} {group.before} → {group.after}" for group in streams)
            yield preset, str(target), *accuracies, widths


def trained(network: Network) -> Path:
    """The trained network's file; made where it isn't there."""
    folder = Path(os.environ.get("SNP_ONNX_BENCH_CACHE", Path.home() / ".cache" / "snp-onnx-bench"))
    path = folder / f"{network.name}-{network.epochs}-{SEED}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        torch.manual_seed(SEED)
        module = network.builder()
        train(module, network.epochs)
        unfinished = path.with_suffix(".part")
        export(module, unfinished, input_shape=(1, 3, SIDE, SIDE))
        unfinished.replace(path)
        print(f"{path}: trained in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return path


def train(module: nn.Module, epochs: int) -> None:
    """One-cycle SGD with cross entropy on images moved by up to `MARGIN` pixels and mirrored, in place."""
    images, labels = material.cifar("train12k")
    batches = _batches(images, torch.from_numpy(labels.astype(np.int64)), epochs)
    optimiser = torch.optim.SGD(module.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=PEAK_RATE, total_steps=steps)
    module.train()
    for inputs, classes in batches:
        optimiser.zero_grad()
        torch.autograd.backward(functional.cross_entropy(module(inputs), classes, label_smoothing=0.05))
        optimiser.step()
        schedule.step()
    module.eval()


def _batches(images: material.Images, labels: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches of normalised images; the margin that moving uncovers is black."""
    mean, std = (torch.tensor(material.CIFAR[name])[:, None, None] for name in ("mean", "std"))
    edge = (0, 0, MARGIN, MARGIN, MARGIN, MARGIN)
    padded = functional.pad(torch.from_numpy(images), edge)
    generator = torch.Generator().manual_seed(SEED)
    offsets = torch.arange(SIDE)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).view(-1, BATCH):
            down, right = torch.randint(0, 2 * MARGIN + 1, (2, len(rows), 1), generator=generator)
            mirrored = torch.randint(0, 2, (len(rows), 1), generator=generator).bool()
            across = right + torch.where(mirrored, offsets.flip(0), offsets)
            pixels = padded[rows[:, None, None], (down + offsets)[:, :, None], across[:, None, :]]
            inputs = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
            yield inputs.contiguous(memory_format=torch.channels_last), labels[rows]


if __name__ == "__main__":
    main()
