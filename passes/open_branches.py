"""Branches of an If are opened while a model is pruned: their nodes stand in front of it, and go back at the end.

    y = If(c) <{ t = f(x) }, { e = g(x) }>    is    t = f(x),  y = If(c) <{ Identity(t) }, { e = g(x) }>

Both give the same for every input for which f can be computed where g is taken. All that is done to nodes of the main
graph can then be done to those of the branch: they are traced, measured, cut and folded like others. What the If reads
of an opened branch, the tracer knows as a choice; a branch that stays closed bars what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import onnx
from onnx import helper

from snp_onnx.external import bodies_of, is_external
from snp_onnx.tracing.branches import OPENED
from snp_onnx.tracing.op import read_by


@dataclass(frozen=True, slots=True, eq=False)
class Gates:
    """Tensors that say of the branches of the If that gives `output` whether they are taken; `condition` is its own."""

    output: str
    condition: str
    taken: Mapping[str, str]
    """By branch."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenedBranch:
    """A branch of the If that gives `output`, whose nodes stand in the main graph: how to find them and put them back.

    `given` are the tensors that its nodes gave, `outside` the tensors that were there without it. `names` has what
    tensors and nodes were called inside, where that is another name. `body` is the branch without nodes.
    """

    output: str
    branch: str
    given: frozenset[str]
    outside: frozenset[str]
    names: Mapping[str, str]
    body: onnx.GraphProto


def open_branch(model: onnx.ModelProto, output: str, branch: str) -> OpenedBranch:
    """Put the nodes and weights of a branch in front of the If that gives `output`, in place."""
    graph = model.graph
    place = next(index for index, node in enumerate(graph.node) if output in node.output)
    attribute = next(a for a in graph.node[place].attribute if a.name == branch)
    body = onnx.GraphProto()
    body.CopyFrom(attribute.g)
    attribute.g.ClearField("node")
    attribute.g.ClearField("initializer")
    outside = frozenset(_tensors(graph))
    names = _new_names(body, {*outside, *_names_in(graph)})
    _rename(body, names)
    given = frozenset(name for node in body.node for name in node.output if name)
    handed = [value.name for value in body.output]
    attribute.g.CopyFrom(_handing_on(body, handed, f"{OPENED}{branch}::{output}"))
    _move(body, graph, place)
    back = {new: old for old, new in names.items()}
    _rename(body, back)  # outputs are called as they were
    return OpenedBranch(output, branch, given, outside, back, body)


def add_gates(model: onnx.ModelProto, output: str, outer: str = "") -> Gates:
    """For each branch of an If a tensor that says whether it is taken, in place; `outer`: of the branch it stands in.

    The condition is computed of both, so that they stay as long as it is there.
    """
    graph = model.graph
    place = next(index for index, node in enumerate(graph.node) if output in node.output)
    choice, stem = graph.node[place], f"{OPENED}taken::{output}"
    condition, names = choice.input[0], [f"{stem}:{number}" for number in range(5)]
    then, other, back, either, inverse = names
    nodes = [helper.make_node("Not", [condition], [inverse])]
    for name, source in ((then, condition), (other, inverse)):
        kind, reads = ("And", [outer, source]) if outer else ("Identity", [source])
        nodes.append(helper.make_node(kind, reads, [name]))
    nodes += [helper.make_node("Not", [other], [back]), helper.make_node("Or", [then, back], [either])]
    choice.input[0] = either
    for node in reversed(nodes):
        graph.node.insert(place, node)
    return Gates(output, condition, {"then_branch": then, "else_branch": other})


def close_branches(model: onnx.ModelProto, opened: Collection[OpenedBranch | Gates]) -> onnx.ModelProto:
    """The model with every branch back in its If; the very same one where none was opened."""
    if not opened:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for entry in reversed(list(opened)):
        if isinstance(entry, Gates):
            _drop_gates(result.graph, entry)
        else:
            _close(result.graph, entry)
    return result


def _drop_gates(graph: onnx.GraphProto, gates: Gates) -> None:
    prefix = f"{OPENED}taken::{gates.output}:"
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if gates.output in node.output:
            node.input[0] = gates.condition
        elif any(name.startswith(prefix) for name in node.output):
            del graph.node[index]


def nodes_of(graph: onnx.GraphProto, branch: OpenedBranch) -> list[int]:
    """The places of the nodes that belong to an opened branch, those that passes made of them or for them too.

    So do nodes that compute with what the branch gives, and new ones that only it reads.
    """
    found, given = set[int](), set(branch.given)
    readers: dict[str, set[int]] = {}
    for index, node in enumerate(graph.node):
        is_choice = branch.output in node.output
        names = _read_by_branch(node, branch.branch) if is_choice else read_by(node)
        for name in names:
            readers.setdefault(name, set()).add(index)
        if is_choice:
            found.add(index)
        elif given.intersection(node.output) or given.intersection(names):
            found.add(index)
            given.update(name for name in node.output if name)
    known = branch.outside | {value.name for value in graph.output}
    for index in reversed(range(len(graph.node))):
        outputs = [name for name in graph.node[index].output if name]
        is_new = bool(outputs) and known.isdisjoint(outputs)
        if is_new and all(name in readers and readers[name] <= found for name in outputs):
            found.add(index)
    return [index for index in sorted(found) if branch.output not in graph.node[index].output]


def _read_by_branch(choice: onnx.NodeProto, branch: str) -> list[str]:
    body = dict(bodies_of(choice))[branch]
    return [name for node in body.node for name in read_by(node)]


def _close(graph: onnx.GraphProto, branch: OpenedBranch) -> None:
    choice = next((node for node in graph.node if branch.output in node.output), None)
    if choice is None:  # nothing reads what it gives
        return
    places = nodes_of(graph, branch)
    body = onnx.GraphProto()
    body.CopyFrom(branch.body)
    body.node.extend(graph.node[index] for index in places)
    for index in reversed(places):
        del graph.node[index]
    _take_weights(graph, body, choice, branch)
    attribute = next(a for a in choice.attribute if a.name == branch.branch)
    handed = [node.input[0] for node in attribute.g.node]
    shapes = _take_shapes(graph, body)
    old = _old_names(graph, body, branch)
    _rename(body, old)
    for value, name in zip(body.output, handed, strict=True):
        _give(body, value, old.get(name, name), shapes.get(name))
    attribute.g.CopyFrom(body)


def _take_weights(graph: onnx.GraphProto, body: onnx.GraphProto, choice: onnx.NodeProto, branch: OpenedBranch) -> None:
    """Weights that only the branch reads go along; those that lie in files, or were outside before, stay there."""
    mine = {name for node in body.node for name in read_by(node)} | set(_read_by_branch(choice, branch.branch))
    others = branch.outside | {value.name for value in graph.output}
    others |= {name for node in graph.node if node is not choice for name in read_by(node)}
    for place, inner in bodies_of(choice):
        others |= {name for node in inner.node for name in read_by(node)} if place != branch.branch else set()
    _move_weights(graph, body, mine - others)


def _move_weights(graph: onnx.GraphProto, body: onnx.GraphProto, names: Collection[str]) -> None:
    for place in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[place]
        if tensor.name in names and not is_external(tensor):
            body.initializer.insert(0, tensor)
            del graph.initializer[place]
    for place in reversed(range(len(graph.sparse_initializer))):
        sparse = graph.sparse_initializer[place]
        if sparse.values.name in names:
            body.sparse_initializer.insert(0, sparse)
            del graph.sparse_initializer[place]


def _take_shapes(graph: onnx.GraphProto, body: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """Declared shapes of what a body's nodes give, by name; they go along but for its outputs, which declare theirs."""
    given, found = {name for node in body.node for name in node.output}, {}
    given |= {tensor.name for tensor in body.initializer}
    outputs = {value.name for value in body.output}
    for place in reversed(range(len(graph.value_info))):
        value = graph.value_info[place]
        if value.name in given:
            found[value.name] = onnx.TypeProto()
            found[value.name].CopyFrom(value.type)
            if value.name not in outputs:
                body.value_info.insert(0, value)
            del graph.value_info[place]
    return found


def _give(body: onnx.GraphProto, value: onnx.ValueInfoProto, name: str, kind: onnx.TypeProto | None) -> None:
    """Let a body give a tensor as one of its outputs, which keeps its name and gets the tensor's present shape."""
    if kind is not None and kind.tensor_type.HasField("shape"):
        value.type.CopyFrom(kind)
    if name != value.name:
        body.node.append(helper.make_node("Identity", [name], [value.name]))


def _handing_on(body: onnx.GraphProto, handed: list[str], prefix: str) -> onnx.GraphProto:
    """A branch that hands on these tensors, of any shape."""
    outputs = []
    for place, value in enumerate(body.output):
        output = onnx.ValueInfoProto(name=f"{prefix}:{place}")
        if value.type.tensor_type.elem_type:  # exporters may leave it to inference
            output.type.tensor_type.elem_type = value.type.tensor_type.elem_type
        outputs.append(output)
    pairs = zip(handed, outputs, strict=True)
    nodes = [helper.make_node("Identity", [name], [output.name]) for name, output in pairs]
    return helper.make_graph(nodes, body.name or "branch", [], outputs)


def _move(body: onnx.GraphProto, graph: onnx.GraphProto, place: int) -> None:
    """Nodes, weights and declared shapes of a body go into the graph, in front of the node at `place`."""
    for node in reversed(body.node):
        graph.node.insert(place, node)
    known = {value.name for value in body.value_info}
    graph.value_info.extend(
        value for value in body.output if value.name not in known and value.type.WhichOneof("value")
    )
    for name in ("initializer", "sparse_initializer", "value_info", "quantization_annotation"):
        getattr(graph, name).extend(getattr(body, name))
        body.ClearField(name)
    body.ClearField("node")


def _tensors(graph: onnx.GraphProto) -> Iterator[str]:
    """The tensors of a graph, bodies apart."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


def _names_in(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of all tensors and nodes of a graph and its bodies."""
    yield from _tensors(graph)
    for node in graph.node:
        if node.name:
            yield node.name
        for _, body in bodies_of(node):
            yield from _names_in(body)


def _new_names(body: onnx.GraphProto, taken: set[str]) -> dict[str, str]:
    """New names for what a body and its bodies call as others do: no name may stand for two things then."""
    names: dict[str, str] = {}
    used = taken | set(_names_in(body))
    for name in dict.fromkeys(_names_in(body)):
        if name in taken:
            names[name] = next(wish for number in count(1) if (wish := f"{name}_{number}") not in used)
            used.add(names[name])
    return names


def _old_names(graph: onnx.GraphProto, body: onnx.GraphProto, branch: OpenedBranch) -> dict[str, str]:
    """The names from before, but for those that something else has now."""
    taken = {*_tensors(graph), *(node.name for node in graph.node), *_names_in(body)}
    return {new: old for new, old in branch.names.items() if old not in taken}


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Other names for tensors and nodes of a graph, and of its bodies."""
    if not names:
        return
    sparse = [tensor.values for tensor in graph.sparse_initializer]
    for named in (*graph.value_info, *graph.output, *graph.initializer, *sparse, *graph.node):
        if named.name in names:
            named.name = names[named.name]
    for note in graph.quantization_annotation:
        note.tensor_name = names.get(note.tensor_name, note.tensor_name)
    for node in graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                field[place] = names.get(name, name)
        for _, body in bodies_of(node):
            _rename(body, names)
