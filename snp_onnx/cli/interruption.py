"""Ctrl-C, SIGTERM and SIGHUP: what was begun is cleaned up, and one line says what was written."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from os import _exit as leave  # as it is now: a loader of the user is given another one
from pathlib import Path
from types import FrameType

from snp_onnx.errors import PlanError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(slots=True)
class Interruption:
    """What an interrupted run has to say; commands keep it true."""

    number: int = 0
    """The signal that came; 0 while none did."""
    is_written: bool = False
    """Whether all files of the result are in their places."""
    checkpoint: Path | None = None
    """Where the state of a training goes."""
    has_stdout: bool = True
    is_told: bool = False

    @property
    def code(self) -> int:
        """The exit code: that of the shell for a process that the signal ended."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def said(self) -> str:
        if self.is_written:
            return "interrupted: everything was written"
        if self.checkpoint is not None and self.checkpoint.exists():
            return f"interrupted: nothing but {self.checkpoint} was written: --resume goes on from it"
        return "interrupted: nothing was written"

    def require_stdout(self) -> None:
        """PlanError where there is nowhere to show the result."""
        if not self.has_stdout:
            raise PlanError("standard output is closed, and the result goes there: open it, or send it to a file")

    def written(self) -> None:
        """From now on the result is there."""
        self.is_written = True

    def stop_if_interrupted(self) -> None:
        """Raise again what a library may have swallowed."""
        if self.number:
            raise KeyboardInterrupt


def catch_interruptions(told: Interruption) -> None:
    """From now on signals raise KeyboardInterrupt; a second one ends the process at once.

    A signal that is ignored, as of jobs in the background, stays so.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        if told.number:
            _end_at_once(told)
        told.number = number
        raise KeyboardInterrupt

    for number in SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, interrupt)


def _end_at_once(told: Interruption) -> None:
    """Say it and go; the next run removes what this one leaves."""
    if not told.is_told:
        os.write(sys.stderr.fileno(), f"{told.said}\n".encode())
    leave(told.code)
