"""Terms: sums of products of axis extents, and what the sum is of.

Every cost is a list of terms, `scale * product of the extents of some (tensor, axis)`. The same terms give the cost of
the model as it is and, with the extents a plan leaves, of the pruned one: a node's cost follows both of its widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx

AxisOf = tuple[str, int]
Shapes = Mapping[str, tuple[int, ...]]
Part = tuple[tuple[AxisOf, ...], float]

STANDARD = ("", "ai.onnx")
DOMAINS = frozenset((*STANDARD, "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"))
"""ONNX and what onnxruntime's optimiser and quantisers write."""


@dataclass(frozen=True, slots=True)
class Term:
    """`scale` times the extents of `factors`; `name` is the node or initialiser it belongs to."""

    name: str
    factors: tuple[AxisOf, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs: multiply-accumulates at the recorded input shapes, floating-point elements, bytes on disk."""

    macs: int
    params: int
    bytes: int


def total(terms: Iterable[Term], extent: Callable[[str, int], int]) -> int:
    """The sum of the terms for given extents.

    >>> total([Term("a", (("w", 0), ("w", 1)), 2.0)], lambda tensor, axis: 3)
    18
    """
    result = 0.0
    for term in terms:
        product = term.scale
        for tensor, axis in term.factors:
            product *= extent(tensor, axis)
        result += product
    return round(result)


def input_at(node: onnx.NodeProto, place: int) -> str:
    """The name of an input, empty where it is left out."""
    return node.input[place] if place < len(node.input) else ""
