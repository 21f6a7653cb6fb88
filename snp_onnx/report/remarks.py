"""Notes and warnings for people: what is said of many layers alike is one line with their number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def printable(text: str) -> str:
    """A text without characters that steer a terminal, which names in models may have; they are spelt out.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c)[0] == "C" else c for c in text)


FIRST_NAMES = 3
"""Names that a counted line gives beside the first one."""

_SUBJECT = re.compile(r"(?:(?P<kind>[a-z]+) )?(?P<name>\S*[^\s\d]\S*): (?P<said>.*)", re.DOTALL)
"""`layer conv1: what is said of it`, or the name alone."""
_OWN = re.compile(r"\S*[\d/_]\S*")
"""Numbers and names in what is said of one layer: another layer has others."""


def counted(lines: Iterable[str]) -> tuple[str, ...]:
    """Each line once, the first of those alike with the number and names of the others.

    Lines are alike where the same is said of another layer, node or input; a program finds all of them in the JSON.

    >>> counted(["layer a: 9 rows: give more", "layer b: 7 rows: give more", "slow", "slow"])
    ('layer a: 9 rows: give more (and 1 more layer: b)', 'slow')
    """
    alike: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for line in dict.fromkeys(lines):
        found = _SUBJECT.fullmatch(line)
        kind, name = (found["kind"] or "", found["name"]) if found else ("", "")
        said = line if found is None else _OWN.sub("#", found["said"]) if kind else found["said"]
        alike.setdefault((kind, said), []).append((line, kind, name))
    return tuple(_joined(several) for several in alike.values())


def _joined(several: list[tuple[str, str, str]]) -> str:
    (line, kind, _), *others = several
    if not others:
        return line
    names = list(dict.fromkeys(name for _, _, name in others))
    what = f" {kind}{'s' if len(names) > 1 else ''}" if kind else ""
    shown = ", ".join(names[:FIRST_NAMES]) + (", ..." if len(names) > FIRST_NAMES else "")
    return f"{line} (and {len(names)} more{what}: {shown})"
