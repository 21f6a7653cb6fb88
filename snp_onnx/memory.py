"""Free memory: what this process can still take of the machine, or of the container (control group) it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

COPIES = 20
"""Times its weights, as float32, that pruning a model in memory takes at most.

A decoder of 300 MB took 20 times that: its Gram matrices alone are some three times as large, and are kept in several
forms; the rest are copies of the graph, folds and sessions.
"""

ONE_PROTOBUF = 2**31
"""Bytes that no protobuf can hold."""

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes that can be had without swapping: the machine's, or what is left below a limit of a control group."""
    return max(0, min([int(psutil.virtual_memory().available), *_below_limits(_OWN_GROUPS, _GROUPS)]))


def has_room(size: int) -> bool:
    """Whether so many bytes are free now."""
    return size <= available()


def is_large(weights: int) -> bool:
    """Whether a model with so many bytes of weights, as float32, has to be handled without them in memory."""
    return weights >= ONE_PROTOBUF or not has_room(COPIES * weights)


def _below_limits(own: Path, root: Path) -> Iterator[int]:
    """Bytes left to this process's control groups and those around them; the kernel has two versions of these files."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux, or no control groups
        return
    for line in lines:
        _, controllers, place = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            folder, names, cache = root, ("memory.max", "memory.current"), "inactive_file "
        elif "memory" in controllers.split(","):
            folder, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cache = "total_inactive_file "
        else:
            continue
        group = folder / place.lstrip("/")
        for each in [group, *(parent for parent in group.parents if parent.is_relative_to(folder))]:
            try:
                limit, used = (int((each / name).read_text()) for name in names)
                rows = (each / "memory.stat").read_text().splitlines()
                files = sum(int(row.split()[1]) for row in rows if row.startswith(cache))
            except (OSError, ValueError):  # no such group here, or its limit is "max"
                continue
            yield limit - used + files  # what files fill is given back when asked for
