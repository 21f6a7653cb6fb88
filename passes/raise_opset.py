"""Models of operator sets 7 and 8 become ones of 9, the oldest that moments are written in.

Three operators differ in form between 7 and 9: Upsample takes its scales as an input, BatchNormalization has lost
`spatial` (1, the default, is how it works since), and Scan is another one. All others mean the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import helper

from snp_onnx.errors import ModelError
from snp_onnx.external import bodies_of
from snp_onnx.passes.base import Note

OLDEST = 9
"""The operator set that older ones are raised to."""

_LOADED = 7
"""The oldest operator set that onnxruntime promises to run."""


def raise_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Note, ...]]:
    """The model in operator set 9 if it is of an older one, and a note; ModelError where that can't be."""
    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if version is None:
        raise ModelError("the model imports no opset of the default domain ai.onnx: add it to opset_import")
    if version >= OLDEST:
        return model, ()
    if version < _LOADED:
        raise ModelError(f"the model is of opset {version}: convert it to opset {OLDEST} or later")
    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    for entry in raised.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OLDEST
    _raise_graph(raised.graph, version)
    note = f"opset {version}: converted to opset {OLDEST}, which the result is written in"
    return raised, (Note("model", note),)


def _raise_graph(graph: onnx.GraphProto, version: int) -> None:
    """Rewrite the nodes of a graph and its bodies in place."""
    nodes = [new for node in graph.node for new in _raised(node, version)]
    del graph.node[:]
    graph.node.extend(nodes)


def _raised(node: onnx.NodeProto, version: int) -> Iterator[onnx.NodeProto]:
    """What stands for a node of an old operator set: itself changed, behind a constant that it needs."""
    for _, body in bodies_of(node):
        _raise_graph(body, version)
    if node.domain not in ("", "ai.onnx"):
        yield node
        return
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Scan" or (node.op_type == "BatchNormalization" and given.get("spatial", 1) == 0):
        name = node.name or next(iter(node.output), "")
        raise ModelError(
            f"the model is of opset {version}, and node {name} ({node.op_type}) has no form of opset {OLDEST}: "
            "export the model in a later opset"
        )
    moved = {"BatchNormalization": "spatial", "Upsample": "scales"}.get(node.op_type)
    kept = [attribute for attribute in node.attribute if attribute.name != moved]
    del node.attribute[:]
    node.attribute.extend(kept)
    if node.op_type == "Upsample" and len(node.input) == 1:
        scales = f"{node.output[0]}_scales"
        yield helper.make_node("Constant", [], [scales], scales, value=_vector(given["scales"]))
        node.input.append(scales)
    yield node


def _vector(values: Sequence[float]) -> onnx.TensorProto:
    return helper.make_tensor("", onnx.TensorProto.FLOAT, [len(values)], list(values))
