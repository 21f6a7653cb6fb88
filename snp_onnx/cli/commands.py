"""The commands: parse, call one verb, print. Results go to stdout, progress, notes and warnings to stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from snp_onnx._version import __version__
from snp_onnx.cli.config import config_text
from snp_onnx.cli.interruption import Interruption
from snp_onnx.cli.options import (
    CHOICES,
    CONFIG,
    CUSTOM_OPS,
    DASK,
    DATA,
    INPUT_SHAPE,
    INPUT_VALUE,
    JSON,
    QUIET,
    TARGETS,
    TRAINING,
    takes,
    verb_options,
)
from snp_onnx.cli.progress import shown_progress
from snp_onnx.cli.remarks import remark
from snp_onnx.cli.sections import Sections
from snp_onnx.cli.streams import results_apart
from snp_onnx.cli.write import Destinations, RecoverDestinations, check_page, write_text
from snp_onnx.integrations.folder import ModelFolder
from snp_onnx.model_folder import model_file
from snp_onnx.planning.schema import schema_text
from snp_onnx.report.json_report import to_json
from snp_onnx.report.page import inspection_page
from snp_onnx.report.remarks import counted
from snp_onnx.report.table import comparison_table, inspection_table, pruning_table, recovery_table

EXAMPLE = (
    "For example: snp-onnx prune model.onnx small.onnx --calibration images/ --convention imagenet --target-macs 0.5"
)

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=EXAMPLE)


def _version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:  # which a shell that asks for completions parses with
        print(__version__)
        raise typer.Exit


def _plan_schema(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        print(schema_text(), end="")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    plan_schema: Annotated[
        bool,
        typer.Option("--plan-schema", callback=_plan_schema, is_eager=True, help="Print the JSON Schema of plans."),
    ] = False,
) -> None:
    """Structured pruning of trained ONNX models, without training."""


@app.command(cls=Sections)
@takes(*TARGETS, *DATA, *CHOICES, DASK, CONFIG, QUIET)
def prune(
    context: typer.Context,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The trained model, or a folder with it and its config.json.")
    ],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUTPUT", help="Where the pruned model goes; not needed with --dry-run.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as FILE.json or FILE.html.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Write the plan as FILE.json, folded weights beside it.")] = None,
    save_config: Annotated[
        Path | None, typer.Option(help="Write these options, defaults too, as FILE.yaml for --config.")
    ] = None,
    apply_plan: Annotated[Path | None, typer.Option(help="Carry out a plan instead of deciding.")] = None,
    plan_widths: Annotated[
        bool, typer.Option("--plan-widths", help="Of that plan keep the widths, and choose the units anew.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide and verify; write no model (--plan and --report are).")
    ] = False,
    save_as_external_data: Annotated[
        bool, typer.Option("--save-as-external-data", help="Keep the weights in a file beside the model.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="OUTPUT may be MODEL, or a folder with another model.")
    ] = False,
    onnx_file: Annotated[str | None, typer.Option(help="Of a folder with several models, the one to prune.")] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time the result against MODEL, in turn.")
    ] = True,
    **options: Any,
) -> None:
    """Prune MODEL to a target and write OUTPUT."""
    from snp_onnx.verbs.prune import prune as run

    told = context.ensure_object(Interruption)
    folder = ModelFolder.at(model, onnx_file) if model.is_dir() else None
    model = model_file(model, onnx_file)
    destinations = Destinations(output, report, plan, dry_run, save_as_external_data, folder, save_config)
    quiet, source, dask = options.pop("quiet"), options.pop("calibration"), options.pop("dask")
    destinations.check(model, force, [apply_plan, source and Path(source), options.get("config")])
    values = verb_options(options)
    values |= {
        "plan": apply_plan,
        "plan_widths": plan_widths,
        "external_as": destinations.external_as,
        "latency": latency,
    }
    values["outlook"] = destinations.has_page
    with results_apart(), _workers(dask) as executor, shown_progress(quiet) as progress:
        values |= {"progress": progress, "executor": executor}
        result = run(model, source, **values) if folder is None else folder.prune(source, **values)
    told.stop_if_interrupted()
    destinations.write(result, model, config_text(context) if save_config is not None else None, told.written)
    _show(told, pruning_table(result.report), result.report.notes, result.report.warnings, quiet)


@app.command(cls=Sections)
@takes(INPUT_SHAPE, INPUT_VALUE, CUSTOM_OPS, CONFIG, JSON, QUIET)
def inspect(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model to look at.")],
    html: Annotated[Path | None, typer.Option(help="Write what is found as FILE.html too.")] = None,
    **options: Any,
) -> None:
    """Show what may be cut, and what may not and why. Nothing is run: no samples are needed."""
    from snp_onnx.verbs.inspect import inspect as run

    told = context.ensure_object(Interruption)
    told.require_stdout()
    model = model_file(model)
    check_page(html, model)
    quiet, as_json = options.pop("quiet"), options.pop("json")
    with results_apart():
        inspection = run(model, **verb_options(options))
    told.stop_if_interrupted()
    if html is not None:
        write_text(html, inspection_page(inspection, model.name), told.written)
    if as_json:
        print(to_json(inspection), end="")
    else:
        _show(told, inspection_table(inspection), inspection.notes, (), quiet)


@app.command(cls=Sections)
@takes(*DATA, CONFIG, JSON, QUIET)
def compare(
    context: typer.Context,
    dense: Annotated[Path, typer.Argument(metavar="DENSE", help="The model as it was before.")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The model that was made from it.")],
    latency: Annotated[bool, typer.Option("--latency", help="Time both models in turn.")] = False,
    latency_batch: Annotated[int, typer.Option(help="Rows of a second timed batch.")] = 1,
    **options: Any,
) -> None:
    """Run both models on the same samples. Shows cost, fidelity, accuracy and latency of both."""
    from snp_onnx.verbs.compare import compare as run

    told = context.ensure_object(Interruption)
    told.require_stdout()
    quiet, as_json, source = options.pop("quiet"), options.pop("json"), options.pop("calibration")
    with results_apart():
        comparison = run(dense, pruned, source, latency=latency, latency_batch=latency_batch, **verb_options(options))
    if as_json:
        print(to_json(comparison), end="")
    else:
        _show(told, comparison_table(comparison), comparison.notes, comparison.warnings, quiet)


@app.command(cls=Sections)
@takes(*(option for option in DATA if option.name != "batch_size"), *TRAINING, CONFIG, QUIET)
def recover(
    context: typer.Context,
    dense: Annotated[Path, typer.Argument(metavar="DENSE", help="The model as it was before.")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The model that was pruned from it.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where the recovered model goes.")],
    report: Annotated[Path | None, typer.Option(help="Write the report as FILE.json.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Where the training's state goes (OUTPUT.checkpoint); removed when done.")
    ] = None,
    every: Annotated[float, typer.Option(help="Minutes between two checkpoints.")] = 5.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.")] = False,
    save_as_external_data: Annotated[
        bool, typer.Option("--save-as-external-data", help="Keep the weights in a file beside the model.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="OUTPUT may be DENSE or PRUNED.")] = False,
    **options: Any,
) -> None:
    """Train PRUNED to do what DENSE does. On unlabelled samples, with torch; writes OUTPUT."""
    from snp_onnx.verbs.recover import recover as run

    quiet, source = options.pop("quiet"), options.pop("calibration")
    told = context.ensure_object(Interruption)
    state = told.checkpoint = checkpoint or output.with_name(f"{output.name}.checkpoint")
    destinations = RecoverDestinations(output, report, state, save_as_external_data)
    destinations.check(dense, pruned, force, source and Path(source))
    values = verb_options(options)
    with results_apart(), shown_progress(quiet) as progress:
        result = run(dense, pruned, source, checkpoint=state, every=every, resume=resume, progress=progress, **values)
    told.stop_if_interrupted()
    destinations.write(result, told.written)
    _show(told, recovery_table(result.report), result.report.notes, result.report.warnings, quiet)


def _workers(dask: str | None) -> AbstractContextManager[Executor | None]:
    """The executor that was asked for; none where everything runs here."""
    if dask is None:
        return nullcontext()
    from snp_onnx.calibration.cluster import dask_executor

    return dask_executor(dask)


def _show(told: Interruption, table: Any, notes: Sequence[str], cautions: Sequence[str], quiet: bool) -> None:
    """Tables to stdout, wide enough to be read when piped; notes and warnings to stderr, a line each."""
    for line in counted(cautions):
        remark("warning", line)
    if quiet:
        return
    if not told.has_stdout:
        remark("warning", "standard output is closed: what was written is not shown")
        return
    for line in counted(notes):
        remark("note", line)
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
