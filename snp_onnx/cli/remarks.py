"""What reaches stderr beside the progress bar: lines of `error: `, `warning: ` or `note: `, in no colour."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snp_onnx.errors import SnpWarning


def remark(kind: str, message: object) -> None:
    """One line on stderr."""
    print(f"{kind}: {' '.join(str(message).split())}", file=sys.stderr)


def silence_libraries() -> None:
    """For the rest of this process, file descriptor 2 leads nowhere and Python's stderr goes where it led.

    The runtime, its providers and libraries of custom operators log to the descriptor, in colours; what they say of a
    failure stands in their exceptions too. A crash still shows where Python was.
    """
    logging.disable(logging.CRITICAL)
    own = _own_stderr()
    if own is not None:
        faulthandler.enable(own)
        sys.stderr = own
        sys.unraisablehook = threading.excepthook = _nothing


def _own_stderr() -> Any:
    """A stream to where descriptor 2 led; None where Python's stderr isn't on it."""
    try:
        if sys.stderr.fileno() != 2:
            return None
        sys.stderr.flush()
        own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    except (AttributeError, OSError, ValueError):  # there is none, or one in memory
        return None
    return open(own, "w", encoding=sys.stderr.encoding, errors="replace", buffering=1)


def _nothing(_: object) -> None:
    """What fails while an object or a thread ends changes no result."""


def shows_own_warnings() -> Callable[..., None]:
    """What shows Python's warnings: ours, and those that a user's loader causes with its line; each once.

    Those that numpy, onnx and torch raise in our code or theirs are dropped: what is wrong with values or models is
    looked for, and told with the layer's name.
    """
    shown: set[str] = set()
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]).resolve() for name in ("purelib", "platlib", "stdlib", "platstdlib")]
    ours = Path(__file__).resolve().parents[2]

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        path = Path(filename).resolve()
        is_ours = issubclass(category, SnpWarning)
        if not is_ours and (not path.is_file() or any(folder in path.parents for folder in installed)):
            return
        if not is_ours and (ours / "snp_onnx" in path.parents or ours / "passes" in path.parents):
            return
        text = str(message) if is_ours else f"{path.name}:{lineno}: {message}"
        if text not in shown:
            shown.add(text)
            remark("warning", text)

    return show
