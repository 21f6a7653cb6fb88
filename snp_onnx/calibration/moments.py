"""Moments: what a request asks of a tensor, and the sums that answer it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

import numpy as np
from numpy.typing import NDArray

from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.external import release
from snp_onnx.subspace import CentredGram
from snp_onnx.subspace.ridge import FLOOR


class View(StrEnum):
    """What a row of X holds: the units at one position, or the units under a whole convolution window."""

    CHANNELS = "channels"
    PATCHES = "patches"


class Squares(StrEnum):
    """What is wanted of XᵀX: all, its diagonal, or nothing."""

    GRAM = "gram"
    ENERGIES = "energies"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a convolution, ONNX attribute order; `auto_pad` is resolved by the caller."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]  # all begins, then all ends

    def __post_init__(self) -> None:
        rank = len(self.kernel)
        if not rank or len(self.strides) != rank or len(self.dilations) != rank or len(self.pads) != 2 * rank:
            raise PlanError(f"{self} is not a window: give n kernel sizes, n strides, n dilations and 2n pads")
        if min(self.kernel + self.strides + self.dilations) < 1 or min(self.pads) < 0:
            raise PlanError(f"{self} is not a window: sizes, strides and dilations start at 1, pads at 0")


@dataclass(frozen=True, slots=True)
class MomentRequest:
    """One description of a statistic: the rows X taken from a tensor, and optionally the rows Y of another.

    `axis` carries the units; all other axes are row axes. `slots` (S, U) says that U units hold S positions of the axis
    each (a flattened channel): each slot is one more row. `lattice` strides over the row axes other than axis 0, in
    axis order (for patches: over output positions). `row_mask` names a tensor shaped like the row axes or broadcastable
    to them, where 0 means that the row does not count; of a tensor with one row axis it is flattened first.
    `cross_with` names a tensor Y with the same rows and unit axis;
    with `cross_window` a row of Y holds the units under the window whose output is the row of X, without a lattice.
    `squares` says what is wanted of XᵀX; with the cross product alone the rows needn't be written out.
    """

    tensor: str
    axis: int
    rank: int
    slots: tuple[tuple[int, ...], ...] | None = None
    view: View = View.CHANNELS
    window: Window | None = None
    lattice: tuple[int, ...] = ()
    row_mask: str | None = None
    cross_with: str | None = None
    cross_window: Window | None = None
    squares: Squares = Squares.GRAM

    def __post_init__(self) -> None:
        reason = self._refusal()
        if reason:
            raise PlanError(f"moment request on tensor {self.tensor!r}: {reason}")

    def _refusal(self) -> str | None:
        if not 0 <= self.axis < self.rank:
            return f"axis {self.axis} is outside a tensor of rank {self.rank}"
        if self.lattice and (len(self.lattice) != len(self.lattice_axes) or min(self.lattice) < 1):
            return f"lattice {self.lattice} must give a stride of 1 or more for each of the axes {self.lattice_axes}"
        if self.slots is not None and (not self.slots or len({len(slot) for slot in self.slots}) != 1):
            return "slots must be a rectangle (S, U) with at least one slot"
        if self.slots is not None and self.cross_with is not None:
            return "slots have no rows in common with another tensor, so cross_with cannot be used with them"
        if self.cross_window is not None and (self.cross_with is None or self.lattice or self.axis != 1):
            return "a cross window needs another tensor to look at, units on axis 1, and no lattice"
        if (self.view is View.PATCHES) != (self.window is not None):
            return "the view patches needs a window and no other view takes one"
        if self.window is not None and (
            self.axis != 1 or len(self.window.kernel) != self.rank - 2 or self.slots is not None
        ):
            return f"patches need units on axis 1, a window over the other {self.rank - 2} axes, and no slots"
        return None

    @property
    def row_axes(self) -> tuple[int, ...]:
        """Every axis but the unit axis."""
        return tuple(a for a in range(self.rank) if a != self.axis)

    @property
    def lattice_axes(self) -> tuple[int, ...]:
        """The axes that `lattice` strides over."""
        return tuple(a for a in self.row_axes if a != 0)

    @property
    def is_product(self) -> bool:
        """Whether only XᵀY and the sums are wanted, of all positions of maps with units on axis 1."""
        plain = self.slots is None and self.row_mask is None and self.window is None and self.cross_window is None
        return plain and self.squares is Squares.NONE and self.axis == 1 and self.rank > 3 and not self.lattice

    @property
    def other(self) -> "MomentRequest | None":
        """The energies of Y, of the rows that a cross product sees; None where these are windows or there is no Y."""
        if self.cross_with is None or self.cross_window is not None:
            return None
        plain = MomentRequest(self.cross_with, self.axis, self.rank, lattice=self.lattice, row_mask=self.row_mask)
        return replace(plain, squares=Squares.ENERGIES)

    @property
    def taps(self) -> int:
        """Columns of X per unit: the size of the window, 1 for channels."""
        return prod(self.window.kernel) if self.window is not None else 1

    @property
    def key(self) -> str:
        """The same for equal requests, different for different ones, in every process."""
        fields: tuple[object, ...] = (self.axis, self.rank, self.slots, str(self.view), self.lattice)
        fields += (self.row_mask, self.cross_with, str(self.squares))
        windows = [w and (w.kernel, w.strides, w.dilations, w.pads) for w in (self.window, self.cross_window)]
        digest = hashlib.sha256(repr((self.tensor, fields, windows)).encode()).hexdigest()
        return f"{self.tensor}/{self.view}/{digest[:16]}"


@dataclass(frozen=True, slots=True)
class Pilot:
    """What is subtracted from every row before products are summed: p (C,), near the mean of X, and q (D,), of Y.

    The sums are in float32. Around 0 their rounding is k² times as large in units of the variance where the mean is k
    times the spread; around a pilot it is that of data without an offset. None: 0.
    """

    own: NDArray[np.float64] | None = None
    other: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over rows: XᵀX, Σx, how many, and XᵀY where it was asked for; with a `pilot`, of X - p and Y - q.

    `gram_sum` (C, C) and `cross_sum` (C, D) in activation² units, `sum` (C,) in activation units, all float64. Columns
    of patches are ordered like `W.reshape(O, -1)`: unit by unit, window positions innermost. Where X has fewer rows
    than columns, `rows` (n, C) of X may be there in place of `gram_sum`, which is then made of them when asked for.
    Where only the diagonal was wanted, `square_sum` (C,) is there in place of both; where nothing was, none of them.
    """

    gram_sum: NDArray[np.float64] | None
    sum: NDArray[np.float64]
    count: int
    cross_sum: NDArray[np.float64] | None = None
    rows: NDArray[np.float64] | None = None
    was_finite: bool | None = None
    """What `is_finite` found before the sums went to a file; None: not looked at yet."""
    square_sum: NDArray[np.float64] | None = None
    pilot: Pilot | None = None

    def __add__(self, other: "Moments") -> "Moments":
        if self.rows is not None and other.rows is not None:
            rows = np.concatenate([self.rows, other.rows])
            return Moments(None, self.sum + other.sum, self.count + other.count, rows=rows)
        if (self.cross_sum is None) != (other.cross_sum is None):
            raise PlanError("moments with and without a cross term cannot be added: ask both for the same")
        if self.pilot is not None or other.pilot is not None:
            return self._added_around(other)
        if self.square_sum is not None and other.square_sum is not None:
            squares = self.square_sum + other.square_sum
            return Moments(None, self.sum + other.sum, self.count + other.count, square_sum=squares)
        cross = None if self.cross_sum is None or other.cross_sum is None else self.cross_sum + other.cross_sum
        return Moments(self._squares() + other._squares(), self.sum + other.sum, self.count + other.count, cross)

    def _added_around(self, other: "Moments") -> "Moments":
        """The sum around the pilot of `self`, to which `other` is brought in float64."""
        if self.cross_sum is not None or self.square_sum is not None:
            raise PlanError("moments around a pilot can be added only where all of XᵀX and no cross term was asked for")
        step = other._around - self._around
        gram = other._squares() + np.outer(other.sum, step)
        gram += np.outer(step, other.sum + other.count * step)
        gram += self._squares()
        total = self.sum + other.sum + other.count * step
        return Moments(gram, total, self.count + other.count, pilot=Pilot(self._around))

    @property
    def _around(self) -> NDArray[np.float64]:
        """What the sums are around, (C,)."""
        own = self.pilot.own if self.pilot is not None else None
        return np.zeros_like(self.sum) if own is None else own

    @property
    def gram(self) -> NDArray[np.float64]:
        """G = XᵀX / n, (C, C), not centred."""
        return self._mean_squares() if self.pilot is None else self.centred.gram()

    @property
    def centred(self) -> CentredGram:
        """The covariance and the mean of X; the caller may write over it."""
        if self.rows is not None:
            apart = self.rows - self.mean
            return CentredGram(apart.T @ apart / self._rows(), self.mean)
        found = CentredGram.of(self._mean_squares(), self.sum / self._rows())
        return found if self.pilot is None else replace(found, mean=self.mean)

    def block(self, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        """The covariance of a few columns, from which the rest isn't computed."""
        if self.gram_sum is None:
            assert self.rows is not None
            apart = self.rows[:, columns] - self.mean[columns]
            return np.asarray(apart.T @ apart / self._rows())
        off = self.sum[columns] / self._rows()
        return self.gram_sum[np.ix_(columns, columns)] / self._rows() - np.outer(off, off)

    def _mean_squares(self) -> NDArray[np.float64]:
        """XᵀX / n around the pilot, in memory of its own."""
        squares = self._squares() / self._rows()
        if self.gram_sum is not None:
            release(self.gram_sum)
        return squares

    def _squares(self) -> NDArray[np.float64]:
        if self.gram_sum is not None:
            return self.gram_sum
        assert self.rows is not None
        return self.rows.T @ self.rows

    @property
    def energies(self) -> NDArray[np.float64]:
        """The diagonal of G, (C,)."""
        return self.variance + np.square(self.mean)

    @property
    def variance(self) -> NDArray[np.float64]:
        """The variance of every column of X, (C,), at least 0."""
        if self.square_sum is not None:
            squares = self.square_sum
        elif self.gram_sum is not None:
            squares = np.diag(self.gram_sum)
        else:
            assert self.rows is not None
            return np.asarray(np.square(self.rows - self.mean).sum(axis=0) / self._rows())
        return np.maximum(squares / self._rows() - np.square(self.sum / self._rows()), 0.0)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row, (C,)."""
        return self._around + self.sum / self._rows()

    @property
    def cross(self) -> NDArray[np.float64] | None:
        """XᵀY / n, (C, D), of moments without a pilot."""
        return None if self.cross_sum is None else self.cross_sum / self._rows()

    def cross_covariance(self, other_mean: NDArray[np.float64]) -> NDArray[np.float64]:
        """E[(x - m)(y - ȳ)ᵀ], (C, D), for the mean ȳ (D,) of the same Y."""
        if self.cross_sum is None:
            raise PlanError("these moments have no cross term: ask for one")
        aside = self.pilot.other if self.pilot is not None else None
        apart = other_mean if aside is None else other_mean - aside
        return np.asarray(self.cross_sum / self._rows() - np.outer(self.sum / self._rows(), apart))

    @property
    def is_finite(self) -> bool:
        """Whether every sum is: a model that overflows on the calibration data has no usable moments."""
        if self.was_finite is not None:
            return self.was_finite
        parts = (self.gram_sum, self.sum, self.cross_sum, self.rows, self.square_sum)
        return all(bool(np.isfinite(part).all()) for part in parts if part is not None)

    def _rows(self) -> int:
        if not self.count:
            raise CalibrationError("no row was counted for these moments: check the row mask and the number of samples")
        return self.count


FAR = 100.0
"""Mean² in units of the variance from which on sums want a pilot: below it their rounding is far below every ridge."""


def is_far(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> bool:
    """Whether float32 sums around 0 would lose too many digits of the variance of a column.

    >>> is_far(np.array([1.0, 20.0]), np.array([1.0, 1.0])), is_far(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    (True, False)
    """
    return bool((np.square(mean) > FAR * np.maximum(variance, FLOOR * variance.mean())).any())


ALMOST = 0.9
"""A lattice that reads this share of what is wanted will do: the next one may read twice as much."""

MANY = 1024
"""Samples from which on fewer positions of each do: more samples say more than more positions of one."""


def row_strides(
    shape: Sequence[int], axis: int, samples: int, units: int, per_unit: int = 64, at_least: int = 16
) -> tuple[int, ...]:
    """A lattice that reads about max(at_least, per_unit · units / samples) positions of each sample.

    Of more than 1,024 samples `at_least` counts for so many alone, and is shared by all. The lattice has the largest
    stride, the same on every row axis but never more than its extent, that still reads that many whatever
    the offset; () where all positions are needed. `shape` is the tensor's (for patches: the output positions').

    >>> row_strides((1, 16, 32, 32), axis=1, samples=512, units=144)
    (6, 6)
    """
    extents = [extent for a, extent in enumerate(shape) if a not in (0, axis)]
    wanted = max(at_least * min(1.0, MANY / max(samples, 1)), per_unit * units / max(samples, 1))
    stride = 1
    while stride < max(extents, default=1) and _reads(extents, stride + 1) >= ALMOST * wanted:
        stride += 1
    lattice = tuple(min(stride, extent) for extent in extents)
    return () if all(step <= 1 for step in lattice) else lattice


def _reads(extents: Sequence[int], stride: int) -> int:
    return prod(extent // min(stride, extent) for extent in extents)
