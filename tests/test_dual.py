"""Few rows: the dual form of elimination and folding gives what the Gram matrix written out gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from snp_onnx.subspace import CentredGram, Consumer, FewRows, affine_fold, eliminate, few_rows, shrink
from snp_onnx.subspace.dual import eliminate_few
from snp_onnx.subspace.turns import Tally, Turns

ROWS, COLUMNS = 12, 40


def sample(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, columns)) @ (np.eye(columns) + 0.3 * rng.standard_normal((columns, columns)))
    return mixed + rng.standard_normal(columns)


def written_out(x: np.ndarray) -> CentredGram:
    mean = x.mean(axis=0)
    return CentredGram(shrink((x - mean).T @ (x - mean) / len(x), len(x)), mean)


def consumers(count: int, units: int, has_others: bool, affine: bool = True) -> tuple[list[Consumer], list[Consumer]]:
    """The same consumers twice: with Gram matrices, and with few rows."""
    written, few = [], []
    for number in range(count):
        x = sample(number)
        weight = np.random.default_rng(100 + number).standard_normal((7, COLUMNS))
        places = np.random.default_rng(7).permutation(COLUMNS) if has_others else np.arange(COLUMNS)
        columns = places[:units, None]
        written.append(Consumer(written_out(x), weight, columns, affine))
        few.append(Consumer(few_rows(x, len(x)), weight, columns, affine))
    return written, few


def test_the_gram_matrix_is_the_shrunk_one():
    x = sample()
    few = few_rows(x, len(x))
    dense = few.dense()
    np.testing.assert_allclose(dense.covariance, written_out(x).covariance, rtol=1e-10)
    np.testing.assert_allclose(few.variance, dense.variance, rtol=1e-12)
    np.testing.assert_allclose(few.around_zero().dense().covariance, dense.around_zero().covariance, rtol=1e-10)
    weight = np.random.default_rng(1).standard_normal((5, COLUMNS))
    assert few.output_variance(weight) == pytest.approx(np.trace(weight @ dense.covariance @ weight.T))
    assert dense.output_variance(weight) == pytest.approx(few.output_variance(weight))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("count", "units"), [(1, COLUMNS), (2, COLUMNS), (2, COLUMNS - 9)])
def test_elimination_is_the_same(affine: bool, count: int, units: int):
    written, few = (eliminate(c, 1e-3) for c in consumers(count, units, units < COLUMNS, affine))
    assert few.order.tolist() == written.order.tolist()
    np.testing.assert_allclose(few.errors, written.errors, rtol=1e-7, atol=1e-9 * written.energy)
    assert few.energy == pytest.approx(written.energy)


def test_only_the_consumers_with_a_free_bias_take_up_a_mean():
    written, few = consumers(2, COLUMNS, False)
    fixed = [[first, replace(second, is_affine=False)] for first, second in (written, few)]
    expected, found = (eliminate(c, 1e-3) for c in fixed)
    assert found.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-7, atol=1e-9 * expected.energy)
    assert found.errors[0] > eliminate(few, 1e-3).errors[0]


def test_several_at_a_time_cost_little_and_report_their_true_error():
    _, (consumer,) = consumers(1, COLUMNS, False)
    inputs = consumer.inputs
    assert isinstance(inputs, FewRows)
    single = eliminate([consumer])
    every = np.arange(COLUMNS)
    tally = Tally.of(Turns.free(COLUMNS))
    removed, added = eliminate_few([inputs], [consumer.weight], [every], [every], 1e-3, [True], tally, steps=8)
    assert sorted(removed) == list(range(COLUMNS))
    errors = np.cumsum(added)
    assert (errors <= 1.2 * single.errors[::-1][1:] + 1e-9).all()
    half = np.sort(removed[COLUMNS // 2 :])  # the error that is reported for half of the units is that of the fold
    mapping, shift = affine_fold(inputs.dense(), half, 1e-3)
    moved = np.zeros_like(consumer.weight)
    moved[:, half] = consumer.weight @ mapping
    change, offset = consumer.weight - moved, -consumer.weight @ shift
    ridge = 1e-3 * np.maximum(inputs.variance, 1e-3 * inputs.variance.mean())
    covariance = inputs.dense().covariance + np.diag(ridge)
    mean_error = np.square(change @ inputs.mean + offset).sum()
    error = np.einsum("oc,oc->", change @ covariance, change) + mean_error
    assert errors[COLUMNS - len(half) - 1] == pytest.approx(error, rel=1e-6)


def test_of_two_equal_units_one_stays_when_several_go_at_a_time():
    x = np.repeat(sample(rows=30, columns=8), 2, axis=1)
    few = FewRows(1e-4 * np.ones(16), (x - x.mean(axis=0)) / np.sqrt(len(x)), x.mean(axis=0))
    weight = np.random.default_rng(2).standard_normal((4, 16))
    every, tally = np.arange(16), Tally.of(Turns.free(16))
    removed, added = eliminate_few([few], [weight], [every], [every], 1e-4, [True], tally, steps=2)
    assert sorted(unit // 2 for unit in removed[:8]) == list(range(8))
    assert sum(added[:8]) < 1e-3 * sum(added)


@pytest.mark.parametrize("keep", [[0, 3, 4, 11, 30], list(range(35)), []])
@pytest.mark.parametrize("affine", [True, False])
def test_folds_are_the_same(keep: list[int], affine: bool):
    x = sample()
    few = few_rows(x, len(x))
    kept = np.array(keep, dtype=np.intp)
    weight = np.random.default_rng(3).standard_normal((6, COLUMNS))
    mapping, shift = affine_fold(few, kept, 1e-3, affine)
    expected, expected_shift = affine_fold(few.dense(), kept, 1e-3, affine)
    np.testing.assert_allclose(weight @ mapping, weight @ expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(shift, expected_shift, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(mapping.dense(COLUMNS), expected, rtol=1e-7, atol=1e-9)
