"""A room imports only from the floors below it, and optional packages only inside functions."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "_version": 0,
    "errors": 0,
    "external": 0,
    "memory": 0,
    "model_folder": 0,
    "subspace": 0,
    "writing": 0,
    "model_io": 1,
    "cost": 1,
    "sources": 2,
    "tracing": 2,
    "calibration": 3,
    "planning": 4,
    "passes": 5,
    "recovery": 5,
    "verbs": 6,
    "report": 7,
    "integrations": 7,
    "cli": 8,
}
# `snp_onnx` itself: what its __init__ may import, and the lowest floor that may import the public names from it.
SURFACE_IMPORTS = frozenset({"_version", "errors", "integrations", "planning", "verbs"})
SURFACE_USERS_FROM = 7
FROM_ANYWHERE = {
    "errors": "every room says what is wrong in the same words",
    "_version": "a constant",
}
# (room, imported room of the same floor): the reason.
SAME_FLOOR: dict[tuple[str, str], str] = {
    ("external", "writing"): "weights that stay in files lie in temporary folders",
    ("integrations", "report"): "what another tool's users get back includes the report",
}

# Rooms that need an optional package: they import it at the top, and others import them inside functions only.
NEEDS = {"recovery": "torch"}
# Modules outside such rooms that are loaded by the package they need, and by nothing of ours.
LOADED_BY = {
    "snp_onnx.integrations.olive.prune_pass": (
        "olive",
        "Olive finds its class for a workflow; a pass derives from Olive's",
    )
}
OPTIONAL = frozenset({"torch", "olive", "dask", "distributed", "jinja2", "matplotlib", "onnxruntime", "polygraphy"})
NOT_IN_SUBSPACE = frozenset({"onnx", "onnx_graphsurgeon", "onnxruntime", "logging"})


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, absolute; `runs_on_load` where importing the importer imports it too."""

    target: str
    line: int
    runs_on_load: bool


def is_type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"


def found_imports(node: ast.AST, package: str, runs_on_load: bool) -> Iterator[Import]:
    """Every import below `node`, those in functions and under TYPE_CHECKING too."""
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, runs_on_load) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        above = parents[: len(parents) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        # `from snp_onnx import cost` names a room, `from onnx import helper` and all others need the base only.
        names = [f"{base}.{alias.name}" for alias in node.names]
        targets = names if base == "snp_onnx" else [base, *(name for name in names if name in LOADED_BY)]
        yield from (Import(target, node.lineno, runs_on_load) for target in targets)
    elif is_type_checking(node):
        for child in node.body:
            yield from found_imports(child, package, False)
        for child in node.orelse:
            yield from found_imports(child, package, runs_on_load)
    else:
        inside = runs_on_load and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from found_imports(child, package, inside)


def room_of(module: str) -> str:
    """The room of a module of this package; the empty string for `snp_onnx` and its public names."""
    room = module.partition(".")[2].partition(".")[0]
    return room if room in FLOORS or module.count(".") > 1 else ""


def wrong_room(room: str, other: str) -> str | None:
    """Why `room` may not import `other`; None where it may."""
    if room == other or other in FROM_ANYWHERE:
        return None
    if room == "":
        return None if other in SURFACE_IMPORTS else f"snp_onnx imports only {sorted(SURFACE_IMPORTS)}, not {other}"
    if other == "":
        return None if FLOORS[room] >= SURFACE_USERS_FROM else f"{room} imports the public names of snp_onnx"
    if other not in FLOORS:
        return f"{other} has no floor"
    if FLOORS[other] < FLOORS[room] or (room, other) in SAME_FLOOR:
        return None
    return f"{room} (floor {FLOORS[room]}) imports {other} (floor {FLOORS[other]})"


def wrong_import(module: str, found: Import) -> str | None:
    """Why a module may not have this import; None where it may."""
    room = module.partition(".")[2].partition(".")[0]
    top = found.target.partition(".")[0]
    if found.target in LOADED_BY:
        return f"{found.target} is for {LOADED_BY[found.target][0]} to import"
    if top == "snp_onnx":
        other = room_of(found.target)
        if other in NEEDS and other != room and found.runs_on_load:
            return f"{other} is imported outside a function, and needs {NEEDS[other]}"
        return wrong_room(room, other)
    if top == "passes":
        return "passes is imported as snp_onnx.passes"
    if room == "subspace" and top in NOT_IN_SUBSPACE:
        return f"subspace imports {top}"
    needed = {NEEDS.get(room), LOADED_BY.get(module, (None,))[0]}
    if top in OPTIONAL - needed and found.runs_on_load:
        return f"{top} is imported outside a function"
    return None


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of one module, a line each; empty where nothing is."""
    package = module if is_package else module.rpartition(".")[0]
    room = module.partition(".")[2].partition(".")[0]
    if room and room not in FLOORS:
        return [f"{module}: {room} has no floor; add it to the table"]
    found = found_imports(ast.parse(source), package, True)
    reasons = ((item.line, wrong_import(module, item)) for item in found)
    return [f"{module}:{line}: {reason}" for line, reason in reasons if reason]


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package with its file, those of passes/ under their installed name."""
    for folder, name in ((ROOT / "snp_onnx", "snp_onnx"), (ROOT / "passes", "snp_onnx.passes")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if folder.name != "passes" and parts[0] == "passes":
                continue  # reached through the link; whether rglob follows it depends on the Python version
            yield ".".join([name, *(part for part in parts if part != "__init__")]), path


def test_every_module_keeps_to_its_floor() -> None:
    wrong = [
        line
        for module, path in modules()
        for line in violations(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    ]
    assert wrong == []


def test_the_walk_finds_the_package() -> None:
    names = [name for name, _ in modules()]
    assert "snp_onnx.errors" in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        (
            "snp_onnx.tracing.labels",
            "from snp_onnx.planning import plan",
            "tracing (floor 2) imports planning (floor 4)",
        ),
        ("snp_onnx.tracing.labels", "import snp_onnx.cli", "tracing (floor 2) imports cli (floor 8)"),
        ("snp_onnx.tracing.labels", "from snp_onnx import verbs", "tracing (floor 2) imports verbs (floor 6)"),
        ("snp_onnx.tracing.labels", "from ..passes import refit", "tracing (floor 2) imports passes (floor 5)"),
        ("snp_onnx.tracing.labels", "from .. import passes", "tracing (floor 2) imports passes (floor 5)"),
        ("snp_onnx.passes.refit", "def f():\n    from snp_onnx.verbs import prune", "passes (floor 5) imports verbs"),
        ("snp_onnx.verbs.prune", "from snp_onnx.report import table", "verbs (floor 6) imports report (floor 7)"),
        ("snp_onnx.model_io", "from snp_onnx.cost import cost", "model_io (floor 1) imports cost (floor 1)"),
        ("snp_onnx.verbs.prune", "from snp_onnx import prune", "verbs imports the public names of snp_onnx"),
        ("snp_onnx.verbs.prune", "import snp_onnx", "verbs imports the public names of snp_onnx"),
        ("snp_onnx.verbs.prune", "import snp_onnx.attic.old", "attic has no floor"),
        ("snp_onnx.attic", "import math", "attic has no floor"),
        ("snp_onnx.verbs.prune", "from passes import refit", "passes is imported as snp_onnx.passes"),
        ("snp_onnx.subspace.ldl", "def f():\n    import onnx", "subspace imports onnx"),
        ("snp_onnx.subspace.ldl", "import logging", "subspace imports logging"),
        ("snp_onnx.verbs.recover", "import torch.nn as nn", "torch is imported outside a function"),
        (
            "snp_onnx.calibration.runner",
            "try:\n    import onnxruntime\nexcept ImportError:\n    pass",
            "onnxruntime is",
        ),
        ("snp_onnx.verbs.recover", "from snp_onnx.recovery import train", "recovery is imported outside a function"),
        ("snp_onnx.recovery.train", "import matplotlib", "matplotlib is imported outside a function"),
        ("snp_onnx.verbs.recover", "class A:\n    from torch import nn", "torch is imported outside a function"),
        ("snp_onnx.integrations.olive.data", "import olive.data", "olive is imported outside a function"),
        ("snp_onnx.integrations.olive.prune_pass", "import torch", "torch is imported outside a function"),
        (
            "snp_onnx.cli.commands",
            "def f():\n    from snp_onnx.integrations.olive.prune_pass import SnpPrune",
            "snp_onnx.integrations.olive.prune_pass is for olive to import",
        ),
        (
            "snp_onnx.integrations",
            "from .olive import prune_pass",
            "snp_onnx.integrations.olive.prune_pass is for olive to import",
        ),
    ],
)
def test_a_violation_is_caught(module: str, source: str, reason: str) -> None:
    (found,) = violations(module, source, is_package=module == "snp_onnx.integrations")
    assert reason in found


def test_the_surface_imports_no_inner_room() -> None:
    source = "from snp_onnx.verbs import prune\nfrom .tracing import trace"
    (found,) = violations("snp_onnx", source, is_package=True)
    assert found.startswith("snp_onnx:2: snp_onnx imports only")


def test_what_is_allowed_passes() -> None:
    source = textwrap.dedent("""
        from __future__ import annotations
        from typing import TYPE_CHECKING
        import onnx
        from snp_onnx import cost, errors
        from snp_onnx.errors import PassError
        from snp_onnx.tracing.labels import Labels
        from . import slice_units
        from .refit import Refit

        if TYPE_CHECKING:
            import torch

        def run():
            import onnxruntime
    """)
    assert violations("snp_onnx.passes.pipeline", source) == []
    assert violations("snp_onnx.recovery.train", "import torch") == []
    assert violations("snp_onnx.integrations.olive.prune_pass", "from olive.passes import Pass") == []
    assert violations("snp_onnx.cli", "from snp_onnx import __version__, prune") == []
    assert violations("snp_onnx.subspace", "from .ldl import ldl", is_package=True) == []
