"""Shapes elsewhere: those of a model at other extents of its dynamic axes, which tell what extents vary.

An axis can merge units with a batch, with heads or with pixels; its places are then those of one batch or image size.
With a batch of one it looks like any other axis, so the shapes are inferred a second time. Nor does one size
show in which order an axis merges it: labels are given a second time too, and only units that both times find may go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from snp_onnx.tracing.facts import AxisOf, Facts, Shape, infer_facts
from snp_onnx.tracing.labels import FIXED
from snp_onnx.tracing.tracer import Tracer

MANY = 8
"""More dynamic axes (number) than this aren't tried one by one: each try infers all shapes."""


def infer_elsewhere(model: onnx.ModelProto, facts: Facts, input_shapes: Mapping[str, Shape]) -> Mapping[str, Shape]:
    """The shapes at other extents of all dynamic axes; a tensor is missing where inference can't tell.

    Extents that a graph relates (one is the sum of others, or half of another, or at most a table's length) can't be
    chosen one by one. The first choice that loses no shape counts, otherwise the one that loses fewest.
    """
    elsewhere = _Elsewhere(model, input_shapes, _dynamic(model, input_shapes), len(facts.shapes))
    if not elsewhere.names:
        return facts.shapes
    found: Mapping[str, Shape] = {}
    for shapes in elsewhere.choices():
        if len(shapes) > len(found):
            found = shapes
        if len(found) == elsewhere.count:
            break
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Elsewhere:
    """A model, the shapes of its inputs here, the names of its dynamic axes, and how many shapes are known here."""

    model: onnx.ModelProto
    here: Mapping[str, Shape]
    names: Mapping[AxisOf, object]
    count: int

    def choices(self) -> Iterator[Mapping[str, Shape]]:
        """Every axis grows by a factor of its own; those that can't change alone by one; all by one; or they halve."""
        apart = dict.fromkeys(self.names.values())
        own: dict[object, int] = {name: factor for factor, name in enumerate(apart, start=2)}
        yield self._multiplied(own)
        if 2 < len(own) <= MANY:
            lone = {name for name in own if len(self._multiplied({name: own[name]})) == self.count}
            if 0 < len(lone) < len(own):
                yield self._multiplied({name: factor if name in lone else len(own) + 2 for name, factor in own.items()})
        yield self._multiplied(dict.fromkeys(own, 2))
        yield self._inferred(
            {place: extent * 2 if place[1] == 0 else max(1, extent // 2) for place, extent in self._extents()}
        )

    def _multiplied(self, factors: Mapping[object, int]) -> Mapping[str, Shape]:
        return self._inferred({place: extent * factors.get(self.names[place], 1) for place, extent in self._extents()})

    def _extents(self) -> Iterator[tuple[AxisOf, int]]:
        return ((place, self.here[place[0]][place[1]]) for place in self.names)

    def _inferred(self, extents: Mapping[AxisOf, int]) -> Mapping[str, Shape]:
        shapes = {
            name: tuple(extents.get((name, axis), extent) for axis, extent in enumerate(shape))
            for name, shape in self.here.items()
        }
        return infer_facts(self.model, shapes).shapes


def _dynamic(model: onnx.ModelProto, input_shapes: Mapping[str, Shape]) -> dict[AxisOf, object]:
    """The dynamic axes of the inputs and what each goes by: its name, or itself; first axes of one extent are one."""
    names: dict[AxisOf, object] = {}
    batches: dict[int, object] = {}
    for value in (value for value in model.graph.input if value.name in input_shapes):
        dims = value.type.tensor_type.shape.dim
        for axis, (dim, extent) in enumerate(zip(dims, input_shapes[value.name], strict=False)):
            if dim.dim_value <= 0:
                name: object = dim.dim_param or (value.name, axis)
                names[value.name, axis] = batches.setdefault(extent, name) if axis == 0 else name
    return names


def facts_nearby(model: onnx.ModelProto, facts: Facts, input_shapes: Mapping[str, Shape]) -> Facts | None:
    """The facts with dynamic axes longer by one: all, or else the batch and those of extent one, or else the batch.

    None where there is no dynamic axis, or where inference can't tell.
    """
    dynamic = set(_dynamic(model, input_shapes))
    batch = {place for place in dynamic if place[1] == 0}
    lone = {(name, axis) for name, axis in dynamic if input_shapes[name][axis] == 1}
    for longer in (dynamic, batch | lone, batch):
        shapes = {
            name: tuple(extent + ((name, axis) in longer) for axis, extent in enumerate(shape))
            for name, shape in input_shapes.items()
        }
        found = infer_facts(model, shapes) if longer else Facts()
        if len(found.shapes) >= len(facts.shapes):
            found.elsewhere = facts.shapes
            return found
    return None


def bar_other_units(tracer: Tracer, there: Tracer) -> None:
    """Keep what one walk took for units and another, at other extents, doesn't: places of weights are the same in both.

    A unit is the places of all weights that it takes away. Those of the one walk must be those of the other.
    """
    known = there.traced()
    places = [
        (name, axis, labels, known[name][axis])
        for name, axes in tracer.traced().items()
        if tracer.is_constant(name) and name in known and tracer.shape(name) == there.shape(name)
        for axis, labels in enumerate(axes)
        if len(labels) > 1
    ]
    if not places:
        return
    ours = tracer.classes.find(np.concatenate([labels for *_, labels, _ in places]))
    theirs = there.classes.find(np.concatenate([labels for *_, labels in places]))
    pairs = np.unique(np.stack([ours, theirs]), axis=1)
    others = np.zeros(len(tracer.classes), dtype=np.bool_)
    others[pairs[0][np.bincount(pairs[1])[pairs[1]] > 1]] = True
    others[pairs[0][np.bincount(pairs[0])[pairs[0]] > 1]] = True
    others[pairs[0][there.classes.has(pairs[1], FIXED)]] = True
    for name, axis, labels, _ in places:
        held = labels[others[tracer.classes.find(labels)] & ~tracer.classes.has(labels, FIXED)]
        if len(held):
            tracer.barrier(None, name, axis, "its units are others at another batch or size", held)
