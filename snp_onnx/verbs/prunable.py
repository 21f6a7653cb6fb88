"""What could go at most: what remains if every group of a kind went to its minimum, and the options that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from snp_onnx.calibration.sessions import Runtime
from snp_onnx.cost import param_terms, total, weights
from snp_onnx.planning.cost_table import CostTable
from snp_onnx.tracing import PLAIN_KINDS, Group, Kind, Trace, find_blocks
from snp_onnx.tracing.attention import find_attention
from snp_onnx.tracing.blocks import Block, BlockKind
from snp_onnx.tracing.streams import Stream, find_streams
from snp_onnx.verbs.depth import block_shares
from snp_onnx.verbs.result import Prunable
from snp_onnx.verbs.subject import Subject, retraced

BY_DEFAULT = "default"
RANK_OF_CACHES = 4
"""Axes of an input or output that can hold the keys and values of several heads."""


def prunable(subject: Subject, runtime: Runtime) -> dict[str, Prunable]:
    """By kind of unit; first what goes without any option."""
    trace = subject.trace
    plain = [group for group in trace.groups if not _is_residual(group)]
    default = _Table(subject, trace, plain)
    found = {BY_DEFAULT: default.least("", range(len(plain)))}
    for kind in (Kind.CHANNELS, Kind.HEADS):
        found[str(kind)] = default.least("", [n for n, group in enumerate(plain) if group.kind is kind])
    streams = [group for group in trace.groups if _is_residual(group)]
    found["streams"] = _beside(subject, trace, plain, streams, "--streams")
    found["caches"] = _caches(subject, runtime)
    found[str(Kind.HEAD_DIMS)] = _head_dims(subject, runtime)
    found[str(Kind.STREAM)] = _beside(subject, trace, plain, _rotated(subject), _units(*PLAIN_KINDS, Kind.STREAM))
    found[str(Kind.BLOCKS)] = _blocks(subject)
    return found


def other_kinds(subject: Subject, runtime: Runtime) -> list[str]:
    """What options would let in beside the groups of the trace, in words."""
    found = prunable(subject, runtime)
    return [f"{found[kind].options} lets in {found[kind].units} {what}" for kind, what in _OTHERS if found[kind].groups]


_OTHERS = (
    ("caches", "heads of caches"),
    (str(Kind.HEAD_DIMS), "dimensions of heads"),
    (str(Kind.STREAM), "entries of residual streams"),
    (str(Kind.BLOCKS), "blocks"),
)


def _nothing(options: str) -> Prunable:
    return Prunable(options, 0, 0, 1.0, 1.0)


def _is_residual(group: Group) -> bool:
    """Whether it is a convolutional residual stream, which goes with `--streams` only."""
    return group.is_stream and group.kind is Kind.CHANNELS


def _units(*kinds: Kind) -> str:
    return f"--units {','.join(sorted(map(str, kinds)))}"


class _Table:
    """What widths of some groups of a trace cost, as shares of the whole."""

    def __init__(self, subject: Subject, trace: Trace, groups: Sequence[Group]) -> None:
        terms = subject.mac_terms(), param_terms(subject.prepared)
        self._tables = [CostTable(part, trace, groups) for part in terms]
        self._sizes = np.array([len(group) for group in groups], dtype=np.int64)

    def least(self, options: str, numbers: Sequence[int], others: Sequence[int] = ()) -> Prunable:
        """With one unit left of each of these groups; `others` go beside them in the figures with the default."""
        chosen = list(numbers)
        alone, together = self._shares(chosen), self._shares([*chosen, *others])
        return Prunable(options, len(chosen), int(self._sizes[chosen].sum()), *alone, *together)

    def _shares(self, numbers: Sequence[int]) -> tuple[float, float]:
        widths = self._sizes.copy()
        widths[list(numbers)] = 1
        macs, params = (table.cost(widths) / dense if (dense := table.dense()) > 0.0 else 1.0 for table in self._tables)
        return macs, params


def _beside(subject: Subject, trace: Trace, plain: Sequence[Group], more: Sequence[Group], options: str) -> Prunable:
    """What more groups give, alone and with those that go by default."""
    table = _Table(subject, trace, [*plain, *more])
    return table.least(options, range(len(plain), len(plain) + len(more)), range(len(plain)))


def _caches(subject: Subject, runtime: Runtime) -> Prunable:
    """Heads of key-value caches: those that a trace finds which may narrow inputs and outputs of the graph."""
    surface = (*subject.prepared.graph.input, *subject.prepared.graph.output)
    has_caches = any(len(value.type.tensor_type.shape.dim) >= RANK_OF_CACHES for value in surface)
    has_attention = bool(subject.trace.products) or any(op.type.endswith("Attention") for op in subject.trace.ops)
    if not has_caches or not has_attention:
        return _nothing("--caches")
    trace = retraced(subject, runtime, caches=True).trace
    known = {group.id for group in subject.trace.groups}
    plain = [group for group in trace.groups if group.id in known and not _is_residual(group)]
    more = [group for group in trace.groups if group.id not in known and group.kind is Kind.HEADS]
    return _beside(subject, trace, plain, more, "--caches")


def _head_dims(subject: Subject, runtime: Runtime) -> Prunable:
    """Dimensions inside heads, which take the place of whole heads."""
    kinds = frozenset((*PLAIN_KINDS, Kind.HEAD_DIMS))
    attention = find_attention(subject.flow)
    if not attention.logits and not attention.contexts:
        return _nothing(_units(*kinds))
    trace = retraced(subject, runtime, kinds=kinds, caches=False).trace
    more = [group for group in trace.groups if group.kind is Kind.HEAD_DIMS]
    plain = [group for group in trace.groups if group.kind in PLAIN_KINDS and not _is_residual(group)]
    return _beside(subject, trace, plain, more, _units(*kinds))


def _rotated(subject: Subject) -> list[Group]:
    """The residual streams that can be rotated and then cut, as if their entries were units already."""
    axes = subject.trace.axes
    found = [stream for stream in find_streams(subject.flow) if isinstance(stream, Stream)]
    labels = ((stream.id, axes[stream.norms[0].input][-1]) for stream in found)
    return [Group(name, Kind.STREAM, units, (), (), True) for name, units in labels]


def _blocks(subject: Subject) -> Prunable:
    """Blocks, of which every stage keeps the one that saves least."""
    options = _units(*PLAIN_KINDS, Kind.BLOCKS)
    single = [
        block
        for block in find_blocks(subject.prepared, subject.flow)
        if block.kind not in (BlockKind.LAYER, BlockKind.SEQUENCE)
    ]
    going = list(_going(single, block_shares(subject, single)))
    if not going:
        return _nothing(options)
    gone = {index for block in going for index in block.nodes}
    names = {subject.trace.ops[index].name for index in gone}
    macs = subject.macs_by_node()
    every = sum(macs.values()) or 1.0
    left = sum(value for name, value in macs.items() if name not in names) / every
    params = _params_left(subject, gone)
    return Prunable(options, len({block.stage for block in going}), len(going), left, params)


def _going(blocks: Sequence[Block], shares: Mapping[str, float]) -> Iterator[Block]:
    """All blocks that can go but one of every stage that has no other left."""
    for stage in dict.fromkeys(block.stage for block in blocks):
        here = [block for block in blocks if block.stage == stage]
        able = sorted((block for block in here if block.is_removable), key=lambda block: shares[block.name])
        yield from able if len(able) < len(here) else able[1:]


def _params_left(subject: Subject, gone: set[int]) -> float:
    """The share of the parameters that something beside these nodes reads."""
    kept = {name for op in subject.trace.ops if op.index not in gone for name in op.reads}
    lost = {name for op in subject.trace.ops if op.index in gone for name in op.reads} - kept
    sizes = {name: tuple(tensor.dims) for name, tensor in weights(subject.prepared)}
    terms = param_terms(subject.prepared)
    every, less = (
        total(part, lambda tensor, axis: sizes[tensor][axis])
        for part in (terms, [term for term in terms if term.name in lost])
    )
    return 1.0 - less / max(every, 1)
