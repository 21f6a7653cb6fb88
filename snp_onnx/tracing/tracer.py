"""The tracer: what operator rules write to while a graph is walked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from snp_onnx.tracing.facts import AxisOf, Facts, Shape
from snp_onnx.tracing.labels import FIXED, DisjointSet, Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.products import Products

Axes = tuple[Labels, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """A node that multiplies by a weight: it produces its output's units and, unless whole groups go, consumes its
    input's.

    Of a grouped convolution whole groups go or, where `is_equal`, the same positions of every group.
    """

    op: Op
    input: str
    input_axis: int
    weight: str
    in_axis: int
    out_axis: int
    output: str
    output_axis: int
    groups: int = 1
    is_equal: bool = False

    @property
    def mixes(self) -> bool:
        """Whether outputs read inputs that go and others that stay, so that a fold can move one to the other."""
        return self.groups == 1 or self.is_equal


@dataclass(frozen=True, slots=True)
class Product:
    """A node that multiplies two activations: it costs MACs, along (tensor, axis) factors.

    `contracted` are the axes of both operands that are summed over; where it `is_open`, they may lose positions.
    """

    op: Op
    factors: tuple[tuple[str, int], ...]
    contracted: tuple[tuple[str, int], ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Barrier:
    """A place where an axis must stay whole, and why."""

    tensor: str
    axis: int
    node: str
    reason: str


def output_axis(op: Op, rank: int) -> int:
    """The axis of a weight that counts a layer's outputs, for telling: its first, its last, or that of the gates.

    A recurrent weight is (directions, gates x hidden, inputs); one that onnxruntime quantises to int8 has its last two
    axes swapped.
    """
    if op.type in ("LSTM", "GRU", "RNN"):
        return min(1, rank - 1)
    is_first = ("Conv" in op.type and "Transpose" not in op.type) or op.type in ("MatMulNBits", "QMoE")
    return 0 if is_first or op.attr("transB", 0) else rank - 1


class Tracer:
    """Labels of every tensor's axes, and the facts that rules have recorded so far."""

    def __init__(
        self,
        facts: Facts,
        constants: frozenset[str],
        shared: frozenset[str],
        contractions: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.facts = facts
        self.contractions = contractions
        """For nodes that multiply activations: why the axis that is summed over stays whole; "" where it needn't."""
        self.equal: frozenset[int] = frozenset()
        """Grouped convolutions, by the index of their nodes, of which each group loses the same positions."""
        self.open_norms: frozenset[str] = frozenset()
        """Means of squares whose axis may be cut; see `tracing.norms`."""
        self.classes = DisjointSet()
        self.products = Products(self.classes)
        self.barriers: list[tuple[Barrier, Labels]] = []
        self.declined: list[tuple[str, int, int, Barrier]] = []
        """Weights that only an operator without units reads: the axis of their outputs, its extent, and why it stays
        whole."""
        self.linears: list[Linear] = []
        self.activation_products: list[Product] = []
        self._axes: dict[str, Axes] = {}
        self._constants = set(constants)
        self._roots: dict[str, str] = {}
        self._shared = shared
        self._layers: dict[str, frozenset[int]] = {}

    def knows(self, tensor: str) -> bool:
        return tensor in self.facts.shapes

    def shape(self, tensor: str) -> Shape:
        return self.facts.shapes[tensor]

    def value(self, tensor: str) -> npt.NDArray[np.generic] | None:
        """The tensor's value where constants and shapes alone decide it."""
        return self.facts.values.get(tensor) if tensor else None

    def is_constant(self, tensor: str) -> bool:
        """Whether the tensor is an initialiser or computed from initialisers alone."""
        return tensor in self._constants

    def is_shared(self, tensor: str) -> bool:
        """Whether several nodes read the tensor."""
        return tensor in self._shared

    def mark_constant(self, tensors: Sequence[str], source: str = "") -> None:
        """Tensors that initialisers alone decide; `source` is the largest of what they are computed from."""
        self._constants.update(tensors)
        if source:
            self._roots.update({tensor: self.root(source) for tensor in tensors})

    def root(self, tensor: str) -> str:
        """The initialiser that a constant tensor is made of, the largest of several; itself where it is none."""
        return self._roots.get(tensor, tensor)

    def stored(self, weight: str, shape: Shape | None = None) -> str:
        """The name by which a weight is told of: of its initialiser where that has the weight's shape."""
        root = self.root(weight)
        return root if self.facts.shapes.get(root) == (shape or self.shape(weight)) else weight

    def layers(self, tensor: str) -> frozenset[int]:
        """The layers (places in `linears`) that a tensor comes from with no other layer in between."""
        return self._layers.get(tensor, frozenset())

    def pass_layers(self, op: Op, first: int) -> None:
        """A node whose rule recorded `linears[first:]` gives their outputs; any other passes on its inputs' layers."""
        new = {linear.output: frozenset([first + place]) for place, linear in enumerate(self.linears[first:])}
        passed = frozenset().union(*(self.layers(name) for name in op.reads))
        if new or passed:
            self._layers.update({name: new.get(name, passed) for name in op.outputs})

    def axes(self, tensor: str) -> Axes:
        """Labels of the tensor's axes; a constant gets fresh ones the first time it is asked for."""
        if tensor not in self._axes:
            fresh = self.is_constant(tensor)
            extents = self.shape(tensor)
            self._axes[tensor] = tuple(self.classes.fresh(n) if fresh else still(n) for n in extents)
        return self._axes[tensor]

    def traced(self) -> dict[str, Axes]:
        """Every tensor that got labels."""
        return self._axes

    def set_axes(self, tensor: str, axes: Sequence[Labels]) -> None:
        """Give a node's output its labels; a shape that disagrees is a bug of the rule."""
        if not tensor:
            return
        extents = tuple(len(labels) for labels in axes)
        if extents != self.shape(tensor):
            raise AssertionError(f"rule gave {tensor} the extents {extents}, its shape is {self.shape(tensor)}")
        self._axes[tensor] = tuple(axes)

    def set_still(self, tensor: str) -> None:
        """An output none of whose axes can ever shrink."""
        if tensor and self.knows(tensor):
            self._axes[tensor] = tuple(still(n) for n in self.shape(tensor))

    def set_barred(self, op: Op, tensor: str, reason: str) -> None:
        """An output of a node that keeps all its axes whole: what is united with one of these has the same reason."""
        if tensor and self.knows(tensor):
            self._axes[tensor] = tuple(self.classes.fresh(n) for n in self.shape(tensor))
            self.barrier_all(op, tensor, reason)

    def is_live(self, tensor: str, axis: int) -> bool:
        return self.classes.is_live(self.axes(tensor)[axis])

    def varies(self, tensor: str, axis: int) -> bool:
        """Whether the extent of a live axis differs from one run to the next, because it merges units with more.

        Where inference can't tell, units that occur more than once say so.
        """
        known = self.facts.varies(tensor, axis)
        if known is not None:
            return known
        labels = self.axes(tensor)[axis]
        return len(np.unique(self.classes.find(labels))) < len(labels)

    def barrier(self, op: Op | None, tensor: str, axis: int, reason: str, labels: Labels | None = None) -> None:
        """Keep an axis (or only the given labels of it) whole."""
        held = self.axes(tensor)[axis] if labels is None else labels
        if not self.classes.find(held).any():
            return
        self.classes.flag(held, FIXED)
        self.barriers.append((Barrier(tensor, axis, op.name if op else "", reason), held))

    def whole(self, op: Op, output: str, axis: int, reason: str) -> Labels:
        """Labels for an axis of a node's output that must stay whole, whatever the node reads."""
        labels = self.classes.fresh(self.shape(output)[axis])
        self.barrier(op, output, axis, reason, labels)
        return labels

    def decline(self, op: Op, weight: str, axis: int, shape: Shape, reason: str) -> None:
        """Tell of a weight that stays whole because of the node that reads it; `axis` counts its outputs."""
        self.declined.append((self.stored(weight, shape), axis, shape[axis], Barrier(weight, axis, op.name, reason)))

    def bar_places(self, op: Op, tensor: str, axis: int, output: str = "") -> None:
        """Keep an axis whole where a node names places of it, or in its output, that are other units elsewhere."""
        if not self.is_live(tensor, axis):
            return
        if self.varies(tensor, axis) or (output and self.facts.varies(output, axis)):
            self.barrier(op, tensor, axis, f"{op.type} at fixed places of an axis whose extent varies")

    def barrier_all(self, op: Op | None, tensor: str, reason: str, but: Collection[AxisOf] = ()) -> None:
        """Keep every axis of a tensor whole, but those named."""
        if tensor and self.knows(tensor):
            for axis in range(len(self.shape(tensor))):
                if (tensor, axis) not in but:
                    self.barrier(op, tensor, axis, reason)
