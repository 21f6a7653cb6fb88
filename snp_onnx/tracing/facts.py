"""Facts: the shape of every tensor, and the value of every small tensor that only shapes and constants decide.

Exporters compute shapes at run time (Shape -> Gather -> Concat -> Reshape). The facts follow such chains node by node
with concrete input shapes: onnx's own shape inference, and its reference operators where every input is known. Each
known element also remembers which axes' extents it was computed from, so that a rewrite can recompute it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from snp_onnx.external import bodies_of
from snp_onnx.tracing.branches import handed_by, is_opened
from snp_onnx.tracing.fused_facts import fused_shapes, typed_by
from snp_onnx.tracing.holders import is_tensor
from snp_onnx.tracing.op import Op, ops_of

Shape = tuple[int, ...]
AxisOf = tuple[str, int]
Array = npt.NDArray[np.generic]
Origins = npt.NDArray[np.int64]
Seen = tuple[Shape, int]
"""What a run shows of a tensor: its shape, and the number of its element type."""

SMALL = 4096
"""Values of more elements are weights or data: their shape is a fact, their value is not followed."""

_STRUCTURAL = frozenset(
    [
        "Identity",
        "Gather",
        "Slice",
        "Concat",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
        "Transpose",
        "Flatten",
        "Expand",
        "Tile",
        "Split",
    ]
)
_MOVED: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {**dict.fromkeys(_STRUCTURAL, (0,)), "ScatterElements": (0, 2), "Scatter": (0, 2), "Where": (1, 2)}
)
"""Operators whose output elements are those of the named inputs, put elsewhere; of Concat it is all inputs."""
_KEEPS_SHAPE = frozenset(("GroupNormalization", "MeanVarianceNormalization"))
"""Operators defined by a function whose body depends on the input's type: onnx doesn't infer their shape."""


@dataclass(slots=True)
class Facts:
    """What is known of a model's tensors for one choice of input shapes."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    origins: dict[str, Origins] = field(default_factory=dict)
    """Per element of a value: index into `extents`; 0 where it depends on no axis."""
    extents: list[frozenset[AxisOf]] = field(default_factory=lambda: [frozenset()])
    value_ops: list[Op] = field(default_factory=list)
    holders: dict[str, onnx.TypeProto] = field(default_factory=dict)
    """Types of what is no tensor: sequences and optionals."""
    declared: set[str] = field(default_factory=set)
    """Tensors whose shape is known from nothing but the model's declaration, which may be wrong."""
    elsewhere: Mapping[str, Shape] = field(default_factory=dict)
    """Shapes at other extents of the dynamic axes, as far as inference can tell; see `tracing.elsewhere`."""

    def varies(self, tensor: str, axis: int) -> bool | None:
        """Whether the extent of an axis differs from one run to the next; None where inference can't tell."""
        here, there = self.shapes.get(tensor), self.elsewhere.get(tensor)
        if here is None or there is None:
            return None
        return len(here) != len(there) or here[axis] != there[axis]

    def origin_axes(self, tensor: str) -> frozenset[AxisOf]:
        """Every axis whose extent the tensor's value was computed from."""
        if tensor not in self.origins:
            return frozenset()
        return frozenset().union(*(self.extents[i] for i in np.unique(self.origins[tensor])))

    def revalue(self, shapes: Mapping[str, Shape]) -> dict[str, Array]:
        """The values again, with other extents: what the shape chains compute after a rewrite."""
        values = dict(self.values)
        for op in self.value_ops:
            if op.type in ("Shape", "Size"):
                values[op.outputs[0]] = _extent_value(op, shapes[op.inputs[0]])
            else:
                outcome = evaluate(op, [values[name] if name else None for name in op.inputs])
                if outcome is not None:
                    values.update(zip(op.outputs, outcome, strict=False))
        return values

    def _extent_id(self, axes: frozenset[AxisOf]) -> int:
        if not axes:
            return 0
        self.extents.append(axes)
        return len(self.extents) - 1


def infer_facts(
    model: onnx.ModelProto, input_shapes: Mapping[str, Shape], observed: Mapping[str, Seen] | None = None
) -> Facts:
    """Facts of a model for the given shapes of its true inputs; `observed` fills in what inference can't tell."""
    facts = Facts()
    for value in model.graph.input:
        if value.name in input_shapes and is_tensor(value.type):
            facts.shapes[value.name] = input_shapes[value.name]
            facts.types[value.name] = value.type.tensor_type.elem_type
        if not is_tensor(value.type):
            facts.holders[value.name] = value.type
    infer_graph(model.graph, model, facts, observed)
    return facts


def infer_graph(
    graph: onnx.GraphProto,
    model: onnx.ModelProto,
    facts: Facts,
    observed: Mapping[str, Seen] | None = None,
    enter: Callable[[Op, Facts], None] | None = None,
) -> None:
    """Follow the nodes of the main graph, or of a body; `enter` tells of nodes that have bodies themselves."""
    for tensor in graph.initializer:
        _know_constant(facts, tensor)
    for sparse in graph.sparse_initializer:
        facts.shapes[sparse.values.name] = tuple(sparse.dims)
        facts.types[sparse.values.name] = sparse.values.data_type
    declared = {value.name: value for value in (*graph.value_info, *graph.output)}
    for op in ops_of(model, graph):
        _follow(facts, op, model)
        if enter is not None and op.has_subgraph:
            enter(op, facts)
        for name in op.outputs:
            if name and name not in facts.shapes:
                _fill_in(facts, name, observed or {}, declared)


def _know_constant(facts: Facts, tensor: onnx.TensorProto) -> None:
    facts.shapes[tensor.name] = tuple(tensor.dims)
    facts.types[tensor.name] = tensor.data_type
    if int(np.prod(tensor.dims)) <= SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
        facts.values[tensor.name] = onnx.numpy_helper.to_array(tensor)


def _follow(facts: Facts, op: Op, model: onnx.ModelProto) -> None:
    """Everything that can be told about one node's outputs from its inputs."""
    if op.type in ("Shape", "Size") and op.is_standard and op.inputs[0] in facts.shapes:
        _follow_extent(facts, op)
    elif op.type == "Constant" and op.is_standard and (array := op.constant_value()) is not None:
        _know_constant(facts, onnx.numpy_helper.from_array(array, op.outputs[0]))
    elif op.type in _KEEPS_SHAPE and op.is_standard and op.inputs[0] in facts.shapes:
        facts.shapes[op.outputs[0]] = facts.shapes[op.inputs[0]]
        facts.types[op.outputs[0]] = facts.types[op.inputs[0]]
    elif op.type == "If" and op.is_standard:
        _follow_choice(facts, op)
    elif not _follow_values(facts, op):
        _infer_types(facts, op, model)
        for name, shape in fused_shapes(op, facts.shapes, facts.values).items():
            facts.shapes[name] = shape
            facts.types[name] = facts.types[typed_by(op, name)]


def _follow_choice(facts: Facts, op: Op) -> None:
    """What an If hands on, where that is sure: all branches hand on tensors of one shape, or it is known which counts.

    All branches give the same types. Those that are opened are the ones that are taken.
    """
    branches = {place: handed_by(body) for place, body in bodies_of(op.node)}
    taken = facts.values.get(op.input(0))
    opened = [place for place, body in bodies_of(op.node) if is_opened(body)]
    if taken is not None and len(opened) != 1:
        opened = ["then_branch" if taken.reshape(-1)[:1].any() else "else_branch"]
    known = [branches[place] for place in opened or branches]
    for place, output in enumerate(op.outputs):
        given = [names[place] for names in branches.values() if names is not None]
        kinds = [facts.types[name] for name in given if name in facts.types]
        if output and kinds:
            facts.types[output] = kinds[0]
        shapes = {facts.shapes.get(names[place]) if names is not None else None for names in known}
        shape = shapes.pop() if len(shapes) == 1 else None
        if output and shape is not None and output in facts.types:
            facts.shapes[output] = shape


def _follow_extent(facts: Facts, op: Op) -> None:
    source, name = op.inputs[0], op.outputs[0]
    value = _extent_value(op, facts.shapes[source])
    if source in facts.values and facts.values[source].dtype.kind == "i":  # a vector of sizes is as long as it is
        facts.shapes[name], facts.types[name], facts.values[name] = value.shape, onnx.TensorProto.INT64, value
        facts.value_ops.append(op)
        return
    axes = range(len(facts.shapes[source]))[_shape_window(op)] if op.type == "Shape" else ()
    if op.type == "Size":
        every = frozenset((source, axis) for axis in range(len(facts.shapes[source])))
        origins = np.array(facts._extent_id(every), dtype=np.int64)
    else:
        origins = np.array([facts._extent_id(frozenset([(source, axis)])) for axis in axes], dtype=np.int64)
    facts.shapes[name], facts.types[name] = value.shape, onnx.TensorProto.INT64
    facts.values[name], facts.origins[name] = value, origins
    facts.value_ops.append(op)


def _shape_window(op: Op) -> slice:
    end = op.attr("end", None)
    return slice(int(op.attr("start", 0)), None if end is None else int(end))


def _extent_value(op: Op, shape: Shape) -> Array:
    if op.type == "Size":
        return np.array(int(np.prod(shape)), dtype=np.int64)
    return np.array(shape[_shape_window(op)], dtype=np.int64)


def _follow_values(facts: Facts, op: Op) -> bool:
    names = [name for name in op.inputs if name]
    if not op.is_standard or not op.is_evaluable or op.type == "Constant" or op.has_subgraph or not names:
        return False
    if not all(name in facts.values for name in names):
        return False
    outcome = evaluate(op, [facts.values[name] if name else None for name in op.inputs])
    if outcome is None or any(array.size > SMALL for array in outcome):
        return False
    for name, array in zip(op.outputs, outcome, strict=False):
        facts.values[name], facts.shapes[name] = array, array.shape
        facts.types[name] = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        _follow_origins(facts, op, name)
    facts.value_ops.append(op)
    return True


def _follow_origins(facts: Facts, op: Op, output: str) -> None:
    """Origins move with the elements through structural operators and gather in all others."""
    if not any(name in facts.origins for name in op.inputs):
        return
    if op.type == "ConstantOfShape":
        return  # every element is the same number, however many there are
    shape = facts.shapes[output]
    if op.type == "Cast":
        facts.origins[output] = facts.origins[op.inputs[0]]
        return
    if op.type in _MOVED:
        moved = range(len(op.inputs)) if op.type == "Concat" else _MOVED[op.type]
        arrays = [
            _origins_of(facts, name) if place in moved else facts.values[name] if name else None
            for place, name in enumerate(op.inputs)
        ]
        outcome = evaluate(op, arrays)
        if outcome is not None:
            facts.origins[output] = np.asarray(outcome[op.outputs.index(output)], dtype=np.int64)
            return
    every = frozenset().union(*(facts.origin_axes(name) for name in op.inputs))
    facts.origins[output] = np.full(shape, facts._extent_id(every), dtype=np.int64)


def _origins_of(facts: Facts, name: str) -> Origins:
    known = facts.origins.get(name)
    return np.zeros(facts.shapes[name], dtype=np.int64) if known is None else known


def evaluate(op: Op, inputs: Iterable[Array | None]) -> list[Array] | None:
    """The node's outputs by onnx's reference operators, or None where they can't tell."""
    feed = {name: value for name, value in zip(op.inputs, inputs, strict=True) if name}
    try:
        graph = onnx.helper.make_graph(
            [op.node],
            "node",
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in feed],
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in op.outputs if name],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", op.version)])
        outcome = ReferenceEvaluator(model).run(None, feed)
        are_arrays = all(isinstance(value, np.ndarray | np.generic) for value in outcome)
        return [np.asarray(array) for array in outcome] if are_arrays else None
    except Exception:  # any failure of the reference operators means "not known", never a wrong value
        return None


def _infer_types(facts: Facts, op: Op, model: onnx.ModelProto) -> None:
    if op.has_subgraph or not onnx.defs.has(op.type, op.version, op.domain):
        return
    known = facts.holders | {name: _type_proto(facts, name) for name in op.inputs if name in facts.types}
    if any(name and name not in known for name in op.inputs):
        return
    data = {name: onnx.numpy_helper.from_array(facts.values[name], name) for name in op.inputs if name in facts.values}
    try:
        schema = onnx.defs.get_schema(op.type, op.version, op.domain)
        found = onnx.shape_inference.infer_node_outputs(
            schema, _explicit(op), known, data, opset_imports=list(model.opset_import), ir_version=model.ir_version
        )
    except Exception:  # a node that onnx can't infer is not known; a barrier follows from that
        return
    for name, kind in found.items():
        if not is_tensor(kind):
            facts.holders[name] = kind
            continue
        tensor = kind.tensor_type
        facts.types[name] = tensor.elem_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            facts.shapes[name] = tuple(dim.dim_value for dim in tensor.shape.dim)


def _explicit(op: Op) -> onnx.NodeProto:
    """The node; of an STFT with its `onesided`, which onnx's inference takes for 0 where it is left out, not for 1."""
    if op.type != "STFT" or op.attr("onesided", None) is not None:
        return op.node
    node = onnx.NodeProto()
    node.CopyFrom(op.node)
    node.attribute.add(name="onesided", i=1, type=onnx.AttributeProto.INT)
    return node


def _type_proto(facts: Facts, name: str) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(facts.types[name], facts.shapes.get(name))


def _fill_in(
    facts: Facts, name: str, observed: Mapping[str, Seen], declared: Mapping[str, onnx.ValueInfoProto]
) -> None:
    """What the model declares or a run has shown, for nodes that inference doesn't know."""
    if name in declared and is_tensor(declared[name].type):
        tensor = declared[name].type.tensor_type
        facts.types.setdefault(name, tensor.elem_type)
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            facts.shapes[name] = tuple(dim.dim_value for dim in tensor.shape.dim)
            facts.declared.add(name)
    if name in observed:
        facts.shapes[name], kind = observed[name]
        facts.types.setdefault(name, kind)  # a run may widen it


def seen_in(array: Array) -> Seen:
    """What an array of a run shows."""
    return tuple(array.shape), onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
