"""Roles: which constants of a graph are weights, to be trained, and which stay as they are.

Decided by structure, from how a constant is used, never by its name. Weights are

- weights and biases of Conv, ConvTranspose, Gemm, MatMul, Einsum and the fused attentions, where the other operand is
  a signal (what comes from a floating-point input or from a weight; positions and sizes are none);
- gains and shifts of every normalisation, slopes of PRelu, biases of fused activations;
- tables that are looked up, unless what is found there is multiplied with something (rotary positions) or added to
  the logits of an attention;
- what is added to a signal behind a weight: vectors, and larger ones that don't end in a Softmax (positions, but no
  masks); vectors that such a signal is multiplied with; tokens that are joined to it.

All else is a constant: running statistics, scales, epsilons, masks, slopes and tables of positions. So is a weight
that has another use as well, or is an output of the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.cost import FLOATS
from snp_onnx.external import array_of
from snp_onnx.tracing.op import Op, ops_of

_PASSING = frozenset(
    ("Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Slice", "Split", "Tile")
)
"""Operators that only move their first input's values."""

_TOWARDS_SOFTMAX = _PASSING | {"Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "Concat"}

_SLOTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "FusedMatMul": (0, 1),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2), "RMSNormalization": (1,), "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (0, 1, 2, 3, 4), "SkipSimplifiedLayerNormalization": (0, 1, 2, 3),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6), "MultiHeadAttention": (3,), "PRelu": (1,), "BiasGelu": (1,),
    "FastGelu": (1,),
}  # fmt: skip
"""Inputs that are weights whenever they are constants and the node reads a signal."""

_FUSED_ATTENTION_SLOTS = (1, 2)
_LARGEST = 1e4
"""A constant beyond this is a mask's."""


def trained_names(model: onnx.ModelProto) -> frozenset[str]:
    """Names of the initialisers and Constant nodes that are weights, by the rules above."""
    return _Roles(model).decide()


@dataclass(slots=True)
class _Uses:
    """How one constant is used: as a weight, and as something else."""

    as_weight: int = 0
    otherwise: int = 0


@dataclass(slots=True)
class _Roles:
    """One walk over the nodes in their order."""

    model: onnx.ModelProto
    constants: dict[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    behind: dict[str, str] = field(default_factory=dict)
    """The constant whose values, moved, a tensor holds."""
    readers: defaultdict[str, list[Op]] = field(default_factory=lambda: defaultdict(list))
    fixed: set[str] = field(default_factory=set)
    """What constants alone decide, integers too."""
    signals: set[str] = field(default_factory=set)
    weighted: set[str] = field(default_factory=set)
    """Signals with a weight before them."""
    uses: defaultdict[str, _Uses] = field(default_factory=lambda: defaultdict(_Uses))

    def decide(self) -> frozenset[str]:
        self._start()
        for op in ops_of(self.model):
            if all(name in self.fixed or not name for name in op.inputs) and not op.has_subgraph:
                self.fixed.update(op.outputs)
            if self._moves_a_constant(op):
                self.behind.update((name, self.behind[op.inputs[0]]) for name in op.outputs)
                continue
            is_weighted = self._visit(op)
            if is_weighted or any(name in self.weighted for name in op.inputs):
                self.weighted.update(op.outputs)
            if is_weighted or any(name in self.signals for name in op.inputs):
                self.signals.update(op.outputs)
        for value in self.model.graph.output:
            if value.name in self.behind:
                self.uses[self.behind[value.name]].otherwise += 1
        return frozenset(name for name, use in self.uses.items() if use.as_weight and not use.otherwise)

    def _moves_a_constant(self, op: Op) -> bool:
        if not op.inputs or op.inputs[0] not in self.behind:
            return False
        return op.type in _PASSING or (op.type == "Gather" and op.inputs[1] in self.fixed)

    def _start(self) -> None:
        for tensor in self.model.graph.initializer:
            self.fixed.add(tensor.name)
            if tensor.data_type in FLOATS:
                self.constants[tensor.name] = array_of(tensor)
        for op in ops_of(self.model):
            array = op.constant_value() if op.type == "Constant" and op.is_standard else None
            if array is not None and array.dtype.kind in "fV":
                self.constants[op.outputs[0]] = array
            for name in set(op.reads):
                self.readers[name].append(op)
        self.behind = {name: name for name in self.constants}
        for value in self.model.graph.input:
            if value.name not in self.constants and value.type.tensor_type.elem_type in FLOATS:
                self.signals.add(value.name)

    def _visit(self, op: Op) -> bool:
        """Note how the node uses constants; whether it puts a weight before its outputs."""
        found = False
        slots = set(self._slots(op))
        for place, name in enumerate(op.inputs):
            if name in self.behind:
                is_weight = place in slots
                found = found or is_weight
                use = self.uses[self.behind[name]]
                use.as_weight, use.otherwise = use.as_weight + is_weight, use.otherwise + (not is_weight)
        for name in set(op.reads) - set(op.inputs):  # captured by a subgraph
            if name in self.behind:
                self.uses[self.behind[name]].otherwise += 1
        return found

    def _slots(self, op: Op) -> Iterator[int]:
        """Places at which this node reads weights, if constants are there."""
        has_signal = any(name in self.signals for name in op.inputs)
        if op.type == "Gather" and op.is_standard:
            if self._is_table(op):
                yield 0
        elif op.type == "EmbedLayerNormalization" or (op.type in _SLOTS and has_signal):
            yield from _SLOTS[op.type]
        elif op.type == "Einsum" and has_signal:
            yield from range(len(op.inputs))
        elif op.type == "Attention" and op.domain == "com.microsoft" and has_signal:
            yield from _FUSED_ATTENTION_SLOTS
        elif op.type in ("Add", "Mul", "Concat") and any(name in self.weighted for name in op.inputs):
            yield from (place for place, name in enumerate(op.inputs) if self._is_beside(op, name))

    def _is_table(self, op: Op) -> bool:
        if op.inputs[0] not in self.behind:
            return False
        table = self.constants[self.behind[op.inputs[0]]]
        if table.ndim != 2 or min(table.shape) < 2 or int(op.attr("axis", 0)) != 0:
            return False
        return not self._meets_product(op.outputs[0]) and not self._ends_in_softmax(op.outputs[0])

    def _is_beside(self, op: Op, name: str) -> bool:
        """Whether a constant that meets a signal in Add, Mul or Concat is a weight."""
        if name not in self.behind:
            return False
        values = self.constants[self.behind[name]]
        if values.size < 2 or not _is_moderate(values):
            return False
        wide = sum(extent > 1 for extent in values.shape)
        if op.type == "Concat":
            return not bool((values == values.flat[0]).all())
        if op.type == "Mul":
            return wide == 1 and not self._ends_in_softmax(op.outputs[0])
        return values.ndim == 1 or not self._ends_in_softmax(op.outputs[0])

    def _meets_product(self, name: str) -> bool:
        """Whether values are multiplied, position by position, with a tensor that is neither constant nor theirs."""
        known = self._after(name)
        for op in self._moved_readers(name):
            others = [other for other in op.inputs if other not in self.behind and other not in known]
            if op.type in ("Cos", "Sin") or (op.type == "Mul" and others):
                return True
        return False

    def _after(self, name: str) -> set[str]:
        """The tensor and everything computed from it."""
        open_names, seen = [name], {name}
        while open_names:
            for op in self.readers[open_names.pop()]:
                fresh = [output for output in op.outputs if output not in seen]
                seen.update(fresh)
                open_names.extend(fresh)
        return seen

    def _moved_readers(self, name: str) -> Iterator[Op]:
        for op in self.readers[name]:
            if op.type in _PASSING:
                yield from self._moved_readers(op.outputs[0])
            else:
                yield op

    def _ends_in_softmax(self, name: str) -> bool:
        open_names, seen = [name], {name}
        while open_names:
            for op in self.readers[open_names.pop()]:
                if op.type in ("Softmax", "MultiHeadAttention", "Attention", "GroupQueryAttention"):
                    return op.type == "Softmax" or name not in op.inputs[:3]
                if op.type in _TOWARDS_SOFTMAX:
                    fresh = [output for output in op.outputs if output not in seen]
                    seen.update(fresh)
                    open_names.extend(fresh)
        return False


def _is_moderate(values: npt.NDArray[np.generic]) -> bool:
    wide = values.astype(np.float64)
    return bool(np.isfinite(wide).all() and np.abs(wide).max() <= _LARGEST)
