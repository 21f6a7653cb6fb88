"""Operands and attributes that name sizes, rewritten for the widths that stay: one function an operator.

Vectors of sizes come as attributes (old opsets), as constants, or computed at run time from other extents. What is
computed is left to itself where it comes out right, and corrected entry by entry where it doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from snp_onnx.errors import PassError
from snp_onnx.passes.base import fresh_name, insert_before
from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.groups import Mask, Trace
from snp_onnx.tracing.labels import Labels
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.operands import pad_amounts, slice_cuts, split_sizes


@dataclass(frozen=True, slots=True)
class Afterwards:
    """Values and shapes as they come out after the cut, if nobody corrects them."""

    values: Mapping[str, npt.NDArray[np.generic]]
    shapes: Mapping[str, Shape]

    def value(self, tensor: str) -> npt.NDArray[np.generic] | None:
        return self.values.get(tensor)

    def shape(self, tensor: str) -> Shape:
        return self.shapes[tensor]


class Resizing:
    """Extents before and after, and the one way to change entries of a size vector."""

    def __init__(self, trace: Trace, alive: Mask, graph: gs.Graph) -> None:
        self.trace, self._alive, self.graph = trace, alive, graph
        after = {name: self.after(name) for name in trace.facts.shapes}
        self.afterwards = Afterwards(trace.facts.revalue(after), after)

    def value(self, tensor: str) -> npt.NDArray[np.generic] | None:
        """A constant's value as it was before the cut (for operands that name positions)."""
        return self.trace.facts.values.get(tensor)

    def shape(self, tensor: str) -> Shape:
        return self.trace.facts.shapes[tensor]

    def after(self, tensor: str) -> Shape:
        return self.trace.shape_after(tensor, self._alive)

    def is_touched(self, op: Op) -> bool:
        """Whether a tensor of the node is cut, or a size that it reads comes out differently."""
        known, facts = [name for name in (*op.inputs, *op.outputs) if name in self.trace.axes], self.trace.facts
        if any(self.after(name) != self.shape(name) for name in known):
            return True
        sizes = [name for name in op.inputs if name in facts.origins]
        return any(not np.array_equal(self.afterwards.values[name], facts.values[name]) for name in sizes)

    def computed(self, tensor: str) -> list[int]:
        """What a size vector comes out as after the cut, if nobody corrects it."""
        return [int(x) for x in self.afterwards.values[tensor].reshape(-1)]

    def labels(self, tensor: str, axis: int) -> Labels:
        return self.trace.axes[tensor][axis]

    def is_cut(self, tensor: str, axis: int) -> bool:
        return not bool(self._alive[self.labels(tensor, axis)].all())

    def count(self, labels: Labels) -> int:
        """How many of the positions stay."""
        return int(np.count_nonzero(self._alive[labels]))

    def places(self, labels: Labels) -> npt.NDArray[np.int64]:
        """For every old position its new one; -1 where it went."""
        alive = self._alive[labels]
        return np.where(alive, np.cumsum(alive) - 1, -1)

    def may_vary(self, vector: str, entry: int) -> bool:
        """Whether an extent takes part in an entry that varies: a number would hold for the traced shapes only."""
        facts = self.trace.facts
        if vector not in facts.origins:
            return False
        axes = facts.extents[facts.origins[vector].reshape(-1)[entry]]
        return any(self._varies(tensor, axis) for tensor, axis in axes)

    def _varies(self, tensor: str, axis: int) -> bool:
        """Where inference can't tell, any extent that isn't cut may."""
        known = self.trace.facts.varies(tensor, axis)
        return (tensor not in self.trace.axes or not self.is_cut(tensor, axis)) if known is None else known

    def set_constant(self, node: gs.Node, place: int, values: npt.NDArray[np.generic]) -> None:
        """Give one node its own constant operand."""
        wish = f"{node.inputs[place].name or node.outputs[0].name}_pruned"
        node.inputs[place] = gs.Constant(fresh_name(self.graph, wish), values)

    def set_entries(self, node: gs.Node, op: Op, place: int, attribute: str, changes: Mapping[int, int]) -> None:
        """Change entries of a vector operand, whichever way this node carries it."""
        if not changes:
            return
        if not op.input(place):
            vector = list(node.attrs[attribute])
            for entry, size in changes.items():
                vector[entry] = size
            node.attrs[attribute] = vector
        elif isinstance(node.inputs[place], gs.Constant):
            values = np.array(node.inputs[place].values)
            for entry, size in changes.items():
                values.reshape(-1)[entry] = size
            self.set_constant(node, place, values)
        else:
            self._override(node, op, place, changes)

    def _override(self, node: gs.Node, op: Op, place: int, changes: Mapping[int, int]) -> None:
        """Correct entries of a vector that is computed at run time."""
        if self._correct_join(node.inputs[place], changes):
            return
        graph, computed = self.graph, node.inputs[place]
        entries = np.array(sorted(changes), dtype=np.int64)
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.trace.facts.types[op.input(place)])
        sizes = np.array([changes[int(entry)] for entry in entries], dtype=kind)
        corrected = gs.Variable(fresh_name(graph, f"{computed.name}_pruned"), computed.dtype, computed.shape)
        operands = [
            computed,
            gs.Constant(fresh_name(graph, f"{computed.name}_entries"), entries),
            gs.Constant(fresh_name(graph, f"{computed.name}_sizes"), sizes),
        ]
        scatter = gs.Node(
            "ScatterElements" if op.version >= 11 else "Scatter",
            f"{op.name}_{corrected.name}",
            {"axis": 0},
            operands,
            [corrected],
        )
        insert_before(graph, node, scatter)
        node.inputs[place] = corrected

    def _correct_join(self, computed: gs.Variable, changes: Mapping[int, int]) -> bool:
        """Where a Concat joins the vector for this reader alone and the wrong entries are constants, change those."""
        join = computed.inputs[0] if len(computed.inputs) == 1 else None
        if join is None or join.op != "Concat" or len(computed.outputs) != 1:
            return False
        start, wrong = 0, {}
        for place, part in enumerate(join.inputs):
            length = part.values.size if isinstance(part, gs.Constant) else int(np.prod(self.shape(part.name)))
            own = {entry - start: size for entry, size in changes.items() if start <= entry < start + length}
            if own and not isinstance(part, gs.Constant):
                return False
            wrong[place] = own
            start += length
        for place, own in wrong.items():
            if own:
                values = np.array(join.inputs[place].values)
                values[list(own)] = list(own.values())
                self.set_constant(join, place, values)
        return True


def _reshape(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """0 copies the input's extent and -1 is inferred; both are right as they are if the rest is.

    Where 0 stands for itself (`allowzero`) the output is empty, and nothing of it is cut.
    """
    wanted, source = resizing.after(op.outputs[0]), resizing.after(op.input(0))
    changes = {}
    for axis, size in enumerate(resizing.computed(op.input(1))):
        comes_out = source[axis] if size == 0 and axis < len(source) else size
        if size != -1 and comes_out != wanted[axis]:
            changes[axis] = -1 if resizing.may_vary(op.input(1), axis) else wanted[axis]
    if list(changes.values()).count(-1) > 1:
        raise PassError(f"{op.name}: two extents of this Reshape vary from run to run and can't both be corrected")
    resizing.set_entries(node, op, 1, "shape", changes)


def _expand(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """One broadcasts; any other size must be the wanted one. The vector may be shorter than the output's rank."""
    sizes = resizing.computed(op.input(1))
    wanted = resizing.after(op.outputs[0])
    wanted = wanted[len(wanted) - len(sizes) :]
    changes = {axis: n for axis, (size, n) in enumerate(zip(sizes, wanted, strict=True)) if size not in (1, n)}
    resizing.set_entries(node, op, 1, "shape", changes)


def _constant_of_shape(node: gs.Node, op: Op, resizing: Resizing) -> None:
    wanted = resizing.after(op.outputs[0])
    sizes = resizing.computed(op.input(0))
    changes = {axis: n for axis, (size, n) in enumerate(zip(sizes, wanted, strict=True)) if size != n}
    resizing.set_entries(node, op, 0, "shape", changes)


def _tile(node: gs.Node, op: Op, resizing: Resizing) -> None:
    source, wanted = resizing.after(op.input(0)), resizing.after(op.outputs[0])
    repeats = resizing.computed(op.input(1))
    changes = {
        axis: after // before
        for axis, (before, after, repeat) in enumerate(zip(source, wanted, repeats, strict=True))
        if before * repeat != after
    }
    resizing.set_entries(node, op, 1, "repeats", changes)


def _resize(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """Only the form with sizes names extents; scales stay."""
    if not op.input(3):
        return
    wanted = resizing.after(op.outputs[0])
    axes = op.attr("axes", list(range(len(wanted))))
    sizes = resizing.computed(op.input(3))
    changes = {e: wanted[axis] for e, (axis, size) in enumerate(zip(axes, sizes, strict=True)) if size != wanted[axis]}
    resizing.set_entries(node, op, 3, "sizes", changes)


def _slice(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """On a cut axis the window starts and ends behind as many positions as stay before it.

    Bounds that come out right by themselves stay: they may be right at other extents too.
    """
    source = op.input(0)
    starts: dict[int, int] = {}
    ends: dict[int, int] = {}
    after = slice_cuts(op, resizing.afterwards, resizing.after(source)) or []
    for cut, comes_out in zip(slice_cuts(op, resizing, resizing.shape(source)) or [], after, strict=True):
        if resizing.is_cut(source, cut.axis):
            labels = resizing.labels(source, cut.axis)
            start, end = resizing.count(labels[: cut.start]), resizing.count(labels[: max(cut.start, cut.stop)])
            if (comes_out.start, max(comes_out.start, comes_out.stop)) != (start, end):
                starts[cut.entry], ends[cut.entry] = start, end
    resizing.set_entries(node, op, 1, "starts", starts)
    resizing.set_entries(node, op, 2, "ends", ends)


def _split(node: gs.Node, op: Op, resizing: Resizing) -> None:
    source = op.input(0)
    axis = int(op.attr("axis", 0)) % len(resizing.shape(source))
    if not resizing.is_cut(source, axis):
        return
    sizes = split_sizes(op, resizing) or []
    parts = np.split(resizing.labels(source, axis), np.cumsum(sizes)[:-1])
    counts = [resizing.count(part) for part in parts]
    node.attrs.pop("num_outputs", None)
    if op.version < 13:
        node.attrs["split"] = counts
    elif op.input(1):
        resizing.set_constant(node, 1, np.array(counts, dtype=np.int64))
    else:
        while len(node.inputs) > 1:
            node.inputs.pop()
        node.inputs.append(gs.Variable.empty())
        resizing.set_constant(node, 1, np.array(counts, dtype=np.int64))


def _pad(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """Added positions are counted in the output's labels, cropped ones in the input's."""
    source, output = op.input(0), op.outputs[0]
    rank = len(resizing.shape(source))
    axes = _pad_axes(op, resizing, rank)
    computed = resizing.computed(op.input(1)) if op.input(1) else list(op.attr("pads", []))
    changes: dict[int, int] = {}
    for axis, amounts in enumerate(pad_amounts(op, resizing, rank) or []):
        if axis in axes and _touches(resizing, source, output, axis):
            for side, amount in enumerate(amounts):
                entry = axes.index(axis) + side * len(axes)
                wanted = _amount(resizing, source, output, axis, amount, at_end=side == 1)
                if amount or computed[entry] != wanted:  # amounts from extents turn up where there were none
                    changes[entry] = wanted
    resizing.set_entries(node, op, 1, "pads", changes)


def _pad_axes(op: Op, resizing: Resizing, rank: int) -> list[int]:
    given = resizing.value(op.input(3)) if op.input(3) else None
    return list(range(rank)) if given is None else [int(axis) % rank for axis in given.reshape(-1)]


def _touches(resizing: Resizing, source: str, output: str, axis: int) -> bool:
    return resizing.is_cut(source, axis) or resizing.is_cut(output, axis)


def _amount(resizing: Resizing, source: str, output: str, axis: int, amount: int, at_end: bool) -> int:
    if amount == 0:
        return 0
    labels = resizing.labels(output if amount > 0 else source, axis)
    edge = labels[-abs(amount) :] if at_end else labels[: abs(amount)]
    return resizing.count(edge) * (1 if amount > 0 else -1)


def _gather(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """Constant indices name new positions; those of removed ones go."""
    source = op.input(0)
    axis = int(op.attr("axis", 0)) % len(resizing.shape(source))
    indices = resizing.value(op.input(1))
    if indices is None or source not in resizing.trace.axes or indices.ndim > 1:
        return
    moved = resizing.places(resizing.labels(source, axis))[np.asarray(indices, dtype=np.int64)]
    kept = moved if moved.ndim == 0 else moved[resizing.places(resizing.labels(op.outputs[0], axis)) >= 0]
    if np.array_equal(kept, indices):
        return
    resizing.set_constant(node, 1, np.asarray(kept, dtype=indices.dtype))


def _group_attribute(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """A grouped convolution loses whole groups, or the same positions of every group."""
    groups = int(op.attr("group", 1))
    if groups > 1:
        places = resizing.places(resizing.labels(op.input(0), 1)).reshape(groups, -1)
        node.attrs["group"] = int((places >= 0).any(axis=1).sum())


def _num_groups(node: gs.Node, op: Op, resizing: Resizing) -> None:
    groups = int(op.attr("num_groups", 1))
    labels = resizing.labels(op.input(0), 1).reshape(groups, -1)[:, 0]
    node.attrs["num_groups"] = resizing.count(labels)


def _open_norm(node: gs.Node, op: Op, resizing: Resizing) -> None:
    """A mean of squares over k of d entries: sum/d + eps = (mean + eps d/k) k/d, so the gain gets sqrt(d/k)."""
    source = op.input(0)
    before, after = resizing.shape(source)[-1], resizing.after(source)[-1]
    if op.outputs[0] not in resizing.trace.open_norms or before == after:
        return
    factor = before / after
    plus = node.outputs[0].outputs[0]
    times = plus.outputs[0].outputs[0].outputs[0].outputs[0].outputs[0].outputs[0]
    if (plus.op, times.op) != ("Add", "Mul"):
        raise PassError(f"{op.name}: not the norm that was to be corrected for its width")
    for end, scale in ((plus, factor), (times, factor**0.5)):
        values = end.inputs[1].values
        resizing.set_constant(end, 1, np.asarray(values.astype(np.float64) * scale, dtype=values.dtype))


Resizer = Callable[[gs.Node, Op, Resizing], None]

RESIZERS: Mapping[str, Resizer] = MappingProxyType(
    {
        "Reshape": _reshape,
        "Expand": _expand,
        "ConstantOfShape": _constant_of_shape,
        "Tile": _tile,
        "Resize": _resize,
        "Slice": _slice,
        "Split": _split,
        "Pad": _pad,
        "Gather": _gather,
        "Conv": _group_attribute,
        "ConvTranspose": _group_attribute,
        "DeformConv": _group_attribute,
        "GroupNormalization": _num_groups,
        "ReduceMean": _open_norm,
    }
)
"""Operators with sizes to rewrite; all others take theirs from their inputs."""
