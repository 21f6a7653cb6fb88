"""Heads: which columns of which weights meet in a product of two activations, head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from snp_onnx.tracing.facts import AxisOf
from snp_onnx.tracing.tracer import Linear, Product

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """One operand of a product: `numbers` (H, d), for every head and dimension, and where they lie in the tensor.

    `heads` are the places of the heads along `head_axis`; without that axis there is one head, for all.
    """

    tensor: str
    head_axis: int | None
    dim_axis: int
    numbers: Numbers

    @property
    def heads(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A weight that makes one operand: its output columns (H, d) as the operand has them, and its bias."""

    linear: Linear
    bias: str | None
    operand: Operand

    @property
    def columns(self) -> Numbers:
        return self.operand.numbers


@dataclass(frozen=True, slots=True, eq=False)
class Logits:
    """A product q kᵀ, the factor that scales it right after, and the output projection that it serves."""

    product: Product
    queries: Projection
    keys: Projection
    scale: float
    output: Linear

    @property
    def families(self) -> tuple[tuple[int, ...], ...]:
        """Heads that share queries or keys: they can only change basis together."""
        return _families([self.queries.columns, self.keys.columns], _heads(self.queries, self.keys))


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A product of attention weights with values: the value projection, the result, and who reads it.

    `rows` (H, d) are the inputs of `reader` that hold a head's dimensions.
    """

    product: Product
    values: Projection
    output: Operand
    reader: Linear
    rows: Numbers

    @property
    def families(self) -> tuple[tuple[int, ...], ...]:
        """Heads that share values."""
        return _families([self.values.columns], len(self.rows))


@dataclass(frozen=True, slots=True)
class Attention:
    """What may change its basis, and for every other product of projections why it can't, by node index.

    `extents` are the axes that are as long as a head has dimensions, because they hold just these.
    """

    logits: tuple[Logits, ...] = ()
    contexts: tuple[Context, ...] = ()
    reasons: Mapping[int, str] = field(default_factory=dict)
    extents: frozenset[AxisOf] = frozenset()

    @property
    def contractions(self) -> Mapping[int, str]:
        """Why the contracted axis of a product stays whole, "" where it needn't."""
        return {**self.reasons, **{logits.product.op.index: "" for logits in self.logits}}

    @property
    def dims(self) -> tuple[AxisOf, ...]:
        """Axes whose positions are dimensions inside heads that may go."""
        found = [axis for logits in self.logits for axis in logits.product.contracted]
        for context in self.contexts:
            found += [(side.tensor, side.dim_axis) for side in (context.values.operand, context.output)]
        return tuple(found)


def _heads(*sides: Projection) -> int:
    return max(side.operand.heads for side in sides)


def _families(tables: Sequence[Numbers], heads: int) -> tuple[tuple[int, ...], ...]:
    """Heads united where a table gives them the same numbers, in order of their first head."""
    leader = list(range(heads))
    for table in tables:
        rows = [tuple(table[head if len(table) > 1 else 0].tolist()) for head in range(heads)]
        for head, row in enumerate(rows):
            old, new = leader[head], leader[rows.index(row)]
            leader = [min(old, new) if lead in (old, new) else lead for lead in leader]
    return tuple(tuple(h for h in range(heads) if leader[h] == lead) for lead in sorted(set(leader)))
