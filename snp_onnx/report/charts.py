"""Charts as inline SVG: a curve or two with marked points, in the colours of the page that they stand in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 320.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 10.0, 34.0
MOST_POINTS = 200
"""A curve of more points is thinned: a line on a page shows no more."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in data units, and the class that the page styles it by."""

    points: Sequence[Point]
    style: str = "line"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its name, from where to where, and the figures written along it."""

    name: str
    low: float
    high: float
    ticks: tuple[float, ...]
    form: str = "{:g}"


def axis(name: str, values: Sequence[float], form: str = "{:g}", count: int = 5) -> Axis:
    """An axis over these values with about `count` round figures.

    >>> axis("width", [1, 64]).ticks
    (0.0, 20.0, 40.0, 60.0)
    """
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / count)
    first = math.floor(low / step) * step
    ticks = tuple(round(first + number * step, 10) for number in range(count + 4) if first + number * step <= high)
    return Axis(name, min(low, first), high, ticks, form)


def chart(title: str, x: Axis, y: Axis, curves: Sequence[Curve], marks: Sequence[tuple[Point, str]] = ()) -> str:
    """An SVG element of fixed proportions, as wide as its place; `marks` are points with what they say."""
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">']
    parts += [f"<title>{escape(title)}</title>"]
    for value in y.ticks:
        place = _y(y, value)
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 5:g}" y="{place + 3:.1f}" text-anchor="end">{_written(y, value)}</text>'
        )
    for value in x.ticks:
        where = f'x="{_x(x, value):.1f}" y="{HEIGHT - BOTTOM + 13:g}"'
        parts.append(f'<text class="tick" {where} text-anchor="middle">{_written(x, value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle:g}" y="{HEIGHT - 5:g}" text-anchor="middle">{escape(x.name)}</text>')
    for curve in curves:
        path = " ".join(f"{_x(x, a):.1f},{_y(y, b):.1f}" for a, b in _thinned(curve.points))
        parts.append(f'<polyline class="{escape(curve.style)}" points="{path}"/>')
    for (a, b), text in marks:
        parts.append(
            f'<circle class="mark" cx="{_x(x, a):.1f}" cy="{_y(y, b):.1f}" r="4"><title>{escape(text)}</title></circle>'
        )
    return "".join([*parts, "</svg>"])


def _written(place: Axis, value: float) -> str:
    return escape(place.form.format(value))


def _x(place: Axis, value: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - place.low) / (place.high - place.low)


def _y(place: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - place.low) / (place.high - place.low)


def _thinned(points: Sequence[Point]) -> list[Point]:
    step = max(1, len(points) // MOST_POINTS)
    return [*points[::step], *([points[-1]] if points and (len(points) - 1) % step else [])]


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, not below `step`."""
    scale = 1.0
    while scale > step:
        scale /= 10.0
    while scale * 10.0 <= step:
        scale *= 10.0
    return next(scale * factor for factor in (1.0, 2.0, 5.0, 10.0) if scale * factor >= step * 0.999)
