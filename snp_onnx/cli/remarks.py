"""What reaches stderr beside the progress bar: lines of `error: `, `warning: ` or `note: `, in no colour."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from snp_onnx.errors import SnpWarning
from snp_onnx.report.remarks import printable


def remark(kind: str, message: object) -> None:
    """One line on stderr."""
    print(f"{kind}: {printable(' '.join(str(message).split()))}", file=sys.stderr)


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
