"""The progress bar: stages as they come, on stderr, gone when done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from snp_onnx.report.remarks import printable
from snp_onnx.verbs.settings import Progress as Report


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Report | None]:
    """A callback that moves a bar; None when nothing is to be shown."""
    console = Console(stderr=True, force_terminal=sys.stderr.isatty())  # FORCE_COLOR is for what is shown, not logged
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=None)

        def report(stage: str, done: int, total: int) -> None:
            bar.update(task, description=printable(stage), completed=done, total=total or None)

        yield report
