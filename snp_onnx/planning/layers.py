"""Layers as the clock sees them: nodes that multiply, and the kernels they become at other widths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.calibration.kernels import Kernel, Operand, kernel_of
from snp_onnx.planning.axis_widths import AxisWidths, Extent, Widths
from snp_onnx.tracing import Group, Trace
from snp_onnx.tracing.op import Op

TIMED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "Einsum"))
"""Operators whose nodes are timed alone; the Attention family isn't: which inputs it has decides what it does."""
MOST_VARIABLES = 2


@dataclass(frozen=True, slots=True)
class Variable:
    """A number that widths decide and extents follow: a group's width or, after a Concat, a sum of several."""

    groups: tuple[int, ...]
    slopes: tuple[float, ...]

    def at(self, widths: Widths) -> float:
        return float(sum(slope * widths[group] for group, slope in zip(self.groups, self.slopes, strict=True)))

    def slope(self, group: int) -> float:
        """What one unit of a group adds."""
        return self.slopes[self.groups.index(group)] if group in self.groups else 0.0


@dataclass(frozen=True, slots=True)
class _Axis:
    """An extent: `base` and `slope` for each unit of a variable (none: -1)."""

    base: int
    slope: float
    variable: int

    def at(self, values: Sequence[float]) -> int:
        return max(1, round(self.base + (self.slope * values[self.variable] if self.variable >= 0 else 0.0)))


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A node whose kernel can be made at any value of its variables."""

    op: Op
    variables: tuple[Variable, ...]
    axes: tuple[tuple[_Axis, ...] | None, ...]
    operands: tuple[Operand | None, ...]
    dense: tuple[float, ...]
    """Its variables with every unit kept."""
    is_equal: bool = False
    """Whether of a grouped convolution every group loses the same positions, not some of them all."""

    def kernel(self, values: Sequence[float]) -> Kernel:
        """The node with its variables at `values`, one for each."""
        operands = [
            None if operand is None or axes is None else self._operand(operand, axes, values)
            for operand, axes in zip(self.operands, self.axes, strict=True)
        ]
        return kernel_of(self._regrouped(operands), self.op.version, operands)

    def _operand(self, operand: Operand, axes: Sequence[_Axis], values: Sequence[float]) -> Operand:
        return Operand(operand.dtype, tuple(axis.at(values) for axis in axes), operand.is_weight)

    def _regrouped(self, operands: Sequence[Operand | None]) -> onnx.NodeProto:
        """A grouped convolution loses whole groups, unless each of them loses the same positions."""
        node = onnx.NodeProto()
        node.CopyFrom(self.op.node)
        first, now = self.operands[0], operands[0]
        for attribute in node.attribute:
            if attribute.name != "group" or attribute.i == 1 or self.is_equal:
                continue
            if first is not None and now is not None:
                attribute.i = max(1, attribute.i * now.shape[1] // first.shape[1])
        return node


def layers_of(model: onnx.ModelProto, trace: Trace, groups: Sequence[Group]) -> Iterator[Layer]:
    """Every node to be timed that at least one group, and no more than two numbers, make narrower."""
    for layer in _timed_nodes(model, trace, groups):
        if 1 <= len(layer.variables) <= MOST_VARIABLES:
            yield layer


def dense_kernels(model: onnx.ModelProto, trace: Trace) -> dict[int, Kernel]:
    """The kernels of all nodes that can be timed, as they are, by the place of the node."""
    return {layer.op.index: layer.kernel(()) for layer in _timed_nodes(model, trace, ())}


def _timed_nodes(model: onnx.ModelProto, trace: Trace, groups: Sequence[Group]) -> Iterator[Layer]:
    widths = AxisWidths(trace, groups)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    equal = {linear.op.index for linear in trace.linears if linear.is_equal}
    for op in trace.ops:
        if op.type in TIMED and op.domain in ("", "com.microsoft") and not op.has_subgraph:
            layer = _layer(op, trace, widths, constants)
            if layer is not None:
                yield replace(layer, is_equal=op.index in equal)


def _layer(op: Op, trace: Trace, widths: AxisWidths, constants: set[str]) -> Layer | None:
    variables: dict[Variable, int] = {}
    axes: list[tuple[_Axis, ...] | None] = []
    operands: list[Operand | None] = []
    facts = trace.facts
    for name in op.inputs:
        if not name:
            axes.append(None)
            operands.append(None)
            continue
        if name not in facts.shapes or name not in facts.types:
            return None
        shape = facts.shapes[name]
        axes.append(tuple(_axis(widths.extent((name, place)), variables) for place in range(len(shape))))
        operands.append(Operand(facts.types[name], shape, name in constants))
    dense = tuple(variable.at(widths.sizes) for variable in variables)
    return Layer(op, tuple(variables), tuple(axes), tuple(operands), dense)


def _axis(extent: Extent, variables: dict[Variable, int]) -> _Axis:
    if not extent.slopes:
        return _Axis(extent.base, 0.0, -1)
    groups = tuple(sorted(extent.slopes))
    first = extent.slopes[groups[0]]
    variable = Variable(groups, tuple(extent.slopes[group] / first for group in groups))
    return _Axis(extent.base, first, variables.setdefault(variable, len(variables)))


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Milliseconds of a layer over values of its variables; linear between the points that were timed."""

    points: tuple[npt.NDArray[np.float64], ...]
    """Of each variable, rising, the dense value last."""
    times: npt.NDArray[np.float64]

    def at(self, values: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """One time for each entry of `values`, an array for each variable."""
        places = [_place(points, value) for points, value in zip(self.points, values, strict=True)]
        if len(places) == 1:
            ((low, part),) = places
            return (1.0 - part) * self.times[low] + part * self.times[_next(low, self.times.shape[0])]
        (a, p), (b, q) = places
        c, d = _next(a, self.times.shape[0]), _next(b, self.times.shape[1])
        upper = (1.0 - q) * self.times[a, b] + q * self.times[a, d]
        lower = (1.0 - q) * self.times[c, b] + q * self.times[c, d]
        return (1.0 - p) * upper + p * lower


def _next(low: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    return np.minimum(low + 1, count - 1)


def _place(
    points: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The point below each value and how far it is from there to the next, 0 to 1."""
    if len(points) == 1:
        return np.zeros(len(values), dtype=np.intp), np.zeros(len(values))
    low = np.clip(np.searchsorted(points, values, side="right") - 1, 0, len(points) - 2)
    return low, np.clip((values - points[low]) / (points[low + 1] - points[low]), 0.0, 1.0)


def grid_from_cross(
    points: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    column: npt.NDArray[np.float64],
    row: npt.NDArray[np.float64],
    inside: npt.NDArray[np.float64],
) -> Grid:
    """A grid from its last column (N,), its last row (M,), and the times at `inner_places` of both, (n, m).

    Inside it is column x row / dense, times what the few say that this is off by, linear between them and the edges.
    """
    product = np.outer(column, row) / row[-1]
    places = [inner_places(len(p)) for p in points]
    off = np.ones((len(places[0]) + 1, len(places[1]) + 1))
    off[:-1, :-1] = inside / product[np.ix_(*places)]
    knots = Grid(tuple(p[[*inner, len(p) - 1]] for p, inner in zip(points, places, strict=True)), off)
    every = np.meshgrid(*points, indexing="ij")
    return Grid(points, product * knots.at([axis.ravel() for axis in every]).reshape(product.shape))


def inner_places(count: int) -> list[int]:
    """The first and the middle of so many points, without the last one.

    >>> inner_places(1), inner_places(2), inner_places(9)
    ([], [0], [0, 4])
    """
    return sorted({0, count // 2} - {count - 1})
