"""Settling: of several ways to carry out one plan, the first that does the samples set apart for choosing no harm.

Errors are looked at where the outputs' values arise: in front of a Softmax or Sigmoid, which hides them where it is
saturated, and before heads of different scale are joined. The samples that choose are never those that are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.calibration.sessions import open_session, run
from snp_onnx.sources.samples import Part
from snp_onnx.subspace.variation import CONSTANT
from snp_onnx.tracing.endings import endings, read_outs, with_outputs
from snp_onnx.tracing.padding import mask_of
from snp_onnx.tracing.surface import Surface, surface_between
from snp_onnx.verbs.fidelity import Fidelity, axes_of_samples, fidelity_between, measure_fidelity, sample_axis
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.output_sums import Sums
from snp_onnx.verbs.settings import Feed

Errors = npt.NDArray[np.float64]

MARGIN = 0.02
"""Errors that differ by less than this share of the smaller are alike."""

SIGNIFICANT = 2.0
"""Standard errors by which a simpler way must be better before it is taken."""

PRIOR_SPREAD = 0.25
"""How far errors of single samples spread at least, as a share of their mean: a few samples say nothing below that."""


def held_back_fidelity(
    dense: onnx.ModelProto, pruned: onnx.ModelProto, calibration: Calibration, part: Part = Part.HELD_OUT
) -> tuple[Fidelity, ...]:
    """Every output of the pruned model against the dense one's, on samples that the weights have not seen."""
    return fidelity_between(dense, pruned, calibration.samples, calibration.batch_size, calibration.runtime, part)


def trial_error(dense: onnx.ModelProto, pruned: onnx.ModelProto, calibration: Calibration) -> float:
    """How far a trial's outputs are from the dense model's on all samples that didn't decide it.

    The mean over outputs of the divergence of classes where these are compared, otherwise of the share of the variation
    that is lost.
    """
    before, after = (open_session(model, calibration.runtime) for model in (dense, pruned))
    surface, axes = surface_between(dense, pruned), axes_of_samples(calibration.samples)
    found = measure_fidelity(before, after, calibration.unused(), None, mask_of(dense), surface, endings(dense), axes)
    errors = [entry.mean_error if entry.divergence is None else entry.divergence for entry in found]
    return float(np.mean(errors)) if errors and np.isfinite(errors).all() else float("inf")


def mean_error(fidelity: Sequence[Fidelity]) -> float:
    """The mean over outputs of the share of variation that is lost; infinite where one isn't finite."""
    errors = [entry.mean_error for entry in fidelity if not np.isnan(entry.mean_error)]
    return float(np.mean(errors)) if errors and np.isfinite(errors).all() else float("inf")


def errors_of(
    dense: onnx.ModelProto, models: Sequence[onnx.ModelProto], calibration: Calibration, feeds: Iterable[Feed]
) -> Errors:
    """The error of every model on every sample, (models, samples): ‖b - a‖² over the mean variation of a sample.

    a and b are the values behind the outputs, see `endings`; the mean of all of them. Infinite where one isn't finite.
    """
    read = read_outs(endings(dense), [dense, *models])
    reference, *sessions = (open_session(with_outputs(m, read), calibration.runtime) for m in (dense, *models))
    surfaces = [surface_between(dense, model) or Surface() for model in models]
    sums = {name: Sums(name, None) for name in read}
    errors: dict[str, list[Errors]] = {name: [] for name in read}
    axes, apart = axes_of_samples(calibration.samples), set[str]()
    for feed in feeds:
        rows = 1 if axes is None else next(iter(feed.values())).shape[0]
        wanted = run(reference, feed)
        answers = [run(session, surface.cut(feed)) for session, surface in zip(sessions, surfaces, strict=True)]
        for name in [name for name in read if name in wanted and wanted[name].dtype.kind == "f"]:
            axis = None if axes is None else axes.get(name, sample_axis(wanted[name], rows))
            pairs = [(s.cut({name: wanted[name]})[name], a[name]) for s, a in zip(surfaces, answers, strict=True)]
            if any(a.shape != b.shape for a, b in pairs) or (axis is None and rows > 1):
                apart.add(name)  # how many entries there are depends on the data
                continue
            sums[name].add(wanted[name], wanted[name], axis, None, None)
            errors[name].append(np.array([_squared(a, b, axis) for a, b in pairs]))
    known = [name for name in read if errors[name] and name not in apart]
    found = [np.concatenate(errors[name], axis=1) / _variation_of(sums[name]) for name in known]
    return np.mean(found, axis=0) if found else np.zeros((len(models), 0))


def _squared(dense: npt.NDArray[Any], pruned: npt.NDArray[Any], axis: int | None) -> Errors:
    """‖b - a‖² of every sample, where a is finite; infinite where b isn't."""
    a, b = (np.moveaxis(values, axis, 0) if axis is not None else values[None] for values in (dense, pruned))
    with np.errstate(invalid="ignore", over="ignore"):
        squared = np.array([_energy(b[place].astype(np.float64) - a[place], a[place]) for place in range(len(a))])
    return np.where(np.isfinite(squared), squared, np.inf)


def _energy(difference: Errors, dense: npt.NDArray[Any]) -> float:
    """The sum of squares where the dense values are finite, of one sample, for bounded memory."""
    known = np.where(np.isfinite(dense), difference, 0.0).ravel()
    return float(known @ known)


def _variation_of(sums: Sums) -> float:
    """The mean over samples of ‖a - ā‖²; of a constant what rounding of its size makes of it."""
    variation, _, by_element = sums.variation()
    whole = variation.along(by_element=by_element)
    spread = max(float(whole.spread), CONSTANT * float(whole.energy))
    return max(spread / sums.samples, float(np.finfo(np.float64).tiny))


def first_harmless(errors: Errors) -> int:
    """The first way, of (ways, samples), that no later one is surely better than; 0 where no sample tells.

    A later way is better if its mean error is lower by more than `MARGIN` and by more than `SIGNIFICANT` standard
    errors of the paired differences, for which single samples spread by `PRIOR_SPREAD` at least.

    >>> first_harmless(np.array([[0.30] * 9, [0.20] * 9, [0.25] * 9])), first_harmless(np.array([[0.21], [0.20]]))
    (1, 0)
    """
    count = errors.shape[1]
    for place in range(len(errors) if count else 0):
        if not any(_is_better(later, errors[place]) for later in errors[place + 1 :]):
            return place
    return 0


def _is_better(simpler: Errors, now: Errors) -> bool:
    """Whether a simpler way has surely less error, from its errors on the same samples."""
    least = float(simpler.mean())
    if not np.isfinite(least):
        return False
    gain = float(now.mean()) - least
    if not np.isfinite(gain):
        return True
    spread = max(float(np.std(now - simpler)), PRIOR_SPREAD * least)
    return bool(gain > max(MARGIN * least, SIGNIFICANT * spread / np.sqrt(len(now))))
