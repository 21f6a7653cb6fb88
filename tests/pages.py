"""Pages of the documentation as programs: every page runs from top to bottom, as somebody who follows it would.

A page gets a folder of its own with `model.onnx`, `digits.npz` and `images/`. Its ```bash and ```python blocks run
there in turn, every Python block as a script; a block with a title is written to the file of that name. Blocks in other
languages (text, console, yaml without a title …) are for reading.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tests.command_line import DIGITS, DIGITS_DATA, ROOT

DOCS = ROOT / "docs"
SECONDS = 300
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w.+-]*)(?P<rest>.*)$")
_TITLE = re.compile(r'title="([^"]+)"')

NEEDS = {
    r"^\s*olive ": "olive",
    r"^\s*polygraphy ": "polygraphy",
    r"^\s*onnxslim ": "onnxslim",
    r"^\s*onnxsim ": "onnxsim",
    r"^\s*optimum-cli ": "optimum",
    r"--(report|html) \S+\.html": "jinja2",
    r"snp-onnx recover ": "torch",
    r"torch\.onnx\.export": "onnxscript",
}
"""What a line of a page needs besides what its Python blocks import."""

SLOW = {"keras", "olive", "optimum", "tensorflow", "tf2onnx", "torch", "transformers"}
"""Modules whose import alone takes seconds."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: where it starts, its language, the file it is for, and its text."""

    line: int
    language: str
    title: str | None
    text: str

    @property
    def is_run(self) -> bool:
        return self.title is None and self.language in ("bash", "python")


class PageError(AssertionError):
    """A block of a page that failed."""


def pages() -> list[Path]:
    """Every page of the documentation, and the README."""
    return [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, those inside lists and tabs without their indentation."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        number += 1
        if opening is None:
            continue
        start, indent = number, len(opening["indent"])
        while number < len(lines) and lines[number].strip() != opening["fence"]:
            number += 1
        body = [line[indent:] if not line[:indent].strip() else line for line in lines[start:number]]
        number += 1
        title = _TITLE.search(opening["rest"])
        yield Block(start, opening["language"], title and title[1], "\n".join(body) + "\n")


def needs(found: list[Block]) -> set[str]:
    """The modules that a page's blocks need and that a core install may lack."""
    wanted: set[str] = set()
    for block in found:
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.Import):
                    wanted |= {name.name.partition(".")[0] for name in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    wanted.add(node.module.partition(".")[0])
        if block.is_run:
            wanted |= set(re.findall(r"\bpython3? -m (\w+)", block.text))
            wanted |= {module for line, module in NEEDS.items() if re.search(line, block.text, re.MULTILINE)}
    own = {Path(block.title).stem for block in found if block.title}
    return wanted - own - {"snp_onnx"} - set(sys.stdlib_module_names)


def missing(found: list[Block]) -> list[str]:
    """What isn't installed of what a page needs."""
    return sorted(module for module in needs(found) if find_spec(module) is None)


def furnish(folder: Path) -> None:
    """What every page finds in its folder: a model, data for it, and pictures."""
    shutil.copy(DIGITS, folder / "model.onnx")
    shutil.copy(DIGITS_DATA, folder / "digits.npz")
    (folder / "images").mkdir()
    for number, image in enumerate(np.load(DIGITS_DATA)["images"][:200]):
        pixels = np.rint(image[0] * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:04d}.png")


def environment(folder: Path) -> dict[str, str]:
    """`snp-onnx` and `import snp_onnx` are those of this checkout, with this interpreter; nothing is kept."""
    tools = folder / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    command = tools / "snp-onnx"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m snp_onnx.cli "$@"\n')
    command.chmod(0o755)
    return os.environ | {
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SNP_ONNX_THREADS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }


def run_page(page: Path, folder: Path) -> int:
    """Run a page's blocks in a fresh folder; PageError with page, line and output at the first that fails."""
    here = folder / "page"
    here.mkdir()
    furnish(here)
    variables = environment(folder / "home")
    done = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.title is not None:
            (here / block.title).parent.mkdir(parents=True, exist_ok=True)
            (here / block.title).write_text(block.text, encoding="utf-8")
        elif block.is_run:
            _run(block, page, here, variables)
            done += 1
    return done


def _run(block: Block, page: Path, here: Path, variables: dict[str, str]) -> None:
    if block.language == "bash":
        command = ["bash", "-euo", "pipefail", "-c", block.text]
    else:  # a script, so that what it starts can import it; lines count as they do on the page
        script = here / f"line_{block.line}.py"
        script.write_text("\n" * block.line + block.text, encoding="utf-8")
        command = [sys.executable, script.name]
    where = f"{page}:{block.line}"
    try:
        ended = subprocess.run(
            command,
            cwd=here,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PageError(f"{where}: still running after {SECONDS} s:\n{block.text}") from None
    if ended.returncode:
        raise PageError(f"{where}: exit code {ended.returncode}\n{block.text}\n{ended.stdout[-6000:]}")
