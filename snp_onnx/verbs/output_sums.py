"""Sums over samples of one output of two models, and the figures of `Fidelity` made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from snp_onnx.planning.scales import MOST_CHANNELS
from snp_onnx.subspace.variation import ENOUGH, Variation
from snp_onnx.tracing.endings import Ending

Array = npt.NDArray[Any]

FLAT = 0.05
"""A probability whose range over all samples is smaller than this never decides anything."""

MOST_ELEMENTS = 2**20
"""Elements of a sample up to which sums are kept for each; of larger ones they are kept for each channel."""

ROWS_AT_ONCE = 2**22
"""Entries that are added at once, for bounded memory."""


@dataclass(slots=True)
class Sums:
    """What is added up of one output; `by_shape` has sums for every shape that a sample has.

    They are sums for each element while all samples have one shape, otherwise along the kept axes alone.
    """

    name: str
    ending: Ending | None
    samples: int = 0
    cosine: float = 0.0
    entries: int = 0
    counted: int = 0
    decided: int = 0
    agreed: int = 0
    dense_right: int = 0
    pruned_right: int = 0
    divergence: float = 0.0
    is_whole: bool = True
    is_matrix: bool = True
    is_exact: bool = False
    axis: int | None = None
    by_shape: dict[tuple[int, ...], Variation] = field(default_factory=dict)

    def leave_out(self) -> None:
        """The two models gave different numbers of entries."""
        self.is_whole = False

    def add(self, dense: Array, pruned: Array, axis: int | None, real: Array | None, labels: Array | None) -> None:
        """Add a batch, whose samples lie along `axis`; where `real` is False an entry is padding."""
        self.axis, self.is_matrix = axis, self.is_matrix and axis == 0 and dense.ndim == 2 and dense.shape[1] > 1
        self.is_exact = dense.dtype.kind == "b" or (dense.dtype.kind in "iu" and dense.dtype.itemsize > 1)
        known = np.isfinite(dense) if real is None else np.isfinite(dense) & real
        a, b, known = (_samples_first(values, axis) for values in (dense, pruned, known))
        self.samples += len(a)
        self.entries += known.size if real is None else int(np.broadcast_to(real, dense.shape).sum())
        self.counted += int(known.sum())
        if self.is_exact:
            self.decided, self.agreed = self.decided + int(known.sum()), self.agreed + int(((a == b) & known).sum())
        step = max(1, ROWS_AT_ONCE // max(1, prod(a.shape[1:])))
        for start in range(0, len(a), step):
            part = slice(start, start + step)
            self._add(a[part].astype(np.float64), b[part].astype(np.float64), known[part])
        if self.is_matrix and not self.is_exact:
            whole = known.all(axis=1)
            classes = None if labels is None else labels[whole]
            self._add_classes(a[whole].astype(np.float64), b[whole].astype(np.float64), classes)

    def _add(self, a: Array, b: Array, known: Array) -> None:
        """Sums of some samples, (n, ...)."""
        with np.errstate(invalid="ignore", over="ignore"):  # the pruned model may not be finite: its error is infinite
            found = self._variation_of(a, b, known)
            earlier = self.by_shape.get(a.shape[1:])
            self.by_shape[a.shape[1:]] = found if earlier is None else earlier + found
            self.cosine += float(_cosines(np.where(known, a, 0.0), np.where(known, b, 0.0)).sum())
        axis = self._class_axis(a.ndim)
        if axis is not None and not self.is_exact and not (self.is_matrix and a.ndim == 2):
            counted = known.all(axis=axis)
            same = np.where(known, a, -np.inf).argmax(axis) == np.where(known, b, -np.inf).argmax(axis)
            self.decided, self.agreed = self.decided + int(counted.sum()), self.agreed + int((same & counted).sum())

    def _variation_of(self, a: Array, b: Array, known: Array) -> Variation:
        """Sums for every element; along the kept axes alone where samples are very large or differ in shape."""
        shape = a.shape[1:]
        if len(self.by_shape) == 1 and shape not in self.by_shape:
            ((first, sums),) = self.by_shape.items()
            is_by_element = sums.count.shape == first
            self.by_shape[first] = sums.along(self._kept(first), by_element=False) if is_by_element else sums
        if prod(shape) <= MOST_ELEMENTS and self.by_shape.keys() <= {shape}:
            return Variation.of(a, b, known)
        kept = self._kept(shape)
        parts = _pieces([a, b, known], kept)
        return reduce(add, (Variation.of(*part).along(kept, by_element=False) for part in parts))

    def _add_classes(self, a: Array, b: Array, labels: Array | None) -> None:
        """Classes (n, C), finite in the dense model: agreement, divergence, and accuracy where there are labels."""
        dense_top, pruned_top = a.argmax(axis=1), b.argmax(axis=1)
        self.decided, self.agreed = self.decided + len(a), self.agreed + int((dense_top == pruned_top).sum())
        with np.errstate(invalid="ignore"):
            p, q = log_classes(a), log_classes(b)
            self.divergence += float((np.exp(p) * (p - q)).sum())
        if labels is not None:
            self.dense_right += int((dense_top == labels).sum())
            self.pruned_right += int((pruned_top == labels).sum())

    def _class_axis(self, rank: int) -> int | None:
        """The axis of a sample array (n, ...) that holds classes: a Softmax's, or the one fixed axis behind others."""
        if self.ending is None:
            return None
        if self.ending.classes is not None:
            if self.axis is None:
                return self.ending.classes % (rank - 1) + 1
            axis = self.ending.classes % rank
            return None if axis == self.axis else axis + (axis < self.axis)
        fixed = [axis for axis in range(1, rank) if (self._extent(axis - 1) or 0) > 1]
        return rank - 1 if rank > 2 and fixed == [rank - 1] else None

    def _extent(self, axis: int) -> int | None:
        """The extent that the declaration fixes for an axis of a sample."""
        declared = self.ending.shape if self.ending is not None else None
        place = self.axis_of(axis)
        return declared[place] if declared is not None and place < len(declared) else None

    def axis_of(self, axis: int) -> int:
        """An axis of a sample as an axis of the output."""
        return axis if self.axis is None else axis + (axis >= self.axis)

    def channel_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of a sample whose positions mean different things."""
        return tuple(axis for axis, n in enumerate(shape) if 1 < n <= MOST_CHANNELS and self._extent(axis) == n)

    def _kept(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of a very large sample along which sums are kept."""
        classes = self._class_axis(len(shape) + 1)
        wanted = {*self.channel_axes(shape), *([classes - 1] if classes is not None else [])}
        return tuple(sorted(wanted))

    def variation(self) -> tuple[Variation, dict[int, int], bool]:
        """The sums of all samples, their channel axes, and whether to centre at each element.

        For every channel axis of the sums, the axis of a sample that it is.
        """
        shapes = list(self.by_shape)
        kept = [self._kept(shape) for shape in shapes]
        first, found = kept[0], list(self.by_shape.values())
        if len(shapes) > 1:
            is_alike = all(
                axes == first and [s[a] for a in axes] == [shapes[0][a] for a in first]
                for s, axes in zip(shapes, kept, strict=True)
            )
            axes = first if is_alike else ()
            pooled = found if is_alike else [sums.along(by_element=False) for sums in found]
            channels = self._places_of_channels(shapes[0], axes)
            return reduce(add, pooled), channels, True
        if found[0].count.shape != shapes[0]:  # kept by channel already
            return found[0], self._places_of_channels(shapes[0], first), True
        channels = {axis: axis for axis in self.channel_axes(shapes[0])}
        return found[0], channels, float(found[0].count.max(initial=0.0)) >= ENOUGH

    def _places_of_channels(self, shape: tuple[int, ...], kept: tuple[int, ...]) -> dict[int, int]:
        """Where the channel axes are among the axes that were kept."""
        wanted = self.channel_axes(shape)
        return {place: axis for place, axis in enumerate(kept) if axis in wanted}


def _samples_first(values: Array, axis: int | None) -> Array:
    return values[None] if axis is None else np.moveaxis(values, axis, 0)


def _pieces(arrays: Sequence[Array], kept: Sequence[int]) -> Iterable[tuple[Array, ...]]:
    """Samples (n, ...) cut along the longest axis of a sample that isn't kept, for bounded memory."""
    shape = arrays[0].shape[1:]
    free = [axis for axis in range(len(shape)) if axis not in kept]
    longest = max(free, key=lambda axis: shape[axis], default=0)
    count = min(shape[longest], -(-prod(shape) // MOST_ELEMENTS)) if free else 1
    if count < 2:
        return [tuple(arrays)]
    return zip(*(np.array_split(values, count, longest + 1) for values in arrays), strict=True)


def _cosines(a: Array, b: Array) -> Array:
    """The cosine of every sample; 1 of two zeros."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    inner, first, second = (np.einsum("ij,ij->i", left, right) for left, right in ((a, b), (a, a), (b, b)))
    norms = np.sqrt(first) * np.sqrt(second)
    same = (a == b).all(axis=1).astype(np.float64)
    return np.asarray(np.where(norms > 0, inner / np.where(norms > 0, norms, 1.0), same))


def log_classes(outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log probabilities of classes, (n, C): of probabilities as they are, of anything else by a softmax."""
    if (outputs >= 0.0).all() and np.allclose(outputs.sum(axis=1), 1.0, atol=1e-3):
        return np.log(np.maximum(outputs, 1e-12))
    found: npt.NDArray[np.float64] = log_softmax(outputs, axis=1)
    return found
