"""A float32 copy of a bfloat16 model, for runtimes that don't compute in bfloat16.

The copy has the same tensor names. Weights that lie in files stay there as they are and are cast when the graph runs.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper

from snp_onnx.external import is_external

NARROW, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT
MARK = "snp_onnx.widened"
SUFFIX = "::bfloat16"
TYPES = frozenset(("to", "dtype", "stash_type", "output_dtype", "softmax_precision"))
"""Attributes that name an element type."""


def has_narrow(model: onnx.ModelProto) -> bool:
    """Whether any weight, input, output or cast of the main graph is of bfloat16."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return (
        any(tensor.data_type == NARROW for tensor in graph.initializer)
        or any(value.type.tensor_type.elem_type == NARROW for value in values)
        or any(a.i == NARROW and a.name in TYPES for node in graph.node for a in node.attribute)
    )


def is_widened(model: onnx.ModelProto) -> bool:
    """Whether the model is such a copy."""
    return any(entry.key == MARK for entry in model.metadata_props)


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float32 what the model computes in bfloat16."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.metadata_props.add(key=MARK, value="bfloat16")
    _widen_graph(copy.graph)
    for function in copy.functions:
        for node in function.node:
            _widen_node(node)
    return copy


def _widen_graph(graph: onnx.GraphProto) -> None:
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != NARROW:
            continue
        if is_external(tensor):
            name, tensor.name = tensor.name, tensor.name + SUFFIX
            casts.append(helper.make_node("Cast", [tensor.name], [name], name=tensor.name, to=WIDE))
        else:
            _widen_tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == NARROW:
            value.type.tensor_type.elem_type = WIDE
    for node in graph.node:
        _widen_node(node)
    if casts:
        nodes = [*casts, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)


def _widen_node(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name in TYPES and attribute.type == onnx.AttributeProto.INT and attribute.i == NARROW:
            attribute.i = WIDE
        if attribute.HasField("t") and attribute.t.data_type == NARROW:
            _widen_tensor(attribute.t)
        for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            _widen_graph(body)


def _widen_tensor(tensor: TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
