"""Prune: options checked, then one job."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import onnx

from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.planning.options import Choices, Ratios, Target, TargetKind, choices
from snp_onnx.planning.plan import Plan, Saved, load_plan
from snp_onnx.tracing import Kind
from snp_onnx.verbs.job import Job
from snp_onnx.verbs.result import PruneResult
from snp_onnx.verbs.settings import (
    DATA_OPTIONS,
    Progress,
    check_options,
    data_from,
    runtime_from,
    target_from,
)

CHOICE_OPTIONS = [
    *("order", "fold", "ratios", "refine", "ridge", "repair", "weigh"),
    *("streams", "caches", "include", "exclude", "min_units", "round_to"),
    *("similarity", "representation", "ranking_samples", "min_blocks", "latency_batch", "fallback"),
]

AS_PLANNED = ("fold", "ridge", "refine", "order", "repair", "kinds", "caches")
"""Choices that a plan made earlier brings along; the schema of plans says what they look like."""


def prune(
    model: str | os.PathLike[str] | onnx.ModelProto,
    calibration: Any = None,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_size: float | None = None,
    target_latency: float | None = None,
    variance: float | None = None,
    min_fidelity: float | None = None,
    preset: str = "best",
    units: Sequence[str] | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    plan_widths: bool = False,
    external_as: str | None = None,
    latency: bool = False,
    outlook: bool = False,
    progress: Progress | None = None,
    executor: Executor | None = None,
    **options: Any,
) -> PruneResult:
    """Prune a model to a target, or by a plan made earlier.

    Parameters
    ----------
    model : path or onnx.ModelProto; never changed.
    calibration : any SOURCE: a path (.npz, .npy, .json of polygraphy, folder, loader.py, "random"), arrays, an
        iterable of feeds, or an object with `get_next`.
    target_macs, target_params, target_size, target_latency : fraction of the dense model's cost to keep at most; the
        latency is measured, with the provider and threads given; what layers take at other widths is measured once
        on a machine and kept in the user's cache folder (SNP_ONNX_CACHE names another).
    variance : the paper's τ. min_fidelity : R² that the worst channel of every output must keep, on samples set apart
        for choosing, by as few MACs as can be found. Exactly one target, unless `plan` is given.
    preset : "best", "fast" or "paper". units : kinds that may be removed, of "channels", "heads", "head-dims", "stream"
        and "blocks". With "head-dims" an attention gives up dimensions inside its heads, and whole heads only where it
        can't: run twice for both. "blocks" go first: all that are needed or, beside other kinds, as many as is best.
    plan : a Plan or the path of a saved one, to carry out instead of deciding, on another model of this structure too.
        plan_widths : take its widths only, and choose the units at them by this model's own statistics.
    external_as : the file name of a result saved with external data, whose bytes then count for `target_size`.
    latency : time the result against the dense model too, one row and `latency_batch` of them; a latency target does so
        anyway. outlook : report what other shares of the MACs would leave, each a fold and a look at held-back samples.
    progress : called as `progress(stage, done, total)`. executor : whose workers measure (`calibration.workers`).
    options : as on the command line (`snp-onnx prune --help`), `-` written `_`, several `input_shapes` as a mapping;
        all of them are in `CHOICE_OPTIONS` here and `DATA_OPTIONS` of `snp_onnx.verbs.settings`.

    Raises
    ------
    ModelError, CalibrationError, PlanError: wrong input. TargetError: it can't be met, or nothing is prunable.
    PassError: the result fails verification.
    """
    check_options(options, DATA_OPTIONS + CHOICE_OPTIONS)
    given = {"macs": target_macs, "params": target_params, "size": target_size, "latency": target_latency}
    target = _target(plan, given | {"variance": variance, "fidelity": min_fidelity})
    earlier = _read_plan(plan, plan_widths, calibration)
    chosen = _chosen(preset, options | {"kinds": units}, earlier)
    _check_target(target, calibration, options.get("ratios"), chosen.kinds)
    data, runtime, workers = data_from(calibration, options), runtime_from(options), _checked(executor)
    is_timed = latency or (target is not None and target.kind is TargetKind.LATENCY)
    job = Job(chosen, target, data, runtime, progress or _silent, external_as, is_timed, workers, outlook, plan_widths)
    return job.run(model, earlier)


def _chosen(preset: str, options: Mapping[str, Any], earlier: Saved | None) -> Choices:
    """The choices that were given; a plan is folded as it was made, unless told otherwise."""
    given = {name: options.get(name) for name in [*CHOICE_OPTIONS, "kinds"]}
    if earlier is not None:
        as_planned = {name: earlier.plan.options.get(name) for name in AS_PLANNED}
        given |= {name: value for name, value in as_planned.items() if given[name] is None}
    return choices(preset, seed=options.get("seed"), **given)


def _target(plan: object, given: Mapping[str, float | None]) -> Target | None:
    """The one target; none where a plan is given."""
    if plan is None:
        return target_from(given)
    if any(value is not None for value in given.values()):
        raise PlanError("a plan and a target were given: give one of them")
    return None


def _check_target(target: Target | None, calibration: Any, ratios: Any, kinds: frozenset[Kind]) -> None:
    if target is None:
        return
    if calibration is None:
        raise CalibrationError("no calibration samples given: pass a SOURCE (--calibration data.npz)")
    if target.kind is TargetKind.VARIANCE and ratios not in (None, Ratios.VARIANCE):
        raise PlanError(f"--variance implies --ratios variance: drop --ratios {ratios} or give another target")
    if Kind.BLOCKS in kinds:
        _check_blocks(target, kinds)


def _check_blocks(target: Target, kinds: frozenset[Kind]) -> None:
    """What blocks don't go together with yet."""
    turned = sorted(str(kind) for kind in kinds & {Kind.HEAD_DIMS, Kind.STREAM})
    if turned:
        raise PlanError(f"--units blocks,{turned[0]}: remove blocks first and run again for {turned[0]}")
    known = [
        TargetKind.MACS,
        TargetKind.PARAMS,
        TargetKind.LATENCY,
        *([TargetKind.FIDELITY] if kinds == {Kind.BLOCKS} else []),
    ]
    if target.kind not in known:
        names = " or ".join(f"--{kind.option}" for kind in known)
        raise PlanError(f"--{target.option} doesn't go with --units {','.join(sorted(kinds))}: give {names}")


def _checked(executor: Executor | None) -> Executor | None:
    if executor is None or isinstance(executor, Executor):
        return executor
    kind = type(executor).__name__
    raise PlanError(f"the executor is a {kind}: give a concurrent.futures.Executor (of Dask, client.get_executor())")


def _silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


def _read_plan(
    plan: Plan | str | os.PathLike[str] | None, widths_only: bool = False, calibration: Any = None
) -> Saved | None:
    """The plan made earlier, if there is one; its widths alone are of use with samples only."""
    if widths_only and plan is None:
        raise PlanError("--plan-widths takes the widths of a plan: give --apply-plan too")
    if widths_only and calibration is None:
        raise CalibrationError("--plan-widths chooses units by this model's own statistics: give --calibration too")
    if plan is None:
        return None
    return Saved(plan) if isinstance(plan, Plan) else load_plan(Path(plan))
