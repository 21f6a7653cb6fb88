"""Losses: how far the pruned model's outputs and features are from the dense model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snp_onnx.planning.training import Training

_SMALL = 1e-12
_UNIT = 1e-3
"""Rows whose norm or sum is 1 up to this are normalised."""


def relative_error(found: Tensor, wanted: Tensor, real: Tensor | None = None) -> Tensor:
    """Sum of squared differences / sum of squares of what is wanted; only over real positions.

    `real` (B, S) is 0 where a position is padding; it counts for tensors (B, S, ...) and (B S, ...).
    """
    difference, size = (found - wanted).float().square(), wanted.float().square()
    weight = _weights(found, real)
    if weight is not None:
        difference, size = difference * weight, size * weight
    return difference.sum() / size.sum().clamp_min(_SMALL)


def _weights(values: Tensor, real: Tensor | None) -> Tensor | None:
    if real is None:
        return None
    if values.ndim >= 2 and values.shape[:2] == real.shape:
        return real.reshape(*real.shape, *(1 for _ in values.shape[2:])).to(torch.float32)
    if values.ndim == 2 and values.shape[0] == real.numel():
        return real.reshape(-1, 1).to(torch.float32)
    return None


def is_classifier(wanted: Tensor) -> bool:
    """Whether a dense output is scores of classes: two axes, several columns, rows of no common norm."""
    if wanted.ndim != 2 or wanted.shape[1] < 2 or not wanted.is_floating_point():
        return False
    norms = wanted.float().square().sum(1)
    return not bool(((norms - 1).abs() < _UNIT).all()) or is_probability(wanted)


def is_probability(wanted: Tensor) -> bool:
    """Whether every row is a distribution."""
    sums = wanted.float().sum(1)
    return bool((wanted >= 0).all() and ((sums - 1).abs() < _UNIT).all())


def divergence(found: Tensor, wanted: Tensor, temperature: float, are_probabilities: bool) -> Tensor:
    """T² KL(softmax(wanted / T) ‖ softmax(found / T)), mean over rows (Hinton, Vinyals and Dean 2015, section 2)."""
    student, teacher = (_scores(x, are_probabilities) / temperature for x in (found, wanted))
    logs = F.log_softmax(student, 1)
    return F.kl_div(logs, F.log_softmax(teacher, 1), reduction="batchmean", log_target=True) * temperature**2


def _scores(values: Tensor, are_probabilities: bool) -> Tensor:
    values = values.float()
    return values.clamp_min(_SMALL).log() if are_probabilities else values


@dataclass(frozen=True, slots=True)
class Loss:
    """Everything a step minimises, added up with the training's weights."""

    outputs: tuple[str, ...]
    classifiers: Mapping[str, bool]
    """Outputs that are scores of classes, and whether they are probabilities already."""
    features: tuple[str, ...]
    training: Training

    def __call__(
        self,
        found: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        real: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        chosen = self.training
        total = chosen.output_weight * _mean([relative_error(found[n], wanted[n], real) for n in self.outputs])
        if chosen.feature_weight and self.features:
            errors = [relative_error(found[n], wanted[n], real) for n in self.features]
            total = total + chosen.feature_weight * _mean(errors)
        if chosen.kl_weight and self.classifiers:
            total = total + chosen.kl_weight * _mean(
                [divergence(found[n], wanted[n], chosen.temperature, p) for n, p in self.classifiers.items()]
            )
        if labels is not None and chosen.label_weight and self.classifiers:
            total = total + chosen.label_weight * _mean(
                [F.cross_entropy(_scores(found[n], p), labels) for n, p in self.classifiers.items()]
            )
        return total


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
