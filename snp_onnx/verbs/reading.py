"""The samples of a verb, opened with the dense model at hand, which shows whether their rows are samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import onnx

from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.sources.batch_axis import MOST_ROWS
from snp_onnx.sources.inputs import Array, input_specs, require_tensors
from snp_onnx.sources.samples import Runnable, Samples, open_samples
from snp_onnx.tracing.endings import PICKING, endings
from snp_onnx.verbs.settings import DEFAULT_BATCH, Data

_ROUNDS_BY_BATCH = frozenset(
    {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"}
)
"""Operators that quantise by the extremes of all rows together."""


def read_samples(data: Data, model: onnx.ModelProto, runtime: Runtime) -> Samples:
    """The samples for a model: rows of its batch axis, or whole feeds where it has none."""
    require_tensors(model)
    return open_samples(
        data.source,
        input_specs(model),
        data.preprocess,
        data.samples,
        data.seed,
        data.input_shapes,
        data.input_values,
        runnable(model, runtime, data.batch_size),
    )


def runnable(model: onnx.ModelProto, runtime: Runtime, batch_size: int = DEFAULT_BATCH) -> Runnable:
    """The model as the sources run it; its session is opened when it is first run.

    A smaller batch than usual is asked for where memory is short: then two rows must do.
    """

    @cache
    def session() -> Any:
        return open_session(model, runtime, stays=True)

    def run_it(feed: Mapping[str, Array]) -> Mapping[str, Array]:
        return run(session(), feed)

    outputs = {ending.name: ending.shape for ending in endings(model)}
    is_coarse = any(node.op_type in _ROUNDS_BY_BATCH for node in _nodes(model))
    rows = min(MOST_ROWS, max(2, batch_size))
    return Runnable(run_it, outputs, is_coarse, _sized_by_data(model.graph), rows)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of bodies and functions too."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                pending.extend(body.node)


def _sized_by_data(graph: onnx.GraphProto) -> frozenset[str]:
    """Outputs behind an operator whose size depends on values of the inputs, not only on their shapes."""
    valued, sized = {value.name for value in graph.input}, set[str]()
    for node in graph.node:
        if valued.intersection(node.input) and node.op_type not in ("Shape", "Size"):
            valued.update(node.output)
            if node.op_type in PICKING:
                sized.update(node.output)
        if sized.intersection(node.input):
            sized.update(node.output)
    return frozenset(value.name for value in graph.output if value.name in sized)
