"""Marks: where the entries of a tensor go, as long as nothing happens to them but being moved and scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from snp_onnx.tracing.facts import AxisOf, evaluate
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.heads import Numbers
from snp_onnx.tracing.op import Op

MOVES = frozenset(
    (
        *("Reshape", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile"),
        "Identity",
    )
)
"""Operators whose output entries are those of their first input, put elsewhere."""

_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
)


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """Where numbers stop: a node that does more than move them (None: a graph output), and which input it is."""

    op: Op | None
    place: int
    tensor: str
    numbers: Numbers


def follow_marks(flow: Flow, start: str, numbers: Numbers, lines: dict[AxisOf, Numbers]) -> Iterator[Arrival]:
    """Follow a tensor's entries through everything that only moves or scales them.

    `lines` takes up the first entries along every axis of the tensors on the way.
    """
    waiting = [(start, numbers)]
    while waiting:
        tensor, held = waiting.pop()
        for axis in range(held.ndim):
            lines[tensor, axis] = held[tuple(slice(None) if place == axis else 0 for place in range(held.ndim))].copy()
        if not flow.readers.get(tensor) or flow.is_output(tensor):
            yield Arrival(None, 0, tensor, held)
        for op in flow.readers.get(tensor, ()):
            if op.is_standard and op.type in ("Shape", "Size"):
                continue  # reads extents only
            moved = _moved(flow, op, tensor, held)
            if moved is None:
                yield from (Arrival(op, place, tensor, held) for place, name in enumerate(op.reads) if name == tensor)
            else:
                waiting += [(name, part) for name, part in zip(op.outputs, moved, strict=False) if name]


def _moved(flow: Flow, op: Op, tensor: str, held: Numbers) -> Sequence[Numbers] | None:
    """The entries behind a node, None where it does more than move them."""
    facts = flow.trace.facts
    if not op.is_standard or op.has_subgraph or op.inputs.count(tensor) != 1:
        return None
    if op.type == "Cast":
        return [held] if facts.types.get(op.outputs[0]) in _FLOATS else None
    if op.type in ("Mul", "Div"):
        other = op.input(1 - op.inputs.index(tensor))
        is_scale = int(np.prod(facts.shapes.get(other, (0,)))) == 1 and (op.type == "Mul" or op.input(0) == tensor)
        return [np.broadcast_to(held, flow.shape(op.outputs[0]))] if is_scale else None
    if op.type not in MOVES or op.input(0) != tensor:
        return None
    operands = [facts.values.get(name) if name else None for name in op.inputs[1:]]
    if any(name and value is None for name, value in zip(op.inputs[1:], operands, strict=True)):
        return None
    outcome = evaluate(op, [held, *operands])
    return None if outcome is None else [np.asarray(array, dtype=np.int64) for array in outcome]


def line_of(numbers: Numbers, axis: int) -> Numbers | None:
    """The numbers along one axis, where they depend on no other."""
    line = np.moveaxis(numbers, axis, -1).reshape(-1, numbers.shape[axis])
    return line[0] if (line == line[0]).all() else None


def along_axis(line: Numbers, axis: int, shape: Sequence[int]) -> Numbers:
    """Numbers that vary along one axis of a shape only; takes no memory."""
    spread = line.reshape([-1 if place == axis else 1 for place in range(len(shape))])
    return np.broadcast_to(spread, tuple(shape))
