"""Records of moves: what a run that is killed has left to do, for the next one.

Every scratch folder with moves has one. That of the first folder is made last and decides: without it the files of a
dead run are dropped, with it its moves are made. A record moves nothing but between its scratch folder and the folder
around that, whatever it says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snp_onnx.writing.moves import Move
from snp_onnx.writing.scratch import abandoned, is_hidden_scratch

_NAME = "moves.json"
_MOST_BYTES = 2**20
"""Of a record that is read."""


def write_records(moves: Mapping[Path, Sequence[Move]]) -> None:
    """Write down the moves of every scratch folder; those of the first one, which decide, last."""
    first, *others = moves
    for room in (*others, first):
        known = {
            "first": "" if room == first else os.path.relpath(first, room.parent),
            "others": [os.path.relpath(other, room.parent) for other in others] if room == first else [],
            "moves": [asdict(move) for move in moves[room]],
        }
        draft = room / f"{_NAME}.new"
        with draft.open("w", encoding="ascii") as stream:
            json.dump(known, stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.rename(room / _NAME)


def drop_records(rooms: Sequence[Path]) -> None:
    """What was decided no longer is."""
    for room in rooms:
        (room / _NAME).unlink(missing_ok=True)


def finish(room: Path) -> None:
    """Make the moves that a dead process had decided on; none where it hadn't, or where a record is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        known = _read(room)
        if known["first"]:
            _read(_room_at(room, known["first"]))  # which decides
        for name in known["others"]:
            with suppress(OSError, ValueError):
                _finish_other(_room_at(room, name))
        _make_moves(room, known)


def _finish_other(room: Path) -> None:
    with abandoned(room) as is_left:
        if is_left:
            _make_moves(room, _read(room))


def _read(room: Path) -> dict[str, Any]:
    """A record; OSError or ValueError where there is none."""
    path = room / _NAME
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is no record")
    found = json.loads(path.read_text(encoding="ascii"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no record")
    return found


def _room_at(room: Path, name: str) -> Path:
    """Another scratch folder that a record names; ValueError for what isn't one."""
    found = Path(os.path.normpath(room.parent / name))
    if found == room or not is_hidden_scratch(found) or found.is_symlink() or not found.is_dir():
        raise ValueError(f"{found} is no scratch folder")
    return found


def _make_moves(room: Path, known: Mapping[str, Any]) -> None:
    moves = [Move(**entry) for entry in known["moves"]]
    for move in moves:
        if not all(_is_plain(name) for name in (move.draft, move.name)):
            raise ValueError(f"{room}: a move to another folder")
    for move in moves:
        if move.is_open(room):
            move.make(room)


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..")
