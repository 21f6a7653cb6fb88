"""Models too large for one protobuf message, written beside an external-data file, without a second copy in memory."""

from pathlib import Path

import onnx
from onnx import TensorProto

from snp_onnx.external import copy_fields

LARGE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GiB
ALIGNMENT = 4096  # lets the runtime map the file


def is_large(model: onnx.ModelProto, limit: int = LARGE) -> bool:
    """Whether the weights alone fill more than `limit` bytes."""
    return sum(len(tensor.raw_data) + 4 * len(tensor.float_data) for tensor in model.graph.initializer) > limit


def spill(model: onnx.ModelProto, folder: Path) -> Path:
    """Write `model` into `folder` as model.onnx and weights.bin; the model itself is not touched."""
    slim = onnx.ModelProto()
    copy_fields(model, slim, "graph")
    copy_fields(model.graph, slim.graph, "initializer")
    with (folder / "weights.bin").open("wb") as weights:
        for tensor in model.graph.initializer:
            written = slim.graph.initializer.add()
            raw = tensor.raw_data or (onnx.numpy_helper.to_array(tensor).tobytes() if tensor.float_data else b"")
            if len(raw) < ALIGNMENT:
                written.CopyFrom(tensor)
                continue
            weights.write(b"\0" * (-weights.tell() % ALIGNMENT))
            _point_outside(written, tensor, weights.tell(), len(raw))
            weights.write(raw)
    path = folder / "model.onnx"
    path.write_bytes(slim.SerializeToString())
    return path


def _point_outside(written: TensorProto, tensor: TensorProto, offset: int, length: int) -> None:
    written.name, written.data_type = tensor.name, tensor.data_type
    written.dims.extend(tensor.dims)
    written.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": str(offset), "length": str(length)}.items():
        written.external_data.add(key=key, value=value)
