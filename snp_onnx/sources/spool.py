"""A temporary folder for what can be read only once; made when first needed, gone after `close`."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array
from snp_onnx.writing import Scratch


class Spool:
    """Files of one `Samples`; names are counted, never taken from the source. Use from one thread."""

    __slots__ = ("_folder", "_numbers")

    def __init__(self) -> None:
        self._folder: Scratch | None = None
        self._numbers = count()

    @property
    def folder(self) -> Path | None:
        """Where the files are, or `None` while nothing was spooled."""
        return None if self._folder is None else self._folder.path

    @contextmanager
    def write(self) -> Iterator[Path]:
        """A path for a new file; a disk that is full or read-only is a `CalibrationError`."""
        try:
            if self._folder is None:
                self._folder = Scratch()
            yield self._folder.path / f"{next(self._numbers):06d}.npy"
        except OSError as error:
            where = self.folder or "a temporary folder"
            raise CalibrationError(
                f"cannot spool samples to {where}: {error}; set TMPDIR to a disk with room"
            ) from error

    def save(self, array: Array) -> Path:
        """Write one array, return where."""
        with self.write() as path:
            np.save(path, array, allow_pickle=False)
        return path

    def close(self) -> None:
        """Remove the folder; closing twice is fine."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None
