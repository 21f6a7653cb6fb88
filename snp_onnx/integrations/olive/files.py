"""What Olive's pass leaves in the model's folder: the model, its report and its plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snp_onnx.model_io import data_files
from snp_onnx.planning.plan import sidecar_of
from snp_onnx.report.json_report import to_json
from snp_onnx.report.page import pruning_page, require_pages
from snp_onnx.verbs.result import PruneResult, config_of
from snp_onnx.writing import Transaction


@dataclass(frozen=True, slots=True)
class Beside:
    """Files that go along with the model (`named`), and whether it is `together` with any, its weights included."""

    named: list[str]
    together: bool


def check(values: Mapping[str, Any]) -> None:
    """Refuse, before any work, what can't be written."""
    if values["page"]:
        require_pages()


def name_for(model: Path, working: Path) -> str:
    """A file name for the pruned model that no file of the working folder has.

    Olive (0.13) looks for a model's file name in the working folder before the model's own folder: a dense `model.onnx`
    there would take the place of a pruned `model.onnx` in the next pass.
    """
    name = f"{model.stem}_pruned.onnx"
    return name if not (working / name).exists() else name_for(Path(name), working)


def write(result: PruneResult, output: Path, values: Mapping[str, Any], carried: Iterable[str]) -> Beside:
    """Write the model and what was asked for beside it, under names that none of the files `carried` has."""
    stem = _free_stem({Path(name).name for name in carried})
    report, page, plan = (output.with_name(f"{stem}_{end}") for end in ("report.json", "report.html", "plan.json"))
    asked = {report: values["report"], page: values["page"], plan: values["save_plan"]}
    with Transaction() as files:
        size = result.save(output, bool(values["save_as_external_data"]), files)
        facts = replace(result.report, pruned=replace(result.report.pruned, bytes=size))
        if asked[report]:
            files.new(report).write_text(to_json(facts), encoding="utf-8")
        if asked[page]:
            files.new(page).write_text(pruning_page(result, facts), encoding="utf-8")
        if asked[plan]:
            result.save_plan(plan, files)
    named = [path for path, is_asked in asked.items() if is_asked]
    besides = [config_of(output), *([sidecar_of(plan)] if asked[plan] else [])]
    named += [path for path in besides if path.exists()]
    return Beside(sorted(str(path) for path in named), bool(named or data_files(output)))


def _free_stem(taken: set[str]) -> str:
    """`snp`, or `snp2` and so on where an earlier pass of ours has left files already."""
    number = 1
    while any(name.startswith((f"{_stem(number)}_report.", f"{_stem(number)}_plan.")) for name in taken):
        number += 1
    return _stem(number)


def _stem(number: int) -> str:
    return "snp" if number == 1 else f"snp{number}"
