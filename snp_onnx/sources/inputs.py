"""What a model wants to be fed: its true inputs, their batch axis and their image layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx.errors import ModelError

Array = NDArray[Any]
Layout = Literal["nchw", "nhwc"]

_LOOK_UPS: Mapping[str, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        "Gather": ((0, 1),),
        "GatherBlockQuantized": ((0, 1),),
        "EmbedLayerNormalization": ((2, 0), (4, 1), (3, 7)),
    }
)
"""Operators that look numbers up in tables: the places of a table among the inputs, and of the numbers."""

_MOVED = frozenset(("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice"))
"""Operators that leave numbers what they are."""

_KEPT = frozenset(("Identity", "Cast", "DequantizeLinear"))
"""Operators behind which a table has as many rows as before."""

_IMAGE_CHANNELS = (3, 1, 4)  # the likeliest first


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input; `None` in the shape is a dynamic dimension, a shape of `None` an unknown rank.

    `symbols` are the names of dynamic dimensions, "" where one has none and for a fixed one. `below` is what integers
    must stay below because they are looked up in a table of so many rows; None where nothing is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    symbols: tuple[str, ...] = field(default=(), compare=False)
    below: int | None = field(default=None, compare=False)


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The true inputs in graph order, but for sequences; initialisers that are also listed as inputs are left out.

    An optional tensor is fed as a tensor.
    """
    initialisers = {tensor.name for tensor in model.graph.initializer}
    initialisers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    rows = looked_up(model.graph)
    values = [value for value in model.graph.input if value.name not in initialisers]
    return tuple(_spec(value, rows.get(value.name)) for value in values if _tensor_type(value) is not None)


def require_tensors(model: onnx.ModelProto) -> None:
    """ModelError for an input that no array can be given to."""
    for value in model.graph.input:
        tensor = _tensor_type(value)
        if tensor is None or not tensor.elem_type:
            raise ModelError(
                f"input {value.name!r} is not a tensor of a known type; only tensor inputs can be calibrated"
            )


def _tensor_type(value: onnx.ValueInfoProto) -> onnx.TypeProto.Tensor | None:
    """The type of a tensor, or of the tensor that an optional holds; None for anything else."""
    kind = value.type.optional_type.elem_type if value.type.HasField("optional_type") else value.type
    return kind.tensor_type if kind.HasField("tensor_type") else None


def looked_up(graph: onnx.GraphProto) -> dict[str, int]:
    """For inputs that pick rows of constant tables, as token numbers do: the rows of the smallest one."""
    extents = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    source = {value.name: value.name for value in graph.input if value.name not in extents}
    found: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            extents[node.output[0]] = tuple(node.attribute[0].t.dims)
        elif node.op_type in _MOVED and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type in _KEPT and node.input[0] in extents:
            extents[node.output[0]] = extents[node.input[0]]
        for table, rows in _LOOK_UPS.get(node.op_type, ()):
            names = [node.input[place] if place < len(node.input) else "" for place in (table, rows)]
            if extents.get(names[0]) and names[1] in source:
                axis = next((a.i for a in node.attribute if a.name in ("axis", "gather_axis")), 0)
                name, extent = source[names[1]], extents[names[0]][axis]
                found[name] = min(extent, found.get(name, extent))
    return found


def _spec(value: onnx.ValueInfoProto, below: int | None) -> InputSpec:
    tensor = _tensor_type(value)
    assert tensor is not None
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None, below=below)
    dims = tensor.shape.dim
    return InputSpec(value.name, dtype, tuple(map(_dimension, dims)), tuple(dim.dim_param for dim in dims), below)


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    is_static = dim.HasField("dim_value") and dim.dim_value >= 0  # some exporters write -1 for any extent
    return dim.dim_value if is_static else None


def has_batch_axis(specs: Sequence[InputSpec]) -> bool:
    """Every input has an axis 0: all dynamic (an unknown rank counts as that) or all the same number, but not 0."""
    if not specs or any(spec.shape == () for spec in specs):
        return False
    batches = {_batch(spec) for spec in specs}
    return len(batches) == 1 and 0 not in batches


def repeats_batch_symbol(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the symbol of axis 0 names another axis too, as of an adjacency matrix (V, V).

    Some exporters give one name to all dynamic axes: it counts only if the axes have the same size in `shapes`.
    """
    sizes = {spec.symbols[0]: shapes[spec.name][0] for spec in specs if spec.symbols and shapes.get(spec.name)}
    return any(
        symbol and sizes.get(symbol) == size
        for spec in specs
        for symbol, size in zip(spec.symbols[1:], shapes.get(spec.name, ())[1:], strict=False)
    )


def fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    """The batch size that the model insists on, or `None` if it is dynamic or the model has no batch axis."""
    return _batch(specs[0]) if has_batch_axis(specs) else None


def _batch(spec: InputSpec) -> int | None:
    return spec.shape[0] if spec.shape else None


def image_layout(spec: InputSpec) -> tuple[Layout, bool]:
    """The layout of a 4-D input, and whether static channels (1, 3 or 4) say so; NCHW where nothing does."""
    if spec.shape is not None and len(spec.shape) == 4:
        for channels in _IMAGE_CHANNELS:
            if channels in (spec.shape[1], spec.shape[3]):
                return ("nchw" if channels == spec.shape[1] else "nhwc"), True
    return "nchw", False


def expected_shape(spec: InputSpec, batched: bool) -> str:
    """The shape as errors show it: `N` is the batch axis, `?` a dynamic dimension."""
    if spec.shape is None:
        return "(any)"
    names = ["?" if dim is None else str(dim) for dim in spec.shape]
    if batched:
        names[0] = "N"
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether the type is a real floating-point type, bfloat16 and the 8-bit floats included."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def is_text(dtype: np.dtype[Any]) -> bool:
    """Whether the type is of strings: as a model takes them (Python objects), or as files hold them."""
    return dtype.kind in "OUST"


def is_integral(dtype: np.dtype[Any]) -> bool:
    """Whether the type is an integer or a bool, the 4-bit integers included."""
    return dtype.kind in "iub" or (dtype.kind == "V" and "int" in dtype.name)
