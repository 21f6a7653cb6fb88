"""What `prune` leaves on disk: checked before the work starts, written after everything has succeeded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from snp_onnx.errors import PlanError
from snp_onnx.model_io import check_destination, written_whole
from snp_onnx.report.json_report import to_json
from snp_onnx.verbs.result import PruneResult


@dataclass(frozen=True, slots=True)
class Destinations:
    """The files a run was asked for."""

    output: Path | None
    report: Path | None
    plan: Path | None
    dry_run: bool
    external_data: bool

    def check(self, model: Path, force: bool) -> None:
        """Refuse what can't be written."""
        if self.output is None and not self.dry_run:
            raise PlanError("no OUTPUT given: name the file to write, or add --dry-run")
        if self.output is not None:
            check_destination(self.output, model, force)
        for option, path in (("--report", self.report), ("--plan", self.plan)):
            if path is not None and path.suffix != ".json":
                raise PlanError(f"{option} {path}: give a file name that ends in .json")
            if path is not None:
                check_destination(path, model, force=False)
        paths = [path.resolve() for path in (self.output, self.report, self.plan) if path is not None]
        if len(set(paths)) < len(paths):
            raise PlanError("two outputs have the same name: give each its own file")

    def write(self, result: PruneResult) -> None:
        """The plan, the model, and the report that has the model's bytes on disk."""
        facts = result.report
        if self.plan is not None:
            result.save_plan(self.plan)
        if self.output is not None and not self.dry_run:
            size = result.save(self.output, save_as_external_data=self.external_data)
            facts = replace(facts, pruned=replace(facts.pruned, bytes=size))
        if self.report is not None:
            with written_whole(self.report) as temporary:
                temporary.write_text(to_json(facts))
