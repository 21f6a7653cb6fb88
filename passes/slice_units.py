"""Cut: every axis keeps the positions whose labels are alive; operands that name sizes follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from snp_onnx.passes.base import Note, Outcome, Pass, constants, replace_values, values_of
from snp_onnx.passes.pick_positions import pick_positions
from snp_onnx.passes.resize import RESIZERS, Resizing
from snp_onnx.passes.resize_attention import FUSED_RESIZERS
from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.groups import Mask, Trace


@dataclass(frozen=True, slots=True, eq=False)
class SliceUnits(Pass):
    """Slice the traced graph to the labels of `alive`, shape (trace.label_count,)."""

    trace: Trace
    alive: Mask

    def __call__(self, graph: gs.Graph) -> Outcome:
        if self.alive.all() or self._is_done(graph):
            return Outcome(False)
        notes = self._slice_constants(graph)
        self._reshape_variables(graph)
        resizing = Resizing(self.trace, self.alive, graph)
        nodes = {next((t.name for t in node.outputs if t.name), ""): node for node in list(graph.nodes)}
        for op in self.trace.ops:
            resizer = FUSED_RESIZERS.get((op.domain, op.type)) or (RESIZERS.get(op.type) if op.is_standard else None)
            node = nodes.get(next((name for name in op.outputs if name), ""))
            if (op.domain, op.type) == ("", "Add"):
                resizer = pick_positions
            if resizer is not None and node is not None and node.op == op.type and resizing.is_touched(op):
                resizer(node, op, resizing)
        return Outcome(bool(notes), tuple(notes))

    def requires(self, graph: gs.Graph) -> str:
        for constant, whole, left in self._traced(graph):
            if tuple(constant.shape) not in (whole, left):
                return f"{constant.name} has shape {tuple(constant.shape)}, and {whole} when it was traced"
        return ""

    def ensures(self, graph: gs.Graph) -> str:
        for constant, whole, left in self._traced(graph):
            if tuple(constant.shape) != left:
                return f"{constant.name} has shape {tuple(constant.shape)}, and {left} of {whole} should be left"
        return ""

    def _is_done(self, graph: gs.Graph) -> bool:
        """Whether every initialiser has the shape that should be left, and some had another."""
        found = list(self._traced(graph))
        is_left = all(tuple(constant.shape) == left for constant, _, left in found)
        return is_left and any(whole != left for _, whole, left in found)

    def _traced(self, graph: gs.Graph) -> Iterator[tuple[gs.Constant, Shape, Shape]]:
        """The initialisers that the trace knows, their shapes in it, and what is left of these."""
        for constant in constants(graph):
            axes = self.trace.axes.get(constant.name)
            if axes is not None and not self.alive.all():
                counts = tuple(int(np.count_nonzero(self.alive[labels])) for labels in axes)
                yield constant, tuple(map(len, axes)), counts

    def _slice_constants(self, graph: gs.Graph) -> list[Note]:
        notes = []
        for constant in constants(graph):
            axes = self.trace.axes.get(constant.name)
            if axes is None or tuple(len(labels) for labels in axes) != tuple(constant.shape):
                continue  # never asked for by a rule, or sliced already
            masks = [self.alive[labels] for labels in axes]
            if all(mask.all() for mask in masks):
                continue
            before = tuple(constant.shape)
            replace_values(constant, np.asarray(values_of(constant))[np.ix_(*masks)])
            notes.append(Note(constant.name, f"{before} -> {tuple(constant.shape)}"))
        return notes

    def _reshape_variables(self, graph: gs.Graph) -> None:
        """Declared shapes of intermediate tensors, where an extent changed; a symbolic one varies and stays.

        A shape that isn't the tensor's is no longer declared: beside the cut ones the checker would refuse it.
        """
        fixed = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
        for tensor in graph.tensors().values():
            axes = self.trace.axes.get(tensor.name)
            if not isinstance(tensor, gs.Variable) or tensor.shape is None or axes is None or id(tensor) in fixed:
                continue
            counts = [int(np.count_nonzero(self.alive[labels])) for labels in axes]
            each = zip(tensor.shape, counts, axes, strict=False)
            is_wrong = any(isinstance(n, int) and n not in (count, len(labels)) for n, count, labels in each)
            if is_wrong or len(counts) != len(tensor.shape):
                tensor.shape = None
            else:
                tensor.shape = [
                    count if declared == len(labels) else declared
                    for declared, count, labels in zip(tensor.shape, counts, axes, strict=True)
                ]
