"""Weights that stay in files: tensors of a model refer to bytes on disk, which are mapped when asked for.

A model with large weights is handled as its graph alone. Locations are written relative to the root of the file system
(`ROOT`), so that one folder, which runtimes want to be told, holds the user's data files and our own.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from snp_onnx.errors import ModelError
from snp_onnx.writing import Scratch

Array = npt.NDArray[Any]

ROOT = Path(os.path.abspath(os.sep))
"""Where locations start."""

LEAST = 64 * 2**10
"""Bytes of a weight that is worth a place outside the graph."""

_CHUNK = 16 * 2**20

WHOLE_BYTES = frozenset(range(TensorProto.FLOAT, TensorProto.BFLOAT16 + 1)) - {TensorProto.STRING}
"""Element types of one byte or more."""


_INSIDE = frozenset((TensorProto.INT64, TensorProto.BOOL))
"""Element types of sizes and masks, which shape inference reads."""


_HALVES = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))


def is_external(tensor: TensorProto) -> bool:
    """Whether the tensor's values lie in a file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def is_worthwhile(tensor: TensorProto) -> bool:
    """Whether the values of a tensor are better kept in a file."""
    return tensor.data_type in WHOLE_BYTES - _INSIDE and byte_count(tensor) >= LEAST


def has_external(model: onnx.ModelProto) -> bool:
    """Whether any weight of the model lies in a file."""
    return any(is_external(tensor) for tensor in model.graph.initializer)


def byte_count(tensor: TensorProto) -> int:
    """Bytes of a tensor's values, wherever they lie; 0 where that isn't known without reading them."""
    if is_external(tensor) or tensor.data_type in WHOLE_BYTES:
        return int(math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return len(tensor.raw_data)


def place_of(tensor: TensorProto) -> tuple[str, int, int | None]:
    """Where the values of an external tensor lie: the file's name, the offset and, if it says so, the length in bytes.

    Raises ValueError for what is no such place.
    """
    given = {entry.key: entry.value for entry in tensor.external_data}
    numbers = [int(given[key]) if given.get(key) else None for key in ("offset", "length")]
    if not given.get("location") or any(number is not None and not 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"location {given.get('location')!r}, offset {numbers[0]}, length {numbers[1]}")
    return given["location"], numbers[0] or 0, numbers[1]


_LISTS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def fault_of(tensor: TensorProto) -> str | None:
    """Why the values that a tensor holds can't be those of its shape; None where they may be."""
    if any(extent < 0 for extent in tensor.dims):
        return f"has the shape {tuple(tensor.dims)}"
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        if tensor.data_type not in WHOLE_BYTES:
            return None
        wanted = count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        return (
            f"holds {len(tensor.raw_data)} bytes, its shape wants {wanted}" if len(tensor.raw_data) != wanted else None
        )
    held = sum(len(getattr(tensor, name)) for name in _LISTS)
    is_packed = tensor.data_type not in WHOLE_BYTES | {TensorProto.STRING}
    each = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    if held == count * each or (is_packed and held):
        return None
    return f"holds {held} values, its shape wants {count}"


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initialisers as they are computed with: 16-bit floats as float32."""
    return sum(byte_count(t) * (2 if t.data_type in _HALVES else 1) for t in model.graph.initializer)


def bodies_of(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs that a control-flow node holds, each with the attribute that it is in and its place there."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from ((f"{attribute.name}{place}", body) for place, body in enumerate(attribute.graphs))


def every_tensor(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """All tensors that a graph holds: initialisers, those in attributes of nodes, and those of bodies."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
        for _, body in bodies_of(node):
            yield from every_tensor(body)


def array_of(tensor: TensorProto) -> Array:
    """A tensor's values; those in a file are mapped, read-only, not read."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    info: Any = ExternalDataInfo(tensor)
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if byte_count(tensor) == 0:
        return np.zeros(tuple(tensor.dims), kind)
    shape = tuple(tensor.dims)
    mapped: Array = np.memmap(ROOT / info.location, kind, "r", int(info.offset or 0), shape or (1,))
    return mapped.reshape(shape)


def chunks_of(tensor: TensorProto) -> Iterator[bytes]:
    """The bytes of a tensor kept as raw data or in a file, piece by piece."""
    if not is_external(tensor):
        yield tensor.raw_data
        return
    info: Any = ExternalDataInfo(tensor)
    with (ROOT / info.location).open("rb") as stream:
        stream.seek(int(info.offset or 0))
        left = byte_count(tensor)
        while left:
            block = stream.read(min(_CHUNK, left))
            if not block:
                raise ModelError(f"the data file /{info.location} became shorter while it was in use")
            left -= len(block)
            yield block


def refer(tensor: TensorProto, path: Path, offset: int) -> None:
    """Let a tensor, whose name, type and shape are set, stand for bytes of a file."""
    length = byte_count(tensor)
    for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": str(path.resolve().relative_to(ROOT)), "offset": str(offset), "length": str(length)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)


def tensor_of(name: str, array: Array) -> TensorProto:
    """A tensor of these values; one that refers to their file where they are mapped from one of their own."""
    path = _file_of(array)
    if path is None:
        return numpy_helper.from_array(np.asarray(array), name)
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    refer(tensor, path, 0)
    return tensor


def _file_of(array: Array) -> Path | None:
    """The file that holds just this array, if there is one."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    path = Path(array.filename)
    return path if path.is_file() and path.stat().st_size == array.nbytes else None


def release(array: Array) -> None:
    """Pages of a mapped array need not stay in memory; they are read again when asked for."""
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def copy_fields(source: Any, target: Any, but: str) -> None:
    """Copy all fields of a message but one: weights, which needn't be copied."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if isinstance(value, str | int | bytes | float):
            setattr(target, field.name, value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            getattr(target, field.name).CopyFrom(value)


def size_as_one_file(proto: onnx.ModelProto) -> int:
    """Bytes of the protobuf with all weights in it, counted without reading them: length by length."""
    bare = onnx.ModelProto()
    copy_fields(proto, bare, "graph")
    copy_fields(proto.graph, bare.graph, "initializer")
    size = bare.graph.ByteSize()
    for tensor in proto.graph.initializer:
        own = tensor.ByteSize()
        if is_external(tensor):
            alone = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            own = alone.ByteSize() + _field_size(byte_count(tensor))
        size += _field_size(own)
    bare.ClearField("graph")
    return int(bare.ByteSize()) + _field_size(size)


def _field_size(length: int) -> int:
    """Bytes of a protobuf field of so many bytes: a tag, the length seven bits a byte, the bytes themselves."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length


def hash_file(digest: hashlib._Hash, file: Path) -> None:
    """Add a file's bytes to a digest, a little at a time."""
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)


class Store:
    """A temporary folder of arrays, one a file, that lives as long as this object."""

    def __init__(self) -> None:
        self._folder = Scratch()
        self._count = 0

    @property
    def folder(self) -> Path:
        return self._folder.path

    def keep(self, array: Array) -> Array:
        """The same values, mapped from a file of their own; what is small, or kept already, is given back as it is."""
        if array.nbytes < LEAST or _file_of(array) is not None:
            return array
        path = self._write(array)
        return np.memmap(path, array.dtype, "r", shape=array.shape)

    def tensor(self, name: str, array: Array) -> TensorProto:
        """A tensor of these values, in a file where they are many."""
        like = TensorProto(data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        return tensor_of(name, self.keep(array)) if is_worthwhile(like) else numpy_helper.from_array(array, name)

    def take(self, tensor: TensorProto) -> None:
        """Move a tensor's values out of memory, in place."""
        if is_worthwhile(tensor) and not is_external(tensor):
            tensor.CopyFrom(self.tensor(tensor.name, numpy_helper.to_array(tensor)))

    def _write(self, array: Array) -> Path:
        path = self.folder / f"{self._count:06d}"
        self._count += 1
        free = shutil.disk_usage(self.folder).free
        if array.nbytes > free:
            raise self._full(f"needs {array.nbytes:,} bytes, {free:,} are free")
        try:
            with path.open("wb") as stream:
                for part in _parts(array):
                    stream.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise self._full(str(error)) from error
        return path

    def _full(self, reason: str) -> ModelError:
        return ModelError(f"cannot keep weights in {self.folder}: {reason}: set TMPDIR to a disk with room")

    def close(self) -> None:
        """Remove every file."""
        self._folder.close()


def _parts(array: Array) -> Iterator[Array]:
    """Rows of the first axis, a few at a time, so that a strided array is never copied whole."""
    if array.ndim == 0 or array.nbytes <= _CHUNK:
        yield array
        return
    rows = max(1, _CHUNK * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
