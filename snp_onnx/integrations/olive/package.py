"""Olive's package configuration with our pass in it: what `olive run --package-config` wants.

    python -m snp_onnx.integrations.olive.package package.json

A package configuration takes the place of Olive's own list of passes, so a workflow that has others beside ours needs
both. `package.json` beside this file has ours alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from snp_onnx.errors import PlanError, SnpError
from snp_onnx.writing import written_whole

OURS = Path(__file__).with_name("package.json")


def package_config() -> dict[str, Any]:
    """The passes of the installed Olive and ours; Olive itself isn't imported, which takes it seconds."""
    found = find_spec("olive")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    files = [path for folder in folders if (path := Path(folder) / "olive_config.json").is_file()]
    if not files:
        raise PlanError("no olive-ai with a list of passes is installed: pip install olive-ai")
    theirs, ours = (json.loads(path.read_text(encoding="utf-8")) for path in (files[0], OURS))
    return {
        "passes": {**theirs["passes"], **ours["passes"]},
        "extra_dependencies": {**ours["extra_dependencies"], **theirs["extra_dependencies"]},
    }


def main(arguments: Sequence[str]) -> int:
    """Write the configuration to the file named, or to the standard output; the exit code."""
    try:
        if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
            raise PlanError("usage: python -m snp_onnx.integrations.olive.package [FILE.json]")
        text = json.dumps(package_config(), indent=4) + "\n"
        if not arguments:
            print(text, end="")
            return 0
        with written_whole(Path(arguments[0])) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (SnpError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
