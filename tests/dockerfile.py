"""Reading a container file: its instructions, and what they copy out of the checkout."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

KNOWN = frozenset(
    ("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "SHELL", "USER", "VOLUME", "WORKDIR")
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: `COPY`, `requirements/dev.txt /tmp/`, and the number of the stage that it is in."""

    name: str
    text: str
    stage: int

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def instructions(path: Path) -> list[Instruction]:
    """All of a file; ValueError for one that isn't known, or before the first FROM."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    found: list[Instruction] = []
    stage = -1
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if not name:
            continue
        stage += name == "FROM"
        if name not in KNOWN or stage < 0 or not rest.strip():
            raise ValueError(f"{path}: {line!r} is no instruction, or stands before FROM")
        found.append(Instruction(name, rest.strip(), stage))
    return found


def copied(path: Path, stage: int | None = None) -> list[str]:
    """What is copied out of the checkout, in one stage or in all."""
    sources = []
    for step in instructions(path):
        if step.name == "COPY" and "--from=" not in step.text and stage in (None, step.stage):
            sources += step.words[:-1]
    return sources
