"""Head statistics: the moments of what goes through each head of an attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.moments import MomentRequest, Moments, Squares, row_strides
from snp_onnx.calibration.single_heads import SingleHead
from snp_onnx.tracing import Group, Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.heads import Attention, Logits, Operand
from snp_onnx.tracing.tracer import Linear

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeadReading:
    """The moments of one head of an operand, units on its dimensions, and the head's tensor where it is a part."""

    request: MomentRequest
    head: SingleHead | None


def head_readings(flow: Flow, operand: Operand, samples: int) -> tuple[HeadReading, ...]:
    """One reading for every head of an operand, in order."""
    return tuple(_reading(flow, operand, number, samples) for number in range(operand.heads))


def _reading(flow: Flow, operand: Operand, number: int, samples: int) -> HeadReading:
    shape, axis = flow.shape(operand.tensor), operand.dim_axis
    if operand.head_axis is None:
        lattice = row_strides(shape, axis, samples, shape[axis])
        return HeadReading(MomentRequest(operand.tensor, axis, len(shape), lattice=lattice), None)
    head = SingleHead(operand.tensor, operand.head_axis, number)
    rest = (*shape[: head.axis], *shape[head.axis + 1 :])
    own = axis - (head.axis < axis)
    lattice = row_strides(rest, own, samples, rest[own])
    mask = flow.trace.padding(operand.tensor, axis, head.axis)
    return HeadReading(MomentRequest(head.name, own, len(rest), lattice=lattice, row_mask=mask), head)


def operands(attention: Attention) -> Iterator[Operand]:
    """What must be measured for new bases: queries, keys, and what the values come to."""
    for logits in attention.logits:
        yield from (logits.queries.operand, logits.keys.operand)
    yield from (context.output for context in attention.contexts)


@dataclass(frozen=True, slots=True, eq=False)
class HeadStatistics:
    """Moments of single heads, by operand."""

    readings: Mapping[Operand, tuple[HeadReading, ...]] = field(default_factory=dict)
    moments: Mapping[str, Moments] = field(default_factory=dict)

    def is_measured(self, operand: Operand) -> bool:
        found = [self.moments.get(reading.request.key) for reading in self.readings.get(operand, ())]
        return bool(found) and all(part is not None and part.count > 0 and part.is_finite for part in found)

    def gram(self, operand: Operand, heads: Iterable[int], around_mean: bool) -> Matrix:
        """The sum of the moments of heads that share a basis; heads that are one and the same count once."""
        rows = {tuple(operand.numbers[head].tolist()): head for head in reversed(list(heads))}
        parts = [self.moments[self.readings[operand][head].request.key] for head in sorted(rows.values())]
        grams = [part.centred.covariance if around_mean else part.gram for part in parts]
        return np.asarray(np.sum(grams, axis=0), dtype=np.float64)


def own_heads(operand: Operand, family: Sequence[int]) -> tuple[int, ...]:
    """The heads of an operand that a family of a product's heads reads: one for all where it has but one."""
    return tuple(family) if operand.heads > 1 else (0,)


def single_heads(readings: Mapping[Operand, tuple[HeadReading, ...]]) -> list[SingleHead]:
    """The heads that are a part of their operand: tensors that the graph doesn't have yet."""
    return [reading.head for several in readings.values() for reading in several if reading.head is not None]


def logits_of(trace: Trace, groups: Iterable[Group]) -> tuple[Logits, ...]:
    """The logits that lose dimensions with a group, each once."""
    summed = {product.op.index for group in groups for product in group.products}
    attention = trace.attention
    return tuple(part for part in (attention.logits if attention else ()) if part.product.op.index in summed)


def output_request(flow: Flow, linear: Linear, samples: int) -> MomentRequest:
    """Moments of what a layer gives, its bias included."""
    output = flow.bias(linear)[1]
    shape, axis = flow.shape(output), linear.output_axis
    lattice = row_strides(shape, axis, samples, shape[axis], per_unit=4, at_least=4)
    mask = flow.trace.row_mask(output, axis)
    return MomentRequest(output, axis, len(shape), lattice=lattice, row_mask=mask, squares=Squares.ENERGIES)
