"""Work in place, piece by piece, against the plain forms; and elimination of more columns than one piece has."""

from __future__ import annotations

import numpy as np
import pytest

from snp_onnx.subspace import CentredGram, Consumer, affine_fold, eliminate, fold_map
from snp_onnx.subspace.arrays import TILE, as_gram, tiles
from snp_onnx.subspace.in_place import factorise, inverse_of, narrow
from snp_onnx.subspace.ridge import ridge_of, with_ridge
from tests.test_elimination import ridged_error

SIZES = [1, 7, TILE, TILE + 1, 2 * TILE + 90]


def gram_of(size: int, rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """G and the mean of correlated samples; beyond `rows` columns it is singular."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, size)) + rng.standard_normal((rows, 1)) + 0.5
    return x.T @ x / rows, x.mean(axis=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_factor_and_the_inverse(size: int) -> None:
    gram, _ = gram_of(size)
    ridge = ridge_of(np.diag(gram), 1e-2)
    ridged, expected, _ = with_ridge(gram, ridge)
    room = gram.copy()
    factor, clipped = factorise(room, ridge)
    assert clipped == 0.0
    np.testing.assert_allclose(np.tril(factor), expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    inverse = inverse_of(factor)
    np.testing.assert_allclose(inverse @ ridged, np.eye(size), atol=1e-9)
    np.testing.assert_array_equal(inverse, inverse.T)
    assert np.shares_memory(inverse, room)


def test_a_matrix_with_negative_eigenvalues_from_rounding() -> None:
    size = TILE + 50
    gram, _ = gram_of(size, rows=40)
    gram = gram.astype(np.float32).astype(np.float64) - 1e-5 * np.trace(gram) * np.eye(size) / size
    gram = (gram + gram.T) / 2
    ridge = np.full(size, 1e-9)
    _, expected, share = with_ridge(gram, ridge)
    factor, clipped = factorise(gram.copy(), ridge)
    np.testing.assert_array_equal(factor, expected)
    lost = np.linalg.eigvalsh(gram)
    assert clipped == share == pytest.approx(-lost[lost < 0].sum() / lost[lost > 0].sum(), rel=1e-6)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        factorise(-gram, ridge)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_narrowing(size: int, share: float) -> None:
    rng = np.random.default_rng(size)
    matrix = rng.standard_normal((size, size))
    stay = np.flatnonzero(rng.random(size) < share)
    F = rng.standard_normal((len(stay), 5))
    expected = matrix[np.ix_(stay, stay)] - F @ F.T
    room = matrix.copy()
    found = narrow(room, stay, F)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert found.size == 0 or np.shares_memory(found, room)


@pytest.mark.parametrize("size", SIZES)
def test_checking_leaves_the_callers_matrix(size: int) -> None:
    gram, mean = gram_of(size)
    gram[0, -1] *= 1 + 1e-6
    before = gram.copy()
    checked = as_gram(gram)
    np.testing.assert_array_equal(checked, (before + before.T) / 2)
    covariance = CentredGram.of(checked, mean).covariance
    off = ~np.eye(size, dtype=bool)
    np.testing.assert_array_equal(covariance[off], (checked - np.outer(mean, mean))[off])
    np.testing.assert_array_equal(gram, before)
    if size > 1:
        gram[0, -1] *= 3
        with pytest.raises(ValueError, match="not symmetric"):
            as_gram(gram)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_the_upper_half_once(size: int) -> None:
    count = np.zeros((size, size), dtype=int)
    for rows, columns in tiles(size):
        count[rows, columns] += 1
    assert (count[np.triu_indices(size)] == 1).all()


@pytest.mark.parametrize("affine", [True, False])
def test_a_wide_layer_is_eliminated_exactly(affine: bool) -> None:
    """Errors on the path against one dense solve for the kept set, where every piece of work takes several pieces."""
    size, rho = TILE + 130, 1e-3
    gram, mean = gram_of(size, rows=4 * size)
    weight = np.random.default_rng(1).standard_normal((3, size))
    inputs = CentredGram.of(gram, mean)
    consumer = Consumer(inputs, weight, np.random.default_rng(2).permutation(size)[: size - 20, None], affine)
    before = inputs.covariance.copy()
    path = eliminate([consumer], rho)
    np.testing.assert_array_equal(inputs.covariance, before)
    for kept in (0, 17, 500, size - 25):
        expected = ridged_error(consumer, path.order[:kept].tolist(), rho)
        assert path.errors[kept] == pytest.approx(expected, rel=1e-8)


def vanishing(scale: float, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """The Gram matrix of activations so small that their squares underflow in float32; and their mean."""
    x = (scale * np.random.default_rng(0).standard_normal((64, size))).astype(np.float32) + np.float32(scale)
    with np.errstate(under="ignore"):
        return np.asarray((x.T @ x).astype(np.float64) / 64), x.astype(np.float64).mean(axis=0)


@pytest.mark.parametrize("scale", [1e-18, 1e-21, 1e-22, 3e-23, 1e-24])
@pytest.mark.parametrize("affine", [True, False])
def test_activations_whose_squares_underflow(scale: float, affine: bool) -> None:
    gram, mean = vanishing(scale)
    inputs = CentredGram.of(gram, mean)
    path = eliminate([Consumer(inputs, np.ones((2, 8)), np.arange(8)[:, None], affine)], 1e-3)
    assert sorted(path.order) == list(range(8))
    assert np.isfinite(path.errors).all()
    mapping, shift = affine_fold(inputs, np.arange(5), is_affine=affine)
    assert np.isfinite(mapping).all()
    assert np.isfinite(shift).all()
    assert np.isfinite(fold_map(gram, np.arange(5))).all()


def test_a_large_negative_eigenvalue_is_still_an_error() -> None:
    with pytest.raises(ValueError, match="not positive semi-definite"):
        with_ridge(np.diag([1.0, -1e-3]), np.full(2, 1e-9))
    with pytest.raises(ValueError, match="exceeds gram"):
        CentredGram.of(np.eye(2), np.array([2.0, 0.0]))
