"""`prune_static`: pruning with the argument names of `onnxruntime.quantization.quantize_static`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from snp_onnx.errors import PlanError
from snp_onnx.model_io import check_destination
from snp_onnx.verbs.prune import prune
from snp_onnx.verbs.result import PruneResult, check_config

TARGETS = ("target_macs", "target_params", "target_size", "target_latency", "variance", "min_fidelity")


def prune_static(
    model_input: str | os.PathLike[str] | onnx.ModelProto,
    model_output: str | os.PathLike[str],
    calibration_data_reader: Any,
    *,
    target_macs: float | None = None,
    nodes_to_prune: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    calibration_providers: Sequence[str] | None = None,
    extra_options: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Prune a model and write it, before `quant_pre_process` and `quantize_static`.

    Parameters
    ----------
    model_input : path or onnx.ModelProto, the float one where there is one; never changed. A QDQ model stays one.
    model_output : where the pruned model goes; not `model_input`.
    calibration_data_reader : a `CalibrationDataReader` (anything with `get_next() -> dict | None`), read to its end:
        call its `rewind`, or make another one, before `quantize_static`. Any other SOURCE of `prune` will do too.
    target_macs : fraction of the MACs to keep at most; 0.5 where `extra_options` names no other target.
    nodes_to_prune, nodes_to_exclude : names of nodes, as they are: only groups with one of these producers, or none.
    use_external_data_format : weights go to a file beside the model.
    calibration_providers : providers of onnxruntime, the first of which calibrates; the CPU by default.
    extra_options : any other option of `prune` by name, such as {"preset": "fast", "min_units": 8}.

    Returns
    -------
    The result of `prune`, already saved.

    Raises
    ------
    As `prune` does.
    """
    options = dict(extra_options or {})
    own = {
        "include": _any_of(nodes_to_prune),
        "exclude": _any_of(nodes_to_exclude),
        "provider": calibration_providers[0] if calibration_providers else None,
        "target_macs": target_macs,
    }
    for name, value in own.items():
        if value is None:
            continue
        if name in options:
            raise PlanError(f"extra_options[{name!r}] says what another argument says already: give one of them")
        options[name] = value
    if not any(options.get(name) is not None for name in (*TARGETS, "plan")):
        options["target_macs"] = 0.5
    output = Path(model_output)
    source = None if isinstance(model_input, onnx.ModelProto) else Path(model_input)
    if source is not None and source.resolve() == output.resolve():
        raise PlanError(f"{output}: the output is the input model: name another file")
    check_destination(output, source, force=False)
    check_config(output)
    if use_external_data_format:
        options.setdefault("external_as", output.name)
    result = prune(model_input, calibration_data_reader, **options)
    result.save(output, save_as_external_data=use_external_data_format)
    return result


def _any_of(names: Sequence[str] | None) -> str | None:
    """A pattern that matches these names alone; none for no names."""
    return f"^(?:{'|'.join(re.escape(name) for name in names)})$" if names else None
