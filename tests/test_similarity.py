"""Similarity of representations: textbook formulas, invariances, and what few samples do to the biased estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snp_onnx.subspace import Similarity, similarity
from snp_onnx.subspace.similarity import debiased_cka, euclidean, linear_cka, mean_cosine

Array = npt.NDArray[Any]
ALIGNMENTS = (linear_cka, debiased_cka)
SHAPES = st.tuples(st.integers(4, 24), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))


def kernels(X: Array, Y: Array) -> tuple[Array, Array]:
    return X @ X.T, Y @ Y.T


def biased_hsic(K: Array, L: Array) -> float:
    """tr(K H L H) / (n - 1)², as Gretton et al. write it."""
    n = len(K)
    H = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(K @ H @ L @ H)) / (n - 1) ** 2


def unbiased_hsic(K: Array, L: Array) -> float:
    """Song et al., eq. 5, word for word."""
    n, one = len(K), np.ones(len(K))
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    middle = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    return float(np.trace(K @ L) + middle - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))


def textbook(hsic: Any, X: Array, Y: Array) -> float:
    K, L = kernels(X, Y)
    return float(hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L)))


def drawn(n: int, d: int, e: int, seed: int) -> tuple[Array, Array]:
    """Features that are partly alike, with means of their own."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * rng.uniform(0.1, 3.0, d) + rng.standard_normal(d)
    Y = X @ rng.standard_normal((d, e)) + rng.standard_normal((n, e)) + rng.standard_normal(e)
    return X, Y


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_both_alignments_are_the_textbook_formulas(shape: tuple[int, int, int, int]) -> None:
    X, Y = drawn(*shape)
    assert linear_cka(X, Y) == pytest.approx(textbook(biased_hsic, X, Y), abs=1e-9)
    assert debiased_cka(X, Y) == pytest.approx(textbook(unbiased_hsic, X, Y), abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(SHAPES)
def test_alignments_ignore_rotation_scale_and_shift(shape: tuple[int, int, int, int]) -> None:
    X, Y = drawn(*shape)
    rng = np.random.default_rng(shape[-1])
    Q = np.linalg.qr(rng.standard_normal((X.shape[1], X.shape[1])))[0]
    moved = -17.0 * X @ Q + rng.standard_normal(X.shape[1])
    for alignment in ALIGNMENTS:
        assert alignment(moved, Y) == pytest.approx(alignment(X, Y), abs=1e-7)
        assert alignment(Y, X) == pytest.approx(alignment(X, Y), abs=1e-9)
        assert alignment(X, moved) == pytest.approx(1.0, abs=1e-9)
        assert alignment(X, Y) <= 1.0 + 1e-9


@settings(max_examples=30, deadline=None)
@given(SHAPES)
def test_equal_representations_are_wholly_alike(shape: tuple[int, int, int, int]) -> None:
    X, _ = drawn(*shape)
    for measure in Similarity:
        assert similarity(X, X.copy(), measure) == pytest.approx(1.0, abs=1e-9)


def test_an_uneven_stretch_is_no_invariance() -> None:
    X, _ = drawn(20, 5, 5, 0)
    stretched = X * np.array([9.0, 1.0, 1.0, 1.0, 1.0])
    for alignment in ALIGNMENTS:
        assert alignment(X, stretched) < 0.99


def test_few_samples_of_noise_look_alike_to_the_biased_estimate_only() -> None:
    rng = np.random.default_rng(0)
    pairs = [rng.standard_normal((2, 24, 512)) for _ in range(40)]
    assert min(linear_cka(X, Y) for X, Y in pairs) > 0.9
    found = [debiased_cka(X, Y) for X, Y in pairs]
    assert abs(np.mean(found)) < 0.03
    assert max(np.abs(found)) < 0.3


def test_a_small_part_in_common_ranks_above_none() -> None:
    rng = np.random.default_rng(1)
    X, noise = rng.standard_normal((2, 60, 100))
    for alignment in ALIGNMENTS:
        scores = [alignment(X, share * X + (1 - share) * noise) for share in (0.0, 0.3, 0.6, 0.9)]
        assert scores == sorted(scores)


def test_cosine_and_distance_of_known_vectors() -> None:
    X = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    Y = np.array([[6.0, 8.0], [2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert mean_cosine(X, Y) == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert euclidean(X, Y) == pytest.approx(1 - np.sqrt(25 + 8 + 1) / np.sqrt(29))
    assert euclidean(X, 0 * X) == 0.0
    assert euclidean(0 * X, Y) == -np.inf
    assert euclidean(0 * X, 0 * X) == 1.0
    assert mean_cosine(X[:2], -X[:2]) == pytest.approx(-1.0)


def test_constant_features_have_no_alignment() -> None:
    X, _ = drawn(12, 3, 3, 0)
    still = np.tile(np.array([[0.1, 0.7, -3.3]]), (12, 1))
    for alignment in ALIGNMENTS:
        assert alignment(X, still) == 0.0
        assert alignment(still, X) == 0.0
        assert alignment(still, still + 1.0) == 1.0


@pytest.mark.parametrize("scale", [1e-160, 1e-30, 1e30, 1e160])
def test_no_scale_is_too_large_or_small(scale: float) -> None:
    X, Y = drawn(12, 5, 7, 3)
    for alignment in ALIGNMENTS:
        assert alignment(scale * X, Y) == pytest.approx(alignment(X, Y), abs=1e-9)


@pytest.mark.parametrize("measure", list(Similarity))
def test_wrong_input_is_refused(measure: Similarity) -> None:
    X, _ = drawn(6, 3, 3, 0)
    broken = X.copy()
    broken[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"non-finite entries, the first at \(2, 1\)"):
        similarity(X, broken, measure)
    with pytest.raises(ValueError, match="with n above 0"):
        similarity(X, X[:4], measure)
    with pytest.raises(ValueError, match="with n above 0"):
        similarity(X[0], X[0], measure)
    if measure in (Similarity.COSINE, Similarity.EUCLIDEAN):
        with pytest.raises(ValueError, match="one shape"):
            similarity(X, X[:, :2], measure)
    else:
        assert np.isfinite(similarity(X, X[:, :2], measure))


def test_debiased_alignment_needs_four_samples() -> None:
    X, _ = drawn(4, 3, 3, 0)
    assert debiased_cka(X, X) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least 4 samples, there are 3"):
        debiased_cka(X[:3], X[:3])


def test_names_of_measures() -> None:
    X, Y = drawn(9, 4, 4, 5)
    by_name = [similarity(X, Y, Similarity(name)) for name in ("cka", "debiased-cka", "cosine", "euclidean")]
    assert by_name == [linear_cka(X, Y), debiased_cka(X, Y), mean_cosine(X, Y), euclidean(X, Y)]
    assert similarity(X, Y) == by_name[0]
    with pytest.raises(ValueError, match="magnitude"):
        similarity(X, Y, "magnitude")  # type: ignore[arg-type]
