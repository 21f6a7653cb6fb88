"""Export a module with either of torch's two exporters, quietly, to a file the runtime can load."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from models.recipes import build, recipe

DEFAULT_OPSETS = {"ts": 17, "dynamo": 18}
MAX_OPSET, MAX_IR_VERSION = 26, 13  # the newest that onnxruntime 1.31 loads


def export(
    module: nn.Module,
    path: str | Path,
    exporter: str = "ts",
    batch: str = "dynamic",
    opset: int | None = None,
    input_shape: tuple[int, ...] = (1, 3, 224, 224),
    *,
    keep_bn: bool = False,
    output_name: str = "output",
) -> None:
    """Write `module` (in eval mode) to `path`, with one float32 input `input` and one output.

    `exporter` is "ts" (TorchScript) or "dynamo"; `batch` "static" keeps the first entry of `input_shape`, "dynamic"
    names it `batch`; `keep_bn` leaves BatchNormalization nodes in the graph where the exporter would fold them.
    """
    if exporter not in DEFAULT_OPSETS or batch not in ("static", "dynamic"):
        raise ValueError(f"exporter {exporter!r}, batch {batch!r}: use 'ts' or 'dynamo', and 'static' or 'dynamic'")
    version = DEFAULT_OPSETS[exporter] if opset is None else opset
    if version > MAX_OPSET:
        raise ValueError(f"opset {version} is newer than onnxruntime loads: use at most {MAX_OPSET}")
    sample = torch.randn(input_shape, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"opset_version": version, "input_names": ["input"], "output_names": [output_name]}
    write = _export_script if exporter == "ts" else _export_dynamo
    with _quiet():
        write(module.eval(), sample, Path(path), batch == "dynamic", keep_bn, options)


def _export_script(
    module: nn.Module, sample: Tensor, path: Path, dynamic: bool, keep_bn: bool, options: dict[str, Any]
) -> None:
    if keep_bn:
        options |= {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    if dynamic:
        options["dynamic_axes"] = {name: {0: "batch"} for name in (*options["input_names"], *options["output_names"])}
    torch.onnx.export(module, (sample,), str(path), dynamo=False, **options)


def _export_dynamo(
    module: nn.Module, sample: Tensor, path: Path, dynamic: bool, keep_bn: bool, options: dict[str, Any]
) -> None:
    if dynamic:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(module, (sample,), dynamo=True, verbose=False, optimize=not keep_bn, **options)
    assert program is not None
    if keep_bn:  # torch's own optimisation is folding of constants and fusion; only the first leaves BatchNorm alone
        _fold_constants(program.model)
    program.save(str(path), external_data=False)


def _fold_constants(model: Any) -> None:
    from onnxscript import optimizer

    for _ in range(2):  # the first round uncovers constants for the second
        optimizer.fold_constants(model)
        optimizer.remove_unused_nodes(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' deprecation warnings, progress lines and log records; errors still rise."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def export_bytes(
    name: str,
    exporter: str = "ts",
    batch: str = "dynamic",
    *,
    opset: int | None = None,
    keep_bn: bool = False,
    rows: int = 1,
    **options: Any,
) -> onnx.ModelProto:
    """Build recipe `name` with `options` (seed, in_size, width …), export it, return the model; `rows`: batch size."""
    shape = recipe(name).input_shape(options.get("in_size"), rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(build(name, **options), path, exporter, batch, opset, shape, keep_bn=keep_bn)
        return onnx.load(path)
