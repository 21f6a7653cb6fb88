"""Verify: nothing is handed over that the checker, shape inference, the runtime or the numbers object to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.calibration.spill import hollow, is_large, spill
from snp_onnx.errors import PassError, SnpError
from snp_onnx.external import has_external
from snp_onnx.tracing.endings import endings
from snp_onnx.tracing.surface import Surface, surface_between
from snp_onnx.writing import Scratch

Array = npt.NDArray[Any]


def verify(dense: onnx.ModelProto, pruned: onnx.ModelProto, runtime: Runtime, feed: Mapping[str, Array] | None) -> None:
    """Raise PassError if the pruned model is worse formed than the dense one.

    Full checker and strict shape inference (a failure that the dense model has too is not ours: the checker doesn't
    know fused operators that runtimes load), same inputs and outputs (less the heads of caches that its metadata says
    are cut), a session, and one run on `feed` that is finite and of the same shapes wherever the dense model's is; the
    data may decide the size of some outputs.
    """
    surface = _same_surface(dense, pruned)
    for name, check in (("the full ONNX checker", _check), ("strict shape inference", _infer)):
        failure = _failure(check, pruned)
        if failure and not _failure(check, dense):
            raise PassError(f"the pruned model fails {name}: {failure}: nothing was written, please report this")
    try:
        session = open_session(pruned, runtime)
        if feed is not None:
            expected = surface.cut(run(open_session(dense, runtime), feed))
            free = {ending.name for ending in endings(dense) if ending.is_data_sized}
            _same_finiteness(expected, run(session, surface.cut(feed)), free)
    except PassError:
        raise
    except SnpError as error:
        raise PassError(f"the pruned model can't be run: {error}: nothing was written, please report this") from error


def _same_surface(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> Surface:
    """What the pruned model keeps of inputs and outputs: all, or what its metadata says."""
    surface = surface_between(dense, pruned)
    constants = {tensor.name for tensor in dense.graph.initializer}
    inputs = [value for value in dense.graph.input if value.name not in constants]
    for ours, theirs, what in (
        (pruned.graph.input, inputs, "inputs"),
        (pruned.graph.output, dense.graph.output, "outputs"),
    ):
        wanted = [] if surface is None else [surface.declared(value).SerializeToString() for value in theirs]
        if surface is None or [value.SerializeToString() for value in ours] != wanted:
            raise PassError(f"the pruned model's {what} differ from the dense model's: nothing was written")
    assert surface is not None
    return surface


def _failure(check: Callable[[onnx.ModelProto | str], object], model: onnx.ModelProto) -> str | None:
    try:
        if is_large(model) or has_external(model):
            with Scratch() as folder:
                written = hollow if has_external(model) else spill
                check(str(written(model, folder)))
        else:
            check(model)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def _check(model: onnx.ModelProto | str) -> None:
    onnx.checker.check_model(model, full_check=True)


def _infer(model: onnx.ModelProto | str) -> None:
    if isinstance(model, str):
        onnx.shape_inference.infer_shapes_path(model, strict_mode=True, data_prop=True)
    else:
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _same_finiteness(dense: Mapping[str, Array], pruned: Mapping[str, Array], free: AbstractSet[str]) -> None:
    """PassError where an output stops being finite, or changes its shape and isn't `free` to."""
    for name, expected in dense.items():
        found = pruned[name]
        if expected.dtype.kind == "f" and np.isfinite(expected).all() and not np.isfinite(found).all():
            raise PassError(
                f"output {name} of the pruned model is not finite on a calibration batch: nothing was written"
            )
        if expected.dtype.kind == "f" and expected.shape != found.shape and name not in free:
            raise PassError(
                f"output {name} changed its shape from {expected.shape} to {found.shape}: nothing was written"
            )
