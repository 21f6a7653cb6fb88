"""What the clock says: models pruned to a share of their latency, and to a share of their MACs, timed afterwards.

    python -m tools.bench.latency [--models resnet50,vgg16] [--batches 1,8] [--threads 1,2]
    python -m tools.bench.latency --curve [--models resnet50]
    python -m tools.bench.latency --accuracy 0.6

The first form prunes every model once for each batch size and thread count, to 0.6 of the latency and to half of the
MACs with widths chosen by the clock, and times the result anew. ResNet-50 and VGG-16 have drawn weights, MiniLM drawn
tokens: it is their time that counts, so units are ordered and folded as in the paper, which is quick, and shared out by
the budget. The second form times what shares of the MACs leave, with any width and with widths chosen by the clock (one
row, one thread). The third prunes ResNet-56 to a share of its latency, then to the share of the MACs that takes as
long, and takes top-1 of both on the 5,000 test images (one thread).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnx

import snp_onnx
from snp_onnx.planning.options import TargetKind
from snp_onnx.verbs.latency import Latency
from tools.bench import material
from tools.bench.accuracy import calibration_images
from tools.bench.depth import top1

LATENCY, MACS = 0.6, 0.5
CURVE = (0.8, 0.65, 0.5, 0.35)
QUICK: dict[str, Any] = {"preset": "paper", "ratios": "budget"}
PICTURES = 24
STEPS = 6


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="resnet50,mobilenetv2,vgg16,minilm")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--accuracy", type=float)
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}\n")
    if given.accuracy is not None:
        print(_accuracy(given.accuracy))
        return
    if given.curve:
        curves = [row for name in given.models.split(",") for row in _curve(name)]
        print(material.table(("model", "round to", *(f"{share} of the MACs" for share in CURVE)), curves))
        return
    batches, threads = ([int(number) for number in text.split(",")] for text in (given.batches, given.threads))
    rows = []
    for name in given.models.split(","):
        for batch in batches:
            for count in threads:
                rows += list(_rows(name, batch, count))
    columns = ("model", "batch", "threads", "target", "MACs kept", "ratio", "quartiles of pairs", "seconds of timing")
    print(material.table(columns, rows))


def _rows(name: str, batch: int, threads: int) -> Iterator[tuple[object, ...]]:
    model, source = _case(name)
    options = {"latency_batch": batch, "threads": threads, **QUICK}
    for target in ({"target_latency": LATENCY}, {"target_macs": MACS, "round_to": "auto"}):
        result = snp_onnx.prune(model, source, **options, **target)
        timed = _timed(model, result.model, source, batch, threads)
        macs = result.report.pruned.macs / result.report.dense.macs
        spent = sum(result.report.timings.get(stage, 0.0) for stage in ("time layers", "time"))
        asked = ", ".join(f"{option} {value}" for option, value in target.items())
        quartiles = f"{timed.ratio_low:.3f} .. {timed.ratio_high:.3f}"
        row = (name, batch, threads, asked, f"{macs:.3f}", f"{timed.undisturbed:.3f}", quartiles, f"{spent:.0f}")
        print(*row, file=sys.stderr, flush=True)
        yield row


def _curve(name: str) -> Iterator[tuple[object, ...]]:
    """The latency ratio at each share of the MACs."""
    model, source = _case(name)
    for step in ("1", "auto"):
        found = []
        for share in CURVE:
            result = snp_onnx.prune(model, source, target_macs=share, round_to=step, threads=1, **QUICK)
            found.append(f"{_timed(model, result.model, source, 1, 1).undisturbed:.3f}")
        print(name, step, *found, file=sys.stderr, flush=True)
        yield (name, step, *found)


def _case(name: str) -> tuple[Any, dict[str, Any]]:
    if name == "minilm":
        tokens = np.random.default_rng(0).integers(1000, 20000, (64, 64))
        mask, types = np.ones_like(tokens), np.zeros_like(tokens)
        path = os.environ.get("SNP_ONNX_MINILM", "")
        return path or _no_minilm(), {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
    pictures = material.nchw(material.imagenet()[0][:PICTURES], 1 / 128, 128.0)
    path = material.model("mobilenetv2_1.0_224_imagenet.onnx") if name == "mobilenetv2" else material.shaped(name)
    return path, {onnx.load(path, load_external_data=False).graph.input[0].name: pictures}


def _no_minilm() -> str:
    sys.exit("error: no MiniLM: export it and point SNP_ONNX_MINILM at the file")


def _timed(dense: Any, pruned: Any, source: Any, batch: int, threads: int) -> Latency:
    options = {"latency_batch": batch, "threads": threads, "samples": batch}
    return snp_onnx.compare(dense, pruned, source, latency=True, **options).latency[-1]


def _accuracy(target: float) -> str:
    """ResNet-56 by latency, and by MACs at the same measured latency, which is looked for by halving."""
    model, source = material.model("resnet56_cifar10_ts.onnx"), {"input": calibration_images(0)}
    options: dict[str, Any] = {"threads": 1, "layout": "nhwc", **material.CIFAR}

    def row(name: str, **goal: Any) -> tuple[float, tuple[object, ...]]:
        result = snp_onnx.prune(model, source, **goal, **options)
        found = snp_onnx.compare(model, result.model, source, latency=True, samples=64, **options).latency[0]
        macs = result.report.pruned.macs / result.report.dense.macs
        quartiles = f"{found.ratio_low:.3f} .. {found.ratio_high:.3f}"
        cells = (name, f"{macs:.3f}", f"{found.undisturbed:.3f}", quartiles, f"{top1(result.model):.2f}")
        print(*cells, file=sys.stderr, flush=True)
        return found.undisturbed, cells

    reached, cells = row(f"--{TargetKind.LATENCY.option} {target}", target_latency=target)
    rows = [cells]
    low, high = 0.1, 1.0
    for _ in range(STEPS):
        share = 0.5 * (low + high)
        ratio, cells = row(f"--target-macs {share:.3f}", target_macs=share)
        rows.append(cells)
        low, high = (low, share) if ratio > reached else (share, high)
        if abs(ratio - reached) < 0.01:
            break
    return material.table(("target", "MACs kept", "latency ratio", "quartiles of pairs", "top-1"), rows)


if __name__ == "__main__":
    main()
