"""Compare: a dense and a pruned model on the same samples; cost, fidelity, accuracy where labels are, latency."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from snp_onnx.calibration.sessions import Runtime
from snp_onnx.cost import Cost
from snp_onnx.errors import CalibrationError, ModelError, PlanError
from snp_onnx.sources.inputs import Array, input_specs
from snp_onnx.sources.samples import Part, Samples
from snp_onnx.tracing.surface import Surface, surface_between
from snp_onnx.verbs.fidelity import fidelity_between, remarks
from snp_onnx.verbs.latency import Latency, latency_of
from snp_onnx.verbs.reading import read_samples
from snp_onnx.verbs.result import Comparison
from snp_onnx.verbs.settings import DATA_OPTIONS, check_options, data_from, runtime_from
from snp_onnx.verbs.subject import at_seen, load_subject, trace_at


def compare(
    dense: str | os.PathLike[str] | onnx.ModelProto,
    pruned: str | os.PathLike[str] | onnx.ModelProto,
    calibration: Any,
    *,
    latency: bool = False,
    latency_batch: int | None = None,
    **options: Any,
) -> Comparison:
    """Run both models on every sample.

    `latency` also times them in turn, with one row and with `latency_batch` rows. Options: input_array, label_array,
    mean, std, scale, layout, samples, batch_size, input_shapes, seed, provider, threads, custom_ops.
    """
    check_options(options, DATA_OPTIONS)
    data, runtime = data_from(calibration, options), runtime_from(options)
    if data.source is None:
        raise CalibrationError("no samples given: pass a SOURCE (--calibration data.npz)")
    if latency_batch is not None and latency_batch < 1:
        raise PlanError(f"--latency-batch {latency_batch}: give a positive number")
    models = [load_subject(model, runtime) for model in (dense, pruned)]
    surface = require_same_surface(models[0][0].proto, models[1][0].proto)
    with read_samples(data, models[0][0].proto, runtime) as samples:
        example = samples.example()
        ours = (example, surface.cut(example))

        def costs_at(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Mapping[str, tuple[int, ...]], list[Cost]]:
            both = zip(models, (shapes, surface.cut_shapes(shapes)), ours, strict=True)
            return shapes, [trace_at(*model, own, runtime, example=at).dense_cost() for model, own, at in both]

        shapes, costs = at_seen(models[0][0].proto, data.input_shapes, samples, costs_at)
        protos = [model[0].proto for model in models]
        fidelity = fidelity_between(protos[0], protos[1], samples, data.batch_size, runtime, Part.ALL)
        timed = _latency(protos, samples, latency_batch or 1, runtime) if latency else ()
        noise = ("RANDOM samples: the figures say nothing about real inputs",) if samples.is_random else ()
        warnings = (*noise, *remarks(fidelity, None), *samples.warnings)
        return Comparison(costs[0], costs[1], fidelity, shapes, timed, tuple(samples.notes), warnings)


def require_same_surface(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> Surface:
    """What the second model keeps of the first one's inputs and outputs; ModelError where it is another model's."""
    ours, theirs = ([(s.name, s.dtype, s.shape) for s in input_specs(model)] for model in (dense, pruned))
    surface = surface_between(dense, pruned)
    if surface is None or [(n, t, None if s is None else surface.cut_declared(n, s)) for n, t, s in ours] != theirs:
        raise ModelError(
            f"the two models have different inputs: {_names(ours)} and {_names(theirs)}: compare like with like"
        )
    outputs = [{value.name for value in model.graph.output} for model in (dense, pruned)]
    if not outputs[0] & outputs[1]:
        raise ModelError(f"the two models share no output: {sorted(outputs[0])} and {sorted(outputs[1])}")
    return surface


def _names(specs: list[tuple[Any, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, _, shape in specs)


def _latency(models: Sequence[onnx.ModelProto], samples: Samples, batch: int, runtime: Runtime) -> tuple[Latency, ...]:
    found = {}
    for rows in sorted({1, batch}):
        feed: Mapping[str, Array] = next(iter(samples.batches(rows, Part.ALL)))
        entry = latency_of(models[0], models[1], runtime, feed, surface_between(models[0], models[1]))
        found[entry.batch] = entry  # a fixed batch is timed as it is
    return tuple(found.values())
