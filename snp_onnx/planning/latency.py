"""Latency as a cost: the layers' own times, and what the rest of the model adds as whole models were timed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from snp_onnx.cost import Term
from snp_onnx.planning.axis_widths import Widths
from snp_onnx.planning.cost_table import CostTable
from snp_onnx.planning.layer_times import LayerTimes
from snp_onnx.tracing import Group, Trace
from snp_onnx.tracing.op import Op

Vector = npt.NDArray[np.float64]

ANCHOR = 0.05
"""How firmly the parts of a prediction stay where they are before whole models are timed, beside one such time."""
FREE = frozenset(
    ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant", "Dropout", "Gather", "Concat")
)
"""Operators that move no data, or only lists of extents."""


def element_terms(trace: Trace, layers: Collection[str]) -> list[Term]:
    """Elements that every node but the given ones writes: what the time of nodes that don't multiply follows."""
    return [
        Term(op.name, tuple((name, axis) for axis in range(len(trace.facts.shapes[name]))))
        for op in trace.ops
        for name in _outputs(op, trace)
        if op.name not in layers and op.type not in FREE
    ]


def _outputs(op: Op, trace: Trace) -> list[str]:
    return [name for name in op.outputs if name in trace.axes]


class LatencyCosts:
    """The share of the dense latency that widths leave: of layers, of other MACs, of other elements, and a constant.

    The times of layers come from a table. What else there is can't be timed alone: its shares are solved for, anchored
    at a first guess, from whole models that were timed; at the last of those the prediction is exact.
    """

    def __init__(
        self, times: LayerTimes, trace: Trace, groups: Sequence[Group], terms: Sequence[Term], dense_ms: float
    ) -> None:
        self._times, self._dense_ms = times, dense_ms
        self._ladders = [np.array(ladder, dtype=np.float64) for ladder in times.ladders]
        self._sizes = np.array([len(group) for group in groups], dtype=np.int64)
        self._touched, self._near = _neighbours(times, len(groups))
        timed = {layer.op.name for layer in times.layers}
        others = [term for term in terms if term.name not in timed]
        elements = element_terms(trace, {term.name for term in terms} | timed)
        self._tables = [CostTable(several, trace, groups) for several in (others, elements)]
        self._wholes = [max(table.dense(), 1.0) for table in self._tables]
        self._slopes: dict[int, tuple[bytes, float]] = {}
        rate = sum(term_macs(others, trace)) / max(sum(term_macs(terms, trace)), 1.0)
        self._guess = _first_guess(float(self._parts(self._sizes)[0]), rate)
        self._shares, self._correction = self._guess, 0.0
        self._timed: list[tuple[Vector, float]] = []

    def cost(self, widths: Widths) -> float:
        """The predicted share of the dense latency for one width a group, (G,)."""
        return float(self._parts(widths) @ self._shares) + self._correction

    def marginal(self, widths: Widths) -> Vector:
        """What the last units of every group cost each, (G,): over the stretch below its width that saves most a unit.

        Times fall in steps, so that the very last unit may cost nothing where the step before it does.
        """
        layers = np.array([self._slope(group, widths) for group in range(len(widths))])
        found: Vector = self._shares[0] * layers / self._dense_ms
        for share, whole, table in zip(self._shares[1:3], self._wholes, self._tables, strict=True):
            found += share * table.marginal(widths) / whole
        return found

    def learn(self, widths: Widths, ratio: float) -> None:
        """Take in what a whole model of these widths took, as a share of the dense latency."""
        from scipy.optimize import nnls  # a tenth of the time that every start of a command takes

        self._timed.append((self._parts(widths), ratio))
        rows = [(self._parts(self._sizes), 1.0), *self._timed]
        anchors = ANCHOR / np.maximum(self._guess, ANCHOR)
        left = np.vstack([*(parts for parts, _ in rows), np.diag(anchors)])
        right = np.concatenate([[found for _, found in rows], anchors * self._guess])
        self._shares = np.asarray(nnls(left, right)[0], dtype=np.float64)
        parts, found = self._timed[-1]
        self._correction = found - float(parts @ self._shares)

    def _parts(self, widths: Widths) -> Vector:
        """What is left at these widths of the layers' time, in dense models, and of the other parts, in themselves."""
        layers = sum(
            float(grid.at([np.array([variable.at(widths)]) for variable in layer.variables])[0])
            for layer, grid in zip(self._times.layers, self._times.grids, strict=True)
        )
        others = [table.cost(widths) / whole for table, whole in zip(self._tables, self._wholes, strict=True)]
        return np.array([layers / self._dense_ms, *others, 1.0])

    def _slope(self, group: int, widths: Widths) -> float:
        """Milliseconds a unit that the layers of a group save at most, the other groups as they are."""
        state = widths[self._near[group]].tobytes()
        known = self._slopes.get(group)
        if known is None or known[0] != state:
            known = self._slopes[group] = (state, self._steepest(group, widths))
        return known[1]

    def _steepest(self, group: int, widths: Widths) -> float:
        now, ladder = float(widths[group]), self._ladders[group]
        others = ladder[ladder < now] if (ladder < now).any() else ladder[ladder > now][:1]
        if not len(others):
            return 0.0
        lost = now - np.append(others, now)
        times = np.zeros(len(lost))
        for number in self._touched[group]:
            layer, grid = self._times.layers[number], self._times.grids[number]
            times += grid.at([variable.at(widths) - variable.slope(group) * lost for variable in layer.variables])
        return float(np.max((times[-1] - times[:-1]) / lost[:-1]))


def term_macs(terms: Sequence[Term], trace: Trace) -> list[float]:
    """The dense value of every term."""
    shapes = trace.facts.shapes
    return [term.scale * float(np.prod([shapes[tensor][axis] for tensor, axis in term.factors])) for term in terms]


def _first_guess(layers: float, others: float) -> Vector:
    """Shares before any narrower model was timed: of layers, other MACs, elements and the constant.

    `layers` is the part of the dense latency that the layers' own times add up to, `others` the part of the MACs that
    the other nodes do. Where layers alone take longer than the model, they are all of it.
    """
    rest = max(0.0, 1.0 - layers)
    macs = min(rest, others)
    return np.array([min(1.0, 1.0 / max(layers, 1e-9)), macs, 0.5 * (rest - macs), 0.5 * (rest - macs)])


def _neighbours(times: LayerTimes, groups: int) -> tuple[list[list[int]], list[list[int]]]:
    """For every group its layers, and the groups (itself too) that these depend on."""
    touched: list[list[int]] = [[] for _ in range(groups)]
    for number, layer in enumerate(times.layers):
        for group in {group for variable in layer.variables for group in variable.groups}:
            touched[group].append(number)
    near = [
        sorted({group, *(g for n in numbers for v in times.layers[n].variables for g in v.groups)})
        for group, numbers in enumerate(touched)
    ]
    return touched, near
