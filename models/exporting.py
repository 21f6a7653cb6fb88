"""Export a module with either of torch's two exporters, quietly, to a file the runtime can load."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from models.attention import RMSNorm
from models.recipes import build, recipe

DEFAULT_OPSETS = {"ts": 17, "dynamo": 18}
MAX_OPSET, MAX_IR_VERSION = 26, 13  # the newest that onnxruntime 1.31 loads


@dataclass(frozen=True, slots=True)
class Surface:
    """An example of every input, in the order of the module's arguments, and the names of axes that may vary."""

    samples: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, str]]
    """By input and output."""
    outputs: tuple[str, ...] = ()
    """Names of further outputs."""


def image_surface(shape: tuple[int, ...], output_name: str) -> Surface:
    """One float32 input `input` with the given shape; its first axis and the output's may vary."""
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Surface({"input": sample}, {"input": {0: "batch"}, output_name: {0: "batch"}})


def recipe_surface(name: str, in_size: int | None, rows: int = 1, output_name: str = "output") -> Surface:
    """The inputs of a recipe; the exporters find out themselves which other axes of the output vary."""
    found = recipe(name)
    axes = {given.name: given.dynamic for given in found.inputs}
    return Surface(found.samples(in_size, rows), {**axes, output_name: {0: "batch"}})


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
    surface: Surface | None = None,
) -> None:
    """Write `module` (in eval mode) to `path`, with the inputs of `surface` (one image unless given) and one output.

    `exporter` is "ts" (TorchScript) or "dynamo"; `batch` "static" keeps every extent of the examples, "dynamic" names
    those that may vary: `batch`, and `sequence` where tokens are read. `keep_bn` leaves BatchNormalization nodes in the
    graph where the exporter would fold them.
    """
    if exporter not in DEFAULT_OPSETS or batch not in ("static", "dynamic"):
        raise ValueError(f"exporter {exporter!r}, batch {batch!r}: use 'ts' or 'dynamo', and 'static' or 'dynamic'")
    version = DEFAULT_OPSETS[exporter] if opset is None else opset
    if version > MAX_OPSET:
        raise ValueError(f"opset {version} is newer than onnxruntime loads: use at most {MAX_OPSET}")
    surface = surface or image_surface(input_shape, output_name)
    names: dict[str, Any] = {"input_names": list(surface.samples), "output_names": [output_name, *surface.outputs]}
    write = _export_script if exporter == "ts" else _export_dynamo
    with _quiet():
        write(module.eval(), surface, Path(path), batch == "dynamic", keep_bn, {"opset_version": version, **names})


def _export_script(
    module: nn.Module, surface: Surface, path: Path, dynamic: bool, keep_bn: bool, options: dict[str, Any]
) -> None:
    if keep_bn:
        options |= {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    if dynamic:
        options["dynamic_axes"] = surface.axes
    torch.onnx.export(module, tuple(surface.samples.values()), str(path), dynamo=False, **options)


def _export_dynamo(
    module: nn.Module, surface: Surface, path: Path, dynamic: bool, keep_bn: bool, options: dict[str, Any]
) -> None:
    if dynamic:
        options["dynamic_shapes"] = _bound(module, [surface.axes[name] for name in surface.samples])
    samples = tuple(surface.samples.values())
    program = torch.onnx.export(module, samples, dynamo=True, verbose=False, optimize=not keep_bn, **options)
    assert program is not None
    if keep_bn:  # torch's own optimisation is folding of constants and fusion; only the first leaves BatchNorm alone
        _fold_constants(program.model)
    program.save(str(path), external_data=False)


def _bound(module: nn.Module, axes: list[Mapping[int, str]]) -> tuple[Any, ...]:
    """One entry for every parameter of `forward`: a starred one takes all that are left."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    named = sum(kind is not inspect.Parameter.VAR_POSITIONAL for kind in kinds)
    return (*axes[:named], tuple(axes[named:])) if len(kinds) > named else tuple(axes)


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
    optimise: bool = False,
    **options: Any,
) -> onnx.ModelProto:
    """Build recipe `name` with `options` (seed, in_size, width …), export it, return the model; `rows`: batch size.

    `optimise` gives the copy that onnxruntime's transformer optimiser makes of it.
    """
    surface = recipe_surface(name, options.get("in_size"), rows)
    module = build(name, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(module, path, exporter, batch, opset, surface=surface, keep_bn=keep_bn)
        model = onnx.load(path)
    return optimised(model, name, module) if optimise else model


def optimised(model: onnx.ModelProto, name: str, module: nn.Module) -> onnx.ModelProto:
    """What onnxruntime's transformer optimiser makes of the export of recipe `name`; `model` itself isn't changed.

    Its fused operators (Attention, SkipLayerNormalization, BiasGelu …) run on the CPU too.
    """
    from onnxruntime.transformers.optimizer import optimize_model

    model_type = recipe(name).model_type
    if not model_type:
        raise ValueError(f"recipe {name!r} is no transformer: only those can be optimised")
    heads, d_model = _dimensions(module)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        fused: onnx.ModelProto = optimize_model(copy, model_type, heads, d_model, opt_level=0, use_gpu=False).model
    return fused


def _dimensions(module: nn.Module) -> tuple[int, int]:
    """Heads and d_model of a transformer, from its first attention and its last norm."""
    heads = [getattr(part, "heads", None) for part in module.modules()]
    norms = [part for part in module.modules() if isinstance(part, (nn.LayerNorm, RMSNorm))]
    return next(found for found in heads if isinstance(found, int)), norms[-1].weight.numel()
