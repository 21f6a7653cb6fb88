"""Quantised models: pruned as the float model that they stand for, and quantised again in their own way.

So it is with DequantizeLinear (QDQ) and with integers that Cast and Mul make floats (weight-only). Plan, folds and
refit are those of the float form. The quantised graph is then cut by the same plan, and every weight that
changed is written into it: on the same axis, of the same type, with scales from its new range. The activations' scales
stay: what is kept of an activation comes near what it was.
"""

from __future__ import annotations

from dataclasses import replace

import onnx

from snp_onnx.calibration.sessions import Runtime
from snp_onnx.cost import NARROW, param_terms, total, weights
from snp_onnx.errors import PlanError
from snp_onnx.external import Store, array_of
from snp_onnx.model_io import bytes_on_disk, with_provenance
from snp_onnx.passes import Dequantise, EliminateDead, Note, Requantise, SliceUnits, narrow_weights, rewrite
from snp_onnx.planning.options import Choices, Target, TargetKind
from snp_onnx.tracing import PLAIN_KINDS
from snp_onnx.verbs.carry_out import Candidate
from snp_onnx.verbs.subject import Subject, retraced


def as_floats(
    prepared: onnx.ModelProto, notes: tuple[Note, ...], store: Store | None, choices: Choices, target: Target | None
) -> tuple[onnx.ModelProto, tuple[Note, ...]]:
    """The float model that a prepared quantised model stands for; the very same one where no weight is quantised.

    So it is with kinds of units that need more than a plan of widths: weights are cut as stored then, without folding.
    """
    is_plain = choices.kinds <= PLAIN_KINDS and not choices.caches
    codes = any(tensor.data_type in NARROW for tensor in prepared.graph.initializer)
    if not is_plain or not (codes or any(node.op_type == "DequantizeLinear" for node in prepared.graph.node)):
        return prepared, notes
    found = rewrite(prepared, [Dequantise(), EliminateDead()], store)
    if not found.notes:
        return prepared, notes
    is_timed = target is not None and target.kind is TargetKind.LATENCY
    if choices.is_rounded_by_clock or is_timed:
        option = "--target-latency" if is_timed else "--round-to auto"
        raise PlanError(
            f"{option}: a quantised model is pruned as the floats it stands for, of which this can't be told: give "
            "--target-macs, or prune the float model and quantise it then"
        )
    return found.model, (*notes, *found.notes)


def quantised_again(
    subject: Subject, candidate: Candidate, runtime: Runtime, external_as: str | None = None
) -> Candidate:
    """The candidate, which is of the float form, as a quantised model."""
    if subject.quantised is None:
        return candidate
    store = subject.dense.store
    whole = retraced(subject, runtime, subject.quantised, caches=False)
    alive = candidate.plan.alive(whole.trace)
    values = {tensor.name: array_of(tensor) for tensor in candidate.model.graph.initializer}
    again = Requantise(values, narrow_weights(subject.quantised))
    model = rewrite(subject.quantised, [SliceUnits(whole.trace, alive), EliminateDead(), again], store).own
    with_provenance(model, {entry.key: entry.value for entry in candidate.model.metadata_props})
    sizes = {name: tuple(tensor.dims) for name, tensor in weights(model)}
    params = total(param_terms(model), lambda tensor, axis: sizes[tensor][axis])
    cost = replace(candidate.cost, params=params, bytes=bytes_on_disk(subject.branches.closed(model), external_as))
    return replace(candidate, model=model, cost=cost)
