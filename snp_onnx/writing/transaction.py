"""All files of a result as one: written beside their places, then moved there together.

Drafts lie in a hidden folder beside what they are to replace, one for each folder that gets any. Where several names
change, the moves are written down first (`records`): a run that is killed before leaves the old files, and one that is
killed while it moves leaves the rest to the next run, which makes those moves before it reads or writes in the folder.
Signals wait while files are moved, and so do other runs that write to the same folders.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from snp_onnx.writing.moves import Move
from snp_onnx.writing.places import followed
from snp_onnx.writing.records import drop_records, finish, write_records
from snp_onnx.writing.scratch import Scratch, clear_leftovers, scratch_folders

_PATIENCE = 60.0
"""Seconds to wait for another run that moves files in the same folder; it takes milliseconds."""


class Transaction:
    """Files that are replaced together when the block ends without an error, or not at all.

    `moved` is called as soon as they are, before any signal that came meanwhile is delivered.
    """

    def __init__(self, moved: Callable[[], None] | None = None) -> None:
        self._rooms: dict[Path, Scratch] = {}
        self._moves: dict[Path, list[Move]] = {}
        self._stale: list[tuple[Path, re.Pattern[str], str]] = []
        self._moved = moved
        self._count = 0

    def draft(self, folder: Path) -> Path:
        """A path for something new, on the file system of `folder`, to be `put` there."""
        folder = Path(os.path.realpath(folder))
        if folder not in self._rooms:
            settle(folder)
            self._rooms[folder], self._moves[folder] = Scratch(folder), []
        self._count += 1
        return self._rooms[folder].path / str(self._count)

    def put(self, draft: Path, target: Path) -> None:
        """Let a draft, a file or a folder, take the place of a name in the folder that it was asked for."""
        self._moves[draft.parent.parent].append(Move(draft.name, target.name))

    def new(self, target: Path) -> Path:
        """Where to write what is to stand at `target`; where that is a link, what it points to is replaced."""
        target = followed(target)
        draft = self.draft(target.parent)
        self.put(draft, target)
        return draft

    def remove(self, target: Path) -> None:
        """Let a file or a folder go, if it is there."""
        draft = self.draft(target.parent)
        self._moves[draft.parent.parent].append(Move(draft.name, target.name, is_removal=True))

    def remove_others(self, folder: Path, pattern: str, kept: str = "") -> None:
        """Let all files of a folder go whose names match, but for one; those are meant that are there at the end."""
        self._stale.append((self.draft(folder).parent.parent, re.compile(pattern), kept))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._close()

    def _close(self) -> None:
        for room in self._rooms.values():
            room.close()

    def _commit(self) -> None:
        for folder, moves in self._moves.items():
            for move in moves:
                if not move.is_removal:
                    _make_ready(self._rooms[folder].path / move.draft, folder / move.name)
        with ExitStack() as held:
            held.enter_context(held_signals())
            for folder in sorted(self._rooms):
                held.enter_context(_locked(folder))
                clear_leftovers(folder, finish)
            _move_all(self._known())
            if self._moved is not None:
                self._moved()
            self._close()

    def _known(self) -> dict[Path, list[Move]]:
        """What is moved, by scratch folder: removals last, and only of what is there."""
        for folder, pattern, kept in self._stale:
            for path in sorted(folder.iterdir()):
                if path.name != kept and pattern.fullmatch(path.name) and path.is_file():
                    self.remove(path)
        found = {}
        for folder, moves in self._moves.items():
            room = self._rooms[folder].path
            there = [move for move in moves if os.path.lexists(move.source(room))]
            if there:
                found[room] = [move.seen(room) for move in sorted(there, key=lambda move: move.is_removal)]
        return found


def _move_all(moves: dict[Path, list[Move]]) -> None:
    """Move everything; where that fails, what stood there before is put back."""
    if sum(len(several) for several in moves.values()) > 1:
        write_records(moves)
    done: list[tuple[Path, Move]] = []
    try:
        for room in reversed(moves):  # the one whose record decides comes last
            for move in moves[room]:
                done.append((room, move))
                move.make(room)
    except BaseException:
        for room, move in reversed(done):
            with suppress(OSError):
                move.take_back(room)
        drop_records(list(moves))
        raise


@contextmanager
def joined(within: Transaction | None) -> Iterator[Transaction]:
    """The transaction that a caller has begun, or one for this block alone."""
    if within is not None:
        yield within
        return
    with Transaction() as own:
        yield own


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A path beside `output` for its new content, which takes its place only when the block ends without an error."""
    with Transaction() as files:
        yield files.new(output)


def settle(folder: Path) -> None:
    """Make the moves that a killed run has left to do in a folder, and remove what else it left there."""
    with suppress(OSError):
        if scratch_folders(folder, is_hidden=True):
            with _locked(folder):
                clear_leftovers(folder, finish)


@contextmanager
def held_signals() -> Iterator[None]:
    """Signals that end a process are delivered when the block ends."""
    came: list[int] = []
    before: dict[int, Any] = {}
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    try:
        for number in numbers if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _make_ready(draft: Path, target: Path) -> None:
    """Give a draft the permissions of what it replaces, or those of something new, and have it on the disk."""
    mask = os.umask(0)
    os.umask(mask)
    if draft.is_dir():
        draft.chmod(0o777 & ~mask)
        return
    with draft.open("rb") as stream:
        os.fsync(stream.fileno())
    draft.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~mask)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """No other run moves files in a folder meanwhile; where the system has no such lock, runs go without."""
    handle = None
    with suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            else:
                break
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
