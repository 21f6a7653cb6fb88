"""Sensitivity: what a group's error does to the model's outputs, measured one group at a time.

Between layers of one kind, e / V^p compares errors well. Attention breaks that: how much a projection's error matters
depends on what Softmax and the norms behind it make of it. There every group is cut and folded alone, and the outputs'
relative error on a few samples sets the scale of its whole curve: e'(k) = e(k) · δ²(k₀) / e(k₀).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from snp_onnx.calibration.sessions import open_session
from snp_onnx.passes import FoldWeights, rewrite
from snp_onnx.planning.folding import fold
from snp_onnx.planning.options import Fold, Ratios, Weigh
from snp_onnx.planning.paths import Path
from snp_onnx.sources.samples import Part
from snp_onnx.subspace import Order
from snp_onnx.tracing import Kind
from snp_onnx.tracing.padding import mask_of
from snp_onnx.verbs.carry_out import Work
from snp_onnx.verbs.fidelity import measure_fidelity
from snp_onnx.verbs.settings import Feed
from snp_onnx.verbs.settle import mean_error

SAMPLES = 96
"""Samples that a group's effect is measured on."""

KEPT = 0.75
"""The share of a group's units that stay while its effect is measured."""

WIDEST_SPREAD = 1e3
"""A scale further than this from the median is cut off: few samples don't tell more."""

MOST_BYTES = 2**30
"""Of larger models no copies are run for every group, unless asked for: errors are compared layer by layer."""


def weighed(work: Work, paths: Sequence[Path]) -> tuple[Path, ...]:
    """The paths with errors on the scale of the model's outputs, where the choices ask for that."""
    if work.calibration is None or len(paths) < 2 or not _is_wanted(work):
        return tuple(paths)
    feeds = _feeds(work)
    with work.clock("weigh"):
        dense = open_session(work.subject.prepared, work.calibration.runtime)
        effects = []
        for number, path in enumerate(paths):
            work.calibration.progress("weigh", number, len(paths))
            effects.append(_scale(work, path, dense, feeds))
    scales = np.array(effects)
    known = np.isfinite(scales) & (scales > 0.0)
    if not known.any():
        return tuple(paths)
    middle = float(np.median(scales[known]))
    scales = np.clip(np.where(known, scales, middle), middle / WIDEST_SPREAD, middle * WIDEST_SPREAD)
    return tuple(replace(path, energy=path.energy * float(scale)) for path, scale in zip(paths, scales, strict=True))


def _is_wanted(work: Work) -> bool:
    """Whether to measure: as chosen; unless chosen, where activations are multiplied, in attention."""
    chosen, subject = work.choices, work.subject
    if chosen.ratios is not Ratios.BUDGET or chosen.order is not Order.OUTPUT or chosen.weigh is Weigh.LAYERS:
        return False
    has_heads = any(group.kind is not Kind.CHANNELS for group in subject.trace.groups)
    if chosen.weigh is Weigh.OUTPUTS:
        return True
    return (has_heads or bool(subject.trace.products)) and subject.dense.bytes <= MOST_BYTES


def _feeds(work: Work) -> list[Feed]:
    assert work.calibration is not None
    size = work.calibration.batch_size
    return list(islice(work.calibration.batches(Part.CALIBRATION), -(-SAMPLES // size)))


def _scale(work: Work, path: Path, dense: Any, feeds: Sequence[Feed]) -> float:
    """δ²(k₀) / e(k₀) of one group; not a number where it has no error to compare, or weights can't show its loss."""
    subject, chosen, calibration = work.subject, work.choices, work.calibration
    assert calibration is not None
    units = len(path.group)
    width = max(1, min(units - 1, round(KEPT * units)))
    error = float(path.errors[width - 1])
    if not error > 0.0:
        return float("nan")
    alive = subject.trace.alive([path.group.labels[path.order[width:]]])
    folding = fold(subject.flow, alive, work.measured.statistics, chosen.ridge, chosen.fold is Fold.PATCH)
    if folding.unfolded or not folding.values:  # quantised weights, logits: the folded copy would miss what goes
        return float("nan")
    changed = rewrite(subject.prepared, [FoldWeights(folding.values)], subject.dense.store).model
    after = open_session(changed, calibration.runtime)
    found = measure_fidelity(dense, after, feeds, mask=mask_of(subject.prepared))
    return mean_error(found) / error
