"""Settling: of several ways to carry out one plan, the first that does the held-back samples no harm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from snp_onnx.calibration.sessions import open_session
from snp_onnx.sources.samples import Part
from snp_onnx.tracing.padding import mask_of
from snp_onnx.tracing.surface import surface_between
from snp_onnx.verbs.fidelity import Fidelity, measure_fidelity
from snp_onnx.verbs.measure import Calibration

MARGIN = 1.02
"""Errors this close are alike: held-back samples are few."""


def held_back_fidelity(
    dense: onnx.ModelProto, pruned: onnx.ModelProto, calibration: Calibration
) -> tuple[Fidelity, ...]:
    """Every output of the pruned model against the dense one's, on the samples that decided nothing."""
    before, after = (open_session(model, calibration.runtime) for model in (dense, pruned))
    labels = calibration.samples.labels(Part.HELD_OUT)
    held_out = calibration.batches(Part.HELD_OUT)
    return measure_fidelity(before, after, held_out, labels, mask_of(dense), surface_between(dense, pruned))


def trial_error(dense: onnx.ModelProto, pruned: onnx.ModelProto, calibration: Calibration) -> float:
    """How far a trial's outputs are from the dense model's on all samples that didn't decide it.

    Of a classifier the divergence of its classes, otherwise the relative L2 error; the mean of all outputs.
    """
    before, after = (open_session(model, calibration.runtime) for model in (dense, pruned))
    samples, surface = calibration.unused(), surface_between(dense, pruned)
    found = measure_fidelity(before, after, samples, None, mask_of(dense), surface)
    errors = [entry.relative_l2 if entry.divergence is None else entry.divergence for entry in found]
    return float(np.mean(errors)) if errors and np.isfinite(errors).all() else float("inf")


def mean_error(fidelity: Sequence[Fidelity]) -> float:
    """The mean relative L2 error of the outputs; infinite where one isn't finite."""
    errors = [entry.relative_l2 for entry in fidelity]
    return float(np.mean(errors)) if errors and np.isfinite(errors).all() else float("inf")


def worst_cosine(fidelity: Sequence[Fidelity]) -> float:
    """The lowest mean cosine of an output; -1 where one isn't finite."""
    cosines = [entry.cosine for entry in fidelity]
    return min(cosines) if cosines and np.isfinite(cosines).all() else -1.0


def first_harmless(errors: Sequence[float]) -> int:
    """The first whose error no later one undercuts by more than the margin.

    >>> first_harmless([0.30, 0.20, 0.25]), first_harmless([0.201, 0.2, 0.25]), first_harmless([np.inf, np.inf])
    (1, 0, 0)
    """
    for place, error in enumerate(errors):
        if error <= MARGIN * min(errors[place:]):
            return place
    return 0
