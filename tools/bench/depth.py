"""Blocks of ResNet-56 removed without training: by similarity, by other similarities, by magnitude and at random.

One way down for each score, on 1,024 training images; where it passes a target the layers are solved anew on all images
and top-1 is taken on the 5,000 test images.

    python -m tools.bench.depth [--scores cka,cosine] [--draws N]
    python -m tools.bench.depth --latency 0.5 [--batch 16]

The second form: widths alone, blocks alone, and both, each to a share of the measured latency (one thread).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import snp_onnx
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.planning.options import BlockScore, choices
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import open_samples
from snp_onnx.verbs.depth import Descent
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.result import Stopwatch
from snp_onnx.verbs.settings import data_from
from snp_onnx.verbs.subject import Subject, load_subject, resolve_shapes, trace_at
from tools.bench import material
from tools.bench.accuracy import calibration_images
from tools.bench.plot import draw_depth

MODEL = "resnet56_cifar10_ts.onnx"
TARGETS = (0.85, 0.775, 0.7, 0.55)
OPTIONS: dict[str, Any] = {"layout": "nhwc", **material.CIFAR}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", default=",".join(BlockScore))
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--latency", type=float)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent / "depth_resnet56.svg")
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; 1,024 training images\n")
    if given.latency is not None:
        print(_at_latency(given.latency, given.batch))
        return
    rows, paths = [], {}
    for score in given.scores.split(","):
        for draw in range(given.draws):
            found = list(_descent(score, draw))
            paths[f"{score}, draw {draw}"] = _path(found[-1][0]), [(_share(depth), top) for depth, top in found]
            rows.append((f"{score}, draw {draw}", *(f"{accuracy:.2f}" for _, accuracy in found)))
            print(*rows[-1], [f"{_share(depth):.3f}" for depth, _ in found], file=sys.stderr, flush=True)
    draw_depth(paths, given.plot)
    print(material.table(("ranked by", *(f"{target} of the MACs" for target in TARGETS)), rows))


def _at_latency(target: float, batch: int) -> str:
    """Top-1 of the three ways to a latency, measured again at the end."""
    rows = []
    ways = {"widths": ["channels"], "blocks": ["blocks"], "both": ["channels", "blocks"]}
    for name, units in ways.items():
        data, dense = {"input": calibration_images(0)}, material.model(MODEL)
        options = {"latency_batch": batch, "threads": 1, **OPTIONS}
        result = snp_onnx.prune(dense, data, target_latency=target, units=units, **options)
        timed = snp_onnx.compare(dense, result.model, data, latency=True, samples=64, **options).latency[-1]
        ratio = f"{timed.undisturbed:.3f} ({timed.ratio:.3f}, {timed.ratio_low:.3f} .. {timed.ratio_high:.3f})"
        macs = result.report.pruned.macs / result.report.dense.macs
        rows.append((name, len(result.report.removed), f"{macs:.3f}", ratio, f"{top1(result.model):.2f}"))
        print(*rows[-1], file=sys.stderr, flush=True)
    return material.table(
        ("cut", "blocks gone", "MACs kept", "latency ratio (median of pairs, quartiles)", "top-1"), rows
    )


def _path(subject: Subject) -> list[tuple[float, float]]:
    """MACs left and similarity after each removal."""
    assert subject.depth is not None
    decisions = subject.depth.decisions
    return [(decision.macs, decision.similarity) for decision in decisions if decision.similarity is not None]


def _descent(score: str, draw: int) -> Iterator[tuple[Subject, float]]:
    """The first depth that meets each target, and its top-1."""
    chosen, runtime = choices("best", kinds=["blocks"], similarity=score, seed=draw), Runtime(threads=2)
    dense, prepared, notes = load_subject(material.model(MODEL), runtime)
    data = data_from({"input": calibration_images(draw)}, OPTIONS)
    with open_samples(data.source, input_specs(prepared), data.preprocess, None, 0, {}) as samples:
        calibration = Calibration(samples, 16, runtime, Stopwatch(), lambda *_: None)
        shapes = resolve_shapes(prepared, {}, samples.largest_shapes)
        descent = Descent(trace_at(dense, prepared, notes, shapes, runtime), chosen, runtime, calibration)
        targets = list(TARGETS)
        for subject in descent.steps():
            while targets and _share(subject) <= targets[0]:
                targets.pop(0)
                finished = descent.finished(subject)
                yield finished, top1(finished.prepared)
            if not targets:
                return


def _share(subject: Subject) -> float:
    return subject.cost_now().macs / subject.dense_cost().macs


def top1(model: Any, tests: Sequence[Any] | None = None) -> float:
    """Accuracy on the test images, in per cent."""
    images, labels = material.cifar("test5k") if tests is None else tests
    judged = {"label_array": "labels", "batch_size": 250, **OPTIONS}
    found = snp_onnx.compare(material.model(MODEL), model, {"input": images, "labels": labels}, **judged)
    accuracy = found.fidelity[0].pruned_accuracy
    assert accuracy is not None
    return 100 * accuracy


if __name__ == "__main__":
    main()
