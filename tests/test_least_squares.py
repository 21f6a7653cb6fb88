"""The numbers of the refit: least squares from moments against scipy on the rows, and conjugate gradients."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import linalg

from snp_onnx.subspace import CentredGram, conjugate_gradients, refit, refit_error
from snp_onnx.subspace.ridge import ridge_diagonal

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs X (n, C) off the origin, aims T (n, O) that no linear map meets, and present weights far from the best."""

    x: Array
    t: Array
    weight: Array
    bias: Array

    @property
    def moments(self) -> tuple[CentredGram, Array, Array]:
        n = len(self.x)
        inputs = CentredGram.of(self.x.T @ self.x / n, self.x.mean(0))
        return inputs, self.x.T @ (self.t - self.t.mean(0)) / n, self.t.mean(0)

    def error(self, weight: Array, bias: Array) -> float:
        """Mean over rows, from the rows themselves."""
        return float(np.square(self.x @ weight.T + bias - self.t).sum(axis=1).mean())


def rows(n: int = 300, inputs: int = 7, outputs: int = 4, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, inputs)) @ rng.standard_normal((inputs, inputs)) + rng.standard_normal(inputs)
    t = np.tanh(x @ rng.standard_normal((inputs, outputs))) + 2.0
    return Rows(x, t, rng.standard_normal((outputs, inputs)), rng.standard_normal(outputs))


@pytest.mark.parametrize("seed", range(4))
def test_a_refit_with_a_free_bias_is_lstsq_with_a_constant(seed: int) -> None:
    data = rows(seed=seed)
    weight, bias = refit(*data.moments, data.weight, None, rho=1e-12)
    best = linalg.lstsq(np.c_[data.x, np.ones(len(data.x))], data.t)[0]
    np.testing.assert_allclose(weight, best[:-1].T, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias, best[-1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_a_refit_with_a_given_bias_is_lstsq_of_the_rest(seed: int) -> None:
    data = rows(seed=seed)
    weight, bias = refit(*data.moments, data.weight, data.bias, rho=1e-12)
    best = linalg.lstsq(data.x, data.t - data.bias)[0]
    np.testing.assert_allclose(weight, best.T, rtol=1e-6, atol=1e-8)
    assert (bias == data.bias).all()
    assert data.error(*refit(*data.moments, data.weight, None, rho=1e-12)) < data.error(weight, bias)


@pytest.mark.parametrize("is_free", [True, False])
def test_the_ridge_is_that_of_the_equation(is_free: bool) -> None:
    data = rows(n=5)  # fewer rows than inputs: the ridge decides
    rho = 0.3
    weight, bias = refit(*data.moments, data.weight, None if is_free else data.bias, rho)
    root = np.sqrt(len(data.x) * ridge_diagonal(data.moments[0].covariance, rho))
    pull = np.c_[np.diag(root), np.zeros(len(root))]  # n Λ on the weights, nothing on the bias
    ones = np.ones(len(data.x))
    if is_free:
        stacked, wanted = np.r_[np.c_[data.x, ones], pull], np.r_[data.t, root[:, None] * data.weight.T]
        best = linalg.lstsq(stacked, wanted)[0]
        np.testing.assert_allclose(bias, best[-1], rtol=1e-7, atol=1e-9)
    else:
        stacked = np.r_[data.x, pull[:, :-1]]
        best = linalg.lstsq(stacked, np.r_[data.t - data.bias, root[:, None] * data.weight.T])[0]
    np.testing.assert_allclose(weight, best[: data.x.shape[1]].T, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_a_strong_ridge_is_an_anchor_at_the_present_weights(bias: bool) -> None:
    data = rows()
    given = data.bias if bias else None
    weight, found = refit(*data.moments, data.weight, given, rho=1e9)
    np.testing.assert_allclose(weight, data.weight, atol=1e-6)
    np.testing.assert_allclose(found, data.bias if bias else data.t.mean(0) - data.weight @ data.x.mean(0), atol=1e-5)
    moved = [np.abs(refit(*data.moments, data.weight, given, rho)[0] - data.weight).max() for rho in (1.0, 1e-2, 1e-4)]
    assert moved[0] < moved[1] < moved[2]


def test_weights_that_are_best_already_stay() -> None:
    data = rows()
    best = refit(*data.moments, data.weight, None, rho=1e-12)
    again = refit(*data.moments, best[0], None, rho=10.0)  # an anchor pulls nowhere where there is nothing to gain
    np.testing.assert_allclose(again[0], best[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(again[1], best[1], rtol=1e-6, atol=1e-8)


def test_dead_and_repeated_inputs_do_no_harm() -> None:
    data = rows()
    x = np.c_[data.x, np.zeros(len(data.x)), data.x[:, :1]]
    wide = Rows(x, data.t, np.c_[data.weight, np.ones((4, 2))], data.bias)
    weight, bias = refit(*wide.moments, wide.weight, None, rho=1e-6)
    assert np.isfinite(weight).all()
    np.testing.assert_allclose(weight[:, 7], 1.0)  # what never fires stays as it is
    best = refit(*data.moments, data.weight, None, rho=1e-12)
    assert wide.error(weight, bias) == pytest.approx(data.error(*best), rel=1e-6)


def test_an_error_from_moments_is_that_of_the_rows() -> None:
    data = rows()
    variance = float(data.t.var(axis=0).sum())
    best = refit(*data.moments, data.weight, None, rho=1e-12)
    errors = []
    for weight, bias in ((data.weight, data.bias), (data.weight, np.zeros(4)), best):
        found = refit_error(*data.moments, variance, weight, bias)
        assert found == pytest.approx(data.error(weight, bias) / variance, rel=1e-9)
        errors.append(found)
    assert errors[2] < 0.5 * min(errors[:2])


def test_a_perfect_fit_has_no_negative_error() -> None:
    data = rows()
    for seed in range(20):
        weight = np.random.default_rng(seed).standard_normal((4, 7))
        exact = Rows(data.x, data.x @ weight.T + 1e-9, weight, np.zeros(4))
        variance = float(exact.t.var(axis=0).sum())
        assert 0.0 <= refit_error(*exact.moments, variance, weight, np.zeros(4)) <= 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": np.ones((4, 6))}, r"weight must be \(O, 7\)"),
        ({"weight": np.ones(7)}, r"weight must be \(O, 7\)"),
        ({"cross": np.ones((4, 7))}, r"cross must be \(7, 4\)"),
        ({"aim_mean": np.ones(3)}, r"aim_mean \(4,\)"),
        ({"inputs": CentredGram(np.eye(7), np.ones(6))}, "mean"),
        ({"inputs": CentredGram(np.ones((7, 6)), np.ones(7))}, "gram"),
        ({"weight": np.full((4, 7), np.nan)}, "weight"),
        ({"cross": np.full((7, 4), np.inf)}, "cross"),
        ({"aim_mean": np.full(4, np.nan)}, "aim_mean"),
        ({"bias": np.full(4, np.nan)}, "bias"),
        ({"rho": -1.0}, "rho"),
    ],
)
def test_impossible_moments_are_refused(change: dict[str, Any], message: str) -> None:
    data = rows()
    names = ("inputs", "cross", "aim_mean")
    given = dict(zip(names, data.moments, strict=True)) | {"weight": data.weight, "bias": None, "rho": 1e-2}
    refit(**given)
    with pytest.raises(ValueError, match=message):
        refit(**given | change)


# conjugate gradients


def system(size: int = 12, condition: float = 100.0, seed: int = 0) -> tuple[Array, Array]:
    """A symmetric positive definite matrix of this condition number, and a right-hand side of three columns."""
    rng = np.random.default_rng(seed)
    q = linalg.qr(rng.standard_normal((size, size)))[0]
    return q @ np.diag(np.geomspace(1.0, condition, size)) @ q.T, rng.standard_normal((size, 3))


def same(x: Array) -> Array:
    return x


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("precondition", [same, np.copy])
def test_enough_conjugate_gradients_solve_the_system(columns: int, precondition: Any) -> None:
    A, b = system(condition=20.0)
    b = b[:, :columns]
    found = conjugate_gradients(b, lambda x: A @ x, precondition, iterations=12 * columns)
    np.testing.assert_allclose(found, np.linalg.solve(A, b), rtol=1e-8, atol=1e-9)


def test_every_iteration_lowers_the_error() -> None:
    A, b = system()
    solution = np.linalg.solve(A, b)
    energies = []
    for iterations in range(9):
        off = conjugate_gradients(b, lambda x: A @ x, np.copy, iterations) - solution
        energies.append(float(np.sum(off * (A @ off))))
    assert all(after < before for before, after in itertools.pairwise(energies))


def test_each_iterate_is_the_best_of_its_krylov_space() -> None:
    A, b = system()
    b = b[:, :1]
    for iterations in (1, 2, 4):
        space = np.hstack([np.linalg.matrix_power(A, power) @ b for power in range(iterations)])
        best = space @ np.linalg.solve(space.T @ A @ space, space.T @ b)
        found = conjugate_gradients(b, lambda x: A @ x, np.copy, iterations)
        np.testing.assert_allclose(found, best, rtol=1e-6, atol=1e-9)


def test_a_good_preconditioner_needs_one_iteration() -> None:
    A, b = system(condition=1e4)
    exact = linalg.cho_factor(A)
    found = conjugate_gradients(b, lambda x: A @ x, lambda x: linalg.cho_solve(exact, x), iterations=1)
    np.testing.assert_allclose(found, np.linalg.solve(A, b), rtol=1e-8)
    plain = conjugate_gradients(b, lambda x: A @ x, np.copy, iterations=1)
    assert not np.allclose(plain, np.linalg.solve(A, b), rtol=0.1)


def test_degenerate_systems_end_early() -> None:
    A, b = system()
    calls: list[Array] = []

    def curvature(x: Array) -> Array:
        calls.append(x)
        return A @ x

    assert not conjugate_gradients(np.zeros_like(b), curvature, np.copy, 5).any()
    assert not conjugate_gradients(b, curvature, np.copy, 0).any()
    assert not calls
    assert not conjugate_gradients(b, np.zeros_like, np.copy, 5).any()  # no curvature: no step
    assert not conjugate_gradients(b, lambda x: np.full_like(x, np.nan), np.copy, 5).any()
    assert not conjugate_gradients(np.full_like(b, np.nan), curvature, np.copy, 5).any()
    singular = np.diag([1.0, 2.0, 0.0])
    found = conjugate_gradients(np.array([1.0, 1.0, 0.0]), lambda x: singular @ x, np.copy, 9)
    np.testing.assert_allclose(found, [1.0, 0.5, 0.0])


def test_the_gradient_given_is_not_changed() -> None:
    A, b = system()
    before = b.copy()
    conjugate_gradients(b, lambda x: A @ x, same, 4)
    assert (b == before).all()
