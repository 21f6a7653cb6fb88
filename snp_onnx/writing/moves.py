"""Moves of drafts to their names, and back."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Move:
    """A draft in a scratch folder (`room`) to a name in the folder around it; a removal goes the other way."""

    draft: str
    name: str
    is_removal: bool = False
    inode: int = 0
    """Of what is moved: where something else has the name, the move was made."""

    def source(self, room: Path) -> Path:
        return room.parent / self.name if self.is_removal else room / self.draft

    def seen(self, room: Path) -> Move:
        """The same, with the inode of what is there to be moved."""
        return replace(self, inode=self.source(room).lstat().st_ino)

    def is_open(self, room: Path) -> bool:
        """Whether it is still to be made."""
        source = self.source(room)
        return os.path.lexists(source) and source.lstat().st_ino == self.inode

    def _aside(self, room: Path) -> Path:
        """Where that is which had the name before."""
        return room / (self.draft if self.is_removal else f"{self.draft}.old")

    def make(self, room: Path) -> None:
        """Move; what had the name before stays in the scratch folder.

        A file takes the place of a file in one step everywhere, a folder that of a folder where the system can
        exchange them (Linux, macOS); elsewhere the name is gone for a moment.
        """
        source, target, aside = self.source(room), room.parent / self.name, self._aside(room)
        if self.is_removal:
            os.rename(source, aside)
        elif not _is_folder(source) and not _is_folder(target):
            with suppress(OSError):  # a file system without links: then nothing can be put back
                os.link(target, aside, follow_symlinks=False)
            os.replace(source, target)
        elif _is_folder(source) and _is_folder(target) and _exchanged(source, target):
            os.rename(source, aside)
        else:
            if os.path.lexists(target):
                os.rename(target, aside)
            os.rename(source, target)

    def take_back(self, room: Path) -> None:
        """What had the name before has it again; also where the move failed on its way."""
        draft, target, aside = room / self.draft, room.parent / self.name, self._aside(room)
        is_made = not self.is_removal and os.path.lexists(target) and target.lstat().st_ino == self.inode
        if os.path.lexists(aside):
            if is_made and (_is_folder(target) or _is_folder(aside)):
                os.rename(target, draft)
            os.replace(aside, target)
        elif is_made and not (os.path.lexists(draft) and _exchanged(target, draft)):
            os.rename(target, draft)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _exchanged(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system has no such step."""
    if os.name != "posix":
        return False
    names = os.fsencode(one), os.fsencode(other)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "renameat2"):  # Linux: relative to the working directory (-100), RENAME_EXCHANGE (2)
        return bool(libc.renameat2(-100, names[0], -100, names[1], 2) == 0)
    if hasattr(libc, "renamex_np"):  # macOS: RENAME_SWAP (2)
        return bool(libc.renamex_np(*names, 2) == 0)
    return False
