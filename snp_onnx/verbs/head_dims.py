"""Head dimensions: every head's queries, keys and values in bases whose last dimensions can go.

Values are turned to the principal axes of what the output projection makes of them; queries and keys are balanced, so
that the same dimensions of both matter least for the logits (`subspace.rotation`). The function stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.runner import collect
from snp_onnx.calibration.single_heads import with_single_heads
from snp_onnx.errors import PlanError
from snp_onnx.passes import FreezeNumbers, Note, Turn, TurnHeads, rewrite
from snp_onnx.passes.turn_heads import digest
from snp_onnx.planning.head_statistics import (
    HeadReading,
    HeadStatistics,
    head_readings,
    operands,
    own_heads,
    single_heads,
)
from snp_onnx.planning.heads import context_bases, logits_bases
from snp_onnx.planning.plan import Bases
from snp_onnx.sources.samples import Part
from snp_onnx.tracing.attention import find_attention
from snp_onnx.tracing.extents import SHAPE_OPERANDS
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.heads import Attention, Context, Logits, Operand, Projection
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.subject import Subject
from snp_onnx.verbs.turned import Turned

Matrix = npt.NDArray[np.float64]

RIDGE = 1e-6
"""ρ of the square roots, for the numerics alone: nothing is estimated with it, the function stays the same."""

QUERIES, KEYS, VALUES, OUTPUT = "queries", "keys", "values", "output"


def turn_heads(subject: Subject, calibration: Calibration | None, given: Bases) -> Turned:
    """The subject's model with every head that may change its bases turned."""
    flow = subject.flow
    attention = find_attention(flow)
    if not attention.logits and not attention.contexts:
        return Turned(subject.prepared, {}, _left_alone(flow, attention))
    bases: Bases = given
    silent: tuple[Note, ...] = ()
    if all(name in given for name in _names(attention)):
        bases = {name: given[name] for name in _names(attention)}
    elif calibration is None:
        raise PlanError("the plan's bases of attention heads are missing: put its .npz beside it, or give calibration")
    else:
        bases, silent = _measured(subject, attention, calibration)
    turns: dict[str, list[Turn]] = {}
    for name, turn in _turns(flow, attention, bases):
        turns.setdefault(name, []).append(turn)
    frozen = FreezeNumbers(_scales(flow, attention))
    digests = {name: digest(flow.weights.array(name)) for name in turns}
    store = subject.dense.store
    turned = rewrite(subject.prepared, [frozen, TurnHeads({n: tuple(t) for n, t in turns.items()}, digests)], store)
    return Turned(turned.model, bases, (*turned.notes, *silent, *_left_alone(flow, attention)))


def _names(attention: Attention) -> Iterator[str]:
    for logits in attention.logits:
        yield from (_name(logits, QUERIES), _name(logits, KEYS))
    for context in attention.contexts:
        yield from (_name(context, VALUES), _name(context, OUTPUT))


def _name(place: Logits | Context, role: str) -> str:
    return f"{place.product.op.outputs[0]}:{role}"


def _measured(
    subject: Subject, attention: Attention, calibration: Calibration
) -> tuple[dict[str, Matrix], tuple[Note, ...]]:
    """New bases from one pass over the calibration samples; heads whose moments aren't finite keep theirs."""
    flow = subject.flow
    readings = {operand: head_readings(flow, operand, calibration.count) for operand in operands(attention)}
    found = _statistics(subject, readings, calibration)
    bases: dict[str, Matrix] = {}
    notes = []
    places: list[Logits | Context] = [*attention.logits, *attention.contexts]
    for place in places:
        names, needed = _needs(place)
        size = needed[0].numbers.shape[1]
        if all(found.is_measured(operand) for operand in needed):
            pair = _bases(flow, place, found)
        else:
            pair = (np.tile(np.eye(size), (len(place.families), 1, 1)),) * 2
            notes.append(Note(place.product.op.name, "its heads keep their bases: they aren't finite on the samples"))
        bases.update(zip(names, pair, strict=True))
    return bases, tuple(notes)


def _needs(place: Logits | Context) -> tuple[tuple[str, str], tuple[Operand, ...]]:
    if isinstance(place, Logits):
        return (_name(place, QUERIES), _name(place, KEYS)), (place.queries.operand, place.keys.operand)
    return (_name(place, VALUES), _name(place, OUTPUT)), (place.output,)


def _bases(flow: Flow, place: Logits | Context, found: HeadStatistics) -> tuple[Matrix, Matrix]:
    if isinstance(place, Logits):
        return logits_bases(place, found, RIDGE)
    return context_bases(flow, place, found, RIDGE)


def _statistics(
    subject: Subject, readings: Mapping[Operand, tuple[HeadReading, ...]], calibration: Calibration
) -> HeadStatistics:
    requests = [reading.request for several in readings.values() for reading in several]
    model = with_single_heads(subject.prepared, single_heads(readings))
    batches = -(-calibration.count // calibration.batch_size)
    with calibration.clock("bases"):
        moments = collect(
            model,
            list(dict.fromkeys(requests)),
            calibration.batches(Part.CALIBRATION),
            calibration.runtime,
            calibration.executor,
            progress=lambda done: calibration.progress("bases", done, batches),
        )
    return HeadStatistics(readings, moments)


def _turns(flow: Flow, attention: Attention, bases: Bases) -> Iterator[tuple[str, Turn]]:
    """What every initialiser is multiplied by."""
    for logits in attention.logits:
        for side, role in ((logits.queries, QUERIES), (logits.keys, KEYS)):
            yield from _outward(flow, side, logits.families, _fitting(bases, logits, role, side))
    for context in attention.contexts:
        yield from _outward(flow, context.values, context.families, _fitting(bases, context, VALUES, context.values))
        inverses = _fitting(bases, context, OUTPUT, context.values)
        reader = context.reader
        for family, inverse in zip(context.families, inverses, strict=True):
            for head in family:
                root, axis = _root_axis(flow, reader.weight, reader.in_axis)
                yield root, Turn(axis, context.rows[head], inverse.T)


def _fitting(bases: Bases, place: Logits | Context, role: str, side: Projection) -> Matrix:
    """The matrices of a place, (F, d, d)."""
    found = np.asarray(bases[_name(place, role)], dtype=np.float64)
    size = side.columns.shape[1]
    if found.shape != (len(place.families), size, size):
        raise PlanError(f"the plan's bases don't fit the model at {_name(place, role)}: make the plan anew")
    return found


def _outward(
    flow: Flow, side: Projection, families: Sequence[tuple[int, ...]], matrices: Matrix
) -> Iterator[tuple[str, Turn]]:
    """The columns of a projection and the entries of its bias, each once."""
    root, axis = _root_axis(flow, side.linear.weight, side.linear.out_axis)
    for family, matrix in zip(families, matrices, strict=True):
        for columns in {tuple(side.columns[head].tolist()): None for head in own_heads(side.operand, family)}:
            places = np.array(columns, dtype=np.int64)
            yield root, Turn(axis, places, matrix)
            if side.bias is not None:
                yield side.bias, Turn(flow.weights.array(side.bias).ndim - 1, places, matrix)


def _root_axis(flow: Flow, weight: str, axis: int) -> tuple[str, int]:
    """The initialiser that a node's weight is, perhaps transposed, and which of its axes."""
    path = flow.weights.path(weight)
    assert path is not None  # `find_attention` takes no other
    for op in reversed(path.ops):
        if op.type == "Transpose":
            axis = int(op.attr("perm", [1, 0])[axis])
    return path.root, axis


def _scales(flow: Flow, attention: Attention) -> dict[tuple[str, int], npt.NDArray[np.generic]]:
    """Numbers computed from the dimensions of a head alone, where they leave the arithmetic of sizes."""
    facts = flow.trace.facts
    arithmetic = {op.index for op in facts.value_ops}
    found = {}
    for op in flow.trace.ops:
        for place, name in enumerate(op.inputs):
            if op.index in arithmetic or (op.type, place) in SHAPE_OPERANDS or name not in facts.values:
                continue
            origins = facts.origin_axes(name)
            if origins and origins <= attention.extents:
                found[next(output for output in op.outputs if output), place] = facts.values[name]
    return found


def _left_alone(flow: Flow, attention: Attention) -> tuple[Note, ...]:
    names = {op.index: op.name for op in flow.trace.ops}
    return tuple(
        Note(names[index], f"queries and keys keep their bases: {why}")
        for index, why in sorted(attention.reasons.items())
    )
