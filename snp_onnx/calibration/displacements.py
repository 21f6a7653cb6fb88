"""The Gram matrix of all 3 x 3 patches from products at displacements, each of which is computed once.

With x zero outside the map, the block of taps t and u over all positions p of the plane is

    Σ_p x(p + t) x(p + u)ᵀ = Σ_q x(q) x(q + u - t)ᵀ = R_{u - t},    R_{-d} = R_dᵀ

so that 13 products stand for 81. Positions outside the map that still see its border are taken off again: those above
see its first row through their lower taps, and so on; those at the corners were then taken off twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snp_onnx.calibration.emitter import END, Emitter
from snp_onnx.calibration.moments import MomentRequest, Squares, View, Window

Array = NDArray[Any]

WINDOW = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
TAPS = tuple(product((-1, 0, 1), repeat=2))
AHEAD = ((0, 0), (0, 1), (0, 2), *((y, x) for y in (1, 2) for x in range(-2, 3)))
"""The displacements that aren't another one turned round."""

SIDES = ((0, -1), (0, 1), (1, -1), (1, 1))
"""Rims of a map: the axis across it, and the end at which it lies."""

CORNERS = tuple(product((-1, 1), repeat=2))

OLDEST_OPSET = 10
"""A slice takes steps since then."""


def is_by_displacement(request: MomentRequest, opset: int) -> bool:
    """Whether a request is for every position of a plain 3 x 3 window."""
    whole = not request.lattice and request.row_mask is None and request.cross_window is None
    is_plain = request.view is View.PATCHES and request.window == WINDOW and request.squares is Squares.GRAM
    return whole and is_plain and opset >= OLDEST_OPSET


def products(emitter: Emitter, x: str, whole: str) -> tuple[str, str]:
    """Of maps (N, H, W, C), which add up to `whole`: what `gram_of` (29 C, C) and `sum_of` (9, C) take."""
    blocks = [_product_at(emitter, x, x, shift) for shift in AHEAD]
    parts = []
    for axis, end in SIDES:
        rim = _rim(emitter, x, axis, end)
        parts.append(rim)
        blocks += [_product_at(emitter, rim, rim, (0, step) if axis == 0 else (step, 0)) for step in range(3)]
    for down, right in CORNERS:
        corner = _rim(emitter, _rim(emitter, x, 0, down), 1, right)
        parts.append(corner)
        blocks.append(_product_at(emitter, corner, corner, (0, 0)))
    sums = [emitter.unsqueeze(part, [0]) for part in (whole, *(emitter.sum(part, [0, 1, 2]) for part in parts))]
    return emitter.emit("Concat", *blocks, axis=0), emitter.emit("Concat", *sums, axis=0)


def cross_products(emitter: Emitter, x: str, y: str) -> str:
    """Of maps (N, H, W, C) and (N, H, W, D): patches of x with y, (9 C, D), tap by tap."""
    return emitter.emit("Concat", *(_product_at(emitter, y, x, tap, turned=True) for tap in TAPS), axis=0)


def is_by_shifts(request: MomentRequest, opset: int) -> bool:
    """Whether a request is for nothing but the product with the windows of another map, next to each other."""
    window = request.cross_window
    if window is None or request.view is not View.CHANNELS or request.squares is not Squares.NONE:
        return False
    is_plain = request.row_mask is None and request.slots is None and set(window.strides) == {1}
    return is_plain and opset >= OLDEST_OPSET


def shifted_products(emitter: Emitter, x: str, y: str, window: Window) -> str:
    """Of maps (N, ..., C) and (N, ..., D): x with the windows of y, (C, taps D), without writing these out.

    An output position p sees p + shift of the input under a tap; where that is outside, p is left out.
    """
    rank = len(window.kernel)
    found = []
    for tap in product(*(range(size) for size in window.kernel)):
        spans_x, spans_y = [], []
        for axis, place in enumerate(tap):
            before, after = window.pads[axis], window.pads[axis + rank]
            shift = place * window.dilations[axis] - before
            beyond = shift + before + after - (window.kernel[axis] - 1) * window.dilations[axis]
            spans_x.append((max(0, -shift), -max(0, beyond)))
            spans_y.append((max(0, shift), -max(0, -beyond)))
        sides = (_rows(emitter, _inside(emitter, maps, spans), rank) for maps, spans in ((x, spans_x), (y, spans_y)))
        found.append(emitter.product(*sides))
    return emitter.emit("Concat", *found, axis=1) if len(found) > 1 else found[0]


def gram_of(found: Array) -> Array:
    """(9 C, 9 C), tap by tap, from what `products` gave."""
    size = found.shape[1]
    blocks: Iterator[Array] = iter(found.reshape(-1, size, size))
    ahead = {shift: next(blocks) for shift in AHEAD}
    every = {(-y, -x): block.T for (y, x), block in ahead.items()} | ahead
    gram = np.array([[every[u[0] - t[0], u[1] - t[1]] for u in TAPS] for t in TAPS])
    for axis, end in SIDES:
        along = {step: next(blocks) for step in range(3)}
        along |= {-step: along[step].T for step in (1, 2)}
        seen = [place for place, tap in enumerate(TAPS) if tap[axis] == -end]
        for i, j in product(seen, repeat=2):
            gram[i, j] -= along[TAPS[j][1 - axis] - TAPS[i][1 - axis]]
    for down, right in CORNERS:
        place = TAPS.index((-down, -right))
        gram[place, place] += next(blocks)
    return np.ascontiguousarray(gram.transpose(0, 2, 1, 3)).reshape(9 * size, 9 * size)


def sum_of(found: Array) -> Array:
    """(9 C,), tap by tap, from what `products` gave."""
    whole, *rest = found
    total = np.repeat(whole[None], len(TAPS), axis=0)
    rims, corners = rest[: len(SIDES)], rest[len(SIDES) :]
    for (axis, end), rim in zip(SIDES, rims, strict=True):
        total[[place for place, tap in enumerate(TAPS) if tap[axis] == -end]] -= rim
    for (down, right), corner in zip(CORNERS, corners, strict=True):
        total[TAPS.index((-down, -right))] += corner
    return total.reshape(-1)


def _product_at(emitter: Emitter, x: str, y: str, shift: tuple[int, ...], turned: bool = False) -> str:
    """Σ_q x(q) y(q + shift)ᵀ over the positions where both are; `turned`: its transpose."""
    here = _inside(emitter, x, [(max(0, -step), -max(0, step)) for step in shift])
    there = _inside(emitter, y, [(max(0, step), -max(0, -step)) for step in shift])
    left, right = (there, here) if turned else (here, there)
    return emitter.product(_rows(emitter, left, 2), _rows(emitter, right, 2))


def _rows(emitter: Emitter, maps: str, rank: int) -> str:
    """Maps (N, ..., C) with so many axes of positions as rows."""
    return emitter.emit("Flatten", maps, axis=1 + rank)


def _inside(emitter: Emitter, x: str, spans: list[tuple[int, int]]) -> str:
    """The part of a map between these starts and ends, the ends counted from the back."""
    starts, ends = [start for start, _ in spans], [end or END for _, end in spans]
    return emitter.every(x, 2 + len(spans), range(1, 1 + len(spans)), starts, ends, [1] * len(spans))


def _rim(emitter: Emitter, x: str, axis: int, end: int) -> str:
    """The first or last row or column of a map."""
    start, stop = (0, 1) if end < 0 else (-1, END)
    return emitter.every(x, 4, [1 + axis], [start], [stop], [1])
