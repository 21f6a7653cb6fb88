"""Orders, factorisation and folds against independent computations on the samples themselves."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snp_onnx.subspace import (
    Order,
    cumulative_variance,
    fold_error,
    fold_map,
    ldl,
    magnitude,
    natural,
    order_by_importance,
    random,
    ridge_diagonal,
    saw,
    shrink,
    zca_importance,
)
from snp_onnx.subspace.ridge import with_ridge

Array = NDArray[np.float64]
TINY = 1e-14  # a ridge far below every other error source


def samples(condition: float, count: int = 8, rows: int = 400, seed: int = 0) -> Array:
    """(rows, count) samples whose Gram has exactly this condition number."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((rows, count)))[0]
    right = np.linalg.qr(rng.standard_normal((count, count)))[0]
    return left * np.sqrt(rows * np.geomspace(1.0, 1.0 / condition, count)) @ right.T


def gram_of(x: Array) -> Array:
    return x.T @ x / len(x)


def planted(seed: int = 1) -> tuple[Array, list[int]]:
    """Samples of 9 units; units 3, 5 and 8 are exact linear combinations of units 0, 1, 2, 4, 6, 7."""
    rng = np.random.default_rng(seed)
    free = rng.standard_normal((300, 6)) @ (np.eye(6) + 0.3 * rng.standard_normal((6, 6)))
    x = np.empty((300, 9))
    x[:, [0, 1, 2, 4, 6, 7]] = free
    x[:, [3, 5, 8]] = free @ rng.standard_normal((6, 3))
    return x, [0, 1, 2, 4, 6, 7]


# --- ridge ---------------------------------------------------------------------------------------------------------


def test_ridge_is_relative_to_each_unit_with_a_floor_for_dead_ones() -> None:
    gram = np.diag([1000.0, 2.0, 0.0])
    mean = 1002.0 / 3.0
    np.testing.assert_allclose(ridge_diagonal(gram, 0.1), [100.0, 0.2, 0.1 * 1e-3 * mean], rtol=1e-13, atol=0.2)
    np.testing.assert_allclose(ridge_diagonal(gram, 0.1, floor=0.5), [100.0, 0.05 * mean, 0.05 * mean])


def test_ridge_of_nothing_is_still_positive() -> None:
    np.testing.assert_array_equal(ridge_diagonal(np.zeros((3, 3)), 1e-6), np.full(3, 1e-6))
    assert ridge_diagonal(np.diag([1e-308, 0.0]), 1e-6).min() > 0.0


@pytest.mark.parametrize("rho", [0.0, -1.0, np.nan, np.inf])
def test_ridge_strength_must_be_positive(rho: float) -> None:
    with pytest.raises(ValueError, match="rho must be finite and above 0"):
        ridge_diagonal(np.eye(2), rho)


def test_indefinite_by_rounding_is_repaired_and_indefinite_by_error_is_refused() -> None:
    rounded = np.diag([1.0, -1e-6])
    ridged, factor, clipped = with_ridge(rounded, np.full(2, 1e-9))
    assert clipped == pytest.approx(1e-6)
    np.testing.assert_allclose(ridged, np.diag([1.0, 0.0]), atol=2e-9)
    np.testing.assert_allclose(factor @ factor.T, ridged, atol=1e-15)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        ldl(np.array([[1.0, 2.0], [2.0, 1.0]]), [0, 1])


# --- orders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_zca_importance_equals_the_matrix_square_root(condition: float) -> None:
    gram = gram_of(samples(condition))
    power = 1.0 / np.square(np.diag(scipy.linalg.fractional_matrix_power(gram, -0.5)))
    root = 1.0 / np.square(np.diag(np.linalg.inv(scipy.linalg.sqrtm(gram))))
    importance = zca_importance(gram, rho=TINY)
    np.testing.assert_allclose(importance, power, rtol=1e-7)
    np.testing.assert_allclose(importance, root, rtol=1e-7)


def test_zca_importance_is_not_the_residual_variance() -> None:
    gram = gram_of(samples(1e4))
    residual = 1.0 / np.diag(np.linalg.inv(gram))
    importance = zca_importance(gram, rho=TINY)
    assert np.all(importance >= residual * (1.0 - 1e-9))
    assert np.max(importance / residual) > 1.5
    assert not np.allclose(importance, np.diag(gram), rtol=0.1)


@pytest.mark.parametrize("condition", [1e8, 1e10, 1e12])
def test_zca_importance_of_near_singular_grams_equals_the_ridged_square_root(condition: float) -> None:
    gram = gram_of(samples(condition))
    ridged = gram + np.diag(ridge_diagonal(gram, 1e-6))
    power = 1.0 / np.square(np.diag(scipy.linalg.fractional_matrix_power(ridged, -0.5)))
    np.testing.assert_allclose(zca_importance(gram), power, rtol=1e-6)


def test_dead_units_come_last_and_duplicates_stay_finite() -> None:
    x = samples(1e2, count=6)
    x = np.column_stack([np.zeros(len(x)), x, x[:, 2], 1e-5 * x[:, 0], np.zeros(len(x))])
    importance = zca_importance(gram_of(x))
    assert np.isfinite(importance).all()
    assert importance[[0, 9]].tolist() == [0.0, 0.0]
    assert importance[1:9].min() > 0.0
    assert order_by_importance(importance)[-2:].tolist() == [0, 9]
    assert set(order_by_importance(importance)[:5].tolist()).isdisjoint({3, 7, 8}), "a duplicated unit adds little"
    assert zca_importance(np.zeros((2, 2))).tolist() == [0.0, 0.0]


def test_zca_importance_scales_as_energy() -> None:
    gram = gram_of(samples(1e3))
    np.testing.assert_allclose(zca_importance(1e6 * gram), 1e6 * zca_importance(gram), rtol=1e-9)


def test_baselines_read_the_right_axis() -> None:
    rng = np.random.default_rng(3)
    convolution, dense = rng.standard_normal((7, 4, 3, 3)), rng.standard_normal((5, 4))
    expected = np.abs(convolution).sum(axis=(0, 2, 3)) + np.abs(dense).sum(axis=0)
    np.testing.assert_allclose(saw([convolution, dense]), expected)
    np.testing.assert_allclose(saw(dense), np.abs(dense).sum(axis=0))
    producer, bias = rng.standard_normal((4, 2, 3, 3)), rng.standard_normal((4, 1))
    stacked = np.concatenate([producer.reshape(4, -1), bias], axis=1)
    np.testing.assert_allclose(magnitude([producer, bias]), np.linalg.norm(stacked, axis=1))
    assert not np.allclose(saw(convolution), magnitude(np.moveaxis(convolution, 1, 0)), rtol=0.01)


def test_natural_and_random_orders() -> None:
    assert order_by_importance(natural(5)).tolist() == [0, 1, 2, 3, 4]
    first = order_by_importance(random(50, np.random.default_rng(7)))
    again = order_by_importance(random(50, np.random.default_rng(7)))
    other = order_by_importance(random(50, np.random.default_rng(8)))
    np.testing.assert_array_equal(first, again)
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != other.tolist()
    assert [str(order) for order in Order] == ["output", "zca", "saw", "magnitude", "natural", "random"]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=12))
def test_order_is_by_importance_with_ties_by_index(scores: list[float]) -> None:
    assert order_by_importance(scores).tolist() == sorted(range(len(scores)), key=lambda i: -scores[i])


# --- L D Lᵀ --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8, 1e10, 1e12])
def test_d_is_the_squared_residual_norm_of_gram_schmidt(condition: float) -> None:
    x = samples(condition)
    order = np.random.default_rng(5).permutation(8)
    r = scipy.linalg.qr(x[:, order], mode="r")[0][:8]
    rho = 1e-3 / condition  # the ridge must stay below the smallest eigenvalue for this comparison
    lower, d = ldl(gram_of(x), order, rho=rho)
    expected = np.square(np.diag(r)) / len(x)
    np.testing.assert_allclose(d, expected, rtol=1e-4, atol=1e-15)
    np.testing.assert_allclose(lower, (r / np.diag(r)[:, None]).T, rtol=1e-2, atol=1e-2)
    assert not np.allclose(d, np.square(np.diag(scipy.linalg.qr(x, mode="r")[0][:8])) / len(x), rtol=0.1)


def test_ldl_gives_the_gram_back_and_is_triangular() -> None:
    gram, order = gram_of(samples(1e3)), np.array([3, 1, 0, 7, 6, 2, 5, 4])
    lower, d = ldl(gram, order, rho=TINY)
    np.testing.assert_allclose(lower @ np.diag(d) @ lower.T, gram[np.ix_(order, order)], atol=1e-12)
    assert np.array_equal(np.diag(lower), np.ones(8))
    assert not np.triu(lower, 1).any()
    assert not np.allclose(lower @ np.diag(d) @ lower.T, gram, atol=1e-3), "the order must matter"


def test_planted_units_add_nothing_after_the_units_they_are_made_of() -> None:
    x, free = planted()
    pruned = [3, 5, 8]
    _, d = ldl(gram_of(x), [*free, *pruned])
    assert np.all(d[6:] < 1e-9 * d.sum())
    assert np.all(d[:6] > 1e-3 * d.sum())
    _, wrong = ldl(gram_of(x), [*pruned, *free])
    assert np.all(wrong[:3] > 1e-3 * wrong.sum()), "in front the same units carry energy"
    np.testing.assert_allclose(cumulative_variance(d)[5:], 1.0, atol=1e-8)
    assert cumulative_variance(wrong)[4] < 1.0 - 1e-4


def test_d_leaves_the_ridge_out() -> None:
    _, d = ldl(np.array([[1.0, 1.0], [1.0, 1.0]]), [0, 1], rho=1e-4)
    assert d[0] == pytest.approx(1.0, abs=1e-12)
    assert 0.0 <= d[1] < 1e-7, "of order rho², not rho"


def test_cumulative_variance() -> None:
    np.testing.assert_allclose(cumulative_variance([5.0, 3.0, 2.0]), [0.5, 0.8, 1.0])
    assert cumulative_variance([0.0, 0.0]).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="none negative"):
        cumulative_variance([1.0, -1.0])


# --- folds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_fold_equals_least_squares_on_the_samples(condition: float) -> None:
    x, keep = samples(condition), np.array([0, 2, 3, 6])
    weight = np.random.default_rng(2).standard_normal((5, 8))
    expected = np.linalg.lstsq(x[:, keep], x @ weight.T, rcond=None)[0].T
    folded = weight @ fold_map(gram_of(x), keep, rho=TINY)
    tolerance = 1e-10 * condition * np.abs(expected).max()
    np.testing.assert_allclose(folded, expected, atol=tolerance)
    assert np.abs(weight[:, keep] - expected).max() > 10.0 * tolerance, "cutting alone is not the fold"
    other = weight @ fold_map(gram_of(x), [0, 2, 3, 7], rho=TINY)
    assert np.abs(other - expected).max() > 10.0 * tolerance, "another kept set is another fold"


@pytest.mark.parametrize("condition", [1e10, 1e12])
def test_fold_of_near_singular_grams_reaches_the_least_squares_error(condition: float) -> None:
    x, keep = samples(condition), np.array([0, 2, 3, 6])
    weight = np.random.default_rng(2).standard_normal((5, 8))
    best = np.linalg.lstsq(x[:, keep], x @ weight.T, rcond=None)[0].T
    folded = weight @ fold_map(gram_of(x), keep, rho=1e-9)

    def error(small: Array) -> float:
        return float(np.square(x @ weight.T - x[:, keep] @ small.T).sum() / np.square(x @ weight.T).sum())

    assert error(folded) <= error(best) + 1e-8
    assert error(weight[:, keep]) > 100.0 * (error(best) + 1e-8), "the bound must exclude cutting alone"


def test_fold_with_a_ridge_is_anchored_at_the_dense_weights() -> None:
    x, keep, rho = samples(1e4), np.array([1, 4, 5]), 0.3
    gram, weight = gram_of(x), np.random.default_rng(4).standard_normal((2, 8))
    ridge = np.sqrt(len(x) * ridge_diagonal(gram, rho)[keep])
    rows = np.concatenate([x[:, keep], np.diag(ridge)])
    aims = np.concatenate([x @ weight.T, np.diag(ridge) @ weight[:, keep].T])
    expected = np.linalg.lstsq(rows, aims, rcond=None)[0].T
    folded = weight @ fold_map(gram, keep, rho=rho)
    np.testing.assert_allclose(folded, expected, rtol=1e-9)
    aims[len(x) :] = 0.0
    towards_zero = np.linalg.lstsq(rows, aims, rcond=None)[0].T
    assert np.abs(folded - towards_zero).max() > 0.05
    np.testing.assert_allclose(weight @ fold_map(gram, keep, rho=1e12), weight[:, keep], rtol=1e-9)


@pytest.mark.parametrize("kept", [1, 3, 7])
def test_fold_equals_pruning_columns_of_w_l_and_mapping_back(kept: int) -> None:
    gram, weight = gram_of(samples(1e3)), np.random.default_rng(6).standard_normal((4, 8))
    order = order_by_importance(zca_importance(gram))
    lower, _ = ldl(gram, order, rho=TINY)
    pruned = (weight[:, order] @ lower)[:, :kept]
    mapped = np.linalg.solve(lower[:kept, :kept].T, pruned.T).T
    keep = np.sort(order[:kept])
    folded = weight @ fold_map(gram, keep, rho=TINY)
    np.testing.assert_allclose(mapped, folded[:, np.searchsorted(keep, order[:kept])], rtol=1e-7, atol=1e-9)
    last = np.sort(order[-kept:])
    wrong = weight @ fold_map(gram, last, rho=TINY)
    assert not np.allclose(mapped, wrong[:, np.searchsorted(last, np.sort(order[-kept:]))], rtol=1e-2)


def test_planted_units_fold_away_without_a_trace() -> None:
    x, keep = planted()
    gram, weight = gram_of(x), np.random.default_rng(8).standard_normal((3, 9))
    folded = weight @ fold_map(gram, keep, rho=1e-12)
    np.testing.assert_allclose(x[:, keep] @ folded.T, x @ weight.T, atol=1e-8)
    assert fold_error(gram, weight, keep, folded) < 1e-14
    assert fold_error(gram, weight, keep, weight[:, keep]) > 1e-2
    needed = [1, 2, 3, 5, 6]
    assert fold_error(gram, weight, needed, weight @ fold_map(gram, needed)) > 1e-4, "five units do not span six"


def test_fold_keeps_the_kept_exactly() -> None:
    gram = gram_of(samples(1e6))
    assert np.array_equal(fold_map(gram, [1, 4])[[1, 4]], np.eye(2))
    assert np.array_equal(fold_map(gram, range(8)), np.eye(8))
    assert fold_map(gram, []).shape == (8, 0)


def test_fold_is_equivariant_to_the_scale_of_each_unit() -> None:
    x, keep = samples(1e3), np.array([0, 3, 4, 7])
    scale = np.random.default_rng(9).uniform(0.5, 2.0, 8)
    plain, scaled = fold_map(gram_of(x), keep, rho=0.01), fold_map(gram_of(x * scale), keep, rho=0.01)
    np.testing.assert_allclose(scaled * scale[keep] / scale[:, None], plain, rtol=1e-9, atol=1e-12)
    assert not np.allclose(scaled, plain, rtol=0.05)


def test_fold_error_equals_the_error_of_the_outputs() -> None:
    x, keep = samples(1e2), [0, 1, 5]
    rng = np.random.default_rng(10)
    weight, folded = rng.standard_normal((4, 8)), rng.standard_normal((4, 3))
    expected = np.square(x @ weight.T - x[:, keep] @ folded.T).sum() / np.square(x @ weight.T).sum()
    assert fold_error(gram_of(x), weight, keep, folded) == pytest.approx(expected, rel=1e-10)
    assert fold_error(gram_of(x), weight, keep, 0.0 * folded) == pytest.approx(1.0)
    assert fold_error(np.zeros((8, 8)), weight, keep, folded) == 0.0
    assert fold_error(gram_of(x), 0.0 * weight, keep, folded) == np.inf


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10_000), st.sampled_from([1e1, 1e3, 1e5]))
def test_more_units_never_give_more_error(count: int, seed: int, condition: float) -> None:
    rng = np.random.default_rng(seed)
    gram, weight = gram_of(samples(condition, count=count, seed=seed)), rng.standard_normal((3, count))
    order = rng.permutation(count)
    errors = []
    for kept in range(1, count + 1):
        keep = np.sort(order[:kept])
        errors.append(fold_error(gram, weight, keep, weight @ fold_map(gram, keep, rho=1e-12)))
    assert np.all(np.diff(errors) <= 1e-10)
    assert errors[-1] == 0.0


def test_cutting_alone_does_not_have_that_property() -> None:
    gram, weight = np.array([[1.0, -0.9], [-0.9, 1.0]]), np.array([[1.0, 1.0]])
    cut = [fold_error(gram, weight, keep, weight[:, keep]) for keep in ([], [0])]
    assert cut[1] > cut[0]


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (np.ones((2, 3)), r"square.*\(2, 3\)"),
        (np.ones(3), r"square.*\(3,\)"),
        (np.empty((0, 0)), "empty"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), r"gram has 2 non-finite entries, the first at \(0, 1\)"),
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "non-finite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
    ],
)
def test_every_function_refuses_a_bad_gram(gram: Array, message: str) -> None:
    calls = [
        lambda: ridge_diagonal(gram, 1e-6),
        lambda: zca_importance(gram),
        lambda: ldl(gram, [0, 1]),
        lambda: fold_map(gram, [0]),
        lambda: fold_error(gram, [[1.0, 1.0]], [0], [[1.0]]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_indices_and_weights_are_refused() -> None:
    gram = np.eye(3)
    refused = [
        (lambda: fold_map(gram, [0, 3]), "keep holds 3, outside the 3 units"),
        (lambda: fold_map(gram, [-1]), "keep holds -1"),
        (lambda: fold_map(gram, [1, 0]), "ascending"),
        (lambda: fold_map(gram, [1, 1]), "twice"),
        (lambda: fold_map(gram, [True, False, True]), "integers"),
        (lambda: ldl(gram, [0, 1]), "order has 2 units and the gram 3"),
        (lambda: fold_error(gram, np.ones((2, 4)), [0], np.ones((2, 1))), r"weight must be \(O, 3\)"),
        (lambda: fold_error(gram, np.ones((2, 3)), [0], np.ones((2, 2))), r"folded must be \(2, 1\)"),
        (lambda: fold_error(gram, np.full((2, 3), np.nan), [0], np.ones((2, 1))), "weight has 6 non-finite"),
        (lambda: order_by_importance([1.0, np.nan]), r"scores has 1 non-finite entries, the first at \(1,\)"),
        (lambda: saw([]), "weights are empty"),
        (lambda: saw(np.ones(3)), r"shape \(3,\) has no axis 1"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_shrink_leaves_a_gram_with_enough_rows_alone() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 6))
    gram = rows.T @ rows / 6
    assert np.array_equal(shrink(gram, 6), gram)


def test_shrink_makes_too_few_rows_regular_and_keeps_every_energy() -> None:
    rows = np.random.default_rng(1).standard_normal((10, 40)) + 1.0
    gram = rows.T @ rows / 10
    shrunk = shrink(gram, 10)
    assert np.linalg.matrix_rank(gram) == 10
    assert np.linalg.eigvalsh(shrunk).min() > 1e-3
    assert np.allclose(np.diag(shrunk), np.diag(gram), rtol=1e-12)
    off = ~np.eye(40, dtype=bool)
    ratio = shrunk[off] / gram[off]
    assert 0.0 < ratio.min() < 1.0
    assert np.allclose(ratio, ratio[0])


def test_shrink_brings_few_rows_closer_to_the_truth() -> None:
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((30, 30)) / 5 + np.eye(30)
    truth = mixing.T @ mixing
    rows = rng.standard_normal((12, 30)) @ mixing
    gram = rows.T @ rows / 12
    assert np.linalg.norm(shrink(gram, 12) - truth) < 0.9 * np.linalg.norm(gram - truth)


def test_shrink_survives_dead_units() -> None:
    gram = np.zeros((5, 5))
    gram[:2, :2] = [[2.0, 1.0], [1.0, 1.0]]
    shrunk = shrink(gram, 3)
    assert np.isfinite(shrunk).all()
    assert shrunk[4, 4] == 0.0
