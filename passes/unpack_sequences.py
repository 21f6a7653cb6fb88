"""Sequences and optionals whose contents are known are unpacked: what is read from them is read from tensors.

    SequenceAt(SplitToSequence(x, [a, b]), 1) = x[a : a + b]
    SequenceAt(SplitToSequence(x, a), i)      = x[i a : (i + 1) a]
    SequenceAt(SequenceConstruct(x, y), 1)    = y
    OptionalGetElement(Optional(x))           = x

Exporters write split, chunk, unbind and stack so. What a loop, a branch or an input gives, and places that are computed
at run time, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name, replace_node

LAST = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Positions of a tensor along an axis; a single one without that axis where `is_single`."""

    source: gs.Tensor
    axis: int
    start: int
    stop: int
    is_single: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Chunks:
    """A tensor cut into parts of `step` positions, as many as there are."""

    source: gs.Tensor
    axis: int
    step: int
    keeps_axis: bool

    def part(self, place: int) -> _Part | None:
        """One of the parts; None where it is counted from an end that isn't known."""
        if place < 0 and self.step > 1:
            return None
        stop = LAST if place == -1 else (place + 1) * self.step
        return _Part(self.source, self.axis, place * self.step, stop, not self.keeps_axis)


@dataclass(frozen=True, slots=True, eq=False)
class _Nothing:
    """An optional without contents."""


Element: TypeAlias = gs.Tensor | _Part
Contents: TypeAlias = tuple[Element, ...] | _Chunks | _Nothing | gs.Tensor
"""What a sequence or an optional holds; of an optional it is the tensor or the sequence itself."""
Given: TypeAlias = list[gs.Node] | gs.Tensor | None
"""What stands for a node: nodes of which the last gives its output, or a tensor; None where that isn't known."""


@dataclass(frozen=True, slots=True)
class UnpackSequences(Pass):
    """Let what reads the elements of a known sequence, or of a known optional, read tensors."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        known: dict[int, Contents] = {}
        notes = []
        for node in [node for node in graph.nodes if node.domain in (None, "", "ai.onnx")]:
            if node.op in _MAKERS:
                made = _MAKERS[node.op](node, _held(node, known))
                if made is not None:
                    known[id(node.outputs[0])] = made
            held = _held(node, known)
            new = _READERS[node.op](graph, node, held) if node.op in _READERS and held is not None else None
            if new is not None:
                notes.append(
                    Note(node.name or node.op, f"{node.op} became what it gives: tensors in place of sequences")
                )
                _put(graph, node, new)
        return Outcome(bool(notes), tuple(notes))


def _held(node: gs.Node, known: Mapping[int, Contents]) -> Contents | None:
    """The contents of a node's first input, where they are known."""
    return known.get(id(node.inputs[0])) if node.inputs else None


def _has(node: gs.Node, place: int) -> bool:
    return len(node.inputs) > place and bool(node.inputs[place].name)


def _number(node: gs.Node, place: int) -> int | None:
    """A constant operand of one entry; None where it isn't constant."""
    tensor = node.inputs[place]
    is_one = isinstance(tensor, gs.Constant) and tensor.values.size == 1
    return int(tensor.values.reshape(-1)[0]) if is_one else None


# what gives sequences and optionals


def _split(node: gs.Node, _: Contents | None) -> Contents | None:
    source, axis = node.inputs[0], int(node.attrs.get("axis", 0))
    if not _has(node, 1):
        return _Chunks(source, axis, 1, bool(node.attrs.get("keepdims", 1)))
    if not isinstance(node.inputs[1], gs.Constant):
        return None
    sizes = node.inputs[1].values
    if sizes.ndim == 0:
        return _Chunks(source, axis, int(sizes), keeps_axis=True)
    ends = np.cumsum(sizes).tolist()
    return tuple(_Part(source, axis, end - size, end) for size, end in zip(sizes.tolist(), ends, strict=True))


def _construct(node: gs.Node, _: Contents | None) -> Contents | None:
    return tuple(node.inputs)


def _insert(node: gs.Node, held: Contents | None) -> Contents | None:
    place = _number(node, 2) if _has(node, 2) else LAST
    if not isinstance(held, tuple) or place is None:
        return None
    return (*held[:place], node.inputs[1], *held[place:])


def _erase(node: gs.Node, held: Contents | None) -> Contents | None:
    place = _number(node, 1) if _has(node, 1) else -1
    if not isinstance(held, tuple) or place is None or not -len(held) <= place < len(held):
        return None
    return (*held[:place], *held[place:][1:])


def _pass(_: gs.Node, held: Contents | None) -> Contents | None:
    return held


def _box(node: gs.Node, held: Contents | None) -> Contents | None:
    """Around a tensor or a sequence, known or not."""
    return held or (node.inputs[0] if _has(node, 0) else _Nothing())


_MAKERS: Mapping[str, Callable[[gs.Node, Contents | None], Contents | None]] = MappingProxyType(
    {
        "SplitToSequence": _split,
        "SequenceConstruct": _construct,
        "SequenceEmpty": _construct,
        "SequenceInsert": _insert,
        "SequenceErase": _erase,
        "Identity": _pass,
        "Optional": _box,
        "OptionalGetElement": _pass,
    }
)
"""Operators that give sequences and optionals: what they give holds, by what their first input holds."""


# what gives tensors


def _at(graph: gs.Graph, node: gs.Node, held: Contents) -> Given:
    place, element = _number(node, 1), None
    if place is not None and isinstance(held, _Chunks):
        element = held.part(place)
    elif place is not None and isinstance(held, tuple) and -len(held) <= place < len(held):
        element = held[place]
    return _cut(graph, element, node.outputs[0], _named(node, "part")) if isinstance(element, _Part) else element


def _join(graph: gs.Graph, node: gs.Node, held: Contents) -> Given:
    """Concat of the elements, with a new axis each where they are stacked."""
    if not isinstance(held, tuple) or not held:
        return None
    axis, is_stack, nodes, parts = node.attrs["axis"], node.attrs.get("new_axis", 0), list[gs.Node](), []
    for number, element in enumerate(held):
        name = f"{node.outputs[0].name}_part{number}"
        if isinstance(element, _Part):
            nodes += _cut(graph, element, gs.Variable(fresh_name(graph, name)), _named(node, f"part{number}"))
            element = nodes[-1].outputs[0]
        if is_stack:
            wide = gs.Variable(fresh_name(graph, f"{name}_wide"))
            given = [gs.Constant(fresh_name(graph, f"{name}_axes"), np.array([axis]))] if graph.opset > 12 else []
            nodes.append(gs.Node("Unsqueeze", "", {} if given else {"axes": [axis]}, [element, *given], [wide]))
            element = wide
        parts.append(element)
    return [*nodes, gs.Node("Concat", _named(node, "concat"), {"axis": axis}, parts, [node.outputs[0]])]


def _length(graph: gs.Graph, node: gs.Node, held: Contents) -> Given:
    return _constant(node, np.array(len(held))) if isinstance(held, tuple) else None


def _has_element(graph: gs.Graph, node: gs.Node, held: Contents) -> Given:
    return _constant(node, np.array(not isinstance(held, _Nothing)))


def _element(graph: gs.Graph, node: gs.Node, held: Contents) -> Given:
    return held if isinstance(held, gs.Tensor) else None


_READERS: Mapping[str, Callable[[gs.Graph, gs.Node, Contents], Given]] = MappingProxyType(
    {
        "SequenceAt": _at,
        "ConcatFromSequence": _join,
        "SequenceLength": _length,
        "OptionalHasElement": _has_element,
        "OptionalGetElement": _element,
    }
)
"""Operators that read known contents, and what stands for them."""


def _named(node: gs.Node, kind: str) -> str:
    """A name for what stands for a node, which has other attributes and its documentation no more."""
    return f"{node.name}_{kind}" if node.name else ""


def _cut(graph: gs.Graph, part: _Part, output: gs.Tensor, name: str) -> list[gs.Node]:
    """The node that gives a part."""
    if part.is_single:
        index = gs.Constant(fresh_name(graph, f"{output.name}_index"), np.array(part.start))
        return [gs.Node("Gather", name, {"axis": part.axis}, [part.source, index], [output])]
    bounds = {"starts": part.start, "ends": part.stop, "axes": part.axis}
    operands = [gs.Constant(fresh_name(graph, f"{output.name}_{n}"), np.array([v])) for n, v in bounds.items()]
    return [gs.Node("Slice", name, {}, [part.source, *operands], [output])]


def _constant(node: gs.Node, values: npt.NDArray[Any]) -> list[gs.Node]:
    return [gs.Node("Constant", _named(node, "constant"), {"value": gs.Constant("", values)}, [], [node.outputs[0]])]


def _put(graph: gs.Graph, node: gs.Node, given: list[gs.Node] | gs.Tensor) -> None:
    """Put nodes in another one's place; a tensor is read itself, unless it leaves a graph under the node's name."""
    output = node.outputs[0]
    if isinstance(given, gs.Tensor):
        leaving = {id(tensor) for inner in (graph, *graph.subgraphs(recursive=True)) for tensor in inner.outputs}
        if id(output) not in leaving:
            replace_node(graph, node, given)
            return
        given = [gs.Node("Identity", _named(node, "identity"), {}, [given], [output])]
    place = next(place for place, other in enumerate(graph.nodes) if other is node)
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes[place : place + 1] = given
