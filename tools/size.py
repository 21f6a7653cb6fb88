"""The size gate: show the largest files and functions, and fail where one is over its limit.

Limits are house rules: a file has at most 400 lines (tests are exempt), a function at most 60, docstring included.

    python tools/size.py [ROOT]
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("snp_onnx", "passes", "models", "tools", "tests")
MAX_FILE = 400
MAX_FUNCTION = 60
EXEMPT_FROM_MAX_FILE = ("tests",)
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Size:
    """The length in lines of one file or function, and the limit it has to keep (None: no limit)."""

    lines: int
    limit: int | None
    place: str

    @property
    def is_over(self) -> bool:
        return self.limit is not None and self.lines > self.limit


def sources(root: Path) -> Iterator[Path]:
    """Every Python file below the folders of the project, once: links are not followed."""
    for folder in FOLDERS:
        for parent, children, names in os.walk(root / folder, followlinks=False):
            children[:] = sorted(name for name in children if name != "__pycache__")
            yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def file_size(path: Path, root: Path) -> Size:
    """The length of one file."""
    place = path.relative_to(root)
    limit = None if place.parts[0] in EXEMPT_FROM_MAX_FILE else MAX_FILE
    return Size(len(path.read_text(encoding="utf-8").splitlines()), limit, place.as_posix())


def function_sizes(path: Path, root: Path) -> Iterator[Size]:
    """The length of every function and method of one file, nested ones too, from `def` to the last line."""
    place = path.relative_to(root).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            yield Size(last - node.lineno + 1, MAX_FUNCTION, f"{place}:{node.lineno} {node.name}")


def table(title: str, sizes: list[Size]) -> list[str]:
    """The rows to print: the largest ones, and every one over its limit however many there are."""
    ranked = sorted(sizes, key=lambda size: (-size.lines, size.place))
    shown = [size for rank, size in enumerate(ranked) if rank < SHOWN or size.is_over]
    rows = [f"{size.lines:6d}  {size.place}{'   <- over ' + str(size.limit) if size.is_over else ''}" for size in shown]
    return [f"{title}: {len(sizes)}, {sum(size.lines for size in sizes)} lines; the largest:", *rows]


def main(root: Path) -> int:
    """Print both tables; 0 where every limit is kept, otherwise 1."""
    paths = list(sources(root))
    files = [file_size(path, root) for path in paths]
    functions = [size for path in paths for size in function_sizes(path, root)]
    if not files:
        print(f"no Python file found below {root}: give the root of the project", file=sys.stderr)
        return 1
    print("\n".join([*table("files", files), "", *table("functions", functions)]))
    over = [size for size in (*files, *functions) if size.is_over]
    for size in over:
        print(f"{size.place}: {size.lines} lines, at most {size.limit}; split it by idea", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]))
