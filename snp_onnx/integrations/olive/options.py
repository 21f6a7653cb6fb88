"""What Olive's pass takes, as a table: every option of `prune` that makes sense in a workflow, and the pass's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.planning.options import AUTO, TargetKind, choices
from snp_onnx.verbs.prune import CHOICE_OPTIONS
from snp_onnx.verbs.settings import data_from, runtime_from, target_from

NUMBER, WHOLE, WORD, YES_OR_NO = "a number", "a whole number", "a word", "true or false"
WORDS, NUMBER_OR_AUTO, SHAPES, PATH = "a list of words", "a whole number or auto", "lists of numbers by input", "a path"
TYPES: Mapping[str, Any] = {
    NUMBER: float,
    WHOLE: int,
    WORD: str,
    YES_OR_NO: bool,
    WORDS: list[str],
    NUMBER_OR_AUTO: int | str,
    SHAPES: dict[str, list[int]],
    PATH: str,
}
SEARCHABLE = frozenset({NUMBER, WHOLE, WORD, YES_OR_NO, NUMBER_OR_AUTO})
"""Of these a search takes a list of values; the others are lists themselves, or files."""


DATA, CUSTOM_OPS = "data_config", "custom_ops"


@dataclass(frozen=True, slots=True)
class Row:
    """One option: what kind of value it takes, what it is where nobody says, and what it means."""

    name: str
    kind: str
    default: Any
    meaning: str


TARGETS = (
    Row("target_macs", NUMBER, None, "Keep at most this fraction of the MACs."),
    Row("target_params", NUMBER, None, "Keep at most this fraction of the parameters."),
    Row("target_size", NUMBER, None, "Keep at most this fraction of the bytes on disk."),
    Row("target_latency", NUMBER, None, "Take at most this fraction of the time, as measured here."),
    Row("variance", NUMBER, None, "The paper's τ: the share of ΣD every group keeps."),
    Row("min_fidelity", NUMBER, None, "As few MACs as keep R² of every output's worst channel at this."),
)

CHOICES = (
    Row("preset", WORD, "best", "best, fast or paper."),
    Row("units", WORDS, None, "Kinds that may be removed, of channels, heads, head-dims, stream and blocks."),
    Row("order", WORD, None, "output, zca, saw, magnitude, natural or random."),
    Row("fold", WORD, None, "patch, channel or none."),
    Row("refine", WORD, None, "sequential or none."),
    Row("ratios", WORD, None, "budget, variance or uniform."),
    Row("ridge", NUMBER, None, "Ridge relative to each input's variance; ten times as much in the refit."),
    Row("repair", NUMBER, None, "a in error / (variance (1 + a * layers behind)), by which layers are compared."),
    Row("weigh", WORD, None, "outputs or layers: where errors are compared; by default outputs with attention."),
    Row("streams", YES_OR_NO, None, "Cut convolutional residual streams too."),
    Row("caches", YES_OR_NO, None, "Cut heads of key-value caches too, inputs and outputs."),
    Row("include", WORD, None, "Only groups with a producer node matching this regular expression."),
    Row("exclude", WORD, None, "No groups with a producer node matching this regular expression."),
    Row("min_units", WHOLE, None, "Keep at least so many units of every group."),
    Row(
        "round_to",
        NUMBER_OR_AUTO,
        None,
        "Keep multiples of this, or the dense width; auto: widths that save time here.",
    ),
    Row("similarity", WORD, None, "How blocks are ranked: cka, debiased-cka, cosine, euclidean, magnitude or random."),
    Row("representation", WORD, None, "The tensor compared without a block; else the last layer's input."),
    Row("ranking_samples", WHOLE, None, "Samples that blocks are ranked on; 256 by default."),
    Row("min_blocks", WHOLE, None, "Keep at least so many blocks of every stage; 1 by default."),
    Row("fallback", YES_OR_NO, None, "Leave fold or refit out where they harm samples set apart; by default on."),
    Row("latency_batch", WHOLE, None, "Rows of the batch that latencies are of; 1 by default."),
    Row("plan", PATH, None, "A saved plan to carry out instead of deciding; then no target, and data only to fold."),
    Row("plan_widths", YES_OR_NO, None, "Of that plan keep the widths, and choose the units anew."),
)

RUNNING = (
    Row("samples", WHOLE, None, "Use the first N samples of the data config."),
    Row("batch_size", WHOLE, None, "Rows a run, whatever batches the data come in; 16 by default."),
    Row("input_shapes", SHAPES, None, "Shapes of inputs with dynamic axes, for the count of MACs."),
    Row("seed", WHOLE, None, "For random orders; 0 by default."),
    Row("provider", WORD, None, "cpu, cuda, or a provider of onnxruntime; by default the workflow's accelerator's."),
    Row("threads", WHOLE, None, "Intra-op threads of the runtime."),
    Row(CUSTOM_OPS, WORDS, None, "Libraries of custom operators, by their paths."),
    Row("latency", YES_OR_NO, False, "Time the result against the dense model; latency targets do so anyway."),
    Row("outlook", YES_OR_NO, False, "Report what other shares of the MACs would leave."),
)

OWN = (
    Row("save_as_external_data", YES_OR_NO, False, "Weights in a file beside the model; above 2 GB always."),
    Row("report", YES_OR_NO, True, "Leave snp_report.json beside the model, also beside what later passes make of it."),
    Row("page", YES_OR_NO, False, "Leave snp_report.html as well, to be looked at (needs the extra `report`)."),
    Row("save_plan", YES_OR_NO, True, "Leave snp_plan.json and its folded weights, about as large as the model."),
)

ROWS = (*TARGETS, *CHOICES, *RUNNING, *OWN)
_OWN_NAMES = frozenset(row.name for row in OWN)

_BY_THE_DATA = "the data config prepares the samples, for this pass and its neighbours alike"
LEFT_OUT: Mapping[str, str] = {
    "input_array": _BY_THE_DATA,
    "label_array": "labels belong to the workflow's evaluator",
    "mean": _BY_THE_DATA,
    "std": _BY_THE_DATA,
    "scale": _BY_THE_DATA,
    "convention": _BY_THE_DATA,
    "resize": _BY_THE_DATA,
    "crop": _BY_THE_DATA,
    "layout": _BY_THE_DATA,
    "input_values": "the data config has the values of all inputs",
    "external_as": "follows from save_as_external_data",
    "progress": "an object, and not for a configuration",
    "executor": "an object, and not for a configuration",
}
"""Options of `prune` that the pass doesn't take, and why."""


def check_names(names: Iterable[str]) -> None:
    """Refuse what the pass doesn't take: Olive would only warn of it."""
    known = [*(row.name for row in ROWS), DATA]
    for name in names:
        if name in known:
            continue
        if name in LEFT_OUT:
            raise PlanError(f"SnpPrune doesn't take {name}: {LEFT_OUT[name]}")
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
        raise PlanError(f"SnpPrune has no option {name!r}: {hint}")


def check_values(values: Mapping[str, Any], is_whole: bool) -> None:
    """Refuse what `prune` would, before the workflow begins; of a search (not `is_whole`) what all candidates share."""
    given = prune_options(values)
    own = {name: given.get(name) for name in CHOICE_OPTIONS}
    choices(given.get("preset", "best"), seed=given.get("seed"), kinds=given.get("units"), **own)
    data_from(None, given)
    runtime_from(given)
    targets = {kind: given[name] for kind, name in _target_names().items() if name in given}
    if not is_whole:
        return
    if "plan" not in given:
        target_from(targets)
        if values.get(DATA) is None:
            raise CalibrationError(f"SnpPrune has no {DATA}: name one of the workflow's data_configs")
    elif targets:
        raise PlanError("SnpPrune has a plan and a target: give one of them")
    if given.get("plan_widths") and ("plan" not in given or values.get(DATA) is None):
        raise PlanError(f"SnpPrune has plan_widths: give a plan, and in {DATA} the samples to choose units by")


def as_given(values: Mapping[str, Any], working: Path) -> dict[str, Any]:
    """Values with words as they were written: Olive makes paths of those that name something in the working folder.

    >>> as_given({"preset": str(Path.cwd() / "docs"), "seed": 1}, Path.cwd())
    {'preset': 'docs', 'seed': 1}
    """
    kinds = {row.name: row.kind for row in ROWS if row.kind in (WORD, WORDS, NUMBER_OR_AUTO) and row.name != CUSTOM_OPS}
    return {name: _word(value, working) if name in kinds else value for name, value in values.items()}


def _word(value: Any, working: Path) -> Any:
    if isinstance(value, list):
        return [_word(item, working) for item in value]
    is_path = isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(working)
    return str(Path(value).relative_to(working)) if is_path else value


def prune_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `prune` among the pass's values: what was given, and nothing else."""
    names = [row.name for row in ROWS if row.name not in _OWN_NAMES]
    return {name: values[name] for name in names if values.get(name) is not None}


def is_timed(values: Mapping[str, Any]) -> bool:
    """Whether the runtime's clock decides or reports anything."""
    return bool(values.get("latency")) or values.get("target_latency") is not None or values.get("round_to") == AUTO


def _target_names() -> dict[str, str]:
    """Targets by kind, as `target_from` wants them: {"macs": "target_macs", ...}."""
    return {str(kind): kind.option.replace("-", "_") for kind in TargetKind}
