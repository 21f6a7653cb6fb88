"""Verify: nothing is handed over that the checker, shape inference, the runtime or the numbers object to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import onnx

from snp_onnx.calibration.sessions import Runtime, open_session
from snp_onnx.errors import PassError, SnpError
from snp_onnx.sources.inputs import input_specs
from snp_onnx.tracing.endings import endings
from snp_onnx.tracing.surface import Surface, surface_between
from snp_onnx.verbs.failures import new_failures
from snp_onnx.verbs.sizes import Pair, try_sizes

Feed = Mapping[str, npt.NDArray[Any]]


def verify(
    dense: onnx.ModelProto,
    pruned: onnx.ModelProto,
    runtime: Runtime,
    feed: Feed | None,
    zero_filled: Callable[[], onnx.ModelProto | None] = lambda: None,
) -> tuple[str, ...]:
    """Raise PassError if the pruned model is worse formed than the dense one, or wrong at some size; returns notes.

    It may have no failure of the full checker and of strict shape inference that the dense one doesn't have (fused
    operators fail it though runtimes load them). Inputs and outputs are the same, less the heads of caches that its
    metadata says are cut. A session opens; with a `feed` both models are run at its size and at others, see `sizes`.
    """
    surface = _same_surface(dense, pruned)
    new = new_failures(dense, pruned)
    if new:
        more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
        raise PassError(f"the pruned model fails {new[0]}{more}: nothing was written, please report this")
    try:
        session = open_session(pruned, runtime)
    except SnpError as error:
        raise PassError(f"the pruned model can't be run: {error}: nothing was written, please report this") from error
    if feed is None:
        return ()
    free = frozenset(ending.name for ending in endings(dense) if ending.is_data_sized)
    pair = Pair(open_session(dense, runtime), session, surface, free)
    return try_sizes(pair, feed, input_specs(dense), lambda: _session(zero_filled(), runtime))


def _session(model: onnx.ModelProto | None, runtime: Runtime) -> Any:
    return None if model is None else open_session(model, runtime)


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
