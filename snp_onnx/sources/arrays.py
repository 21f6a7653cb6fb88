"""Arrays whose shape is known before their rows are read: in memory, in a `.npy` file, or packed in an `.npz`."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array, is_floating
from snp_onnx.sources.spool import Spool

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_BLOCK = 1 << 16


class Readable(Protocol):
    """An array that may be read again and again, some rows of axis 0 at a time, or whole (`rows=None`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def read(self, rows: Array | None) -> Array: ...


class RowArray(Protocol):
    """An array of a source; `keep` makes it readable again and again, at most the first `rows` of it (`None`: all)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def keep(self, spool: Spool, rows: int | None) -> Readable: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A `.npy` file; mapped anew for each read, so that thousands of them need no open files."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, rows: Array | None) -> Array:
        with _unreadable(self.path):
            mapped = np.load(self.path, mmap_mode="r", allow_pickle=False)
            return np.array(mapped if rows is None else mapped[rows])

    def keep(self, spool: Spool, rows: int | None) -> Readable:
        return self


@dataclass(frozen=True, slots=True)
class Held:
    """An array that its owner keeps in memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, rows: Array | None) -> Array:
        return self.array if rows is None else np.asarray(self.array[rows])

    def keep(self, spool: Spool, rows: int | None) -> Readable:
        return self


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of an array, as an array of their own."""

    array: Readable
    rows: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def read(self, rows: Array | None) -> Array:
        return self.array.read(self.rows if rows is None else self.rows[rows])


@dataclass(frozen=True, slots=True)
class Fleeting:
    """An array that is gone after this feed: kept means spooled."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def keep(self, spool: Spool, rows: int | None) -> Readable:
        array = self.array if rows is None else self.array[:rows]
        if array.dtype.kind == "V" and is_floating(array.dtype):  # .npy files don't know bfloat16
            array = array.astype(np.float32)
        return Stored(spool.save(array), array.shape, array.dtype)


@dataclass(frozen=True, slots=True)
class Zipped:
    """A member of an `.npz` file: kept means streamed to a spooled `.npy`, so that memory stays constant."""

    archive: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def keep(self, spool: Spool, rows: int | None) -> Readable:
        with _unreadable(self.archive), zipfile.ZipFile(self.archive) as archive, archive.open(self.member) as packed:
            shape, fortran_order, dtype = _read_header(packed)
            if rows is not None and not fortran_order:
                shape = (min(rows, shape[0]), *shape[1:])
            with spool.write() as path, path.open("wb") as target:
                header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": fortran_order, "shape": shape}
                npy.write_array_header_2_0(target, header)
                _copy(packed, target, math.prod(shape) * dtype.itemsize)
        return Stored(path, shape, dtype)


def _copy(packed: IO[bytes], target: IO[bytes], size: int) -> None:
    while size:
        block = packed.read(min(size, _BLOCK))
        if not block:
            raise ValueError("it ends before its last row")
        target.write(block)
        size -= len(block)


def open_npy(path: Path) -> Stored:
    """The array of a `.npy` file; reads the header only."""
    with _unreadable(path), path.open("rb") as file:
        shape, _, dtype = _read_header(file)
    return Stored(path, shape, dtype)


def open_npz(path: Path) -> dict[str, Zipped]:
    """The arrays of an `.npz` file by name; reads the headers only."""
    found = {}
    with _unreadable(path), zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as file:
                    shape, _, dtype = _read_header(file)
                found[member.removesuffix(".npy")] = Zipped(path, member, shape, dtype)
    return found


def as_array(name: str, value: object) -> Array:
    """Any array-like as an array; what numpy cannot convert, ragged lists say, is a `CalibrationError`.

    Strings come as numpy's own, which files can hold, in whatever form they are given.
    """
    try:
        return _as_text(np.asarray(_on_host(value)))
    except (ValueError, TypeError, RuntimeError) as error:
        raise CalibrationError(f"array {name!r} cannot be read as a numpy array: {error}; give numpy arrays") from error


def _as_text(array: Array) -> Array:
    is_text = array.dtype.kind == "T" or (array.dtype.kind == "O" and array.size > 0)
    if is_text and all(isinstance(one, str) for one in array.flat):
        return np.array(array.tolist(), dtype=str).reshape(array.shape)
    return array


def _on_host(value: Any) -> Any:
    """A torch tensor without its gradient, in memory, of a type that numpy knows; polygraphy's `DeviceView` copied."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return value.float() if str(value.dtype).startswith(("torch.bfloat16", "torch.float8")) else value
    if hasattr(value, "numpy") and not hasattr(value, "__array__"):
        return value.numpy()
    return value


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    if version not in _HEADER_READERS:
        raise ValueError(f"its .npy version is {version}")
    shape, fortran_order, dtype = _HEADER_READERS[version](file)
    if any(extent < 0 for extent in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, fortran_order, dtype


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except CalibrationError:
        raise
    except Exception as error:  # what numpy, zipfile and zlib raise for damaged bytes is open-ended
        raise CalibrationError(f"cannot read {path}: {error}; write it anew with numpy.save or numpy.savez") from error
