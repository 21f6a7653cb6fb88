"""Temporary folders that a killed run leaves to the next one: each is locked by its process while that lives."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

_SHOWN, _HIDDEN = "snp_onnx-", ".snp_onnx-"
_NAME = re.compile(r"(\.?)snp_onnx-[a-z0-9_]{8}")
_LOCK = "snp_onnx.lock"
_GRACE = 60.0
"""Seconds after which a folder without a lock is a leftover: its process died before there was one."""


class Scratch:
    """A new temporary folder, locked by this process; it goes with `close`, with this object, or at exit.

    It lies in the system's folder for temporary files, of which those of dead processes go first, or hidden in `home`.
    """

    def __init__(self, home: Path | None = None) -> None:
        if home is None:
            clear_leftovers(Path(tempfile.gettempdir()))
        self.path, lock = _new_folder(home)
        self._close = weakref.finalize(self, _discard, self.path, lock)

    def close(self) -> None:
        """Remove it with all that is in it; closing twice is fine."""
        self._close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_hidden_scratch(path: Path) -> bool:
    """Whether a folder has the name of one that lies beside what is written.

    >>> is_hidden_scratch(Path("out/.snp_onnx-k3v_09ab")), is_hidden_scratch(Path("out/.snp_onnx-1.0"))
    (True, False)
    """
    found = _NAME.fullmatch(path.name)
    return found is not None and bool(found[1])


def clear_leftovers(home: Path, finish: Callable[[Path], None] | None = None) -> None:
    """Remove the folders in `home` whose processes are dead: the hidden ones, `finish` called on each, or the others.

    What can't be removed stays.
    """
    with suppress(OSError):
        for path in scratch_folders(home, is_hidden=finish is not None):
            _clear(path, finish)


def scratch_folders(home: Path, is_hidden: bool) -> list[Path]:
    """All of one kind in a folder, links left out."""
    with os.scandir(home) as entries:
        found = [(entry, _NAME.fullmatch(entry.name)) for entry in entries]
        return [
            Path(entry.path)
            for entry, name in found
            if name is not None and bool(name[1]) == is_hidden and entry.is_dir(follow_symlinks=False)
        ]


def _clear(path: Path, finish: Callable[[Path], None] | None) -> None:
    with abandoned(path) as is_left:
        if is_left:
            if finish is not None:
                finish(path)
            _remove(path)
    with suppress(OSError):
        if not (path / _LOCK).exists() and time.time() - path.stat().st_mtime > _GRACE:
            path.rmdir()


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether the process that made a folder is dead; nobody else clears the folder while the block lasts."""
    lock = _locked(path / _LOCK)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _new_folder(home: Path | None) -> tuple[Path, int | None]:
    """A folder and its lock; another one where a run that clears leftovers was quicker than the lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_SHOWN if home is None else _HIDDEN, dir=home))
        try:
            lock = _locked(path / _LOCK, os.O_CREAT | os.O_EXCL)
        except BaseException:  # an interruption
            _remove(path)
            raise
        if lock is None or os.path.exists(path / _LOCK):
            return path, lock
        os.close(lock)


def _locked(path: Path, flags: int = 0) -> int | None:
    """A descriptor that holds the lock of a file; None where another process does, or the system knows no such lock."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | flags, 0o600)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if flags else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _discard(path: Path, lock: int | None) -> None:
    _remove(path)
    if lock is not None:
        os.close(lock)


def _remove(path: Path) -> None:
    """Remove a folder, its lock last: one that is half removed is found again."""
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _LOCK:
                os.unlink(entry.path)
    shutil.rmtree(path, ignore_errors=True)
