"""The graphs that the onnx package tests runtimes with: single operators, exports of torch, and whole networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.graphs import Array


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A test of onnx: its graph, and what goes in and comes out where it says so."""

    name: str
    model: onnx.ModelProto
    inputs: Sequence[Any] = ()
    outputs: Sequence[Any] = ()


@cache
def operator_cases() -> tuple[Case, ...]:
    """The tests of single operators, many of them also in the form that their definition expands to."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found: Any = collect_testcases(None)  # type: ignore[no-untyped-call]
    return tuple(Case(case.name, case.model, *case.data_sets[0]) for case in found)


@cache
def network_cases() -> tuple[Case, ...]:
    """The graphs that onnx keeps as files: simple ones, exports of torch, and networks without their weights."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    paths = sorted(folder.rglob("*.onnx"))
    names = (path.parent.name if path.name == "model.onnx" else path.stem for path in paths)
    return tuple(Case(name, onnx.load(path)) for name, path in zip(names, paths, strict=True))


def with_weights(source: onnx.ModelProto, part: int = 1) -> onnx.ModelProto:
    """A network of random weights in place of nodes that give their shapes, `part` times narrower where it is wide."""
    rng = np.random.default_rng(0)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "ConstantOfShape"}
    tensors = []
    for name, array in held.items():
        if name in made:
            array = _drawn([_narrowed(int(n), part) for n in array], rng)
        elif array.dtype == np.int64:
            array = np.array([_narrowed(int(n), part) for n in array])
        elif array.ndim:
            array = _drawn([_narrowed(n, part) for n in array.shape], rng)
        tensors.append(numpy_helper.from_array(array, made.get(name, name)))
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    inputs = [value for value in model.graph.input if value.name not in held]
    for field, values in (("node", nodes), ("input", inputs), ("initializer", tensors), ("value_info", [])):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = _narrowed(dim.dim_value, part)
    model.ir_version = 4
    return model


def _narrowed(extent: int, part: int) -> int:
    """Widths get narrower; kernels, batches and the colours of an image are smaller than any width."""
    return extent // part if extent >= 32 else extent


def _drawn(shape: Sequence[int], rng: np.random.Generator) -> Array:
    """Weights that keep the scale of what they multiply; vectors, variances among them, are positive."""
    if len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
