"""A plan as text that people read and edit: a block for every group, lists of numbers on a line; and back."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from snp_onnx.errors import PlanError
from snp_onnx.planning.schema import first_fault

VERSION = 2

_WIDTH = 110
"""What is shorter stands on one line."""


def write_text(facts: Mapping[str, Any]) -> str:
    """The facts as JSON in their order: lists of plain values, and whatever is short, on one line.

    >>> print(write_text({"version": 2, "decisions": [{"group": "w:0", "kept": list(range(40))}]}), end="")
    {
     "version": 2,
     "decisions": [
      {
       "group": "w:0",
       "kept": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, \
27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39]
      }
     ]
    }
    """
    return _laid_out(facts, "", is_top=True) + "\n"


def _laid_out(value: Any, indent: str, is_top: bool = False) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    is_plain = isinstance(value, list | tuple) and not any(isinstance(item, dict | list | tuple) for item in value)
    if is_plain or not value or not isinstance(value, dict | list | tuple):
        return flat
    if not is_top and len(indent) + len(flat) <= _WIDTH and not _holds_objects(value):
        return flat
    deeper = indent + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(str(name), ensure_ascii=False)}: {_laid_out(v, deeper)}" for name, v in value.items()]
    else:
        lines = [_laid_out(item, deeper) for item in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}{end}"


def _holds_objects(value: Sequence[Any] | Mapping[str, Any]) -> bool:
    return any(isinstance(item, dict) for item in (value.values() if isinstance(value, Mapping) else value))


def read_text(text: str, label: str) -> dict[str, Any]:
    """The facts of a plan's text, of an earlier version too; PlanError, in one line, for all that isn't one."""
    try:
        raw = json.loads(text, parse_constant=_no_number, parse_float=_finite, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{label}: not a plan: it isn't JSON: {error}") from error
    version = raw.get("version") if isinstance(raw, dict) else None
    if version == 1 and not isinstance(version, bool):
        return _version_1(raw, label)
    if isinstance(raw, dict) and "version" in raw and _is_other(version):
        raise PlanError(f"{label}: plan version {version} is none of 1 and {VERSION}: make the plan anew")
    _check(raw, label)
    return dict(raw)


def _is_other(version: object) -> bool:
    """Whether this names a version that is unknown here."""
    return isinstance(version, int) and not isinstance(version, bool) and version != VERSION


def _check(raw: object, label: str) -> None:
    fault = first_fault(raw)
    if fault is not None:
        raise PlanError(f"{label}: not a plan: {fault}")


def _version_1(raw: Mapping[str, Any], label: str) -> dict[str, Any]:
    """The facts of a plan of version 1, which named the type of every decision and knew nothing of other groups."""
    decisions = raw.get("decisions")
    if not isinstance(decisions, list) or not all(isinstance(entry, dict) for entry in decisions):
        raise PlanError(f"{label}: not a plan: decisions: a list of objects must be there")
    for entry in decisions:
        if entry.get("type") != "slice_units":
            raise PlanError(f"{label}: decisions of type {entry.get('type')!r} are not known to this version")
    plain = [{name: value for name, value in entry.items() if name != "type"} for entry in decisions]
    facts = {**raw, "version": VERSION, "decisions": plain}
    _check(facts, label)
    return {**facts, "version": 1}


def digest_of(facts: Mapping[str, Any]) -> str:
    """A short name for the facts, however they are laid out; for those of version 1 the one that version gave."""
    if facts["version"] == 1:
        old = {name: value for name, value in facts.items() if name not in ("groups", "blocks")}
        old["decisions"] = [{**entry, "type": "slice_units"} for entry in facts["decisions"]]
        text = json.dumps(old, indent=1, sort_keys=True) + "\n"
    else:
        text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return float(text)


def _bounded(text: str) -> int:
    """A whole number that is a float too; those of units have the schema's bound."""
    if len(text) > 300:
        raise ValueError(f"{text[:40]} is too large")
    return int(text)
