"""What a model wants to be fed: its true inputs, their batch axis and their image layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx.errors import ModelError

Array = NDArray[Any]
Layout = Literal["nchw", "nhwc"]

_IMAGE_CHANNELS = (3, 1, 4)  # the likeliest first


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input; `None` in the shape is a dynamic dimension, a shape of `None` an unknown rank.

    `symbols` are the names of dynamic dimensions, "" where one has none and for a fixed one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None
    symbols: tuple[str, ...] = field(default=(), compare=False)


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The true inputs in graph order: initialisers that are also listed as inputs are left out."""
    initialisers = {tensor.name for tensor in model.graph.initializer}
    initialisers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in initialisers)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.elem_type:
        raise ModelError(f"input {value.name!r} is not a tensor of a known type; only tensor inputs can be calibrated")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return InputSpec(value.name, dtype, None)
    dims = tensor.shape.dim
    return InputSpec(value.name, dtype, tuple(map(_dimension, dims)), tuple(dim.dim_param for dim in dims))


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    is_static = dim.HasField("dim_value") and dim.dim_value > 0
    return dim.dim_value if is_static else None


def has_batch_axis(specs: Sequence[InputSpec]) -> bool:
    """Every input has an axis 0: all dynamic (an unknown rank counts as that) or all the same number."""
    if not specs or any(spec.shape == () for spec in specs):
        return False
    return len({_batch(spec) for spec in specs}) == 1


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


def is_integral(dtype: np.dtype[Any]) -> bool:
    """Whether the type is an integer or a bool, the 4-bit integers included."""
    return dtype.kind in "iub" or (dtype.kind == "V" and "int" in dtype.name)
