"""The share of the variation that is lost, 1 - R², against numpy on all rows at once."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from snp_onnx.subspace.variation import Variation
from snp_onnx.tracing.endings import Ending
from snp_onnx.verbs import output_sums

Array = npt.NDArray[Any]
SHAPE = (3, 4, 2)


def pair(n: int = 40, offset: float = 0.0, seed: int = 0) -> tuple[Array, Array]:
    """Entries whose mean and spread differ from element to element, and others that follow them roughly."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((n, *SHAPE)) * rng.uniform(0.5, 3.0, SHAPE) + rng.standard_normal(SHAPE) + offset
    return dense, dense + 0.3 * rng.standard_normal(dense.shape)


def lost(dense: Array, other: Array, counted: Array, axes: tuple[int, ...], by_element: bool) -> Array:
    """By definition, with masked arrays: the axes are those of a sample, which stay."""
    a, b = (np.ma.array(values, mask=~counted) for values in (dense, other))
    others = tuple(axis + 1 for axis in range(dense.ndim - 1) if axis not in axes)
    mean = a.mean(axis=0 if by_element else (0, *others), keepdims=True)
    over = (0, *others)
    found = np.ma.getdata(np.square(b - a).sum(axis=over) / np.square(a - mean).sum(axis=over))
    return np.transpose(found, np.argsort(np.argsort(axes))) if axes else found


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("by_element", [True, False])
@pytest.mark.parametrize("is_masked", [False, True])
def test_what_is_lost_is_that_of_the_equation(axes: tuple[int, ...], by_element: bool, is_masked: bool) -> None:
    dense, other = pair()
    counted = np.random.default_rng(1).random(dense.shape) < (0.7 if is_masked else 2.0)
    found = Variation.of(dense, other, counted).along(axes, by_element)
    assert found.lost.shape == tuple(SHAPE[axis] for axis in axes)
    np.testing.assert_allclose(found.lost, lost(dense, other, counted, axes, by_element), rtol=1e-12)
    np.testing.assert_allclose(found.energy.sum(), np.square(dense[counted]).sum())
    assert found.count.sum() == counted.sum()


def test_axes_come_in_the_order_asked_for() -> None:
    found = Variation.of(*pair())
    np.testing.assert_allclose(found.along((2, 0)).lost, found.along((0, 2)).lost.T)


def test_centring_at_each_element_leaves_out_what_differs_between_elements() -> None:
    dense, other = pair()
    found = Variation.of(dense + 100.0 * np.arange(3)[:, None, None], other + 100.0 * np.arange(3)[:, None, None])
    assert found.along().lost > 1e3 * found.along(by_element=False).lost
    assert found.along().lost == pytest.approx(Variation.of(dense, other).along().lost)


@pytest.mark.parametrize("seed", range(3))
def test_parts_merged_in_any_order_are_the_whole(seed: int) -> None:
    dense, other = pair(offset=20.0)
    rng = np.random.default_rng(seed)
    counted = rng.random(dense.shape) < 0.8
    rows = np.split(rng.permutation(40), [3, 4, 17, 30])
    merged = reduce(add, [Variation.of(dense[part], other[part], counted[part]) for part in rows])
    whole = Variation.of(dense, other, counted)
    for name in Variation.__slots__:
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-10, err_msg=name)


def test_an_offset_of_ten_thousand_spreads_changes_nothing() -> None:
    for offset in (1e2, 1e4):
        dense, other = pair(offset=offset)
        halves = Variation.of(dense[:20], other[:20]) + Variation.of(dense[20:], other[20:])
        plain = Variation.of(dense - offset, other - offset)
        np.testing.assert_allclose(halves.lost, plain.lost, rtol=1e-6)
        np.testing.assert_allclose(halves.along().lost, plain.along().lost, rtol=1e-6)


def test_a_better_array_loses_less_and_a_constant_loses_all() -> None:
    dense, other = pair(400)
    mean = np.broadcast_to(dense.mean(axis=0), dense.shape)
    np.testing.assert_allclose(Variation.of(dense, mean).lost, 1.0)
    assert (Variation.of(dense, dense).lost == 0.0).all()
    assert (Variation.of(dense, 0.5 * (dense + other)).lost < Variation.of(dense, other).lost).all()


@pytest.mark.filterwarnings("error")
def test_a_constant_is_measured_against_those_that_vary_or_its_own_rounding() -> None:
    rng = np.random.default_rng(0)
    dense = np.stack([np.zeros(50), np.full(50, 5.0), rng.standard_normal(50)], axis=1)
    other = dense + np.array([0.1, 5e-7, 0.0])
    found = Variation.of(dense, other).lost
    assert found[0] == pytest.approx(0.01 / dense[:, 2].var())  # a dead unit that fires a little
    assert found[1] < 1e-3
    assert found[2] == 0.0
    alone = Variation.of(dense[:, 1:2], other[:, 1:2]).lost
    assert alone[0] < 1e-3  # rounding of float32
    assert Variation.of(dense[:, 1:2], 1.01 * dense[:, 1:2]).lost[0] > 1.0
    assert Variation.of(dense[:, :1], other[:, :1] + 1e3).lost[0] > 1.0  # nothing varies and there is no size
    assert Variation.of(dense[:, :1], dense[:, :1]).lost[0] == 0.0


def test_one_sample_tells_nothing_of_an_element_but_something_of_positions() -> None:
    found = Variation.of(*pair(1))
    assert np.isnan(found.lost).all()
    assert np.isfinite(found.along((0,), by_element=False).lost).all()
    nothing = Variation.of(*pair(5), np.zeros((5, *SHAPE), dtype=bool))
    assert np.isnan(nothing.lost).all()
    assert not nothing.are_probabilities.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_the_other_array_is_an_infinite_error(value: float) -> None:
    dense, other = pair()
    other[7, 1, 2, 0] = value
    found = Variation.of(dense, other)
    assert np.isinf(found.lost).sum() == 1
    assert np.isinf(found.lost[1, 2, 0])
    assert np.isinf(found.along((0,)).lost).tolist() == [False, True, False]
    counted = np.ones(dense.shape, dtype=bool)
    counted[7] = False
    assert np.isfinite(Variation.of(dense, other, counted).lost).all()


def test_decisions_at_a_half_are_counted_in_both() -> None:
    dense, other = np.array([[0.9], [0.9], [0.1], [0.5]]), np.array([[0.6], [0.2], [0.7], [0.5]])
    found = Variation.of(dense, other)
    assert (found.both.item(), found.either.item()) == (1.0, 4.0)
    assert found.are_probabilities.item()
    assert not Variation.of(dense + 0.2, other).are_probabilities.item()


def test_samples_added_in_pieces_or_shape_by_shape_have_the_sums_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a = [3.0 + rng.standard_normal((4, 5, side, 7)) for side in (6, 6, 9)]
    b = [values + 0.2 * rng.standard_normal(values.shape) for values in a]
    laid = [np.concatenate([np.moveaxis(v, 1, -1).reshape(-1, 5) for v in values]) for values in (a, b)]
    expected = Variation.of(*laid)
    for most in (2**20, 40):
        monkeypatch.setattr(output_sums, "MOST_ELEMENTS", most)
        sums = output_sums.Sums("y", Ending("y", (None, 5, None, None), None, ("y",)))
        for dense, other in zip(a, b, strict=True):
            sums.add(dense, other, 0, None, None)
        assert [kept.count.shape for kept in sums.by_shape.values()] == [(5,), (5,)]
        found, channels, _ = sums.variation()
        assert channels == {0: 0}
        for name in ("count", "mean", "spread", "error", "energy", "low", "high", "both", "either"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)
