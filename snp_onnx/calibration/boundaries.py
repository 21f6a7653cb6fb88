"""Boundary activations: left by one segment, read by the next, gone when nobody needs them.

A fixed amount stays in memory; what is more goes to files that are mapped when read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from snp_onnx.errors import CalibrationError
from snp_onnx.writing import Scratch

ALIGNMENT = 64
IN_MEMORY = 256 * 2**20
"""Bytes that may stay in memory: enough for the narrow end of a network, where there are most layers."""


@dataclass(slots=True)
class _Tensor:
    """Its batches: an array, or where one lies in the file."""

    dtype: np.dtype[Any]
    batches: list[NDArray[Any] | tuple[int, tuple[int, ...]]] = field(default_factory=list)
    held: int = 0
    file: BinaryIO | None = None

    def write(self, values: NDArray[Any], path: Path) -> None:
        if self.file is None:
            self.file = path.open("w+b")
        self.batches.append((self.file.tell(), values.shape))
        self.file.write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
        self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))

    def arrays(self) -> Iterator[NDArray[Any]]:
        whole: mmap.mmap | bytes = b""
        if self.file is not None and self.file.tell():
            self.file.flush()
            whole = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        for batch in self.batches:
            if isinstance(batch, np.ndarray):
                yield batch
            else:
                start, shape = batch
                count = int(np.prod(shape))
                yield np.frombuffer(whole, self.dtype, count, start if count else 0).reshape(shape)


class Boundaries:
    """The tensors by name; a context manager that removes all files. Batches come in order."""

    __slots__ = ("_folder", "_held", "_limit", "_made", "_tensors")

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._folder = Scratch()
        self._tensors: dict[str, _Tensor] = {}
        self._limit, self._held, self._made = in_memory, 0, 0

    def add(self, batch: int, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Keep what a segment gave for the next batch; a disk that is full is a CalibrationError."""
        for name, values in tensors.items():
            tensor = self._tensors.setdefault(name, _Tensor(values.dtype))
            assert len(tensor.batches) == batch
            if self._held + values.nbytes <= self._limit:
                tensor.batches.append(values)
                tensor.held += values.nbytes
                self._held += values.nbytes
            else:
                self._write(tensor, values)

    def _write(self, tensor: _Tensor, values: NDArray[Any]) -> None:
        try:
            self._made += tensor.file is None
            tensor.write(values, self._folder.path / f"{self._made:06d}")
        except OSError as error:
            raise CalibrationError(
                f"cannot keep activations in {self._folder.path}: {error}; "
                "set TMPDIR to a disk with room, or give fewer samples"
            ) from error

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def names(self) -> list[str]:
        """The tensors that are kept."""
        return list(self._tensors)

    @property
    def count(self) -> int:
        """How many batches there are of each of them."""
        return max((len(tensor.batches) for tensor in self._tensors.values()), default=0)

    def dtype(self, name: str) -> np.dtype[Any]:
        """The element type of a tensor that is kept."""
        return self._tensors[name].dtype

    def feeds(self, names: Iterable[str], every: int = 1) -> Iterator[dict[str, NDArray[Any]]]:
        """These tensors, batch by batch or only every so many, not to be written to."""
        wanted = list(names)
        for number, arrays in enumerate(zip(*(self._tensors[name].arrays() for name in wanted), strict=True)):
            if number % every == 0:
                yield dict(zip(wanted, arrays, strict=True))

    def retain(self, names: Iterable[str]) -> None:
        """Remove all other tensors."""
        self.drop(set(self._tensors) - set(names))

    def drop(self, names: Iterable[str]) -> None:
        """Remove these tensors, where they are kept."""
        for name in set(self._tensors) & set(names):
            tensor = self._tensors.pop(name)
            self._held -= tensor.held
            if tensor.file is not None:
                tensor.file.close()
                Path(tensor.file.name).unlink()

    def close(self) -> None:
        self.retain(())
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
