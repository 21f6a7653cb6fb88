"""The reference of the command line, from the application itself.

python -m tools.docs.command_line
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.main import get_command

from snp_onnx.cli.commands import app

INTRODUCTION = """# Command line

`snp-onnx --help` and `snp-onnx COMMAND --help` say the same. Results go to stdout; progress, notes and warnings go to
stderr. What the exit codes mean stands in [Exit codes](exit-codes.md). Options can be kept in a file
(`--config options.yaml`, with lines such as `target-macs: 0.5`); what is typed wins.
"""
_KINDS = ((Path, "FILE"), (int, "N"), (float, "NUMBER"), (str, "TEXT"))


def reference() -> str:
    """Every command with its arguments and options, as Markdown."""
    application: Any = get_command(app)
    parts = [INTRODUCTION.strip()]
    for name, command in application.commands.items():
        parts += _command(name, command)
    rows = [f"| {_flags(option)} | {_cell(option.help)} |" for option in _options(application)]
    parts += ["## snp-onnx", _table(rows)]
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [str(p.name).upper() if p.required else f"[{str(p.name).upper()}]" for p in arguments]
    kinds = _kinds(command.callback)
    panels: dict[str, list[str]] = {}
    for option in _options(command):
        panels.setdefault(option.rich_help_panel or "Options", []).append(_row(option, kinds.get(option.name, "")))
    return [
        f"## snp-onnx {name}",
        (command.help or "").strip(),
        f"```text\n{' '.join(['snp-onnx', name, *words, '[OPTIONS]'])}\n```",
        "\n".join(f"- `{str(p.name).upper()}`: {p.help}" for p in arguments),
        *(part for panel, rows in panels.items() for part in (f"### {panel}", _table(rows))),
    ]


def _table(rows: Sequence[str]) -> str:
    return "\n".join(["| option | what it does |", "|---|---|", *rows])


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


def _kinds(callback: Callable[..., Any]) -> dict[str, str]:
    """What each option takes, by the type that the command declares for it."""
    found = {}
    while hasattr(callback, "__wrapped__"):
        callback = callback.__wrapped__
    for name, parameter in inspect.signature(callback).parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            annotation = get_type_hints(callback, include_extras=True)[name]
        declared = str(get_args(annotation)[:1])
        found[name] = next((word for kind, word in _KINDS if kind.__name__ in declared), "")
    return found


def _row(option: Any, kind: str) -> str:
    default = "" if option.default in (None, False, ()) else f" (default `{option.default}`)"
    if option.is_flag:
        kind, default = "", f" (default `{option.opts[0]}`)" if option.default is True else ""
    return f"| {_flags(option)}{f' *{kind}*' if kind else ''} | {_cell(option.help)}{default} |"


def _flags(option: Any) -> str:
    return " / ".join(f"`{flag}`{{ .option }}" for flag in (*option.opts, *option.secondary_opts))


def _cell(text: str | None) -> str:
    """Text for a cell: on one line, and without signs that Markdown would read."""
    return "".join(f"\\{sign}" if sign in "|*_" else sign for sign in " ".join((text or "").split()))


if __name__ == "__main__":
    print(reference(), end="")
