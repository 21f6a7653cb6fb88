"""Fidelity: how closely a pruned model's outputs follow the dense model's, output by output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.calibration.sessions import Runtime, open_session, output_of, run
from snp_onnx.errors import ModelError
from snp_onnx.sources.samples import Part, Samples
from snp_onnx.subspace.variation import ENOUGH, HALF, Variation
from snp_onnx.tracing.endings import Ending, endings, read_outs, with_outputs
from snp_onnx.tracing.padding import mask_of
from snp_onnx.tracing.surface import Surface, surface_between
from snp_onnx.verbs.output_sums import FLAT, Sums

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One output over all samples.

    `error` is the share of the variation that is lost, 1 - R², of the worst channel along an axis of small fixed
    extent (of the whole output without one): 0 is exact, 1 no better than a constant. `channel` names that channel,
    `mean_error` is the mean over channels. Not a number where the samples don't tell, as for integers.
    `agreement` is the share of `decision`: of positions with the same "largest entry", of entries "above 0.5" that are
    so in both models (F1), or of "equal entries"; None where nothing is decided.
    `cosine` is the mean cosine of a sample's raw values, `relative_l2` ‖b - a‖ / ‖a‖; both hide what a constant part
    drowns. `divergence` is the mean Kullback-Leibler divergence of classes (n, C) from the dense model's in nats; the
    accuracies are there when labels were given. `compared` is the share of entries that count: those that are finite
    in the dense model and no padding; 0 where there are none, and where the data pick entries or their number.
    """

    output: str
    samples: int
    cosine: float
    relative_l2: float
    agreement: float | None = None
    dense_accuracy: float | None = None
    pruned_accuracy: float | None = None
    divergence: float | None = None
    error: float = nan
    mean_error: float = nan
    channel: str = ""
    decision: str = ""
    compared: float = 1.0

    @property
    def held(self) -> float:
        """What --min-fidelity holds: R² of the worst channel; of integers the share of equal entries."""
        if self.decision == EQUAL:
            return self.agreement if self.agreement is not None else nan
        return 1.0 - self.error


EQUAL = "equal entries"
WHOLE = 0.999
"""Share of compared entries from which on nothing is said."""

NO_AXES: Mapping[str, int | None] = MappingProxyType({})


def worst(fidelity: Sequence[Fidelity]) -> float:
    """The lowest `held` of the outputs that were compared; -inf where an output can't be judged or none was compared.

    >>> worst([Fidelity("a", 9, 1.0, 0.0, error=0.25), Fidelity("b", 9, 1.0, 0.0, error=0.5)])
    0.5
    """
    found = [entry.held for entry in fidelity if entry.compared > 0.0]
    return min(found) if found and np.isfinite(found).all() else -np.inf


def fidelity_between(
    dense: onnx.ModelProto,
    pruned: onnx.ModelProto,
    samples: Samples,
    batch_size: int,
    runtime: Runtime,
    part: Part,
) -> tuple[Fidelity, ...]:
    """Every output of one model against another's on a part of the samples.

    Where the data pick an output's entries, the tensors that they are picked from are compared instead.
    """
    known = endings(dense)
    read = read_outs([ending for ending in known if ending.is_picked], [dense, pruned])
    before, after = (open_session(with_outputs(model, read), runtime) for model in (dense, pruned))
    return measure_fidelity(
        before,
        after,
        samples.batches(batch_size, part),
        samples.labels(part),
        mask_of(dense),
        surface_between(dense, pruned),
        known,
        axes_of_samples(samples),
    )


def axes_of_samples(samples: Samples) -> Mapping[str, int | None] | None:
    """The axis of each output that runs over samples, as far as it is known; None where a feed is one sample."""
    return None if samples.is_whole else samples.output_axes or {}


def remarks(fidelity: Sequence[Fidelity], floor: float | None, chosen: int = ENOUGH) -> list[str]:
    """What to say of outputs that weren't compared or not as a whole, and of a floor that doesn't hold or is unsure.

    The reported samples may miss the floor, and `chosen` samples on which it was held may be too few.
    """
    lines = [
        f"output {entry.output} is not compared: "
        + ("it has no finite entry" if entry.samples else "how many entries it has depends on the data")
        for entry in fidelity
        if not entry.compared
    ]
    lines += [
        f"output {entry.output}: {100 * (1 - entry.compared):.0f} % of its entries are not finite in the dense model"
        for entry in fidelity
        if 0.0 < entry.compared < WHOLE
    ]
    if floor is not None and worst(fidelity) < floor:
        lines.append(
            f"R² of the worst channel is {worst(fidelity):.4f} on the samples that are reported, {floor:g} was held on "
            "those that chose: give more samples, or ask for a little more"
        )
    elif floor is not None and chosen < ENOUGH:
        lines.append(
            f"R² of {floor:g} was held on the {chosen} samples that chose, which say little of others: give more"
        )
    return lines


def measure_fidelity(
    dense: Any,
    pruned: Any,
    batches: Iterable[Mapping[str, Array]],
    labels: Array | None = None,
    mask: str | None = None,
    surface: Surface | None = None,
    known: Sequence[Ending] = (),
    sample_axes: Mapping[str, int | None] | None = NO_AXES,
) -> tuple[Fidelity, ...]:
    """Run both sessions over the batches; non-numeric outputs are left out. `labels` are classes, one a sample.

    Of inputs and outputs the pruned model has what `surface` says.
    Positions (batch, sequence) at which the input `mask` is 0 are padding: of outputs that have them, they don't count.
    `known` are the endings of the dense model's outputs. `sample_axes` gives the axis of each output that runs over the
    samples of a batch; of others it is the first that has as many entries as the batch has rows. Where `sample_axes` is
    None a batch is one sample.

    Raises
    ------
    ModelError: an output has different shapes in the two models though no data decide its size.
    """
    by_name = {ending.name: ending for ending in known}
    sums: dict[str, Sums] = {}
    for start, rows, real, before, after in _runs(dense, pruned, batches, mask, surface or Surface()):
        for name, expected in before.items():
            whole = output_of(name, by_name)  # of a sequence each element is compared
            if expected.dtype.kind not in "fiub" or (name not in after and whole not in by_name):
                continue
            total = sums.setdefault(name, Sums(name, by_name.get(whole)))
            if name not in after or not _is_comparable(name, total.ending, expected, after[name]):
                total.leave_out()
                continue
            axis = None if sample_axes is None else sample_axes.get(name, sample_axis(expected, rows))
            count = 1 if axis is None else expected.shape[axis]
            part = None if labels is None else np.asarray(labels[start : start + count]).reshape(-1)
            part = part if part is not None and len(part) == count else None
            total.add(expected, after[name], axis, _counted(expected, real), part)
    return tuple(_fidelity(total, labels is not None) for total in sums.values())


def _runs(
    dense: Any, pruned: Any, batches: Iterable[Mapping[str, Array]], mask: str | None, surface: Surface
) -> Iterator[tuple[int, int, Array | None, dict[str, Array], dict[str, Array]]]:
    """Every batch: its first row's number, its rows, which positions are real, and both models' outputs."""
    start = 0
    for batch in batches:
        real = None if mask is None or mask not in batch else np.asarray(batch[mask]) != 0
        first = next(iter(batch.values()))
        rows = first.shape[0] if first.ndim else 1
        yield start, rows, real, surface.cut(run(dense, batch)), run(pruned, surface.cut(batch))
        start += rows


def sample_axis(values: Array, rows: int) -> int | None:
    """The first axis with as many entries as the batch has rows."""
    return next((axis for axis, extent in enumerate(values.shape) if extent == rows), None)


def _is_comparable(name: str, ending: Ending | None, expected: Array, found: Array) -> bool:
    """Whether two arrays can be compared by place; ModelError where they should be and have different shapes.

    Tensors without an ending lie inside the models, where one may have positions that nothing reads.
    """
    is_alike = expected.shape == found.shape
    if ending is None or ending.is_data_sized:
        return is_alike and (ending is None or not ending.is_picked)
    if not is_alike:
        raise ModelError(
            f"output {name} has shape {expected.shape} in the one model and {found.shape} in the other: "
            "compare like with like"
        )
    return True


def _counted(values: Array, real: Array | None) -> Array | None:
    """Which entries are no padding, for an output that has the mask's positions; None where all are."""
    if real is None or values.ndim < 2 or values.shape[:2] != real.shape:
        return None
    return np.broadcast_to(real.reshape(*real.shape, *(1 for _ in values.shape[2:])), values.shape)


def _fidelity(sums: Sums, has_labels: bool) -> Fidelity:
    if not sums.is_whole or not sums.counted:
        return Fidelity(sums.name, sums.samples if sums.is_whole else 0, nan, nan, compared=0.0)
    sample_count = max(sums.samples, 1)
    variation, channels, by_element = sums.variation()
    whole = variation.along(by_element=by_element)
    labelled = sums.is_matrix and has_labels and sums.samples > 0
    agreement, decision = _agreement(sums, variation, channels)
    error, mean, channel = (nan, nan, "") if sums.is_exact else _errors(sums, variation, channels, by_element)
    return Fidelity(
        sums.name,
        sums.samples,
        sums.cosine / sample_count,
        float(np.sqrt(whole.error / whole.energy)) if whole.energy > 0 else float(whole.error > 0),
        agreement,
        sums.dense_right / sample_count if labelled else None,
        sums.pruned_right / sample_count if labelled else None,
        sums.divergence / sample_count if sums.is_matrix and not sums.is_exact else None,
        error,
        mean,
        channel,
        decision,
        sums.counted / max(sums.entries, 1),
    )


def _errors(
    sums: Sums, variation: Variation, channels: Mapping[int, int], by_element: bool
) -> tuple[float, float, str]:
    """The worst and the mean error of the channels, and the name of the worst one; of the whole output without any."""
    pooled = float(variation.along(by_element=by_element).lost)
    worst_error, mean, name = pooled, pooled, ""
    for kept, axis in channels.items():
        found = variation.along([kept], by_element)
        lost = np.where(_decides(found), found.lost, nan)
        if not np.isfinite(lost).any() and not np.isinf(lost).any():
            continue
        place = int(np.nanargmax(lost))
        if not name or lost[place] > worst_error:
            worst_error, mean = float(lost[place]), float(np.nanmean(lost))
            name = f"axis {sums.axis_of(axis)}, channel {place}"
    return worst_error, mean, name if worst_error > 0.0 else ""


def _decides(channels: Variation) -> npt.NDArray[np.bool_]:
    """The channels that are judged: all but probabilities that hardly vary, beside others that do."""
    with np.errstate(invalid="ignore"):
        moves = channels.high - channels.low > FLAT
    likely = channels.are_probabilities
    return np.asarray(~likely | moves if (likely & moves).any() else np.ones_like(likely))


def _agreement(sums: Sums, variation: Variation, channels: Iterable[int]) -> tuple[float | None, str]:
    """The share of decisions that agree, and what is decided."""
    if sums.decided:
        return sums.agreed / sums.decided, EQUAL if sums.is_exact else "largest entry"
    found = variation.along(tuple(channels), by_element=False)
    likely = found.are_probabilities
    either = float(found.either[likely].sum())
    return (float(2.0 * found.both[likely].sum() / either), f"above {HALF}") if either else (None, "")
