"""What `prune` and `recover` leave on disk: checked before the work starts, written after everything has succeeded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from snp_onnx.errors import PlanError
from snp_onnx.integrations.folder import ModelFolder
from snp_onnx.model_io import check_destination, data_files
from snp_onnx.planning.plan import check_sidecar, sidecar_of
from snp_onnx.report.json_report import to_json
from snp_onnx.report.page import pruning_page, require_pages
from snp_onnx.verbs.recovered import RecoverResult
from snp_onnx.verbs.result import PruneResult, check_config
from snp_onnx.writing import Transaction


@dataclass(frozen=True, slots=True)
class Destinations:
    """The files a run was asked for."""

    output: Path | None
    report: Path | None
    plan: Path | None
    dry_run: bool
    external_data: bool
    folder: ModelFolder | None = None
    """The folder that is pruned as a whole; OUTPUT is one too then."""
    config: Path | None = None

    @property
    def external_as(self) -> str | None:
        """The name of the model file if its weights are to lie beside it."""
        if self.folder is not None:
            return self.folder.file.name if self.external_data else None
        return (self.output.name if self.output else "model.onnx") if self.external_data else None

    @property
    def has_page(self) -> bool:
        """Whether the report is a page to be looked at."""
        return self.report is not None and self.report.suffix == ".html"

    def check(self, model: Path, force: bool, inputs: Iterable[Path | None]) -> None:
        """Refuse what can't be written, and what would overwrite an input of the run."""
        if self.has_page:
            require_pages()
        if self.output is None and not self.dry_run:
            raise PlanError("no OUTPUT given: name the file to write, or add --dry-run")
        read = [path for path in inputs if path is not None]
        if self.output is not None and self.folder is not None:
            self.folder.check(self.output, force, read)
        elif self.output is not None:
            check_destination(self.output, model, force)
            check_config(self.output)
        for option, path, endings in (
            ("--report", self.report, (".json", ".html")),
            ("--plan", self.plan, (".json",)),
            ("--save-config", self.config, (".yaml", ".yml")),
        ):
            if path is not None and path.suffix not in endings:
                raise PlanError(f"{option} {path}: give a file name that ends in {' or '.join(endings)}")
            if path is not None:
                check_destination(path, model, force=False)
        sidecar = None
        if self.plan is not None:
            sidecar = sidecar_of(self.plan)
            check_sidecar(self.plan)
        paths = [path for path in (self.output, self.report, self.plan, sidecar, self.config) if path is not None]
        self._keep_folders(paths[1:] if self.output is not None else paths)
        for number, path in enumerate(paths):
            if path.resolve() in [other.resolve() for other in paths[:number]]:
                raise PlanError(f"{path}: two outputs have this name: give each its own file")
        _keep_inputs(paths, model, read)

    def _keep_folders(self, paths: Sequence[Path]) -> None:
        """A folder that is pruned, or written, holds no reports and plans of ours: it appears whole."""
        folders = [] if self.folder is None else [self.folder.source, self.output]
        for path in paths:
            if any(folder is not None and folder.resolve() in path.resolve().parents for folder in folders):
                raise PlanError(f"{path}: this would lie in a folder that is pruned as a whole: name another place")

    def write(
        self, result: PruneResult, model: Path, config: str | None = None, moved: Callable[[], None] | None = None
    ) -> None:
        """The plan, the model, the report that has the model's bytes on disk and says which models it is about, and
        the text `config`: all of them or none. `moved` is called when they are there.
        """
        with _written(self.output, moved) as files:
            self._write(result, model, config, files)

    def _write(self, result: PruneResult, model: Path, config: str | None, files: Transaction) -> None:
        facts = result.report
        names = [path.name for path in (model, None if self.dry_run else self.output) if path is not None]
        if self.plan is not None:
            result.save_plan(self.plan, files)
        if self.output is not None and not self.dry_run:
            size = self._write_model(result, self.output, files)
            facts = replace(facts, pruned=replace(facts.pruned, bytes=size))
        if self.report is not None:
            text = pruning_page(result, facts, " → ".join(names)) if self.has_page else to_json(facts)
            files.new(self.report).write_text(text, encoding="utf-8", errors="backslashreplace")
        if self.config is not None and config is not None:
            files.new(self.config).write_text(config, encoding="utf-8")

    def _write_model(self, result: PruneResult, output: Path, files: Transaction) -> int:
        if self.folder is not None:
            return self.folder.write(result, output, self.external_data, files)
        return result.save(output, self.external_data, files)


def check_page(path: Path | None, model: Path) -> None:
    """Refuse a page that can't be written, or that would overwrite the model."""
    if path is None:
        return
    require_pages()
    if path.suffix != ".html":
        raise PlanError(f"--html {path}: give a file name that ends in .html")
    check_destination(path, model, force=False)
    _keep_inputs([path], model, [])


@contextmanager
def _written(output: Path | None, moved: Callable[[], None] | None = None) -> Iterator[Transaction]:
    """A transaction for all files of a result, whose failures are told in words."""
    try:
        with Transaction(moved) as files:
            yield files
    except OSError as error:
        raise PlanError(f"can't write {error.filename or output}: {error.strerror or error}") from error


def write_text(path: Path, text: str, moved: Callable[[], None] | None = None) -> None:
    """Write a text file whole."""
    with _written(path, moved) as files:
        files.new(path).write_text(text, encoding="utf-8", errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class RecoverDestinations:
    """The files a recovery was asked for; the checkpoint is the verb's, and only its place is checked here."""

    output: Path
    report: Path | None
    checkpoint: Path
    external_data: bool

    def check(self, dense: Path, pruned: Path, force: bool, source: Path | None) -> None:
        """Refuse what can't be written, and what would overwrite an input of the run."""
        for model in (dense, pruned):
            check_destination(self.output, model, force)
        check_config(self.output)
        if self.report is not None:
            if self.report.suffix != ".json":
                raise PlanError(f"--report {self.report}: give a file name that ends in .json")
            check_destination(self.report, pruned, force=False)
        paths = [path for path in (self.output, self.report, self.checkpoint) if path is not None]
        for number, path in enumerate(paths):
            if path.resolve() in [other.resolve() for other in paths[:number]]:
                raise PlanError(f"{path}: two outputs have this name: give each its own file")
        inputs = [path for path in (source,) if path is not None]
        _keep_inputs(paths, dense, inputs)
        _keep_inputs(paths, pruned, inputs)
        _keep_inputs(paths[1:], pruned, [dense, pruned])

    def write(self, result: RecoverResult, moved: Callable[[], None] | None = None) -> None:
        """The model, and the report; `moved` is called when they are there, and the checkpoint is not."""
        with _written(self.output, moved) as files:
            result.save(self.output, self.external_data, files)
            if self.report is not None:
                files.new(self.report).write_text(to_json(result.report), encoding="utf-8")


def _keep_inputs(outputs: Sequence[Path], model: Path, inputs: Sequence[Path]) -> None:
    """No output may be a file that the run reads; the model itself is `check_destination`'s."""
    for path in outputs:
        if not path.exists():
            continue
        for source in (*inputs, *data_files(model)):
            if source.exists() and source.samefile(path):
                raise PlanError(f"{path}: this file is an input of the run: name another one")
