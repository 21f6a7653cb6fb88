"""Kills and interruptions while results are written: afterwards the old files are there or the new ones, all of them.

    python -m tools.bench.durability [--tries 40] [--commands 10]

A process that writes one form of output over an older one is hit before a line of the code that runs then; the lines
are taken at equal distances from the first to the last. Whole commands are hit at moments spread over their duration.
`at once` counts what a reader finds who doesn't know of records of moves; the other columns what the next run finds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import snp_onnx
from snp_onnx.cli.write import Destinations
from snp_onnx.integrations.folder import ModelFolder
from snp_onnx.writing import settle

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits.onnx"
OPTIONS = ["--calibration", str(ROOT / "models" / "digits.npz"), "--input-array", "images", "--preset", "fast"]
PARTS = (ROOT, ROOT / "snp_onnx" / "writing")
"""Every second process is hit in the part that moves files, which is quickly through."""
FORMS = ("one file", "external data", "folder", "plan and side file", "report", "all, with --force over the model")


def destinations(form: str, folder: Path, source: Path) -> Destinations:
    """Where a form of output goes: its files lie in `folder`, or in `more` in it."""
    plan, report, config = folder / "more" / "plan.json", folder / "report.json", folder / "more" / "run.yaml"
    if form == "folder":
        return Destinations(folder / "model", report, plan, False, True, ModelFolder.at(source))
    if form == "plan and side file":
        return Destinations(None, None, plan, True, False)
    if form == "report":
        return Destinations(None, report, None, True, False)
    if form.startswith("all"):
        return Destinations(folder / "m.onnx", report, plan, False, True, None, config)
    return Destinations(folder / "m.onnx", None, None, False, form == "external data")


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder but those that lie hidden beside the others."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if ".snp_onnx-" not in name}


def forked(work: Callable[[], object], line: int, number: int, part: Path = ROOT) -> tuple[int, int]:
    """Do the work in a process that a signal hits before this line of `part`; how it ended, and the lines that ran."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count, code = 0, 1

        def counted(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal count
            if not frame.f_code.co_filename.startswith(str(part)):
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), number)
            return counted

        try:
            sys.settrace(counted)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            sys.settrace(None)
            os.write(writing, str(count).encode())
            os._exit(code)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reading, "rb") as stream:
        return code, int(stream.read() or 0)


def verdict(found: dict[str, bytes], old: dict[str, bytes], new: dict[str, bytes]) -> str:
    return "old" if found == old else "new" if found == new else "neither"


def hit_writes(form: str, number: int, tries: int, results: tuple[Any, Any], room: Path) -> Counter[str]:
    """Write the second result over the first, hit again and again."""
    source = room / "source"
    seen: Counter[str] = Counter()

    def written(folder: Path, place: int) -> None:
        destinations(form, folder, source).write(results[place], DIGITS, "seed: 0\n")

    def made(name: str) -> Path:
        (room / name / "more").mkdir(parents=True)
        written(room / name, 0)
        return room / name

    old, new = made("old"), made("new")
    written(new, 1)
    states = contents(old), contents(new)
    lines = {}
    for part in PARTS:
        here = Path(shutil.copytree(old, room / "here"))
        lines[part] = forked(lambda here=here: written(here, 1), 0, number, part)[1]  # type: ignore[misc]
        shutil.rmtree(here)
    for attempt in range(tries):
        here, part = Path(shutil.copytree(old, room / "here")), PARTS[attempt % 2]
        line = 1 + attempt * lines[part] // tries
        code, _ = forked(lambda here=here: written(here, 1), line, number, part)  # type: ignore[misc]
        seen["hit"] += code in (130, -number)
        seen["at once neither"] += verdict(contents(here), *states) == "neither"
        for folder in (here, here / "more"):
            settle(folder)
        seen[verdict(contents(here), *states)] += 1
        seen["left over"] += sum(1 for _ in here.rglob(".snp_onnx-*"))
        shutil.rmtree(here)
    for folder in (old, new):
        shutil.rmtree(folder)
    return seen


def hit_commands(number: int, tries: int, room: Path) -> Counter[str]:
    """Whole commands over an older output, hit at moments spread over the time that one takes."""
    seen: Counter[str] = Counter()

    def command(folder: Path, target: str) -> list[str]:
        outputs = ["--plan", str(folder / "plan.json"), "--save-as-external-data", "--no-latency", "--quiet"]
        asked = ["prune", str(DIGITS), str(folder / "m.onnx"), *OPTIONS, "--target-macs", target, *outputs]
        return [sys.executable, "-m", "snp_onnx.cli", *asked]

    old, new = room / "old", room / "new"
    for folder, target in ((old, "0.8"), (new, "0.5")):
        folder.mkdir()
        start = time.monotonic()
        subprocess.run(command(folder, target), check=True)
    duration = time.monotonic() - start
    for attempt in range(tries):
        here = Path(shutil.copytree(old, room / "here"))
        process = subprocess.Popen(command(here, "0.5"), stderr=subprocess.PIPE, text=True)
        time.sleep(0.2 + (duration - 0.2) * (attempt + 0.5) / tries)
        process.send_signal(number)
        _, said = process.communicate()
        seen["hit"] += process.returncode in (130, -number)
        seen["wrong words"] += number == signal.SIGINT and process.returncode != 0 and said.count("\n") != 1
        seen["at once neither"] += verdict(contents(here), contents(old), contents(new)) == "neither"
        settle(here)
        seen[verdict(contents(here), contents(old), contents(new))] += 1
        shutil.rmtree(here)
    for folder in (old, new):
        shutil.rmtree(folder)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=40, help="of every form and signal")
    parser.add_argument("--commands", type=int, default=10, help="whole commands of every signal")
    asked = parser.parse_args()
    data = {"calibration": str(ROOT / "models" / "digits.npz"), "input_array": "images", "preset": "fast"}
    results = tuple(snp_onnx.prune(DIGITS, target_macs=target, samples=200, **data) for target in (0.8, 0.5))
    columns = ("hit", "old", "new", "neither", "at once neither", "left over", "wrong words")
    print("| output | signal | tries | " + " | ".join(columns) + " |\n|---|---|" + "---:|" * (len(columns) + 1))
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        (room / "source").mkdir()
        shutil.copy(DIGITS, room / "source" / "model.onnx")
        (room / "source" / "config.json").write_text("{}")
        for form in (*FORMS, "whole command: external data, plan"):
            for number in (signal.SIGKILL, signal.SIGINT):
                if form in FORMS:
                    tries, seen = asked.tries, hit_writes(form, number, asked.tries, (results[0], results[1]), room)
                else:
                    tries, seen = asked.commands, hit_commands(number, asked.commands, room)
                figures = " | ".join(str(seen[column]) for column in columns)
                print(f"| {form} | {number.name} | {tries} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
