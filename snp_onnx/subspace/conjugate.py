"""Conjugate gradients on matrices: a least-squares change of weights from products with the normal matrix alone."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def conjugate_gradients(
    gradient: Array, curvature: Callable[[Array], Array], precondition: Callable[[Array], Array], iterations: int
) -> Array:
    """An approximate solution X of A X = gradient, for a symmetric positive semi-definite A known by its products.

    Preconditioned conjugate gradients (Hestenes and Stiefel 1952), stopped early: after a few iterations the solution
    lies in the directions that the preconditioner and the data agree on, which regularises.

    Parameters
    ----------
    gradient : any shape. curvature : X ↦ A X. precondition : X ↦ P⁻¹ X, P close to A.
    iterations : at most so many products with A; fewer where the gradient is met.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.array([[2.0, 1.0], [1.0, 3.0]])
    >>> conjugate_gradients(np.array([3.0, 4.0]), lambda x: A @ x, lambda x: x, iterations=2).round(9).tolist()
    [1.0, 1.0]
    """
    solution = np.zeros_like(gradient)
    residual = gradient.copy()
    step = precondition(residual)
    size = float(np.sum(residual * step))
    for _ in range(iterations):
        if not size > 0.0:
            break
        image = curvature(step)
        along = float(np.sum(step * image))
        if not along > 0.0:
            break
        solution += size / along * step
        residual = residual - size / along * image  # not in place: the step may be the residual itself
        next_step = precondition(residual)
        next_size = float(np.sum(residual * next_step))
        step, size = next_step + next_size / size * step, next_size
    return solution
