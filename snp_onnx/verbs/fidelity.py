"""Fidelity: how close a pruned model's outputs are to the dense model's, output by output."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from snp_onnx.calibration.sessions import run
from snp_onnx.errors import ModelError
from snp_onnx.tracing.surface import Surface

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One output over all samples: mean cosine per sample, relative L2 error, and, for a classifier, top-1 figures.

    `agreement` is the share of samples with the same largest entry, `divergence` the mean Kullback-Leibler divergence
    of the pruned model's classes from the dense model's in nats; the accuracies are there when labels were given.
    """

    output: str
    samples: int
    cosine: float
    relative_l2: float
    agreement: float | None = None
    dense_accuracy: float | None = None
    pruned_accuracy: float | None = None
    divergence: float | None = None


@dataclass(slots=True)
class _Sums:
    samples: int = 0
    cosine: float = 0.0
    error: float = 0.0
    energy: float = 0.0
    agreed: int = 0
    dense_right: int = 0
    pruned_right: int = 0
    divergence: float = 0.0
    is_classifier: bool = True

    def add(self, dense: Array, pruned: Array, labels: Array | None) -> None:
        rows = dense.shape[0] if dense.ndim else 1
        a = dense.astype(np.float64).reshape(rows, -1)
        b = pruned.astype(np.float64).reshape(rows, -1)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        same = (np.abs(a - b).max(axis=1, initial=0.0) == 0.0).astype(np.float64)
        self.cosine += float(np.where(norms > 0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0), same).sum())
        self.error += float(np.square(a - b).sum())
        self.energy += float(np.square(a).sum())
        self.samples += rows
        self.is_classifier &= dense.ndim == 2 and dense.shape[1] > 1
        if self.is_classifier:
            dense_top, pruned_top = a.argmax(axis=1), b.argmax(axis=1)
            self.agreed += int((dense_top == pruned_top).sum())
            p, q = _log_classes(a), _log_classes(b)
            self.divergence += float((np.exp(p) * (p - q)).sum())
            if labels is not None:
                self.dense_right += int((dense_top == labels).sum())
                self.pruned_right += int((pruned_top == labels).sum())

    def result(self, output: str, has_labels: bool) -> Fidelity:
        share = max(self.samples, 1)
        known = self.is_classifier and self.samples > 0
        labelled = known and has_labels
        return Fidelity(
            output,
            self.samples,
            self.cosine / share,
            float(np.sqrt(self.error / self.energy)) if self.energy > 0 else float(self.error > 0),
            self.agreed / share if known else None,
            self.dense_right / share if labelled else None,
            self.pruned_right / share if labelled else None,
            self.divergence / share if known else None,
        )


def _log_classes(outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log probabilities of classes, (n, C): of probabilities as they are, of anything else by a softmax."""
    if (outputs >= 0.0).all() and np.allclose(outputs.sum(axis=1), 1.0, atol=1e-3):
        return np.log(np.maximum(outputs, 1e-12))
    found: npt.NDArray[np.float64] = log_softmax(outputs, axis=1)
    return found


def measure_fidelity(
    dense: Any,
    pruned: Any,
    batches: Iterable[Mapping[str, Array]],
    labels: Array | None = None,
    mask: str | None = None,
    surface: Surface | None = None,
) -> tuple[Fidelity, ...]:
    """Run both sessions over the batches; non-numeric outputs are left out. `labels` are classes, one a sample.

    Of inputs and outputs the pruned model has what `surface` says.
    Positions (batch, sequence) at which the input `mask` is 0 are padding: of outputs that have them, they don't count.
    """
    sums: dict[str, _Sums] = {}
    for start, real, before, after in _runs(dense, pruned, batches, mask, surface or Surface()):
        for name, expected in before.items():
            if expected.dtype.kind in "fiub" and name in after:
                if expected.shape != after[name].shape:
                    raise ModelError(
                        f"output {name} has shape {expected.shape} in the one model and {after[name].shape} in the "
                        "other: compare like with like"
                    )
                rows = expected.shape[0] if expected.ndim else 1
                part = None if labels is None else np.asarray(labels[start : start + rows]).reshape(-1)
                known = part is not None and len(part) == rows
                total = sums.setdefault(name, _Sums())
                total.add(_counted(expected, real), _counted(after[name], real), part if known else None)
    return tuple(total.result(name, labels is not None) for name, total in sums.items())


def _runs(
    dense: Any, pruned: Any, batches: Iterable[Mapping[str, Array]], mask: str | None, surface: Surface
) -> Iterator[tuple[int, Array | None, dict[str, Array], dict[str, Array]]]:
    start = 0
    for batch in batches:
        real = None if mask is None or mask not in batch else np.asarray(batch[mask]) != 0
        yield start, real, surface.cut(run(dense, batch)), run(pruned, surface.cut(batch))
        first = next(iter(batch.values()))
        start += first.shape[0] if first.ndim else 1


def _counted(values: Array, real: Array | None) -> Array:
    """Zero where a position is padding."""
    if real is None or values.ndim < 2 or values.shape[:2] != real.shape:
        return values
    return np.where(real.reshape(*real.shape, *(1 for _ in values.shape[2:])), values, np.zeros((), values.dtype))
