"""Places that results are written to, seen as the user names them: links and mounts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from snp_onnx.errors import PlanError


def followed(target: Path) -> Path:
    """What is written where this is named: of a link what it points to; PlanError where that is nothing."""
    if not target.is_symlink():
        return target
    found = Path(os.path.realpath(target))
    if not os.path.exists(found):
        raise PlanError(f"{target}: this is a link to nothing ({os.readlink(target)}): remove it, or name another one")
    return found


def is_mount(path: Path) -> bool:
    """Whether something is mounted here, so that nothing else can take its place; folders and files may be."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # another system than Linux, where this is only seen of folders on other devices
        return False
    places = {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines}
    return os.path.realpath(path) in places
