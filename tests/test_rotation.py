"""Bases inside heads, against independent computations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import linalg

from snp_onnx.subspace import CentredGram, Consumer, balanced_bases, eliminate, principal_basis
from snp_onnx.subspace.rotation import square_roots

Matrix = npt.NDArray[np.float64]


def rows(count: int, width: int, seed: int) -> Matrix:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal((count, width)) @ rng.standard_normal((width, width)), dtype=np.float64)


def test_roots_are_those_of_scipy() -> None:
    gram = rows(40, 6, 0).T @ rows(40, 6, 0) / 40
    root, inverse = square_roots(gram, rho=1e-12)
    np.testing.assert_allclose(root, linalg.sqrtm(gram), atol=1e-8)
    np.testing.assert_allclose(inverse, np.linalg.inv(linalg.sqrtm(gram)), rtol=1e-6, atol=1e-8)


def test_balanced_bases_keep_the_logits_and_balance_both_sides() -> None:
    q, k = rows(200, 6, 1), 3.0 * rows(90, 6, 2)
    G_q, G_k = q.T @ q / 200, k.T @ k / 90
    A, B, S = balanced_bases(G_q, G_k, rho=1e-12)
    np.testing.assert_allclose((q @ A) @ (k @ B).T, q @ k.T, rtol=1e-8, atol=1e-8)
    for side in (A.T @ G_q @ A, B.T @ G_k @ B):
        np.testing.assert_allclose(side, np.diag(S), rtol=1e-7, atol=1e-7 * S[0])


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_first_dimensions_make_the_best_logits_of_their_rank(rank: int) -> None:
    """The best rank-r approximation of all pairs' logits, whatever way it is made (Eckart, Young)."""
    q, k = rows(200, 6, 3), rows(90, 6, 4)
    A, B, S = balanced_bases(q.T @ q / 200, k.T @ k / 90, rho=1e-12)
    left = (q @ A)[:, :rank] @ (k @ B)[:, :rank].T
    error = np.square(q @ k.T - left).mean()
    best = np.square(np.linalg.svd(q @ k.T, compute_uv=False)[rank:]).sum() / (200 * 90)
    assert error == pytest.approx(best, rel=1e-6)
    assert error == pytest.approx(np.square(S[rank:]).sum(), rel=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [(6, 9), (6, 3)])
def test_the_principal_basis_loses_least_of_the_output(inner: int, outer: int) -> None:
    x, W = rows(300, inner, 5), np.random.default_rng(6).standard_normal((inner, outer))
    T, inverse, S = principal_basis(x.T @ x / 300, W, rho=1e-12)
    np.testing.assert_allclose(T @ inverse, np.eye(inner), atol=1e-8)
    values = np.linalg.svd(x @ W, compute_uv=False)
    for rank in range(1, inner + 1):
        lost = np.square(x @ W - (x @ T)[:, :rank] @ (inverse @ W)[:rank]).sum()
        assert lost == pytest.approx(np.square(values[rank:]).sum(), rel=1e-6, abs=1e-6)
        assert lost / 300 == pytest.approx(np.square(S[rank:]).sum(), rel=1e-6, abs=1e-8)


def test_dimensions_that_never_vary_come_last_and_keep_everything_finite() -> None:
    q, k = rows(50, 5, 7), rows(50, 5, 8)
    q[:, 2] = k[:, 4] = 0.0
    A, B, _ = balanced_bases(q.T @ q / 50, k.T @ k / 50)
    assert np.isfinite([A, B]).all()
    np.testing.assert_allclose(A @ B.T, np.eye(5), atol=1e-8)
    rest = q @ k.T - (q @ A)[:, :4] @ (k @ B)[:, :4].T
    assert np.abs(rest).max() < 1e-2 * np.abs(q @ k.T).max()


def test_bases_of_different_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="one head"):
        balanced_bases(np.eye(2), np.eye(3))
    with pytest.raises(ValueError, match="match the gram"):
        principal_basis(np.eye(2), np.ones((3, 3)))


# elimination with a loss that nothing takes over


def test_what_nothing_takes_over_is_counted_exactly() -> None:
    M = rows(30, 7, 9).T @ rows(30, 7, 9)
    found = eliminate([], alone=M)
    for width in range(8):
        gone = found.order[width:]
        assert found.errors[width] == pytest.approx(M[np.ix_(gone, gone)].sum(), rel=1e-9, abs=1e-9)
    assert found.energy == pytest.approx(M.sum())


def test_a_loss_adds_to_what_consumers_lose() -> None:
    x = rows(60, 7, 10)
    consumer = Consumer(CentredGram.of(x.T @ x / 60, x.mean(axis=0)), np.ones((2, 7)), np.arange(7)[:, None])
    plain = eliminate([consumer])
    least = int(plain.order[-1])
    dear = np.zeros((7, 7))
    dear[least, least] = 2.0 * plain.energy
    both = eliminate([consumer], alone=dear)
    assert both.order[-1] != least
    assert both.order[0] == least
    assert both.energy == pytest.approx(plain.energy + dear.sum())
    with pytest.raises(ValueError, match="agree on the number"):
        eliminate([consumer], alone=np.eye(3))
