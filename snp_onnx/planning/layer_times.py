"""Times of layers at many widths, from few measurements; and the widths between which the clock sees a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.kernels import Kernel
from snp_onnx.planning.layers import Grid, Layer, Variable, grid_from_cross, inner_places
from snp_onnx.tracing import Group

Vector = npt.NDArray[np.float64]
Ladder = tuple[int, ...]
Timer = Callable[[Sequence[Kernel], float], Mapping[Kernel, float]]
"""Milliseconds of kernels, NaN for what can't run alone, from at most so many seconds of measurement."""

MOST_WIDTHS = 16
"""Of one group that are timed."""
FEWEST_WIDTHS = 4
WORTH = 0.02
"""A narrower width stays on the ladder if it saves at least this share of its layers' dense time."""
RUNS = 6
"""About how often a kernel is run to be timed."""


def timed_widths(units: int, min_units: int, round_to: int) -> Ladder:
    """Widths of a group that are worth a measurement: every one of a few, multiples of a power of two of many.

    >>> timed_widths(6, 1, 1), timed_widths(64, 1, 1)[:3], timed_widths(512, 100, 1)[:2], timed_widths(64, 1, 24)
    ((1, 2, 3, 4, 5, 6), (4, 8, 12), (128, 160), (24, 48, 64))
    """
    step = 1
    while units > MOST_WIDTHS * step:
        step *= 2
    if round_to > 1:
        step = round_to * max(1, -(-units // (MOST_WIDTHS * round_to)))
    return (*(width for width in range(step, units, step) if width >= min_units), units)


@dataclass(frozen=True, slots=True, eq=False)
class LayerTimes:
    """The layers that could be timed, a grid of each, and the ladder of every group."""

    layers: tuple[Layer, ...]
    grids: tuple[Grid, ...]
    ladders: tuple[Ladder, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """A layer along one of its variables, the others dense."""

    layer: Layer
    place: int
    points: Vector
    times: Vector

    @property
    def variable(self) -> Variable:
        return self.layer.variables[self.place]

    def kernels(self) -> list[Kernel]:
        dense = self.layer.dense
        return [
            self.layer.kernel((*dense[: self.place], point, *dense[self.place + 1 :])) for point in self.points.tolist()
        ]

    def at(self, point: float) -> float:
        return float(np.interp(point, self.points, self.times))

    def only(self, points: Vector) -> _Line:
        return _Line(self.layer, self.place, points, np.interp(points, self.points, self.times))


def time_layers(
    layers: Sequence[Layer], groups: Sequence[Group], ladders: Sequence[Ladder], timer: Timer, seconds: float
) -> LayerTimes:
    """Times of all layers at the widths of `ladders`, fewer of them where `seconds` don't suffice.

    Along each of its variables a layer is timed at every width with the other variable dense, and inside at four
    points. A ladder keeps the dense width and each narrower one that is faster than all wider ones.
    """
    dense = timer([layer.kernel(layer.dense) for layer in layers], 0.2 * seconds)
    known = [layer for layer in layers if np.isfinite(dense[layer.kernel(layer.dense)])]
    ladders = _affordable(known, [dense[layer.kernel(layer.dense)] for layer in known], ladders, 0.5 * seconds)
    lines = _timed_lines(known, ladders, timer, 0.5 * seconds)
    known = [layer for layer in known if all(np.isfinite(line.times).all() for line in lines[layer])]
    useful = [_useful(group, ladders[group], [lines[layer] for layer in known]) for group in range(len(groups))]
    kept = {layer: [line.only(_points(line.layer, line.place, useful)) for line in lines[layer]] for layer in known}
    return LayerTimes(tuple(known), tuple(_grids(known, kept, timer, 0.3 * seconds)), tuple(useful))


def _points(layer: Layer, place: int, ladders: Sequence[Ladder]) -> Vector:
    """Values of a variable that are timed: the widths of its group or, of a sum, some in equal steps."""
    variable, dense = layer.variables[place], layer.dense[place]
    if len(variable.groups) == 1:
        return np.array(ladders[variable.groups[0]], dtype=np.float64)
    step = 1
    while dense > MOST_WIDTHS * step:
        step *= 2
    return np.array([*range(step, int(np.ceil(dense)), step), dense], dtype=np.float64)


def _affordable(
    layers: Sequence[Layer], dense: Sequence[float], ladders: Sequence[Ladder], seconds: float
) -> list[Ladder]:
    """Ladders with every second width left out until what is to be timed fits; the dense width always stays."""
    found = list(ladders)
    while True:
        work = 0.0
        for layer, ms in zip(layers, dense, strict=True):
            for place, whole in enumerate(layer.dense):
                work += 1e-3 * ms * RUNS * float((_points(layer, place, found) / whole).sum())
        if work <= seconds or all(len(ladder) <= FEWEST_WIDTHS for ladder in found):
            return found
        found = [ladder if len(ladder) <= FEWEST_WIDTHS else ladder[::-1][::2][::-1] for ladder in found]


def _timed_lines(
    layers: Sequence[Layer], ladders: Sequence[Ladder], timer: Timer, seconds: float
) -> dict[Layer, list[_Line]]:
    bare = {
        layer: [_Line(layer, place, _points(layer, place, ladders), np.empty(0)) for place in range(len(layer.dense))]
        for layer in layers
    }
    found = timer([kernel for lines in bare.values() for line in lines for kernel in line.kernels()], seconds)
    return {
        layer: [
            _Line(layer, line.place, line.points, np.array([found[kernel] for kernel in line.kernels()]))
            for line in lines
        ]
        for layer, lines in bare.items()
    }


def _useful(group: int, ladder: Ladder, layers: Sequence[Sequence[_Line]]) -> Ladder:
    """The widths of a group at which its layers together are faster than at every wider one."""
    lines = [line for lines in layers for line in lines if group in line.variable.groups]
    if not lines:
        return ladder

    def total(width: int) -> float:
        lost = ladder[-1] - width
        return sum(line.at(line.layer.dense[line.place] - lost * line.variable.slope(group)) for line in lines)

    dense = total(ladder[-1])
    kept, least = [ladder[-1]], dense
    for width in ladder[-2::-1]:
        now = total(width)
        if now < least - WORTH * dense:
            kept.append(width)
            least = now
    return tuple(reversed(kept))


def _grids(layers: Sequence[Layer], lines: Mapping[Layer, Sequence[_Line]], timer: Timer, seconds: float) -> list[Grid]:
    inside: dict[Layer, list[list[Kernel]]] = {}
    for layer in layers:
        if len(layer.dense) == 2:
            first, second = (line.points[inner_places(len(line.points))].tolist() for line in lines[layer])
            inside[layer] = [[layer.kernel((a, b)) for b in second] for a in first]
    found = timer([kernel for rows in inside.values() for row in rows for kernel in row], seconds)
    grids = []
    for layer in layers:
        if len(layer.dense) == 1:
            grids.append(Grid((lines[layer][0].points,), lines[layer][0].times))
            continue
        column, row = lines[layer]
        places = [len(inner_places(len(line.points))) for line in lines[layer]]
        few = np.array([[found[kernel] for kernel in row] for row in inside[layer]]).reshape(places)
        known = np.where(np.isfinite(few), few, np.nan)
        grids.append(grid_from_cross((column.points, row.points), column.times, row.times, known))
    return grids
