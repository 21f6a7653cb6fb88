"""Segments: where a model is cut into pieces that are run one after the other, and two models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from snp_onnx.tracing.holders import holders_of, is_tensor
from snp_onnx.tracing.op import read_by
from snp_onnx.tracing.surface import Surface

Feed = Mapping[str, NDArray[Any]]

DENSE = "dense::"


def beside(dense: onnx.ModelProto, pruned: onnx.ModelProto, surface: Surface) -> onnx.ModelProto:
    """Both models as one graph, without outputs; names of the dense one start with `dense::`.

    They read the same inputs, but those of which the pruned model keeps a part (`surface`).
    """
    result = onnx.ModelProto()
    result.ir_version = max(dense.ir_version, pruned.ir_version)
    result.opset_import.extend(pruned.opset_import)
    result.functions.extend(pruned.functions)
    graph, source = result.graph, dense.graph
    constants = {tensor.name for tensor in source.initializer} | {t.values.name for t in source.sparse_initializer}
    own = constants | {name for node in source.node for name in node.output if name} | surface.kept.keys()
    for half, renamed in ((dense, own), (pruned, frozenset[str]())):
        graph.node.extend(_renamed(node, renamed) for node in half.graph.node)
        for tensor in half.graph.initializer:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = DENSE + tensor.name if tensor.name in renamed else tensor.name
        for sparse in half.graph.sparse_initializer:
            twin = graph.sparse_initializer.add()
            twin.CopyFrom(sparse)
            twin.values.name = DENSE + twin.values.name if twin.values.name in renamed else twin.values.name
    graph.input.extend(surface.declared(value) for value in source.input if value.name not in constants)
    for value in source.input:
        if value.name in surface.kept:
            whole = graph.input.add()
            whole.CopyFrom(value)
            whole.name = DENSE + value.name
    graph.name = pruned.graph.name
    return result


def feeds_beside(feeds: Iterable[Feed], surface: Surface) -> Iterator[Feed]:
    """Feeds of the dense model as both models side by side read them."""
    for feed in feeds:
        yield {**{DENSE + name: array for name, array in feed.items() if name in surface.kept}, **surface.cut(feed)}


def _renamed(node: onnx.NodeProto, names: set[str] | frozenset[str]) -> onnx.NodeProto:
    """A copy whose tensors of these names start with `dense::`, in its subgraphs too."""
    if not names:
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _rename(copy, names)
    return copy


def _rename(node: onnx.NodeProto, names: set[str] | frozenset[str]) -> None:
    node.name = DENSE + node.name if node.name else ""  # the runtime refuses two nodes of one name
    for field in (node.input, node.output):
        renamed = [DENSE + name if name in names else name for name in field]
        del field[:]
        field.extend(renamed)
    for attribute in node.attribute:
        for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
            for inner in body.node:
                _rename(inner, names)
            for value in body.output:  # a body may hand an outer tensor straight on
                value.name = DENSE + value.name if value.name in names else value.name


def piece(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], sources: Mapping[str, np.dtype[Any]]
) -> onnx.ModelProto:
    """Nodes as a model of its own, with the weights of `model`; it starts from these tensors and has no outputs yet."""
    nodes = list(nodes)
    read = {name for node in nodes for name in read_by(node)}
    optional = {value.name: value for value in model.graph.input if not is_tensor(value.type)}
    result = onnx.ModelProto()
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = model.graph.name
    result.graph.node.extend(nodes)
    for name, dtype in sources.items():
        if name in optional:
            result.graph.input.append(optional[name])
            continue
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        result.graph.input.append(helper.make_tensor_value_info(name, kind, None))
    result.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    result.graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if t.values.name in read)
    return result


@dataclass(frozen=True, slots=True)
class Stretch:
    """Nodes to run, by index in graph order, and the boundary tensors that they start from."""

    nodes: tuple[int, ...]
    sources: tuple[str, ...]


class Frontier:
    """How far a model has been run: which nodes are done, and which of their results the rest still needs.

    Nodes that constants alone decide are never done: they are run again wherever they are needed, so that only
    activations cross a boundary. So are those that give a sequence or an optional, which can't cross one.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._constants = {tensor.name for tensor in graph.initializer}
        self._constants |= {tensor.values.name for tensor in graph.sparse_initializer}
        self._inputs = {value.name for value in graph.input} - self._constants
        self._producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        self._reads = [tuple(read_by(node)) for node in graph.node]
        self._done: set[int] = set()
        self._free: set[int] = set()
        for index, reads in enumerate(self._reads):
            if all(name in self._constants or self._producer.get(name) in self._free for name in reads):
                self._free.add(index)
        held = holders_of(graph)
        self._free.update(index for index, node in enumerate(graph.node) if not held.isdisjoint(node.output))

    def needed(self, tensors: Iterable[str]) -> Stretch:
        """What must be run for these tensors, and from which boundary."""
        nodes, sources, waiting, seen = set[int](), set[str](), list(tensors), set[str]()
        while waiting:
            name = waiting.pop()
            if name in seen or name in self._constants:
                continue
            seen.add(name)
            index = self._producer.get(name)
            if index in self._done or name in self._inputs:
                sources.add(name)
            elif index is not None:
                nodes.add(index)
                waiting.extend(self._reads[index])
        return Stretch(tuple(sorted(nodes)), tuple(sorted(sources)))

    def advance(self, stretch: Stretch, hold: Iterable[int] = ()) -> None:
        """These nodes have been run, and all but those of `hold` need not be run again."""
        self._done.update(set(stretch.nodes) - self._free - set(hold))

    def lasting(self, stretch: Stretch) -> list[int]:
        """The nodes of a stretch that may be done with it."""
        return [index for index in stretch.nodes if index not in self._free]

    def makers(self, tensors: Iterable[str]) -> tuple[int, ...]:
        """The nodes that give these tensors, none of them an input."""
        return tuple(self._producer[name] for name in tensors)

    def undo(self, nodes: Iterable[int]) -> None:
        """These nodes have to be run again."""
        self._done.difference_update(nodes)
