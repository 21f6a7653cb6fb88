"""`--config FILE.yaml`: options by name, for pipelines that keep them in a file. What is typed beside it wins."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import typer

from snp_onnx.errors import PlanError

_MOST_BYTES = 2**20
"""Of a file of options."""


def take_config(context: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the command's defaults; PlanError for anything but options of this command."""
    if path is not None:
        known = {str(option.name) for option in context.command.params if option.param_type_name == "option"}
        several = {str(option.name) for option in context.command.params if getattr(option, "multiple", False)}
        context.default_map = read_config(path, known - {"config", "help"}, several)
    return path


def read_config(path: Path, known: Collection[str], several: Collection[str] = ()) -> dict[str, Any]:
    """Values by option, `-` and `_` alike; lists become what is typed: `a,b`, or, for those of `several`, a list."""
    import yaml

    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > _MOST_BYTES):
            raise PlanError(f"--config {path}: this is no file of options: it is no file, or larger than a megabyte")
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"--config {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:  # odd dates and numbers too
        raise PlanError(f"--config {path}: not YAML: {error}") from error
    except RecursionError as error:
        raise PlanError(f"--config {path}: nested too deeply: give options by name and value") from error
    if raw is not None and not isinstance(raw, dict):
        raise PlanError(f"--config {path}: give options by name, such as target-macs: 0.5")
    found: dict[str, Any] = {}
    for given, value in (raw or {}).items():
        name = str(given).replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0].replace('_', '-')}?" if near else "--help lists the options"
            raise PlanError(f"--config {path}: there is no option {str(given)[:80]!r}: {hint}")
        if name in found:
            raise PlanError(f"--config {path}: the option {given!r} is there twice: give it once")
        found[name] = _typed(path, str(given), value, name in several)
    return found


def config_text(context: typer.Context) -> str:
    """The options of this call as a file that `--config` reads, defaults written out; what isn't set isn't there."""
    import yaml

    options = {str(option.name) for option in context.command.params if option.param_type_name == "option"}
    found = {}
    for name in sorted(options - {"config", "save_config", "help"}):
        value = context.params.get(name)
        if value is None or value == []:
            continue
        plain = [str(item) for item in value] if isinstance(value, list) else value
        found[name.replace("_", "-")] = str(plain) if isinstance(plain, Path) else plain
    return str(yaml.safe_dump(found, allow_unicode=True))


def _typed(path: Path, name: str, value: Any, is_several: bool) -> Any:
    """A value as it would be typed."""
    inner = value if isinstance(value, list) else ()
    if isinstance(value, dict) or any(isinstance(item, dict | list | tuple | set) for item in inner):
        raise PlanError(f"--config {path}: {name} has options of its own: give a value or a list of values")
    if is_several:
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return value
