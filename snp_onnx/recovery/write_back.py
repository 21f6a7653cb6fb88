"""Write-back: trained weights into the graph they came from, which is otherwise the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from snp_onnx.external import Store, is_external

_FILLED = ("raw_data", "float_data", "double_data", "int32_data", "external_data", "data_location")


def with_weights(
    model: onnx.ModelProto, weights: Mapping[str, npt.NDArray[np.generic]], store: Store | None = None
) -> onnx.ModelProto:
    """A copy of the model with these initialisers and Constant nodes replaced, in their own element types.

    Names, nodes, operator sets, inputs, outputs, documentation and all other tensors stay. Weights of a large model go
    to the files of `store`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    left = dict(weights)
    for tensor in copy.graph.initializer:
        if tensor.name in left:
            _fill(tensor, left.pop(tensor.name), store if is_external(tensor) else None)
    for node in copy.graph.node:
        if node.op_type == "Constant" and node.output[0] in left:
            (attribute,) = (a for a in node.attribute if a.name in ("value", "value_floats"))
            values = left.pop(node.output[0])
            if attribute.name == "value":
                _fill(attribute.t, values, None)
            else:
                attribute.floats[:] = [float(value) for value in values]
    assert not left, f"weights that the graph doesn't have: {sorted(left)}"
    return copy


def _fill(tensor: onnx.TensorProto, values: npt.NDArray[np.generic], store: Store | None) -> None:
    """The values in place of the tensor's own; name, shape, type and documentation stay."""
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    array = np.asarray(values.reshape(tuple(tensor.dims)).astype(kind), order="C")
    made = store.tensor(tensor.name, array) if store is not None else numpy_helper.from_array(array, tensor.name)
    for name in _FILLED:
        tensor.ClearField(name)
    for name, content in ((f.name, v) for f, v in made.ListFields() if f.name in _FILLED):
        if name == "external_data":
            tensor.external_data.extend(content)
        else:
            setattr(tensor, name, content)
