"""Elimination and affine folds against least squares on the samples, subset by subset, and a naive elimination."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray

from snp_onnx.subspace import CentredGram, Consumer, affine_fold, eliminate, fold_map, ridge_diagonal
from snp_onnx.subspace.remaining import ROUND

Array = NDArray[np.float64]
TINY = 1e-12  # a ridge far below every other error source
ROWS = 300


def mixed(columns: int, seed: int, shift: float = 1.0) -> Array:
    """(ROWS, columns) correlated samples with means of the size of `shift`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, columns)) @ (np.eye(columns) + 0.4 * rng.standard_normal((columns, columns)))
    return np.asarray(x + shift * rng.standard_normal(columns))


def centred_of(x: Array) -> CentredGram:
    return CentredGram.of(x.T @ x / len(x), x.mean(axis=0))


def consumer_of(x: Array, columns: Sequence[Sequence[int]], outputs: int = 4, seed: int = 9) -> Consumer:
    weight = np.random.default_rng(seed).standard_normal((outputs, x.shape[1]))
    return Consumer(centred_of(x), weight, np.array(columns))


def without_bias(consumer: Consumer) -> Consumer:
    return replace(consumer, is_affine=False)


def consumers_of(consumers: Sequence[Consumer], affine: bool) -> list[Consumer]:
    return [replace(consumer, is_affine=affine) for consumer in consumers]


def plain(units: int, width: int = 1) -> list[list[int]]:
    return np.arange(units * width).reshape(units, width).tolist()


def lstsq_error(x: Array, consumer: Consumer, units: Sequence[int], affine: bool = True) -> float:
    """Mean squared output error of the best weights on the columns of `units`, those of nobody, and a constant."""
    pruned = np.delete(consumer.columns, list(units), axis=0)
    kept = np.setdiff1d(np.arange(x.shape[1]), pruned)
    inputs = np.c_[x[:, kept], np.ones(len(x))] if affine else x[:, kept]
    aim = x @ consumer.weight.T
    residual = aim - inputs @ scipy.linalg.lstsq(inputs, aim)[0] if inputs.shape[1] else aim
    return float(np.sum(residual**2) / len(x))


def ridged_error(consumer: Consumer, units: Sequence[int], rho: float) -> float:
    """The documented objective, minimised by one dense solve with a constant column: no elimination."""
    inputs, affine = consumer.inputs, consumer.is_affine
    assert isinstance(inputs, CentredGram)
    size = len(inputs)
    H = np.ones((size + 1, size + 1))
    H[:size, :size] = inputs.gram() + np.diag(ridge_diagonal(inputs.covariance, rho))
    H[:size, size] = H[size, :size] = inputs.mean
    gone = np.delete(consumer.columns, list(units), axis=0).ravel()
    kept = np.setdiff1d(np.arange(size + 1 if affine else size), gone)
    W = consumer.weight[:, gone]
    change = np.linalg.solve(H[np.ix_(kept, kept)], H[np.ix_(kept, gone)])
    return float(np.trace(W @ (H[np.ix_(gone, gone)] - H[np.ix_(gone, kept)] @ change) @ W.T))


def naive(consumers: Sequence[Consumer], rho: float) -> tuple[list[int], list[float]]:
    """Greedy elimination that solves every candidate set from scratch."""
    kept = list(range(len(consumers[0].columns)))
    removed, errors = [], [0.0]
    while kept:
        trials = [sum(ridged_error(c, [k for k in kept if k != u], rho) for c in consumers) for u in kept]
        errors.append(min(trials))
        removed.append(kept.pop(int(np.argmin(trials))))
    return removed[::-1], errors[::-1]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("width", [1, 3])
def test_errors_on_the_path_are_those_of_least_squares_on_the_samples(width: int, affine: bool) -> None:
    x = mixed(6 * width, seed=width)
    consumer = consumer_of(x, plain(6, width))
    path = eliminate(consumers_of([consumer], affine), TINY)
    expected = [lstsq_error(x, consumer, path.order[:k].tolist(), affine) for k in range(7)]
    np.testing.assert_allclose(path.errors, expected, rtol=1e-8, atol=1e-8 * path.energy)
    assert path.energy == pytest.approx((x @ consumer.weight.T).var(axis=0).sum(), rel=1e-12)


def test_every_subset_is_at_least_as_bad_when_the_columns_are_uncorrelated() -> None:
    x = np.linalg.qr(mixed(6, seed=3) - mixed(6, seed=3).mean(axis=0))[0] * np.arange(1.0, 7.0)
    consumer = consumer_of(x, plain(6))
    path = eliminate([consumer], TINY)
    for k in range(7):
        best = min(lstsq_error(x, consumer, units) for units in itertools.combinations(range(6), k))
        assert path.errors[k] == pytest.approx(best, rel=1e-8, abs=1e-8 * path.energy)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("rho", [1e-3, 0.3])
def test_agrees_with_naive_elimination_of_several_consumers(rho: float, affine: bool) -> None:
    first = consumer_of(mixed(9, seed=5), plain(9), outputs=40)  # more outputs than columns
    second = consumer_of(mixed(20, seed=6), np.random.default_rng(0).permutation(20)[:18].reshape(9, 2).tolist())
    first, second = consumers_of([first, second], affine)
    path = eliminate([first, second], rho)
    order, errors = naive([first, second], rho)
    assert path.order.tolist() == order
    np.testing.assert_allclose(path.errors, errors, rtol=1e-9, atol=1e-12 * path.energy)
    assert order != eliminate([first], rho).order.tolist()


def test_rounds_do_not_change_the_path() -> None:
    units = ROUND + ROUND // 2  # more than one round for the narrow consumer, many for the wide one
    narrow = consumer_of(mixed(units, seed=11), plain(units), outputs=30)
    wide = consumer_of(mixed(5 * units, seed=12), plain(units, 5), outputs=6)
    for consumers in ([narrow], [wide], [narrow, wide]):
        path = eliminate(consumers)
        assert sorted(path.order.tolist()) == list(range(units))
        for k in (0, 1, units // 4, units // 2, units - 1):
            expected = sum(ridged_error(c, path.order[:k].tolist(), 1e-3) for c in consumers)
            assert path.errors[k] == pytest.approx(expected, rel=1e-8)
            left = path.order[: k + 1].tolist()
            others = [[v for v in left if v != u] for u in left[:4]]
            trials = [sum(ridged_error(c, kept, 1e-3) for c in consumers) for kept in others]
            assert path.errors[k] <= min(trials) * (1 + 1e-9)


def test_affine_combinations_cost_nothing_and_go_first() -> None:
    free = mixed(6, seed=1)
    x = np.empty((ROWS, 9))
    x[:, [0, 1, 2, 4, 6, 7]] = free
    x[:, [3, 5, 8]] = free @ np.random.default_rng(2).standard_normal((6, 3)) + [3.0, -2.0, 1.0]
    consumer = consumer_of(x, plain(9))
    affine, linear = eliminate([consumer], 1e-9), eliminate([without_bias(consumer)], 1e-9)
    assert affine.errors[6] < 1e-6 * affine.energy
    assert affine.errors[5] > 1e-4 * affine.energy
    assert linear.errors[6] > 100 * affine.errors[6]
    assert lstsq_error(x, consumer, affine.order[:6].tolist()) < 1e-12 * affine.energy


def test_the_constant_column_absorbs_a_mean_shift() -> None:
    x = mixed(5, seed=7, shift=10.0)
    consumer = consumer_of(x, plain(5))
    affine, linear = eliminate([consumer], TINY), eliminate([without_bias(consumer)], TINY)
    assert affine.errors[0] == pytest.approx(np.sum((x @ consumer.weight.T).var(axis=0)), rel=1e-6)
    assert affine.energy == linear.energy == pytest.approx(affine.errors[0], rel=1e-6)
    assert linear.errors[0] == pytest.approx(np.sum((x @ consumer.weight.T) ** 2) / ROWS, rel=1e-6)
    assert (affine.errors[1:-1] < linear.errors[1:-1]).all()


def test_several_consumers_add() -> None:
    one = consumer_of(mixed(7, seed=4), plain(7))
    single, double = eliminate([one]), eliminate([one, one])
    assert double.order.tolist() == single.order.tolist()
    np.testing.assert_allclose(double.errors, 2 * single.errors, rtol=1e-12)
    assert double.energy == pytest.approx(2 * single.energy, rel=1e-12)


@pytest.mark.parametrize("widths", [(1, 1), (2, 1), (2, 3)])
def test_crossed_losses_and_several_consumers_add_up_to_their_definition(widths: tuple[int, int]) -> None:
    """What removed units R lose besides is the whole sum over R x R, on top of the least squares of each consumer."""
    rng = np.random.default_rng(4)
    root = rng.standard_normal((7, 7))
    loss = root @ root.T
    consumers = [consumer_of(mixed(7 * width, seed=30 + place), plain(7, width)) for place, width in enumerate(widths)]
    path = eliminate(consumers, 1e-3, alone=loss)
    for k in range(8):
        kept, gone = path.order[:k].tolist(), path.order[k:]
        expected = sum(ridged_error(consumer, kept, 1e-3) for consumer in consumers)
        expected += float(loss[np.ix_(gone, gone)].sum())
        assert path.errors[k] == pytest.approx(expected, rel=1e-8, abs=1e-10 * path.energy)


def test_columns_of_nobody_stay_and_take_over() -> None:
    x = mixed(6, seed=8)
    x[:, 2] = x[:, 0] - 2.0 * x[:, 5] + 1.0
    with_stay = eliminate([consumer_of(x, [[1], [2], [3]])], 1e-9)
    without = eliminate([consumer_of(x[:, 1:4], plain(3))], 1e-9)
    assert with_stay.order[-1] == 1
    assert with_stay.errors[2] < 1e-6 * with_stay.energy
    assert without.errors[2] > 1e-3 * without.energy


@pytest.mark.parametrize("rho", [TINY, 1e-3, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_errors_never_increase_with_width(rho: float, seed: int) -> None:
    path = eliminate([consumer_of(mixed(24, seed), plain(8, 3)), consumer_of(mixed(8, seed + 50), plain(8))], rho)
    assert path.errors[-1] == 0.0
    assert (np.diff(path.errors) <= 0.0).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaling_the_samples_scales_the_errors(scale: float) -> None:
    x = mixed(8, seed=13)
    base, scaled = eliminate([consumer_of(x, plain(4, 2))]), eliminate([consumer_of(scale * x, plain(4, 2))])
    assert scaled.order.tolist() == base.order.tolist()
    np.testing.assert_allclose(scaled.errors, scale**2 * base.errors, rtol=1e-9)


def test_dead_units_go_first_and_equal_ones_by_index() -> None:
    x = mixed(12, seed=14)
    x[:, [2, 3, 8, 9]] = 0.0
    path = eliminate([consumer_of(x, plain(6, 2))])
    assert set(path.order[-2:].tolist()) == {1, 4}
    assert path.errors[4] < 1e-4 * path.energy
    same = Consumer(CentredGram(np.zeros((3, 3)), np.zeros(3)), np.ones((2, 3)), np.array([[0], [1], [2]]))
    assert eliminate([same]).order.tolist() == [2, 1, 0]
    assert eliminate([same]).energy == 0.0


def test_float32_rounding_with_large_means_survives() -> None:
    x = (mixed(10, seed=15, shift=0.0) + 500.0).astype(np.float32)
    x[:, 9] = x[:, 0]
    gram = (x.T @ x / np.float32(ROWS)).astype(np.float64)
    inputs = CentredGram.of(gram, x.mean(axis=0).astype(np.float64))
    consumer = Consumer(inputs, np.ones((1, 10)), np.array(plain(10)))
    path = eliminate([consumer])
    assert np.isfinite(path.errors).all()
    mapping, shift = affine_fold(inputs, path.order[:4][np.argsort(path.order[:4])])
    assert np.isfinite(mapping).all()
    assert np.isfinite(shift).all()


# --- affine fold ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [[0, 3, 4], [5], [], [0, 1, 2, 3, 4, 5]])
def test_affine_fold_is_least_squares_with_a_constant(keep: list[int]) -> None:
    x = mixed(6, seed=21, shift=3.0)
    mapping, shift = affine_fold(centred_of(x), keep, rho=TINY)
    oracle = scipy.linalg.lstsq(np.c_[x[:, keep], np.ones(ROWS)], x)[0].T
    np.testing.assert_allclose(mapping, oracle[:, :-1], atol=1e-8)
    np.testing.assert_allclose(shift, oracle[:, -1], atol=1e-7)
    assert np.array_equal(mapping[keep], np.eye(len(keep)))
    assert not shift[keep].any()


def test_affine_fold_of_centred_samples_is_the_linear_fold() -> None:
    x = mixed(6, seed=22) - mixed(6, seed=22).mean(axis=0)
    mapping, shift = affine_fold(centred_of(x), [1, 4], rho=0.1)
    np.testing.assert_allclose(mapping, fold_map(x.T @ x / ROWS, [1, 4], rho=0.1), atol=1e-12)
    np.testing.assert_allclose(shift, 0.0, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("rho", [1e-3, 0.5])
def test_the_fold_attains_the_error_of_the_path(rho: float, affine: bool) -> None:
    x = mixed(12, seed=23, shift=2.0)
    (consumer,) = consumers_of([consumer_of(x, plain(6, 2))], affine)
    path = eliminate([consumer], rho)
    for k in range(7):
        keep = np.sort(consumer.columns[path.order[:k]].ravel())
        mapping, shift = affine_fold(consumer.inputs, keep, rho, affine)
        change = -consumer.weight.copy()
        change[:, keep] += consumer.weight @ mapping
        data = np.sum((x @ change.T + consumer.weight @ shift) ** 2) / ROWS
        ridge = np.sum(ridge_diagonal(centred_of(x).covariance, rho) * change**2)
        assert path.errors[k] == pytest.approx(data + ridge, rel=1e-9, abs=1e-12 * path.energy)


def test_bad_input_is_named() -> None:
    good = consumer_of(mixed(4, seed=24), plain(4))
    with pytest.raises(ValueError, match="at least one"):
        eliminate([])
    with pytest.raises(ValueError, match=r"number of units, not have \[2, 4\]"):
        eliminate([good, Consumer(good.inputs, good.weight, np.array([[0], [1]]))])
    with pytest.raises(ValueError, match="twice"):
        eliminate([Consumer(good.inputs, good.weight, np.array([[0], [0]]))])
    with pytest.raises(ValueError, match="weight must be"):
        eliminate([Consumer(good.inputs, good.weight[:, :3], good.columns)])
    with pytest.raises(ValueError, match="columns must be"):
        eliminate([Consumer(good.inputs, good.weight, np.arange(4))])
    with pytest.raises(ValueError, match="mean must be"):
        affine_fold(CentredGram(np.eye(4), np.zeros(3)), [0])
    with pytest.raises(ValueError, match="of the same X"):
        CentredGram.of(np.eye(4), np.full(4, 100.0))
    with pytest.raises(ValueError, match="rho"):
        eliminate([good], rho=0.0)
