"""The house's docstrings as mkdocstrings reads them: what a parameter is stands on the line of its name, several short
ones may share a line, and what is raised is a sentence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import griffe

_SECTION = re.compile(r"^(Parameters|Raises|Returns)\n-+\n", re.MULTILINE)
_ITEM = re.compile(r"^([\w, ]+?) : (.*)$")


class HouseStyle(griffe.Extension):
    """Rewrites the docstrings of functions before they are parsed."""

    def on_function(self, *, func: griffe.Function, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if func.docstring is not None:
            func.docstring.value = rewritten(func.docstring.value, [one.name for one in func.parameters])


def rewritten(text: str, names: Collection[str]) -> str:
    """A docstring whose parameters have their descriptions below them; `names` are those of the parameters.

    >>> text = "Do.\\n\\nParameters\\n----------\\na : one. b : two\\n    lines.\\n\\nRaises\\n------\\nE: why."
    >>> print(rewritten(text, ["a", "b"]))
    Do.
    <BLANKLINE>
    **Raises**: E: why.
    <BLANKLINE>
    Parameters
    ----------
    a
        one.
    b
        two lines.
    """
    parts = _SECTION.split(text)
    found, last = [parts[0].rstrip()], []
    for section, body in zip(parts[1::2], parts[2::2], strict=True):
        if section == "Parameters":
            items = "".join(f"{name}\n    {said}\n" for name, said in _items(body.splitlines(), names))
            last.append(f"Parameters\n----------\n{items}".rstrip())
        else:
            found.append(f"**{section}**: {' '.join(body.split())}")
    return "\n\n".join(found + last)


def _items(lines: Iterable[str], names: Collection[str]) -> list[tuple[str, str]]:
    """Names, and what is said of them."""
    entries: list[list[str]] = []
    for line in lines:
        opening = _ITEM.match(line)
        if opening:
            entries.append([opening[1], opening[2]])
        elif entries:
            entries[-1][1] += f" {line.strip()}"
    found = []
    inner = re.compile(rf"(?<=[.,;]) ({'|'.join(sorted(map(re.escape, names), reverse=True))}) : ")
    for name, said in entries:
        first, *rest = inner.split(said)
        found.append((name, first.strip()))
        found += [(other, text.strip()) for other, text in zip(rest[::2], rest[1::2], strict=True)]
    return found
