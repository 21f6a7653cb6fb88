"""Every benchmark model at 0.8 of its MACs: valid, loadable, finite, and how close its outputs stay.

Classifiers are calibrated on one part of the images and judged on another; the others by output cosine.

    python -m tools.bench.every_model
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import snp_onnx
from snp_onnx.planning.options import Preset
from tools.bench import material

Case = tuple[Path, Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]
"""Model, calibration arrays, test arrays (with labels where there are), options of both."""

TARGET = 0.8


def main() -> None:
    """Print the table."""
    cases = (*_classifiers(), *_others(), *_language())
    columns = ("model", "groups", "MACs kept", "params kept", "top-1 dense", "top-1 pruned", "cosine, worst output")
    for preset in Preset:
        rows = [_row(model, *data, {**options, "preset": str(preset)}) for model, *data, options in cases]
        print(f"\n{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; preset {preset}, --target-macs {TARGET}\n")
        print(material.table(columns, rows))


def _row(model: Path, calibration: Any, test: Any, options: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        result = snp_onnx.prune(model, calibration, target_macs=TARGET, **options)
    except snp_onnx.TargetError as error:
        return (model.name, "-", "-", "-", "-", "-", f"declined: {error}")
    report = result.report
    judged = {name: value for name, value in options.items() if name != "preset"}
    if "labels" in test:
        judged["label_array"] = "labels"
    found = snp_onnx.compare(model, result.model, test, **judged).fidelity
    accuracy = [found[0].dense_accuracy, found[0].pruned_accuracy]
    return (
        model.name,
        f"{sum(g.after < g.before for g in report.groups)} of {len(report.groups)}",
        f"{report.pruned.macs / report.dense.macs:.4f}",
        f"{report.pruned.params / report.dense.params:.4f}",
        *("-" if share is None else f"{100 * share:.2f}" for share in accuracy),
        f"{min(entry.cosine for entry in found):.4f}",
    )


def _classifiers() -> list[Case]:
    images, _ = material.cifar("train12k", 1024)
    tests, labels = material.cifar("test5k")
    test = {"input": tests, "labels": labels}
    normal = {"layout": "nhwc", **material.CIFAR}
    names = ("resnet20_cifar10_ts", "resnet56_cifar10_ts", "resnet56_cifar10_dynamo")
    cases: list[Case] = [(material.model(f"{name}.onnx"), {"input": images}, test, normal) for name in names]
    cases.append((material.model("resnet8large_cifar10_mlperftiny.onnx"), {"input": images}, test, {"layout": "nhwc"}))
    pictures, classes = material.imagenet()
    halves = slice(0, None, 2), slice(1, None, 2)
    parts = [{"input": material.nchw(pictures[half], 1 / 128, 128.0)} for half in halves]
    mobile = material.model("mobilenetv2_1.0_224_imagenet.onnx")
    cases.append((mobile, parts[0], {**parts[1], "labels": classes[halves[1]] + 1}, {}))
    return cases


def _others() -> list[Case]:
    faces, _ = material.imagenet((240, 320))
    scaled = material.nchw(faces, 1 / 128, 127.0)
    ultraface = material.model("ultraface_rfb320.onnx")
    grey = material.imagenet((128, 128))[0].mean(axis=3, keepdims=True).astype(np.uint8)
    luma = material.nchw(grey, 1 / 255, 0.0)
    resolution = material.model("superres_core.onnx")
    name = "_ppp5_expanded"
    return [
        (ultraface, {"input": scaled[:160]}, {"input": scaled[160:]}, {}),
        (resolution, {name: luma[:160]}, {name: luma[160:]}, {}),
    ]


def _language() -> list[Case]:
    with np.load(material.data("stories_tokens.npz")) as arrays:
        tokens = next(array for array in arrays.values() if array.ndim == 2)
    rows = tokens.astype(np.int64)
    return [(material.model("stories260k_llama_ts.onnx"), {"input_ids": rows[:11]}, {"input_ids": rows[11:]}, {})]


if __name__ == "__main__":
    main()
