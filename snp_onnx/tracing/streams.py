"""Residual streams of transformers: who writes to one, who reads it behind which norm, or why it can't be rotated.

The stream is one class of labels: embeddings, position tables, residual Adds and the inputs and outputs of norms share
it. A rotation may be absorbed where everything that writes is linear, and everything that reads is a weight, behind a
norm whose gain and shift can move into it. Anything else that touches an entry of the stream is a reason not to.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.cost import RECURRENT
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.labels import Labels
from snp_onnx.tracing.norms import Norm, find_norms
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.tracer import Barrier, Linear

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Normed:
    """A tensor that is a norm's output times `gain` (d,) plus `shift` (d,).

    `is_plain`: nothing has scaled or summed it since, so a shift passes a linear reader as a constant.
    """

    norm: Norm
    gain: Vector
    shift: Vector
    is_plain: bool = True


@dataclass(frozen=True, slots=True)
class Writer:
    """A constant operand of a node that goes into the stream along `axis`."""

    op: Op
    place: int
    axis: int


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A weight that reads the stream, behind a norm or (None) as it is."""

    linear: Linear
    source: Normed | None


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A stream of `width` entries that may be rotated. `bypassed`: nodes whose gain or shift the readers take over."""

    id: str
    width: int
    norms: tuple[Norm, ...]
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    bypassed: tuple[Op, ...]

    @property
    def is_centred(self) -> bool:
        """Whether the norms take the mean away, so that the writers have to."""
        return self.norms[0].is_centred


@dataclass(frozen=True, slots=True, eq=False)
class Unrotated:
    """A stream that stays as it is, and why."""

    id: str
    width: int
    labels: Labels
    barrier: Barrier


class _RefusedError(Exception):
    """Ends the walk over one stream."""

    def __init__(self, op: Op | None, tensor: str, reason: str) -> None:
        self.op, self.tensor, self.reason = op, tensor, reason


def find_streams(flow: Flow) -> tuple[Stream | Unrotated, ...]:
    """Every class of labels that weights write and norms work over, rotatable or not."""
    found: list[Stream | Unrotated] = []
    seen: set[int] = set()
    norms = find_norms(flow)
    for norm in norms:
        labels = flow.trace.axes[norm.input][-1]
        if int(labels[0]) in seen or not _is_free(labels):
            continue
        seen.add(int(labels[0]))
        name = _written(flow, labels)
        if not name:
            continue
        walk = _Walk(flow, labels, [each for each in norms if np.array_equal(_labels(flow, each), labels)])
        try:
            found.append(walk.stream(name))
        except _RefusedError as no:
            barrier = Barrier(no.tensor, 0, no.op.name if no.op else "", no.reason)
            found.append(Unrotated(name, len(labels), labels, barrier))
    return tuple(found)


def _labels(flow: Flow, norm: Norm) -> Labels:
    return flow.trace.axes[norm.input][-1]


def _is_free(labels: Labels) -> bool:
    """Whether every position is a class of its own; label 0 stands for positions that nothing could remove."""
    return len(labels) > 1 and bool(labels.all()) and len(np.unique(labels)) == len(labels)


def _written(flow: Flow, labels: Labels) -> str:
    """The stream's name: the first weight that writes to it."""
    axes = flow.trace.axes
    for linear in flow.trace.linears:
        if np.array_equal(axes[linear.weight][linear.out_axis], labels):
            return f"{flow.weights.root(linear.weight)}:{linear.out_axis}"
    return ""


_MOVES = frozenset(
    (
        *("Identity", "Cast", "Dropout", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"),
        *("Concat", "Split", "Slice", "Gather"),
    )
)
"""Operators that put whole stream vectors elsewhere."""
_AVERAGES = frozenset(("ReduceMean", "ReduceSum"))
"""Linear operators over other axes; a sum would repeat a shift."""


@dataclass(slots=True)
class _Walk:
    """One walk over the graph in its order; `state` tells what each activation that carries the stream is."""

    flow: Flow
    labels: Labels
    norms: list[Norm]
    state: dict[str, Normed | None] = field(default_factory=dict)
    writers: list[Writer] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    bypassed: list[Op] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)
    _mixed: set[str] = field(default_factory=set)

    def stream(self, name: str) -> Stream:
        """The whole stream; _RefusedError where something forbids to rotate it."""
        self._locate()
        members = {index: norm for norm in self.norms for index in norm.members}
        linears = {linear.op.index: linear for linear in self.flow.trace.linears}
        for op in self.flow.trace.ops:
            if op.index in members:
                if op.index == members[op.index].last.index:
                    self._normalise(members[op.index])
            elif self._touches(op):
                self._visit(op, linears.get(op.index))
        self._check()
        parts = self.writers, self.readers, self.bypassed
        return Stream(name, len(self.labels), tuple(self.norms), *map(tuple, parts))  # type: ignore[arg-type]

    def _locate(self) -> None:
        """On which axis each tensor carries the stream, and which tensors carry it in any other way."""
        ours = np.zeros(self.flow.trace.label_count, dtype=np.bool_)
        ours[self.labels] = True
        for tensor, axes in self.flow.trace.axes.items():
            carrying = [axis for axis, labels in enumerate(axes) if ours[labels].any()]
            if len(carrying) == 1 and np.array_equal(axes[carrying[0]], self.labels):
                self._places[tensor] = carrying[0]
            elif carrying:
                self._mixed.add(tensor)

    def _touches(self, op: Op) -> bool:
        """Whether the node sees entries of the stream; nodes of constants alone are weights, not nodes."""
        names = [name for name in (*op.reads, *op.outputs) if name in self._places or name in self._mixed]
        outputs = [name for name in op.outputs if name]
        return bool(names) and op.type not in ("Shape", "Size") and not all(map(self.flow.weights.knows, outputs))

    def _visit(self, op: Op, linear: Linear | None) -> None:
        own = linear.weight if linear is not None else ""
        mixed = next((name for name in (*op.reads, *op.outputs) if name in self._mixed and name != own), None)
        if mixed is not None:
            raise _RefusedError(op, mixed, f"{op.type} handles entries of the stream one by one")
        if linear is not None and op.type not in RECURRENT:
            self._multiply(op, linear)
        elif op.is_standard and op.type in _MOVES | _AVERAGES:
            self._move(op)
        elif op.is_standard and op.type in ("Add", "Sub", "Sum"):
            self._add(op)
        elif op.is_standard and op.type in ("Mul", "Div"):
            self._scale(op)
        else:
            raise _RefusedError(op, op.outputs[0], f"{op.type} works on single entries of the stream")

    def _normalise(self, norm: Norm) -> None:
        if self._state(norm.last, norm.input) is not None:
            raise _RefusedError(norm.last, norm.input, _POST)
        one, none = np.ones(len(self.labels)), np.zeros(len(self.labels))
        gain = self._vector(norm.last, norm.gain) if norm.gain else one
        shift = self._vector(norm.last, norm.shift) if norm.shift else none
        self.state[norm.output] = Normed(norm, gain, shift)

    def _multiply(self, op: Op, linear: Linear) -> None:
        """A weight that reads, writes, or both."""
        if not linear.mixes:
            raise _RefusedError(op, linear.output, f"a grouped {op.type} works on parts of the stream")
        weight = self.flow.trace.axes[linear.weight]
        reads = linear.input in self._places
        if reads:
            if self._places[linear.input] != linear.input_axis:
                raise _RefusedError(op, linear.input, "multiplied along another axis than the stream's")
            self.readers.append(Reader(linear, self._state(op, linear.input)))
        if linear.output in self._places:
            if not np.array_equal(weight[linear.out_axis], self.labels):
                raise _RefusedError(op, linear.output, "multiplied along another axis than the stream's")
            self.writers.append(Writer(op, op.inputs.index(linear.weight), linear.out_axis))
            self.state[linear.output] = None
            if op.input(2):
                self._write(op, 2)

    def _write(self, op: Op, place: int) -> None:
        """A constant operand that goes into the stream; it must have an entry for every unit."""
        name = op.input(place)
        if not self.flow.weights.knows(name) or name not in self._places:
            raise _RefusedError(op, name, "the same number is added to every entry of the stream")
        self.writers.append(Writer(op, place, self._places[name]))

    def _move(self, op: Op) -> None:
        """Whole vectors are put elsewhere, averaged, or picked from a table."""
        data = [place for place, name in enumerate(op.inputs) if name and (place == 0 or op.type == "Concat")]
        states: list[Normed | None] = []
        for place in data:
            name = op.input(place)
            if self.flow.weights.knows(name):
                self._write(op, place)
                states.append(None)
            elif name in self._places:
                states.append(self._state(op, name))
            else:
                raise _RefusedError(op, name, f"{op.type} makes the stream from something else")
        if op.type == "Cast" and not self._is_float(op.outputs[0]):
            raise _RefusedError(op, op.outputs[0], "rounded to whole numbers")
        state = states[0]
        if any(other is not state for other in states):
            raise _RefusedError(op, op.outputs[0], "outputs of different norms are joined")
        if state is not None and op.type == "ReduceSum":
            state = replace(state, is_plain=False)
        for name in op.outputs:
            if name and name not in self._places:
                raise _RefusedError(op, name, f"{op.type} works over the stream")
            self.state[name] = state

    def _add(self, op: Op) -> None:
        constant = [place for place, name in enumerate(op.inputs) if self.flow.weights.knows(name)]
        states: list[Normed | None] = []
        for place, name in enumerate(op.inputs):
            if place not in constant:
                if name not in self._places:
                    raise _RefusedError(op, name, "the same number is added to every entry of the stream")
                states.append(self._state(op, name))
        if all(state is None for state in states):
            for place in constant:
                self._write(op, place)
            self.state[op.outputs[0]] = None
            return
        state = states[0]
        if (
            state is None
            or len(states) > 1
            or op.input(0) in (op.input(place) for place in constant if op.type == "Sub")
        ):
            raise _RefusedError(op, op.outputs[0], _POST)
        shift = sum((self._vector(op, op.input(place)) for place in constant), np.zeros(len(self.labels)))
        self._bypass(op, replace(state, shift=state.shift + (-shift if op.type == "Sub" else shift)))

    def _scale(self, op: Op) -> None:
        """A norm's gain, or a factor that all entries share."""
        carrying = [place for place, name in enumerate(op.inputs) if name in self._places]
        active = [place for place in carrying if not self.flow.weights.knows(op.input(place))]
        if len(active) != 1 or (op.type == "Div" and active != [0]):
            raise _RefusedError(op, op.outputs[0], f"{op.type} works on single entries of the stream")
        state = self._state(op, op.input(active[0]))
        if len(carrying) == 1:
            self.state[op.outputs[0]] = state if state is None else replace(state, is_plain=False)
            return
        if state is None:
            raise _RefusedError(op, op.outputs[0], "entries of the stream are scaled one by one")
        factor = self._vector(op, op.input(next(place for place in carrying if place not in active)))
        factor = 1.0 / factor if op.type == "Div" else factor
        self._bypass(op, replace(state, gain=state.gain * factor, shift=state.shift * factor))

    def _bypass(self, op: Op, state: Normed) -> None:
        if not state.is_plain:
            raise _RefusedError(op, op.outputs[0], "a gain stands behind another operation on the norm's output")
        self.bypassed.append(op)
        self.state[op.outputs[0]] = state

    def _is_float(self, tensor: str) -> bool:
        kind = onnx.helper.tensor_dtype_to_np_dtype(self.flow.trace.facts.types[tensor])
        return kind.kind == "f" or kind.name == "bfloat16"

    def _state(self, op: Op, tensor: str) -> Normed | None:
        if tensor not in self.state:
            raise _RefusedError(op, tensor, "not written by weights alone")
        return self.state[tensor]

    def _vector(self, op: Op, tensor: str) -> Vector:
        """A constant (d,), whatever axes of extent one it has."""
        shape = self.flow.shape(tensor)
        if not self.flow.weights.knows(tensor) or int(np.prod(shape)) != len(self.labels):
            raise _RefusedError(op, tensor, "a gain or shift that isn't a constant vector")
        return np.asarray(self.flow.weights.array(tensor), dtype=np.float64).reshape(-1)

    def _check(self) -> None:
        """What is true of the stream as a whole."""
        for tensor in self._places.keys() | self._mixed:
            if self.flow.is_output(tensor):
                raise _RefusedError(None, tensor, "the stream is a graph output")
        if len({norm.is_centred for norm in self.norms}) > 1:
            raise _RefusedError(self.norms[0].last, self.norms[0].input, "norms with and without mean on one stream")
        for reader in self.readers:
            self._check_reader(reader)
        operands = [(reader.linear.op, reader.linear.weight) for reader in self.readers]
        for op, name in [*operands, *((writer.op, writer.op.input(writer.place)) for writer in self.writers)]:
            if self.flow.weights.is_quantised(name):
                raise _RefusedError(op, name, "a quantised weight can't be rotated without loss")
        if not self.readers or not self.writers:
            raise _RefusedError(None, self.norms[0].input, "no weight reads it")

    def _check_reader(self, reader: Reader) -> None:
        op, source = reader.linear.op, reader.source
        is_plain = op.attr("alpha", 1.0) == 1.0 and op.attr("beta", 1.0) == 1.0
        if source is None:
            if self.norms[0].is_centred:
                raise _RefusedError(op, reader.linear.input, "read without a norm, so its mean can't be taken away")
        elif source.shift.any() and not (source.is_plain and op.type in ("MatMul", "Gemm") and is_plain):
            raise _RefusedError(op, reader.linear.input, "the norm's shift can't move into a bias")


_POST = "the norm's output is the stream itself (post-norm), so its gain can't move into the weights that read it"
