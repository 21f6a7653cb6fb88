"""The surface of a pruned model: which positions it keeps of the inputs and outputs that the dense model has.

All of them, unless heads of caches were cut. The model says so in its metadata, in positions of the model it was first
made from, so that what was pruned twice can still be compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.groups import Mask, Trace

Array = npt.NDArray[Any]
KEPT = "snp_onnx.kept"
"""The metadata entry: {tensor: {axis: positions}} as JSON."""


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The positions kept along axes of graph inputs and outputs, by tensor and axis; whole where none are named."""

    kept: Mapping[str, Mapping[int, npt.NDArray[np.int64]]] = field(default_factory=dict)

    def cut(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """What the pruned model takes or gives in place of the dense one's arrays."""
        return {name: self._cut(name, array) for name, array in values.items()}

    def _cut(self, name: str, array: Array) -> Array:
        for axis, positions in self.kept.get(name, {}).items():
            array = np.take(array, positions, axis=axis)
        return array

    def cut_declared(self, name: str, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """A shape of the dense model's as the pruned one has it; what has no number stays as it is.

        >>> Surface({"past": {1: np.array([0, 2])}}).cut_declared("past", (None, 4, None, 8))
        (None, 2, None, 8)
        """
        kept = self.kept.get(name, {})
        return tuple(len(kept[axis]) if axis in kept and n is not None else n for axis, n in enumerate(shape))

    def cut_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Concrete input shapes of the dense model as the pruned one's."""
        return {name: tuple(n or 0 for n in self.cut_declared(name, shape)) for name, shape in shapes.items()}

    def declared(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        """The declaration of an input or output as the pruned model has it; extents without a number stay as named."""
        kept = self.kept.get(value.name)
        if not kept:
            return value
        result = onnx.ValueInfoProto()
        result.CopyFrom(value)
        for axis, positions in kept.items():
            dim = result.type.tensor_type.shape.dim
            if axis < len(dim) and dim[axis].HasField("dim_value"):
                dim[axis].dim_value = len(positions)
        return result

    def declare(self, model: onnx.ModelProto) -> None:
        """Change the declarations of a model's inputs and outputs in place."""
        for values in (model.graph.input, model.graph.output):
            declared = [self.declared(value) for value in values]
            del values[:]
            values.extend(declared)

    def after(self, earlier: Surface) -> Surface:
        """This surface in positions of the model that `earlier` was cut from."""
        return Surface(
            {
                **earlier.kept,
                **{name: dict(_composed(axes, earlier.kept.get(name, {}))) for name, axes in self.kept.items()},
            }
        )

    def within(self, earlier: Surface) -> Surface | None:
        """This surface in positions that `earlier` kept, of the same model; None where it keeps what is gone there."""
        found: dict[str, dict[int, npt.NDArray[np.int64]]] = {}
        for name in self.kept.keys() | earlier.kept.keys():
            mine, before = self.kept.get(name, {}), earlier.kept.get(name, {})
            for axis in mine.keys() | before.keys():
                if axis not in mine or not np.isin(mine[axis], before.get(axis, mine[axis])).all():
                    return None
                places = np.searchsorted(before[axis], mine[axis]) if axis in before else mine[axis]
                found.setdefault(name, {})[axis] = places
        return Surface(found)

    def record(self) -> str:
        """The metadata entry's text."""
        plain = {n: {str(axis): kept.tolist() for axis, kept in axes.items()} for n, axes in self.kept.items()}
        return json.dumps(plain, sort_keys=True)


def _composed(
    axes: Mapping[int, npt.NDArray[np.int64]], before: Mapping[int, npt.NDArray[np.int64]]
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    yield from ((axis, positions) for axis, positions in before.items() if axis not in axes)
    for axis, positions in axes.items():
        yield axis, before[axis][positions] if axis in before else positions


def surface_after(model: onnx.ModelProto, trace: Trace, alive: Mask) -> Surface:
    """What a cut leaves of a model's inputs and outputs."""
    kept: dict[str, dict[int, npt.NDArray[np.int64]]] = {}
    for value in (*model.graph.input, *model.graph.output):
        for axis, labels in enumerate(trace.axes.get(value.name, ())):
            if not alive[labels].all():
                kept.setdefault(value.name, {})[axis] = np.flatnonzero(alive[labels])
    return Surface(kept)


def surface_of(model: onnx.ModelProto) -> Surface:
    """What a model's metadata says; nothing was cut where it says nothing that can be read."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEPT), "{}")
    try:
        raw = json.loads(text)
        kept = {n: {int(a): np.array(p, dtype=np.int64) for a, p in axes.items()} for n, axes in raw.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return Surface()
    return Surface(kept)


def drop_foreign_surface(model: onnx.ModelProto) -> None:
    """Remove, in place, what metadata says of kept positions that the model's inputs and outputs don't have.

    Other tools copy metadata from one model to another.
    """
    if not _is_of(surface_of(model).kept, model):
        others = [entry for entry in model.metadata_props if entry.key != KEPT]
        del model.metadata_props[:]
        model.metadata_props.extend(others)


def _is_of(kept: Mapping[str, Mapping[int, npt.NDArray[np.int64]]], model: onnx.ModelProto) -> bool:
    """Whether axes of this model's inputs and outputs can be what was kept of longer ones."""
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    for name, axes in kept.items():
        dims = values[name].type.tensor_type.shape.dim if name in values else ()
        for axis, positions in axes.items():
            if not 0 <= axis < len(dims) or positions.ndim != 1 or not len(positions):
                return False
            if positions.min() < 0 or positions.max() >= 2**31 or (np.diff(positions) <= 0).any():
                return False
            if dims[axis].HasField("dim_value") and dims[axis].dim_value != len(positions):
                return False
    return True


def surface_between(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> Surface | None:
    """What `pruned` keeps of `dense`; None where it keeps positions that `dense` doesn't have."""
    found = surface_of(pruned).within(surface_of(dense))
    values = {value.name: value for value in (*dense.graph.input, *dense.graph.output)}
    for name, axes in found.kept.items() if found is not None else ():
        dims = values[name].type.tensor_type.shape.dim if name in values else ()
        for axis, positions in axes.items():
            if axis >= len(dims) or (dims[axis].HasField("dim_value") and positions.max() >= dims[axis].dim_value):
                return None
    return found
