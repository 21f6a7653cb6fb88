"""Heads: the moments of what goes through each head of an attention, and the bases that they single out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.moments import MomentRequest, Moments, row_strides
from snp_onnx.calibration.single_heads import SingleHead
from snp_onnx.subspace import balanced_bases, principal_basis
from snp_onnx.tracing.attention import Attention, Context, Logits, Operand
from snp_onnx.tracing.flow import Flow
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
    return HeadReading(MomentRequest(head.name, own, len(rest), lattice=lattice), head)


def operands(attention: Attention) -> Iterator[Operand]:
    """What must be measured for new bases: queries, keys, and what the values come to."""
    for logits in attention.logits:
        yield from (logits.queries.operand, logits.keys.operand)
    yield from (context.output for context in attention.contexts)


@dataclass(frozen=True, slots=True, eq=False)
class HeadStatistics:
    """Moments of single heads, by operand."""

    readings: Mapping[Operand, tuple[HeadReading, ...]]
    moments: Mapping[str, Moments]

    def is_measured(self, operand: Operand) -> bool:
        found = [self.moments.get(reading.request.key) for reading in self.readings.get(operand, ())]
        return bool(found) and all(part is not None and part.count > 0 and part.is_finite for part in found)

    def gram(self, operand: Operand, heads: Iterable[int], around_mean: bool) -> Matrix:
        """The sum of the moments of heads that share a basis; heads that are one and the same count once."""
        rows = {tuple(operand.numbers[head].tolist()): head for head in reversed(list(heads))}
        parts = [self.moments[self.readings[operand][head].request.key] for head in sorted(rows.values())]
        grams = [part.gram - np.outer(part.mean, part.mean) * around_mean for part in parts]
        return np.asarray(np.sum(grams, axis=0), dtype=np.float64)


def logits_bases(logits: Logits, found: HeadStatistics, rho: float) -> tuple[Matrix, Matrix]:
    """A and B of `balanced_bases` for every family of heads, (F, d, d) each."""
    pairs = []
    for family in logits.families:
        queries = found.gram(logits.queries.operand, own_heads(logits.queries.operand, family), around_mean=False)
        keys = found.gram(logits.keys.operand, own_heads(logits.keys.operand, family), around_mean=True)
        pairs.append(balanced_bases(queries, keys, rho)[:2])
    return np.stack([left for left, _ in pairs]), np.stack([right for _, right in pairs])


def context_bases(flow: Flow, context: Context, found: HeadStatistics, rho: float) -> tuple[Matrix, Matrix]:
    """T and its inverse of `principal_basis` for every family of heads, (F, d, d) each."""
    reader = context.reader
    weight = np.moveaxis(np.asarray(flow.weights.array(reader.weight), dtype=np.float64), reader.in_axis, 0)
    has_bias = flow.bias(reader)[0] is not None
    pairs = []
    for family in context.families:
        gram = found.gram(context.output, own_heads(context.output, family), around_mean=has_bias)
        read = np.concatenate([weight[context.rows[head]] for head in family], axis=1)
        pairs.append(principal_basis(gram, read, rho)[:2])
    return np.stack([basis for basis, _ in pairs]), np.stack([inverse for _, inverse in pairs])


def own_heads(operand: Operand, family: Sequence[int]) -> tuple[int, ...]:
    """The heads of an operand that a family of a product's heads reads: one for all where it has but one."""
    return tuple(family) if operand.heads > 1 else (0,)


def logits_energy(logits: Logits, found: HeadStatistics) -> Matrix:
    """M (d, d): without the dimensions R the logits of all heads lose the energy Σ_{i, j in R} M_ij.

    M = Σ_h G_q ∘ G_k, the moments of queries and keys taken as independent, those of the keys around their mean, which
    Softmax ignores. In balanced bases it is diagonal.
    """
    total: Matrix | None = None
    for head in range(max(logits.queries.operand.heads, logits.keys.operand.heads)):
        queries = found.gram(logits.queries.operand, own_heads(logits.queries.operand, [head]), around_mean=False)
        keys = found.gram(logits.keys.operand, own_heads(logits.keys.operand, [head]), around_mean=True)
        total = queries * keys if total is None else total + queries * keys
    assert total is not None
    return total


def output_request(flow: Flow, linear: Linear, samples: int) -> MomentRequest:
    """Moments of what a layer gives, its bias included."""
    output = flow.bias(linear)[1]
    shape, axis = flow.shape(output), linear.output_axis
    lattice = row_strides(shape, axis, samples, shape[axis], per_unit=4, at_least=4)
    return MomentRequest(output, axis, len(shape), lattice=lattice)
