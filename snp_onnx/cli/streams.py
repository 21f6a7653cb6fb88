"""Standard streams: results alone reach stdout, and our own lines alone stderr."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO


def prepare_streams() -> bool:
    """Let both streams write any text, closed ones nowhere; whether stdout is open."""
    has_stdout = sys.stdout is not None
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that knows no τ shows a question mark, not a traceback
    return has_stdout


def silence_libraries() -> None:
    """For the rest of this process, descriptors 1 and 2 are libraries', and our streams go where these led.

    The runtime, its providers and libraries of custom operators log to descriptor 2, in colours; what they say of a
    failure stands in their exceptions too, and this leads nowhere. What else is printed, by a process that a user's
    loader starts, say, goes to our stderr. A crash still shows where Python was.
    """
    logging.disable(logging.CRITICAL)
    stderr, stdout = _own(sys.stderr, 2), _own(sys.stdout, 1)
    if stdout is not None:
        sys.stdout = stdout
    if stderr is not None:
        faulthandler.enable(stderr)
        sys.stderr = stderr
        sys.unraisablehook = threading.excepthook = _nothing
        os.dup2(stderr.fileno(), 1)


@contextlib.contextmanager
def results_apart() -> Iterator[None]:
    """What others print to stdout meanwhile goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def release_stdout() -> None:
    """What is printed while Python ends isn't a result."""
    if sys.stdout is not sys.__stdout__:
        sys.stdout = sys.stderr


def _own(stream: TextIO, descriptor: int) -> Any:
    """A stream of ours to where a descriptor led, which then leads nowhere; None where Python's stream isn't on it."""
    try:
        if stream.fileno() != descriptor:
            return None
        stream.flush()
        own, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    except (AttributeError, OSError, ValueError):  # there is none, or one in memory
        return None
    return open(own, "w", encoding=stream.encoding, errors="replace", buffering=1)


def _nothing(_: object) -> None:
    """What fails while an object or a thread ends changes no result."""
