"""Composing passes: one graph, one import and export, and everything put back that the export would drop."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from snp_onnx.errors import PassError, SnpError, is_debugged
from snp_onnx.external import Store, bodies_of, is_external
from snp_onnx.passes.base import Note, Outcome, Outside, Pass, constants, outside
from snp_onnx.tracing.op import read_by


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """A rewritten model and what the passes said about it."""

    model: onnx.ModelProto
    notes: tuple[Note, ...]
    changed: bool = True
    """Whether it differs from the model that was given; where it doesn't, it is that very one."""

    @property
    def own(self) -> onnx.ModelProto:
        """The model to be edited: a copy where it is the one that was given."""
        if self.changed:
            return self.model
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        return copy


def rewrite(model: onnx.ModelProto, passes: Sequence[Pass], store: Store | None = None) -> Rewritten:
    """Run passes in order over a copy of the model; a pass that breaks is named, and one that breaks its contract.

    Weights of the model that lie in files stay there, and new values of those go to the store. Where no pass changes
    anything the model itself comes back, but for initialisers that are inputs too or that nothing reads: these go.
    """
    notes, changed = list[Note](), not _is_plain(model)
    with _quiet(), _unnamed_stay(model.graph):
        graph = gs.import_onnx(model)
        _forget_types(graph)
        _leave_outside(graph, store)
        origins = list(zip(graph.nodes, model.graph.node, strict=True))
        for step in passes:
            outcome = (_run_twice if is_debugged() else _run)(step, graph)
            notes += outcome.notes
            changed = changed or outcome.changed
        if not changed:
            return Rewritten(model, tuple(notes), changed=False)
        _leave_outside(graph, store)
        result = _export(graph, model)
    _put_outside_bodies(model, result)
    _put_back(model, result)
    _put_back_nodes(origins, zip(graph.nodes, result.graph.node, strict=True))
    return Rewritten(result, tuple(notes))


def _forget_types(graph: gs.Graph) -> None:
    """Types that graphsurgeon reads and can't write, such as optionals; those of the model's surface are put back."""
    for part in (graph, *graph.subgraphs(recursive=True)):
        for tensor in (*part.tensors().values(), *part.inputs, *part.outputs):
            if isinstance(tensor, gs.Variable) and tensor.type not in ("tensor_type", "sequence_type"):
                tensor.dtype = None


def _run(step: Pass, graph: gs.Graph) -> Outcome:
    """Run a pass; PassError where it breaks, or its contract does."""
    name = type(step).__name__
    try:
        lacking = step.requires(graph)
        if lacking:
            raise PassError(f"pass {name} can't run: {lacking}")
        outcome = step(graph)
        undone = step.ensures(graph)
    except SnpError:
        raise
    except Exception as error:
        raise PassError(f"pass {name} failed: {type(error).__name__}: {error}") from error
    if undone:
        raise PassError(f"pass {name} broke its contract: {undone}")
    return outcome


def _run_twice(step: Pass, graph: gs.Graph) -> Outcome:
    """Run a pass, and once more; PassError where that changes more, where it misreports, or the graph has no order."""
    name, before = type(step).__name__, _digest(graph)
    outcome = _run(step, graph)
    once = _digest(graph)
    if outcome.changed != (once != before):
        did = "nothing" if once == before else "something"
        raise PassError(f"pass {name} broke its contract: it changed {did} and says otherwise")
    if _run(step, graph).changed or _digest(graph) != once:
        raise PassError(f"pass {name} broke its contract: run again, it changed something more")
    known = {id(tensor) for tensor in graph.inputs}
    for node in graph.nodes:
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) and tensor.name and id(tensor) not in known:
                raise PassError(f"pass {name} broke its contract: nothing before {node.name} gives {tensor.name}")
        known.update(map(id, node.outputs))
    return outcome


def _digest(graph: gs.Graph) -> str:
    """The same for graphs that are written as the same bytes."""
    written: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    return hashlib.sha256(written.SerializeToString(deterministic=True)).hexdigest()


def _is_plain(model: onnx.ModelProto) -> bool:
    """Whether every initialiser is read by a node or is an output, and no input too: exporting drops the others."""
    names = {tensor.name for tensor in model.graph.initializer}
    read = {name for node in model.graph.node for name in read_by(node)}
    read.update(value.name for value in model.graph.output)
    return names <= read and names.isdisjoint(value.name for value in model.graph.input)


def _leave_outside(graph: gs.Graph, store: Store | None) -> None:
    """Large values are mapped from files, those that lie in one and those that a pass made."""
    if store is None:
        return
    for constant in constants(graph):
        values = constant._values
        if isinstance(values, LazyValues) and not isinstance(values, Outside) and is_external(values.tensor):
            constant.values = Outside(values.tensor, store)
        elif isinstance(values, np.ndarray):
            constant.values = outside(constant.name, values, store)


def _export(graph: gs.Graph, source: onnx.ModelProto) -> onnx.ModelProto:
    result: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False, opset_imports=list(source.opset_import))
    return result


@contextlib.contextmanager
def _unnamed_stay(source: onnx.GraphProto) -> Iterator[None]:
    """An export writes an empty name into unnamed tensors of the source's attributes: take it out again."""
    unnamed = [tensor for tensor in _attribute_tensors(source) if not tensor.HasField("name")]
    try:
        yield
    finally:
        for tensor in unnamed:
            tensor.ClearField("name")


def _attribute_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
        for _, inner in bodies_of(node):
            yield from _attribute_tensors(inner)


def _put_outside_bodies(source: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Initialisers that a body reads from outside stay outside: the export writes a copy into every body."""
    owned = dict(_initialised(source.graph, ""))
    there = {tensor.name for tensor in result.graph.initializer}
    for node in result.graph.node:
        for tensor in _taken_out(node, owned):
            if tensor.name not in there:
                there.add(tensor.name)
                result.graph.initializer.append(tensor)


def _initialised(graph: onnx.GraphProto, within: str) -> Iterator[tuple[str, frozenset[str]]]:
    """The names of the initialisers of every body, by the body's place."""
    for node in graph.node:
        for place, body in bodies_of(node):
            key = _place(within, node, place)
            yield key, frozenset(tensor.name for tensor in body.initializer)
            yield from _initialised(body, key)


def _place(within: str, node: onnx.NodeProto, place: str) -> str:
    return f"{within}/{next((name for name in node.output if name), '')}:{place}"


def _taken_out(node: onnx.NodeProto, owned: Mapping[str, frozenset[str]], within: str = "") -> list[onnx.TensorProto]:
    """Take out of a node's bodies, and of theirs, what the source has further out."""
    taken = []
    for place, body in bodies_of(node):
        key = _place(within, node, place)
        inner = [tensor for below in body.node for tensor in _taken_out(below, owned, key)]
        held = {tensor.name: tensor for tensor in inner}
        held |= {tensor.name: _copied(tensor) for tensor in body.initializer}
        own = owned.get(key, frozenset(held))  # a body that a pass made keeps what it has
        del body.initializer[:]
        body.initializer.extend(tensor for name, tensor in held.items() if name in own)
        taken += [tensor for name, tensor in held.items() if name not in own]
    return taken


def _copied(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """graphsurgeon warns about duplicate node names and the like: not for our users. Its errors are raised too."""
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL + 1
    try:
        yield
    finally:
        G_LOGGER.severity = severity


def _put_back(source: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Version, domain, documentation and metadata of model, graph, inputs, outputs and nodes."""
    # below version 4 every initialiser had to be listed as an input, which graphsurgeon doesn't write
    result.ir_version = max(source.ir_version, 4) if result.graph.initializer else source.ir_version
    result.domain, result.model_version, result.doc_string = source.domain, source.model_version, source.doc_string
    result.metadata_props.extend(source.metadata_props)
    result.graph.metadata_props.extend(source.graph.metadata_props)
    _put_back_values(source, result)


def _put_back_nodes(
    origins: Iterable[tuple[gs.Node, onnx.NodeProto]], exported: Iterable[tuple[gs.Node, onnx.NodeProto]]
) -> None:
    """Documentation and metadata of every node that is still there, whatever its tensors are called now."""
    sources = {id(node): proto for node, proto in origins}
    for node, proto in exported:
        origin = sources.get(id(node))
        if origin is not None and origin.op_type == proto.op_type:
            for field in ("doc_string", "overload"):
                if origin.HasField(field):  # an empty one would take up bytes
                    setattr(proto, field, getattr(origin, field))
            proto.metadata_props.extend(origin.metadata_props)


def _put_back_values(source: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """True inputs and outputs exactly as they were; quantisation annotations of tensors that are still there."""
    true_inputs = {value.name for value in result.graph.input}
    inputs = [value for value in source.graph.input if value.name in true_inputs]
    for ours, theirs in ((result.graph.input, inputs), (result.graph.output, source.graph.output)):
        del ours[:]
        ours.extend(theirs)
    names = {name for node in result.graph.node for name in (*node.input, *node.output)}
    result.graph.quantization_annotation.extend(
        note for note in source.graph.quantization_annotation if note.tensor_name in names
    )
