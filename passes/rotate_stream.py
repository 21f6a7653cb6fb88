"""Residual streams in another basis: the same function, with norms that have neither mean nor gain of their own.

With C = I - 11ᵀ/d where the norms take the mean away (else I), gain g, shift b and an orthogonal Q, row vectors:
writers W C Q, readers Qᵀ diag(g) W with b W added to their bias, norms y = x / sqrt(mean(x²) + eps). Since Q keeps sums
of squares and C² = C, every reader gets what it got. A norm is written as Pow, ReduceMean, Add, Sqrt, Div, Mul, which
runtimes fuse; its gain of ones and its epsilon are corrected when the width changes (`passes.resize`).
SliceGPT, arXiv 2401.15024, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from snp_onnx.external import Store
from snp_onnx.passes.base import Note, Outcome, Pass, fresh_name, insert_before, replace_node, replace_values, values_of
from snp_onnx.passes.eliminate_dead import EliminateDead
from snp_onnx.passes.pipeline import Rewritten, rewrite
from snp_onnx.subspace import centring, turned
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.norms import OPEN_NORMS, Norm, open_norms
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.streams import Reader, Stream
from snp_onnx.tracing.tracer import Linear
from snp_onnx.tracing.weights import WeightPath

Matrix = npt.NDArray[np.float64]
Operand = tuple[int, int]
"""A node's index and the place of one of its inputs."""
Change = Callable[[Matrix], Matrix]


def rotate_streams(
    model: onnx.ModelProto,
    flow: Flow,
    streams: Sequence[Stream],
    bases: Mapping[str, Matrix],
    store: Store | None = None,
) -> Rewritten:
    """The model with each stream in the basis of its id, (d, d) orthogonal; where none is given, the axes stay.

    `flow` is the model's own. The norms become open: a trace of the result may cut the streams.
    """
    steps = [RotateStream(flow, stream, bases.get(stream.id, np.eye(stream.width))) for stream in streams]
    rewritten = rewrite(model, [*steps, EliminateDead()], store)
    if not rewritten.changed:
        return rewritten
    means = open_norms(model).union(*(step.means for step in steps))
    _declare_open(rewritten.model, sorted(means))
    _declare_open(rewritten.model, sorted(open_norms(rewritten.model)))
    return rewritten


def _declare_open(model: onnx.ModelProto, means: Sequence[str]) -> None:
    kept = [entry for entry in model.metadata_props if entry.key != OPEN_NORMS]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if means:
        model.metadata_props.add(key=OPEN_NORMS, value=json.dumps(list(means)))


@dataclass(frozen=True, slots=True, eq=False)
class RotateStream(Pass):
    """Rewrite one stream of the graph that `flow` was made from; `basis` is Q (d, d)."""

    flow: Flow
    stream: Stream
    basis: Matrix

    @property
    def means(self) -> list[str]:
        """The means of squares in the norms it writes."""
        return [_mean_name(norm) for norm in self.stream.norms]

    def requires(self, graph: gs.Graph) -> str:
        missing = [norm.input for norm in self.stream.norms if norm.input not in graph.tensors()]
        return f"there is no tensor {missing[0]}" if missing else ""

    def ensures(self, graph: gs.Graph) -> str:
        missing = set(self.means) - graph.tensors().keys()
        return f"the norm of {sorted(missing)[0]} isn't written out" if missing else ""

    def __call__(self, graph: gs.Graph) -> Outcome:
        if not self.ensures(graph):  # turned already
            return Outcome(False)
        nodes = {next((t.name for t in node.outputs if t.name), ""): node for node in graph.nodes}
        steps, inserted = self._steps()
        notes = [Note(self.stream.id, f"residual stream of width {self.stream.width} rotated")]
        weights = self.flow.weights
        for (index, place), changes in steps.items():  # one weight at a time is held in float64
            op = self.flow.trace.ops[index]
            value = np.asarray(weights.array(op.input(place)), dtype=np.float64)
            for change in changes:
                value = change(value)
            value, path = value.astype(self._type(op.input(place))), weights.path(op.input(place))
            notes += _write(graph, _node(nodes, op), place, value, path)
        for reader, shift in inserted:
            _insert_bias(graph, _node(nodes, reader.linear.op), shift.astype(self._type(reader.linear.output)))
        for op in self.stream.bypassed:
            _bypass(graph, _node(nodes, op))
        for norm in self.stream.norms:
            _write_norm(graph, _node(nodes, norm.last), norm, self.stream.width, self._type(norm.output))
        return Outcome(True, tuple(notes))

    def _type(self, tensor: str) -> np.dtype[Any]:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.flow.trace.facts.types[tensor]))

    def _steps(self) -> tuple[dict[Operand, list[Change]], list[tuple[Reader, Matrix]]]:
        """What is done to every operand, in this order, and shifts for which there is no bias to take them."""
        stream = self.stream
        steps: dict[Operand, list[Change]] = {}
        inserted = []
        into = centring(stream.width) @ self.basis if stream.is_centred else self.basis
        writing = {writer.op.index for writer in stream.writers}
        for reader in stream.readers:
            shift = self._absorb(reader, steps)
            if shift is not None:
                writes = reader.linear.op.index in writing
                inserted.append((reader, turned(shift, 0, into) if writes else shift))
        for writer in stream.writers:
            change = partial(turned, axis=writer.axis, matrix=into)
            steps.setdefault((writer.op.index, writer.place), []).append(change)
        return steps, inserted

    def _absorb(self, reader: Reader, steps: dict[Operand, list[Change]]) -> Matrix | None:
        """Gain and rotation into the weight, the shift into its bias; the shift (O,) is returned if there is none."""
        linear, source = reader.linear, reader.source
        key = linear.op.index, linear.op.inputs.index(linear.weight)
        gain = None if source is None else source.gain
        change = partial(_read, axis=linear.in_axis, gain=gain, basis=self.basis)
        steps.setdefault(key, []).append(change)
        if source is None or not source.shift.any():
            return None
        weight = np.asarray(self.flow.weights.array(linear.weight), dtype=np.float64)
        shift = np.tensordot(source.shift, weight, (0, linear.in_axis))
        place = self._bias(linear)
        if place is None:
            return shift
        steps.setdefault(place, []).append(partial(np.add, shift))
        return None

    def _bias(self, linear: Linear) -> Operand | None:
        name, output = self.flow.bias(linear)
        if name is None:
            return None
        op = self.flow.maker(output)
        assert op is not None
        return op.index, op.inputs.index(name)


def _read(weight: Matrix, axis: int, gain: Matrix | None, basis: Matrix) -> Matrix:
    """Qᵀ diag(g) W along the axis that reads."""
    return turned(weight, axis, basis if gain is None else gain[:, None] * basis)


def _node(nodes: Mapping[str, gs.Node], op: Op) -> gs.Node:
    return nodes[next(name for name in op.outputs if name)]


def _write(graph: gs.Graph, node: gs.Node, place: int, value: npt.NDArray[Any], path: WeightPath | None) -> list[Note]:
    """Give a node's operand other values: in the initialiser behind it where nobody else reads that."""
    operand = node.inputs[place]
    root = operand
    while isinstance(root, gs.Variable) and path is not None and len(root.outputs) == 1 and root.inputs:
        root = root.inputs[0].inputs[0]
    if path is not None and isinstance(root, gs.Constant) and len(root.outputs) == 1:
        held = values_of(root)
        replace_values(root, path.undo(value, held.shape, held.dtype))
        return []
    node.inputs[place] = gs.Constant(fresh_name(graph, f"{operand.name}_rotated"), value)
    why = "computed from constants" if path is None else "shared by several nodes"
    return [Note(operand.name, f"{why}: the residual stream has a copy of its own now")]


def _insert_bias(graph: gs.Graph, node: gs.Node, shift: npt.NDArray[Any]) -> None:
    output = node.outputs[0]
    bare = gs.Variable(fresh_name(graph, f"{output.name}_bare"), output.dtype, output.shape)
    node.outputs[0] = bare
    bias = gs.Constant(fresh_name(graph, f"{output.name}_shift"), shift)
    place = next(index for index, other in enumerate(graph.nodes) if other is node)
    graph.nodes.insert(place + 1, gs.Node("Add", bias.name, inputs=[bare, bias], outputs=[output]))


def _bypass(graph: gs.Graph, node: gs.Node) -> None:
    """What read the node's output reads its one activation instead."""
    source = next(tensor for tensor in node.inputs if isinstance(tensor, gs.Variable))
    replace_node(graph, node, source)


def _mean_name(norm: Norm) -> str:
    return f"{norm.output}/mean_square"


def _write_norm(graph: gs.Graph, last: gs.Node, norm: Norm, width: int, kind: np.dtype[Any]) -> None:
    """y = x / sqrt(mean(x²) + eps) times ones, in float32 where the stream, of type `kind`, has fewer bits.

    A rotation gathers the energy in few entries, whose squares would overflow in float16.
    """
    output = last.outputs[0]
    source = next(tensor for tensor in graph.tensors().values() if tensor.name == norm.input)
    is_narrow = kind not in (np.float32, np.float64)
    last.outputs.clear()
    writing = _Writing(graph, last, norm.output, np.dtype(np.float32) if is_narrow else kind)
    x = writing.add("Cast", "wide", [source], {"to": 1}) if is_narrow else source
    square = writing.add("Pow", "square", [x, writing.constant("two", np.array(2.0))])
    mean = _mean(graph, writing, square)
    sum_ = writing.add("Add", "mean_plus", [mean, writing.constant("epsilon", np.array(norm.epsilon))])
    y = writing.add("Div", "normed", [x, writing.add("Sqrt", "root", [sum_])])
    gain = writing.constant("gain", np.ones(width))
    if not is_narrow:
        writing.add("Mul", "", [y, gain], output=output)
        return
    to = onnx.helper.np_dtype_to_tensor_dtype(kind)
    writing.add("Cast", "", [writing.add("Mul", "gained", [y, gain])], {"to": to}, output)


def _mean(graph: gs.Graph, writing: _Writing, square: gs.Variable) -> gs.Variable:
    if graph.opset >= 18:
        axes = gs.Constant(fresh_name(graph, f"{writing.stem}/axes"), np.array([-1], dtype=np.int64))
        return writing.add("ReduceMean", "mean_square", [square, axes], {"keepdims": 1})
    return writing.add("ReduceMean", "mean_square", [square], {"axes": [-1], "keepdims": 1})


@dataclass(frozen=True, slots=True, eq=False)
class _Writing:
    """Nodes put before a place of the graph, their tensors named after a stem."""

    graph: gs.Graph
    place: gs.Node
    stem: str
    dtype: np.dtype[np.generic]

    def constant(self, name: str, values: Matrix) -> gs.Constant:
        return gs.Constant(fresh_name(self.graph, f"{self.stem}/{name}"), values.astype(self.dtype))

    def add(
        self,
        kind: str,
        name: str,
        inputs: list[gs.Tensor],
        attributes: dict[str, object] | None = None,
        output: gs.Variable | None = None,
    ) -> gs.Variable:
        made = gs.Variable(f"{self.stem}/{name}", self.dtype) if output is None else output
        insert_before(
            self.graph,
            self.place,
            gs.Node(kind, f"{self.stem}/{name or 'normalised'}", attributes or {}, inputs, [made]),
        )
        return made
