"""The schema of the plan, and reading by it: the few words of JSON Schema that it uses, without another package."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any


def schema_text() -> str:
    """The JSON Schema (2020-12) of a plan, as it is shipped."""
    return files("snp_onnx.planning").joinpath("plan.schema.json").read_text(encoding="utf-8")


def first_fault(value: object, schema: Mapping[str, Any] | None = None, place: str = "") -> str | None:
    """Where a value breaks the schema (that of plans) and how, in words; None where it doesn't.

    Equivalent to the first error of a validator of JSON Schema, for schemas of the words below.

    >>> first_fault({"version": 2, "dense_sha256": "", "decisions": [{"group": "w:0"}]})
    "decisions[0] (w:0): 'kind' is missing"
    """
    rules: Mapping[str, Any] = json.loads(schema_text()) if schema is None else schema
    kinds = rules.get("type", ())
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    if wanted and not any(_TYPES[kind](value) for kind in wanted):
        return _said(place, f"{_shown(value)} is not {' or '.join(_WORDS[kind] for kind in wanted)}")
    for word, check in _CHECKS.items():
        if word in rules and (fault := check(value, rules[word])):
            return _said(place, fault)
    return next((fault for fault in _inner_faults(value, rules, place) if fault), None)


def _inner_faults(value: object, rules: Mapping[str, Any], place: str) -> Iterator[str | None]:
    if isinstance(value, list) and "items" in rules:
        for number, item in enumerate(value):
            yield first_fault(item, rules["items"], f"{place}[{number}]{_name(item)}")
    if isinstance(value, dict):
        known, others = rules.get("properties", {}), rules.get("additionalProperties", True)
        for name, item in value.items():
            inner = f"{place}.{name}" if place else name
            if name in known:
                yield first_fault(item, known[name], inner)
            elif others is False:
                yield _said(place, f"{name!r} is not known here")
            elif others is not True:
                yield first_fault(item, others, inner)


def _name(item: object) -> str:
    """The group or block that an object is about, for people who look for the place."""
    name = (item.get("group") or item.get("block")) if isinstance(item, dict) else None
    return f" ({name})" if isinstance(name, str) else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    """Whether JSON Schema takes it for one: 3.0 is."""
    return value.is_integer() if isinstance(value, float) else _is_number(value)


_TYPES: Mapping[str, Callable[[object], bool]] = MappingProxyType(
    {
        "object": lambda value: isinstance(value, dict),
        "array": lambda value: isinstance(value, list),
        "string": lambda value: isinstance(value, str),
        "boolean": lambda value: isinstance(value, bool),
        "null": lambda value: value is None,
        "number": _is_number,
        "integer": _is_integer,
    }
)
_WORDS: Mapping[str, str] = MappingProxyType(
    {
        "object": "an object",
        "array": "a list",
        "string": "a text",
        "boolean": "true or false",
        "null": "null",
        "number": "a number",
        "integer": "a whole number",
    }
)


def _missing(value: object, names: list[str]) -> str | None:
    absent = [name for name in names if isinstance(value, dict) and name not in value]
    return f"{absent[0]!r} is missing" if absent else None


def _repeated(value: object, is_asked: bool) -> str | None:
    seen: set[object] = set()
    for item in value if is_asked and isinstance(value, list) else ():
        known = item if isinstance(item, int | float | str) else json.dumps(item)
        if known in seen:
            return f"{_shown(item)} is there twice"
        seen.add(known)
    return None


_CHECKS: Mapping[str, Callable[[Any, Any], str | None]] = MappingProxyType(
    {
        "const": lambda value, only: None if value == only else f"{_shown(value)} is not {only!r}",
        "enum": lambda value, known: None if value in known else f"{_shown(value)} is none of {', '.join(known)}",
        "pattern": lambda value, pattern: (
            None if re.search(pattern, value) else f"{_shown(value)} has not the form asked"
        ),
        "minimum": lambda value, least: None if value >= least else f"{_shown(value)} is less than {least}",
        "maximum": lambda value, most: None if value <= most else f"{_shown(value)} is more than {most}",
        "minItems": lambda value, count: None if len(value) >= count else f"at least {count} must be there",
        "uniqueItems": _repeated,
        "required": _missing,
    }
)
"""Each is asked after the type: what it compares is of the right kind where the schema names one."""


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _said(place: str, fault: str) -> str:
    return f"{place}: {fault}" if place else fault
