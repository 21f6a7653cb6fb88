"""The sentences of the sources: what the tracer says of an axis that stays whole, and what errors say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.command_line import ROOT

GAP = "…"
"""Stands for what is filled in when a sentence is used."""


def reasons() -> dict[str, str]:
    """Every reason that the tracer can give, by where it stands: its texts, but for docstrings and errors."""
    found = {}
    for path in sorted((ROOT / "snp_onnx" / "tracing").rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        constants, parts = _constants(module), _parts(module)
        for node in _texts(module):
            text = template(node, constants)
            is_part = any(constants.get(name) == text for name in parts)
            if " " in text.strip(GAP + " ()") and not is_part:
                found[text] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def _constants(module: ast.Module) -> dict[str, str]:
    """Texts that a module gives names to."""
    return {
        node.targets[0].id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def _parts(module: ast.Module) -> set[str]:
    """Names that stand inside other texts."""
    inside = (node.value for node in ast.walk(module) if isinstance(node, ast.FormattedValue))
    return {value.id for value in inside if isinstance(value, ast.Name)}


def messages() -> set[str]:
    """Every text of the sources, as it can end up in an error, a warning or a note."""
    found = set()
    for folder in ("snp_onnx", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                    found.add(template(node))
    return found


def template(node: ast.expr, constants: Mapping[str, str] = MappingProxyType({})) -> str:
    """A text with gaps for what is filled in, but for constants."""
    if isinstance(node, ast.JoinedStr):
        return re.sub(f"{GAP}+", GAP, "".join(template(part, constants) for part in node.values))
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return constants.get(node.value.id, GAP)
    return str(node.value) if isinstance(node, ast.Constant) else GAP


def _texts(node: ast.AST) -> Iterator[ast.expr]:
    """Texts below a node that are no documentation and no part of an error (but for those that end in a reason)."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Raise) and not (isinstance(node.exc, ast.Call) and _name(node.exc) == "_RefusedError"):
        return
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _texts(child)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def tables(page: Path) -> list[str]:
    """What stands in backticks at the start of a page's table rows."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [row.split("`")[1] for row in rows]
