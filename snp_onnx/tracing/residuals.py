"""Residual sums: a node that adds to an activation what a branch makes of it, and what would go with the branch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx

from snp_onnx.cost import FLOATS
from snp_onnx.tracing.ancestry import Ancestry
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.op import Op

FUSED_SUMS = frozenset(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))
"""Nodes of com.microsoft that add their first two inputs, then normalise; the sum is their fourth output."""

UNARY = frozenset(
    [
        *("Relu", "LeakyRelu", "Clip", "Gelu", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "Softplus", "Softsign"),
        *("HardSwish", "HardSigmoid", "Mish", "Swish", "Identity", "Dropout", "Cast"),
    ]
)
"""Operators that keep the shape and know every element of their first input alone."""

_WEIGHTED = frozenset(
    [
        *("Conv", "ConvTranspose", "Gemm", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
        *("MatMulNBits", "QGemm", "FusedConv", "FusedGemm", "NhwcFusedConv", "DeformConv", "RNN", "LSTM", "GRU"),
    ]
)
_SHORTCUTS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("Pad", "Slice", "Concat"), "its shortcut is cut or padded"),
        **dict.fromkeys(("AveragePool", "MaxPool", "GlobalAveragePool"), "its shortcut is pooled"),
        **dict.fromkeys(("Resize", "Upsample", "DepthToSpace", "SpaceToDepth"), "its shortcut is resized"),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """A sum of `input`, which would stay, and a branch that starts from `root` and would go with `nodes`.

    `root` is `input` but for an activation between them, or the start of an earlier branch beside this one. Where no
    operand is what the other one comes from, `input` is the newest tensor that both come from, and `reason` says so.
    """

    op: Op
    input: str
    root: str
    total: str
    nodes: frozenset[int]
    """The sum and everything that only it needs."""
    branch: tuple[Op, ...]
    """The nodes from `root` to the other operand; of a sum without a plain shortcut, to the one with more weights."""
    reason: str = ""
    is_plain: bool = True
    """Whether one operand is what the other comes from."""


class Residuals:
    """Finds the residual sums of a graph."""

    def __init__(self, model: onnx.ModelProto, flow: Flow) -> None:
        self.flow = flow
        self.ancestry = Ancestry(model, flow)
        self.weighted = {linear.op.index for linear in flow.trace.linears}
        self.weighted |= {op.index for op in flow.trace.ops if op.type in _WEIGHTED}
        self._sources: dict[str, str] = {}
        """By the total of a residual sum: what it adds to."""

    def find(self) -> tuple[Residual, ...]:
        """Every one whose branch has weights, in graph order."""
        found = []
        for op in self.flow.trace.ops:
            residual = self._of(op)
            if residual is not None:
                found.append(residual)
                if not residual.reason:
                    self._sources[residual.total] = residual.input
        return tuple(found)

    def source(self, tensor: str) -> str | None:
        """What the tensor adds something to, if it is the total of a residual sum with a plain shortcut."""
        return self._sources.get(tensor)

    def only_for(self, ends: Collection[int], stay: str) -> frozenset[int]:
        """`ends` and every node that nothing else needs, sizes included; the tensor `stay` stays needed."""
        going = set(ends)
        for op in reversed(self.flow.trace.ops[: max(ends)]):
            if stay not in op.outputs and all(self._is_read_by(name, going) for name in op.outputs if name):
                going.add(op.index)
        return frozenset(going)

    def way_out(self, nodes: Iterable[Op], going: Collection[int]) -> str:
        """Why a branch can't go: a node with weights among those that stay, and who keeps it; empty without one."""
        staying = [op for op in nodes if op.index not in going]
        if not any(op.index in self.weighted for op in staying):
            return ""
        for op in reversed(staying):
            for name in op.outputs:
                if self.flow.is_output(name):
                    return f"{name} inside it is an output of the model"
                readers = [other for other in self.flow.readers.get(name, ()) if other.index not in going]
                if readers:
                    return f"{name} inside it is also read by {readers[0].name}"
        return ""

    def _is_read_by(self, name: str, nodes: Collection[int]) -> bool:
        if self.flow.is_output(name):
            return False
        return all(op.index in nodes for op in self.flow.readers.get(name, ()))

    def _of(self, op: Op) -> Residual | None:
        operands = self._operands(op)
        if operands is None:
            return None
        first, second, total = operands
        for stay, branch in ((first, second), (second, first)):
            if self.ancestry.descends(branch, stay):
                return self._plain(op, total, stay, stay, branch)
        for stay, branch in ((first, second), (second, first)):
            root = next((name for name in self._behind(stay) if self.ancestry.descends(branch, name)), None)
            if root is not None:
                return self._plain(op, total, stay, root, branch)
        return self._joined(op, total, first, second)

    def _operands(self, op: Op) -> tuple[str, str, str] | None:
        """What the node adds, and the sum, if these are two floating-point activations."""
        is_sum = op.is_standard and (op.type == "Add" or (op.type == "Sum" and len(op.inputs) == 2))
        is_fused = op.domain == "com.microsoft" and op.type in FUSED_SUMS
        if not (is_sum or (is_fused and any(op.outputs[3:]))):
            return None
        first, second = op.inputs[:2]
        types = self.flow.trace.facts.types
        are_float = all(types.get(name, onnx.TensorProto.FLOAT) in FLOATS for name in (first, second))
        if first == second or not are_float or not all(map(self.ancestry.knows, (first, second))):
            return None
        return first, second, op.outputs[3 if is_fused else 0]

    def _behind(self, tensor: str) -> Iterator[str]:
        """What an operand was before activations and before earlier branches were added."""
        while True:
            maker = self.flow.maker(tensor)
            if tensor in self._sources:
                tensor = self._sources[tensor]
            elif maker is not None and maker.is_standard and maker.type in UNARY:
                tensor = maker.input(0)
            else:
                return
            yield tensor

    def _plain(self, op: Op, total: str, stay: str, root: str, branch: str) -> Residual | None:
        nodes = list(self.ancestry.between(root, branch))
        if not any(node.index in self.weighted for node in nodes):
            return None
        going = self.only_for([op.index], stay)
        reason = self.shape_reason(stay, total) or self.way_out(nodes, going)
        return Residual(op, stay, root, total, going, tuple(nodes), reason)

    def shape_reason(self, stay: str, total: str) -> str:
        """Why one tensor can't stand for another; empty where it can, at any batch and size."""
        shapes, there = self.flow.trace.facts.shapes, self.flow.trace.facts.elsewhere
        if stay not in shapes or total not in shapes:
            return "the shape of its input or of its output isn't known"
        if shapes[stay] != shapes[total]:
            return f"its input has the shape {shapes[stay]}, its output {shapes[total]}"
        if stay in there and total in there and there[stay] != there[total]:
            return f"its input and output have one shape at this size only: elsewhere {there[stay]} and {there[total]}"
        return ""

    def _joined(self, op: Op, total: str, first: str, second: str) -> Residual | None:
        """A sum of two things that are made of one activation: neither of them is it."""
        fork = self.ancestry.newest_common(first, second)
        if fork is None or self.flow.trace.facts.types.get(fork, onnx.TensorProto.FLOAT) not in FLOATS:
            return None
        ways = [list(self.ancestry.between(fork, operand)) for operand in (first, second)]
        counts = [sum(node.index in self.weighted for node in nodes) for nodes in ways]
        if not any(counts):
            return None
        short = min((0, 1), key=lambda side: (counts[side], len(ways[side])))
        going = self.only_for([op.index], fork)
        reason = self._shortcut_reason(ways[short])
        return Residual(op, fork, fork, total, going, tuple(ways[1 - short]), reason, is_plain=False)

    def _shortcut_reason(self, shortcut: list[Op]) -> str:
        weighted = next((node for node in shortcut if node.index in self.weighted), None)
        if weighted is not None:
            return f"its shortcut has weights of its own ({weighted.name})"
        for node in shortcut:
            if node.type in _SHORTCUTS:
                return f"{_SHORTCUTS[node.type]} ({node.name})"
        return f"its shortcut isn't its input ({shortcut[-1].name})"
