"""Blocks: parts of a network that leave shapes alone, so that their readers could read their input instead.

Found by structure: residual sums (`tracing.residuals`), whole layers of a transformer, and what stands between two
norms of one kind. A transformer that normalises after each sum keeps the norm when a branch goes, as it would with a
branch that gives zero; a whole layer goes with its norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx

from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.norm_ends import NormEnd, norm_ends
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.residuals import FUSED_SUMS, UNARY, Residual, Residuals


class BlockKind(StrEnum):
    """What a block is: a residual branch (of these the attentions and feed-forwards), a layer, or a sequence."""

    RESIDUAL = "residual"
    ATTENTION = "attention"
    FEED_FORWARD = "feed-forward"
    LAYER = "layer"
    SEQUENCE = "sequence"


@dataclass(frozen=True, slots=True)
class Block:
    """What goes if the readers of `output` read `input` instead.

    `name` is that of the node which adds, or those of the first and last one. Where nothing can go, `reason` says why.
    """

    name: str
    kind: BlockKind
    input: str
    output: str
    nodes: tuple[int, ...]
    """All that only this block needs, by index in graph order: its last node, constants and sizes included."""
    stage: int
    """Blocks of one stage, counted from 0, write to one stream of one shape."""
    reason: str = ""
    parts: tuple[str, ...] = ()
    """Names of smaller blocks inside this one."""

    @property
    def is_removable(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True, eq=False)
class _Span:
    """A block before its stage and its parts are known; `end` is where the next one starts, norms behind included."""

    name: str
    kind: BlockKind
    input: str
    output: str
    nodes: frozenset[int]
    reason: str
    root: str
    end: str


def find_blocks(model: onnx.ModelProto, flow: Flow) -> tuple[Block, ...]:
    """Every block of a traced model, in the order of the nodes they end in; a layer comes after its parts."""
    return _Search(model, flow).find()


class _Search:
    def __init__(self, model: onnx.ModelProto, flow: Flow) -> None:
        self._flow = flow
        self._residuals = Residuals(model, flow)
        self._norms = norm_ends(flow)
        self._products = {product.op.index for product in flow.trace.products}
        self._norm_of = {norm.input: norm for norm in self._norms.values()}

    def find(self) -> tuple[Block, ...]:
        found = self._residuals.find()
        single = [self._span(residual) for residual in found if not self._is_inner(residual, found)]
        simple = [span for span in single if not any(other.nodes < span.nodes for other in single)]
        spans = [*single, *self._layers(simple), *self._sequences(residual.op.index for residual in found)]
        spans.sort(key=lambda span: (max(span.nodes), len(span.nodes)))
        return tuple(self._blocks(spans))

    def _is_inner(self, residual: Residual, found: Iterable[Residual]) -> bool:
        """Whether it can't go and lies in a branch without blocks of its own: a mask added to an attention's logits."""
        if not residual.reason:
            return False
        others = [other for other in found if other is not residual and other.is_plain]
        around = [other for other in others if residual.op.index in other.nodes]
        whole = [other for other in others if not other.reason]
        return any(not any(inner.nodes < other.nodes for inner in whole) for other in around)

    def _span(self, residual: Residual) -> _Span:
        output, nodes, reason = residual.total, residual.nodes, residual.reason
        if residual.op.type in FUSED_SUMS:
            reason = reason or f"its sum is inside a fused node ({residual.op.name}): prune before operators are fused"
        follower = self._flow.only_reader(output)
        if not reason and follower is not None and self._is_idle(follower, residual.input):
            output, nodes = follower.outputs[0], nodes | {follower.index}
        kind, end = self._kind(residual.branch), self._end(output)
        return _Span(residual.op.name, kind, residual.input, output, nodes, reason, residual.root, end)

    def _end(self, output: str) -> str:
        """Where the stream goes on behind a sum: at the end of a norm, if nothing else reads the sum."""
        norm = self._norm_of.get(output)
        readers = {op.index for op in self._flow.readers.get(output, ())}
        return norm.output if norm and readers <= norm.members and not self._flow.is_output(output) else output

    def _kind(self, ops: Sequence[Op]) -> BlockKind:
        types = {op.type for op in ops}
        is_convolutional = any("Conv" in name for name in types)
        has_product = any(op.index in self._products or "Attention" in op.type for op in ops)
        if has_product or ("Softmax" in types and not is_convolutional):
            return BlockKind.ATTENTION
        return BlockKind.RESIDUAL if is_convolutional else BlockKind.FEED_FORWARD

    def _is_idle(self, activation: Op, tensor: str) -> bool:
        """Whether an activation leaves a tensor as it is, because that is the outcome of the same activation."""
        maker = self._flow.maker(tensor)
        while maker is not None and maker.is_standard and maker.type in ("Identity", "Dropout", "MaxPool"):
            maker = self._flow.maker(maker.input(0))
        if maker is None or not (maker.is_standard and activation.is_standard) or activation.type not in _IDEMPOTENT:
            return False
        return maker.type == activation.type and self._limits(maker) == self._limits(activation) is not None

    def _limits(self, op: Op) -> tuple[float | None, ...] | None:
        """The bounds of a Clip; None where they aren't known."""
        found: list[float | None] = [op.attr("min", None), op.attr("max", None)] if op.type == "Clip" else []
        for place, name in enumerate(op.inputs[1:]):
            value = self._flow.trace.facts.values.get(name) if name else None
            if name and (value is None or value.size != 1):
                return None
            found[place] = None if value is None else float(np.asarray(value).reshape(()))
        return tuple(found)

    def _layers(self, spans: list[_Span]) -> Iterator[_Span]:
        """Attention and feed-forward branches that follow each other, or stand side by side."""
        start = 0
        while start < len(spans):
            stop = start + 1
            while stop < len(spans) and self._continues(spans[start:stop], spans[stop]):
                stop += 1
            kinds = {span.kind for span in spans[start:stop]}
            if kinds == {BlockKind.ATTENTION, BlockKind.FEED_FORWARD}:
                yield self._layer(spans[start], spans[stop - 1])
            start = stop

    def _continues(self, run: list[_Span], span: _Span) -> bool:
        """Whether a branch belongs to the layer so far: attentions, then one feed-forward, or both on one input."""
        if self._bare(span.input) != run[-1].end:
            return False
        kinds = [part.kind for part in run]
        if span.root == run[0].root and len(run) == 1:
            return {*kinds, span.kind} == {BlockKind.ATTENTION, BlockKind.FEED_FORWARD}
        return set(kinds) == {BlockKind.ATTENTION} and span.kind in (BlockKind.ATTENTION, BlockKind.FEED_FORWARD)

    def _layer(self, first: _Span, last: _Span) -> _Span:
        same = self._norms.get(last.end)
        start = self._norms.get(self._bare(first.input))
        output = last.end if same is not None and start is not None and same.kind == start.kind else last.output
        return self._between(f"{first.name}..{last.name}", BlockKind.LAYER, first.input, output, last.end)

    def _between(self, name: str, kind: BlockKind, source: str, output: str, end: str) -> _Span:
        """Everything from one tensor to another."""
        maker = self._flow.maker(output)
        assert maker is not None
        going = self._residuals.only_for([maker.index], source)
        reason = self._residuals.shape_reason(source, output)
        beside = [name for name in maker.outputs if name != output and self._is_needed(name)]
        reason = reason or (f"{beside[0]} beside its output is needed" if beside else "")
        way = list(self._residuals.ancestry.between(source, output))
        return _Span(name, kind, source, output, going, reason or self._residuals.way_out(way, going), source, end)

    def _is_needed(self, tensor: str) -> bool:
        return bool(self._flow.readers.get(tensor)) or self._flow.is_output(tensor)

    def _sequences(self, sums: Iterable[int]) -> Iterator[_Span]:
        """What lies between two norms of one kind, where no residual sum is involved."""
        held = set(sums)
        ends = list(self._norms.values())
        for place, last in enumerate(ends):
            first = next((norm for norm in reversed(ends[:place]) if self._follows(last, norm)), None)
            maker = self._flow.maker(last.output)
            if first is None or maker is None:
                continue
            span = self._between(maker.name, BlockKind.SEQUENCE, first.output, last.output, last.output)
            is_plain = not span.reason and not span.nodes & held and bool(span.nodes & self._residuals.weighted)
            if is_plain and not self._is_passed_by(span):
                yield span

    def _follows(self, last: NormEnd, first: NormEnd) -> bool:
        return last.kind == first.kind and self._residuals.ancestry.descends(last.output, first.output)

    def _is_passed_by(self, span: _Span) -> bool:
        """Whether something older than its input, and of the same shape, goes into the middle of a sequence."""
        shapes, ancestry = self._flow.trace.facts.shapes, self._residuals.ancestry
        read = {name for index in span.nodes for name in self._flow.trace.ops[index].reads}
        return any(ancestry.descends(span.input, name) and shapes.get(name) == shapes[span.input] for name in read)

    def _bare(self, tensor: str) -> str:
        """The tensor behind what an Identity only renames."""
        maker = self._flow.maker(tensor)
        while maker is not None and maker.is_standard and maker.type == "Identity":
            tensor = maker.input(0)
            maker = self._flow.maker(tensor)
        return tensor

    def _blocks(self, spans: list[_Span]) -> Iterator[Block]:
        sources = {span.output: span.input for span in spans if not span.reason}
        numbers: dict[tuple[str, tuple[int, ...]], int] = {}
        for span in spans:
            shape = self._flow.trace.facts.shapes.get(span.output, ())
            stage = numbers.setdefault((self._stream(span.output, sources), shape), len(numbers))
            parts = tuple(other.name for other in spans if other.nodes < span.nodes)
            nodes = tuple(sorted(span.nodes))
            yield Block(span.name, span.kind, span.input, span.output, nodes, stage, span.reason, parts)

    def _stream(self, tensor: str, sources: dict[str, str]) -> str:
        """The first tensor of the stream that a block writes to: behind sums, norms and activations."""
        while True:
            maker = self._flow.maker(tensor)
            norm = self._norms.get(tensor)
            added = sources.get(tensor) or self._residuals.source(tensor)
            if added is not None:
                tensor = added
            elif norm is not None:
                tensor = norm.input
            elif maker is not None and maker.is_standard and maker.type in UNARY:
                tensor = maker.input(0)
            else:
                return tensor


_IDEMPOTENT = frozenset(("Relu", "Clip"))
