"""`SnpPrune`: a pass for Olive's workflows. This module needs olive-ai; nothing of ours imports it, Olive does.

See `package` for what `--package-config` wants, and docs/howto/olive.md for a workflow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from olive.common.config_utils import ParamCategory, validate_config
from olive.data.component.dataloader import default_calibration_dataloader
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam
from olive.resource_path import LocalFile, LocalFolder
from olive.search.search_parameter import Categorical, Conditional, SpecialParamValue
from pydantic import ValidationError

from snp_onnx._version import __version__
from snp_onnx.calibration.sessions import CPU, CUDA, runtime_module
from snp_onnx.errors import ModelError, PlanError
from snp_onnx.integrations.olive import files
from snp_onnx.integrations.olive.data import named_batches
from snp_onnx.integrations.olive.options import (
    DATA,
    PATH,
    ROWS,
    SEARCHABLE,
    TARGETS,
    TYPES,
    Row,
    as_given,
    check_names,
    check_values,
    is_timed,
    prune_options,
)
from snp_onnx.verbs.prune import prune
from snp_onnx.verbs.result import PruneResult

logger = logging.getLogger(f"olive.{__name__}")  # below Olive's own, which has its handlers and its level

SEARCHED_MACS = [0.8, 0.65, 0.5]
"""What a search tries where no target is given."""


class SnpPrune(Pass):  # type: ignore[misc]  # olive-ai has no types
    """Prune an ONNX model to a target: units that add little go, and what they contributed is folded into the rest."""

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """No: moments, and above all latencies, are those of a provider."""
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        params = {row.name: _param(row) for row in ROWS}
        params[DATA] = PassConfigParam(
            type_=DataConfig | dict,
            description="Calibration samples: one of the workflow's data_configs; labels are not used.",
        )
        return params

    @classmethod
    def get_config_params(
        cls, accelerator_spec: AcceleratorSpec, config: Any = None, disable_search: bool | None = False
    ) -> Any:
        """As of every pass; what can't be is refused here, before the first pass of the workflow runs."""
        given = config if isinstance(config, Mapping) else config.model_dump() if config else {}
        check_names(given)
        if not isinstance(given.get(DATA), Mapping | DataConfig | None):
            raise PlanError(f"SnpPrune: {DATA} is {given[DATA]!r}: give the name of one of the workflow's data_configs")
        try:
            found = super().get_config_params(accelerator_spec, as_given(given, Path.cwd()), disable_search)
        except ValidationError as error:
            raise PlanError(_wrong_type(error)) from None
        _, fixed, searched = found
        check_values(_plain(fixed), is_whole=not searched)
        return found

    @classmethod
    def validate_config(cls, config: Any, accelerator_spec: AcceleratorSpec) -> bool:
        """Whether this configuration can be carried out: true, or the reason why not raised. A search goes on then."""
        values = _plain(config.model_dump())
        check_values(values, is_whole=True)
        _provider(values, accelerator_spec)
        files.check(values)
        return True

    def run(self, model: Any, output_model_path: str) -> Any:
        """As of every pass; models of several parts are refused, which Olive would have pruned part by part."""
        _check_handler(model, self.config.custom_ops)
        return super().run(model, output_model_path)

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> ONNXModelHandler:
        values = _plain(config.model_dump())
        output = Path(resolve_onnx_path(output_model_path, files.name_for(Path(model.model_path), Path.cwd())))
        options = prune_options(values) | {"provider": _provider(values, self.accelerator_spec)}
        if values["save_as_external_data"]:
            options["external_as"] = output.name
        feeds = _feeds(values[DATA], model) if values.get(DATA) is not None else None
        result = prune(model.model_path, feeds, **options)
        attributes = dict(model.model_attributes or {})
        beside = files.write(result, output, values, attributes.pop("additional_files", None) or ())
        _tell(result)
        return ONNXModelHandler(
            **_place(output, beside.together),
            inference_settings=model.inference_settings,
            use_ort_extensions=model.use_ort_extensions,
            model_attributes=_attributes(attributes, result, beside.named) or None,
        )


def _param(row: Row) -> PassConfigParam:
    """A row as Olive's schema has it. What may be searched over is, by default, its default alone."""
    search: Any = Categorical([row.default])
    if row.name == "target_macs":
        others = ("plan", *(target.name for target in TARGETS if target.name != row.name))
        alone = {(None,) * len(others): Categorical(SEARCHED_MACS)}
        search = Conditional(others, alone, Conditional.get_ignored_choice())
    return PassConfigParam(
        type_=TYPES[row.kind],
        default_value=row.default,
        category=ParamCategory.PATH if row.kind == PATH else ParamCategory.NONE,
        description=row.meaning,
        search_defaults=search if row.kind in SEARCHABLE else None,
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with None where a search has no use for an option."""
    return {name: None if value == SpecialParamValue.IGNORED else value for name, value in values.items()}


def _wrong_type(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    row = next((row for row in ROWS if row.name == name), None)
    if row is None:
        return f"SnpPrune: {name}: {first['msg']}"
    given = next(item["input"] for item in error.errors() if item["loc"][0] == name)
    return f"SnpPrune: {name} is {given!r}: give {row.kind}: {row.meaning[0].lower()}{row.meaning[1:]}"


def _check_handler(model: Any, custom_ops: list[str] | None) -> None:
    """Refuse what isn't one ONNX model with all of its weights."""
    kind = type(model).__name__
    if not isinstance(model, ONNXModelHandler):
        raise ModelError(
            f"SnpPrune takes one ONNX model, not a {kind}: put it behind a conversion, and prune the parts of a "
            "composite model in workflows of their own"
        )
    if model.external_initializers_path or model.constant_inputs_path:
        raise ModelError(
            f"{model.model_path}: some weights are kept apart from the model: prune before ExtractAdapters"
        )
    if model.use_ort_extensions and not custom_ops:
        raise ModelError(f"{model.model_path}: operators of onnxruntime-extensions: give their library in custom_ops")


def _provider(values: Mapping[str, Any], accelerator: AcceleratorSpec) -> str:
    """The provider that calibrates: the one asked for, or the workflow's, or the CPU where the runtime has it not."""
    if values.get("provider") is not None:
        return str(values["provider"])
    by_device = CUDA if str(accelerator.accelerator_type).lower() == "gpu" else CPU
    name = str(accelerator.execution_provider or by_device)
    if name in runtime_module().get_available_providers():
        return name
    if is_timed(values):
        raise PlanError(
            f"the onnxruntime of this machine has no {name}, whose clock SnpPrune is to go by: run the workflow where "
            "it is, or name another provider"
        )
    logger.warning("SnpPrune: the onnxruntime of this machine has no %s: calibrating on the CPU", name)
    return CPU


def _feeds(data: Any, model: Any) -> Iterator[Mapping[str, Any]]:
    """The samples of a data config as Olive's quantisers get them: cast to the model's types, caches filled in."""
    config = validate_config(data, DataConfig)
    io_config = model.io_config
    batches = named_batches(
        config.to_data_container().create_dataloader(), io_config["input_names"], f"the data config {config.name!r}"
    )
    reader = default_calibration_dataloader(batches, model_path=model.model_path, io_config=io_config)
    while (feed := reader.get_next()) is not None:
        yield feed


def _place(output: Path, is_together: bool) -> dict[str, Any]:
    """Where a model is, as a handler wants it: a file, or a folder whose files belong together."""
    if not is_together:
        return {"model_path": LocalFile({"path": output})}
    return {"model_path": LocalFolder({"path": output.parent}), "onnx_file_name": output.name}


def _attributes(given: dict[str, Any], result: PruneResult, beside: list[str]) -> dict[str, Any]:
    """The input's attributes, with head counts and widths as they are now, files that go along, and our figures."""
    changed = result.architecture or {}
    found = given | {name: value for name, value in changed.items() if name in given}
    if beside:
        dense, pruned = result.report.dense, result.report.pruned
        figures = {"macs": pruned.macs / dense.macs, "params": pruned.params / dense.params}
        found |= {"additional_files": beside, "snp_onnx": {"version": __version__, **figures}}
    return found


def _tell(result: PruneResult) -> None:
    """The result in the workflow's log."""
    report = result.report
    for name in ("macs", "params"):
        dense, pruned = getattr(report.dense, name), getattr(report.pruned, name)
        logger.info("SnpPrune: %s %d -> %d (%.3f)", name, dense, pruned, pruned / dense)
    for output in report.fidelity:
        logger.info("SnpPrune: output %s, samples set apart: R² of the worst channel %.4f", output.output, output.held)
    for timed in report.latency:
        logger.info("SnpPrune: latency of %d rows: %.3f of the dense model's", timed.batch, timed.undisturbed)
    for warning in report.warnings:
        logger.warning("SnpPrune: %s", warning)
    for note in report.notes:
        logger.info("SnpPrune: %s", note)
