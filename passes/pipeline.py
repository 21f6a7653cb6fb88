"""Composing passes: one graph, one import and export, and everything put back that the export would drop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from snp_onnx.errors import PassError, SnpError
from snp_onnx.external import Store, is_external
from snp_onnx.passes.base import Note, Outside, Pass, constants, outside


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """A rewritten model and what the passes said about it."""

    model: onnx.ModelProto
    notes: tuple[Note, ...]


def rewrite(model: onnx.ModelProto, passes: Sequence[Pass], store: Store | None = None) -> Rewritten:
    """Run passes in order over a copy of the model; a pass that breaks is named.

    Weights of the model that lie in files stay there, and new values of those go to the store.
    """
    notes: list[Note] = []
    with _quiet():
        graph = gs.import_onnx(model)
        _leave_outside(graph, store)
        origins = list(zip(graph.nodes, model.graph.node, strict=True))
        for step in passes:
            try:
                notes += step(graph).notes
            except SnpError:
                raise
            except Exception as error:
                raise PassError(f"pass {type(step).__name__} failed: {type(error).__name__}: {error}") from error
        _leave_outside(graph, store)
        result = _export(graph, model)
    _put_back(model, result)
    _put_back_nodes(origins, zip(graph.nodes, result.graph.node, strict=True))
    return Rewritten(result, tuple(notes))


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
    """The graph as a model; the export writes an empty name into unnamed tensors of the source's attributes."""
    unnamed = [tensor for tensor in _attribute_tensors(source.graph) if not tensor.HasField("name")]
    result: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False, opset_imports=list(source.opset_import))
    for tensor in unnamed:
        tensor.ClearField("name")
    return result


def _attribute_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _attribute_tensors(inner)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """graphsurgeon warns about duplicate node names and the like: not for our users."""
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
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
