"""Values that are no tensors: sequences, optionals and maps, which can't be kept as arrays or be fed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from types import MappingProxyType

import onnx

from snp_onnx.external import bodies_of

_MAKERS = frozenset(
    (
        *("SplitToSequence", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceMap"),
        *("Optional", "OptionalGetElement", "ZipMap"),
    )
)
"""Operators that give sequences, optionals or maps; OptionalGetElement may, and costs nothing to run again."""

_STATES: Mapping[str, int] = MappingProxyType({"Loop": 2, "Scan": 0})
"""The place from which on the inputs of a node are the inputs of its body."""


def holders_of(graph: onnx.GraphProto) -> frozenset[str]:
    """The names of everything in the main graph that is no tensor, its inputs included."""
    held = {value.name for value in graph.input if not is_tensor(value.type)}
    return frozenset(_followed(graph.node, held))


def is_tensor(kind: onnx.TypeProto) -> bool:
    """Whether a declared type is that of a tensor; one that isn't declared is taken for it."""
    return kind.WhichOneof("value") in (None, "tensor_type")


def _followed(nodes: Iterable[onnx.NodeProto], held: Set[str]) -> set[str]:
    """What these nodes give, and what is held already."""
    known = set(held)
    for node in nodes:
        known.update(_given(node, known))
    return known


def _given(node: onnx.NodeProto, known: Set[str]) -> Iterator[str]:
    """The outputs of a node that are no tensors."""
    if node.op_type in _MAKERS or (node.op_type == "Identity" and node.input[0] in known):
        yield from node.output
    first = 1 if node.op_type == "Loop" else 0
    for _, body in bodies_of(node):
        inputs = node.input[_STATES.get(node.op_type, 0) :]
        states = body.input[2:] if node.op_type == "Loop" else body.input
        own = {inner.name for inner, outer in zip(states, inputs, strict=False) if outer in known}
        inside = _followed(body.node, known | own)
        results = list(body.output)[first:]
        yield from (output for output, value in zip(node.output, results, strict=False) if value.name in inside)
