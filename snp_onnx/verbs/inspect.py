"""Inspect: what could be pruned, what could not and why, without running anything but shape inference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import onnx

from snp_onnx.calibration.sessions import Runtime
from snp_onnx.errors import CalibrationError
from snp_onnx.model_io import Model
from snp_onnx.passes import Note, summarise
from snp_onnx.planning.decide import left_out, producer_names
from snp_onnx.planning.options import choices
from snp_onnx.sources.examples import Values, check_given
from snp_onnx.sources.inputs import input_specs
from snp_onnx.tracing import find_blocks
from snp_onnx.tracing.facts import Shape
from snp_onnx.verbs.branches import NONE
from snp_onnx.verbs.depth import block_shares
from snp_onnx.verbs.prunable import prunable
from snp_onnx.verbs.result import BlockReport, GroupReport, Inspection, stop_reports
from snp_onnx.verbs.settings import values_from
from snp_onnx.verbs.subject import Subject, load_subject, opened_for, resolve_shapes, trace_at


def inspect(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    input_values: Mapping[str, Any] | None = None,
    custom_ops: tuple[str, ...] = (),
) -> Inspection:
    """Groups, blocks, costs and barriers; `input_shapes` is needed where other axes than the batch are dynamic.

    `input_values` are numbers of inputs that decide shapes or branches: without them such shapes come from made-up
    values, or aren't known.
    """
    dense, prepared, notes = load_subject(model)
    shapes = resolve_shapes(prepared, dict(input_shapes or {}))
    runtime, chosen = Runtime(custom_ops=tuple(custom_ops)), choices()
    values = values_from(input_values)
    check_given(input_specs(prepared), values)
    subject = _opened(dense, prepared, notes, shapes, runtime, values)
    groups = tuple(
        GroupReport(
            group.id,
            str(group.kind),
            len(group),
            len(group),
            is_stream=group.is_stream,
            note=left_out(group, chosen) or "",
            producers=producer_names(group),
        )
        for group in subject.trace.groups
    )
    return Inspection(
        subject.dense_cost(),
        groups,
        stop_reports(subject.trace),
        dict(subject.input_shapes),
        _opset(dense.proto),
        len(dense.proto.graph.node),
        (*summarise(notes), *subject.count_notes(), *([subject.unsure] if subject.unsure else [])),
        block_reports(subject),
        prunable(subject, runtime),
    )


def _opened(
    dense: Model,
    prepared: onnx.ModelProto,
    notes: tuple[Note, ...],
    shapes: Mapping[str, Shape],
    runtime: Runtime,
    values: Values,
) -> Subject:
    """The subject with every branch opened that these shapes and values may take; none where that can't be run."""
    opened, branches, told = opened_for(dense, prepared, shapes, runtime, example=values)
    if branches is not NONE:
        with suppress(CalibrationError):
            return trace_at(dense, opened, (*notes, *told), shapes, runtime, example=values, branches=branches)
    return trace_at(dense, prepared, notes, shapes, runtime, example=values)


def block_reports(subject: Subject) -> tuple[BlockReport, ...]:
    """The blocks of a model, those that can't go with the reason."""
    blocks = find_blocks(subject.prepared, subject.flow)
    shares = block_shares(subject, blocks)
    return tuple(BlockReport(b.name, str(b.kind), b.stage, shares[b.name], b.reason, b.parts) for b in blocks)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
