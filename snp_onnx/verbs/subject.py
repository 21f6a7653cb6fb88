"""The subject of a verb: a model loaded, prepared and traced at concrete shapes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import onnx

from snp_onnx import model_io
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.cost import RECURRENT, Cost, Term, mac_terms, node_parts, param_terms, total, weights
from snp_onnx.errors import CalibrationError, ModelError, PassError, SnpError
from snp_onnx.passes import Note, prepare
from snp_onnx.planning.detours import Detour, detour
from snp_onnx.planning.plan import Bases, BlockDecision, BranchDecision, Folds
from snp_onnx.sources.examples import NO_VALUES, Values, examples, fitted, made_up
from snp_onnx.sources.inputs import fixed_batch, input_specs
from snp_onnx.sources.samples import Samples
from snp_onnx.sources.shapes import resolve_shapes as _shapes_of
from snp_onnx.tracing import PLAIN_KINDS, Kind, Trace, declared_shapes, trace, unknown_shapes
from snp_onnx.tracing.blocks import Block
from snp_onnx.tracing.facts import Shape
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.op import Op, ops_of
from snp_onnx.tracing.surface import drop_foreign_surface
from snp_onnx.verbs.branches import NONE, Branches, Feeds, open_branches
from snp_onnx.verbs.observe import Observed, observe

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The dense model as given, its prepared form (in which `bases` were changed), and the trace of that."""

    dense: model_io.Model
    prepared: onnx.ModelProto
    trace: Trace
    input_shapes: Mapping[str, Shape]
    notes: tuple[Note, ...]
    flow: Flow
    bases: Bases = field(default_factory=dict)
    caches: bool = False
    """Whether heads of caches may go."""
    kinds: frozenset[Kind] = PLAIN_KINDS
    """The kinds of units that it was traced for."""
    depth: Depth | None = None
    """What went whole before."""
    quantised: onnx.ModelProto | None = None
    """The prepared model as it is quantised, where the prepared one is its float form."""
    example: Values = field(default_factory=dict)
    """Values of inputs, of a sample or as given, with which unknown shapes are observed."""
    unsure: str = ""
    """Why some shapes aren't known, or may be others with other values of inputs; "" where all are known."""
    branches: Branches = NONE
    """The branches whose nodes stand in the prepared model's main graph."""

    @property
    def aim(self) -> onnx.ModelProto:
        """What the layers of the pruned model should come near: the prepared model with all its blocks."""
        return self.prepared if self.depth is None else self.depth.whole.prepared

    @property
    def gone(self) -> Detour:
        """What blocks that are gone leave to make up for."""
        return Detour() if self.depth is None else detour(self.depth.whole.flow, self.depth.blocks)

    def macs_by_node(self) -> dict[str, float]:
        """The MACs of one sample by the name of the node."""
        found: dict[str, float] = {}
        shapes = self.trace.facts.shapes
        for term in self.mac_terms():
            found[term.name] = found.get(term.name, 0.0) + total([term], lambda tensor, axis: shapes[tensor][axis])
        return found

    def cost_now(self) -> Cost:
        """MACs and parameters of the prepared model; bytes are the dense one's."""
        sizes = {name: tuple(tensor.dims) for name, tensor in weights(self.prepared)}
        params = total(param_terms(self.prepared), lambda tensor, axis: sizes[tensor][axis])
        shapes = self.trace.facts.shapes
        macs = total(self.mac_terms(), lambda tensor, axis: shapes[tensor][axis])
        return Cost(macs, params, self.dense.bytes)

    def mac_terms(self) -> list[Term]:
        """The MACs of one sample: a model whose batch is fixed computes several at once."""
        rows = self._rows()
        shapes = self.trace.facts.shapes
        shares = self.branches.shares(self.prepared, lambda node: _macs(node, shapes))
        terms = [*mac_terms(self.prepared, shapes, shares), *self.trace.bodies.terms]
        return [replace(term, scale=term.scale / rows) for term in terms]

    def _rows(self) -> int:
        """The rows of a fixed batch; 1 where axis 0 is none: an output has another, or an operator mixes along it."""
        rows, shapes = fixed_batch(input_specs(self.prepared)) or 1, self.trace.facts.shapes
        outputs = [shapes.get(value.name, ()) for value in self.prepared.graph.output]
        if any(not shape or shape[0] % rows for shape in outputs):
            return 1
        computed = {value.name for value in self.prepared.graph.input}
        for op in self.trace.ops:
            if computed.intersection(op.reads):
                computed.update(op.outputs)
        return 1 if rows > 1 and any(_mixes(op, rows, shapes, computed) for op in self.trace.ops) else rows

    def count_notes(self) -> tuple[str, ...]:
        """What the MACs leave out, or count once where it may run more often: operators and how many."""
        bodies = self.trace.bodies
        told = (("not counted in the MACs", bodies.uncounted), ("counted in the MACs as one iteration", bodies.once))
        return tuple(f"{text}: {', '.join(f'{n} {kind}' for kind, n in kinds)}" for text, kinds in told if kinds)

    def dense_cost(self) -> Cost:
        """MACs at the recorded shapes; parameters and bytes of the file as given."""
        sizes = {name: tuple(tensor.dims) for name, tensor in weights(self.dense.proto)}
        whole = self if self.depth is None else self.depth.whole
        shapes = whole.trace.facts.shapes
        macs = total(whole.mac_terms(), lambda tensor, axis: shapes[tensor][axis])
        params = total(param_terms(self.dense.proto), lambda tensor, axis: sizes[tensor][axis])
        return Cost(macs, params, self.dense.bytes)


def _macs(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> float:
    terms = [Term("", *part) for part in node_parts(node, shapes) or ()]
    return float(total(terms, lambda tensor, axis: shapes[tensor][axis]))


def _mixes(op: Op, rows: int, shapes: Mapping[str, Shape], computed: Collection[str]) -> bool:
    """Whether an operator runs along an axis of `rows` entries that lies first: as steps, positions or a sum."""
    first, second = shapes.get(op.input(0), ()), shapes.get(op.input(1), ())
    if op.type in RECURRENT:
        return not op.attr("layout", 0) and first[:1] == (rows,)
    if op.type == "Scan":
        steps = op.inputs[-op.attr("num_scan_inputs", 1) :]
        axes = op.attr("scan_input_axes", None) or [0] * len(steps)
        return any(axis == 0 and shapes.get(name, ())[:1] == (rows,) for name, axis in zip(steps, axes, strict=False))
    if op.type in ("Conv", "ConvTranspose", "FusedConv"):
        return bool(first) and first[0] % rows != 0
    return op.type == "MatMul" and len(second) == 2 and second[0] == rows and op.input(1) in computed


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """Blocks of the subject `whole` that are gone, as they were there, why, and the weights solved anew since.

    `known` are all the blocks that it has.
    """

    whole: Subject
    known: tuple[Block, ...] = ()
    blocks: tuple[Block, ...] = ()
    decisions: tuple[BlockDecision, ...] = ()
    values: Folds = field(default_factory=dict)


def load_subject(
    model: str | os.PathLike[str] | onnx.ModelProto, runtime: Runtime | None = None
) -> tuple[model_io.Model, onnx.ModelProto, tuple[Note, ...]]:
    """Load and prepare; the model given is never changed. One that `runtime` can't load is refused first."""
    dense = model_io.load(model)
    drop_foreign_surface(dense.proto)
    if runtime is not None:
        open_session(dense.proto, runtime)
    with _blaming(dense, runtime or Runtime()):
        prepared = prepare(dense.proto, dense.store)
    return dense, prepared.model, prepared.notes


@contextmanager
def _blaming(
    dense: model_io.Model, runtime: Runtime, shapes: Mapping[str, Shape] | None = None, example: Values = NO_VALUES
) -> Iterator[None]:
    """What breaks on a model or at input shapes that the runtime refuses too is their fault; anything else is ours."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SnpError) and not isinstance(error, PassError | CalibrationError):
            raise
        session = open_session(dense.proto, runtime)
        if shapes is not None:
            feed = next(examples(input_specs(dense.proto), shapes, example))
            with suppress(ModelError):  # nodes that only a fused form can run
                run(open_session(_named(dense.proto), runtime, plain=True), feed)
            run(session, feed)
        raise


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a name for every node, as tables give it."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for op in ops_of(named):
        op.node.name = op.name
    return named


def trace_at(
    dense: model_io.Model,
    prepared: onnx.ModelProto,
    notes: tuple[Note, ...],
    shapes: Mapping[str, Shape],
    runtime: Runtime,
    kinds: Collection[Kind] = PLAIN_KINDS,
    caches: bool = False,
    example: Values = NO_VALUES,
    branches: Branches = NONE,
) -> Subject:
    """Trace at concrete input shapes; what inference can't tell is observed in runs with the values of `example`.

    Inputs that it lacks get made-up values; where the runtime refuses these, some shapes stay unknown.
    """
    unsure = ""
    with _blaming(dense, runtime, shapes, example):
        found = trace(prepared, shapes, kinds=kinds, caches=caches)
        unknown = unknown_shapes(prepared, found.facts)
        specs = input_specs(prepared)
        invented = made_up(specs, example)
        declared = () if invented else declared_shapes(prepared, found.facts)  # made-up values may be wrong too
        if unknown or declared:
            feeds = tuple(examples(specs, shapes, example))
            observed = observe(prepared, (*unknown, *declared), feeds, runtime)
            if observed.refusal is not None and unknown and not invented:
                raise observed.refusal
            unsure = _unsure(observed, invented) if unknown else ""
            found = trace(prepared, shapes, observed.seen, kinds, caches)
    found = replace(found, gates=branches.gates(prepared))
    return Subject(
        dense,
        prepared,
        found,
        dict(shapes),
        notes,
        Flow(prepared, found),
        caches=caches,
        kinds=frozenset(kinds),
        example=example,
        unsure=unsure,
        branches=branches,
    )


def at_seen(
    model: onnx.ModelProto,
    given: Mapping[str, Shape],
    samples: Samples,
    traced: Callable[[Mapping[str, Shape]], T],
) -> T:
    """What `traced` gives at the shapes of samples: the largest, axis by axis, or those of one where these don't run.

    Lengths and masks may fit no other sizes than those of their own sample.
    """
    shapes = resolve_shapes(model, given, samples.largest_shapes)
    try:
        return traced(shapes)
    except CalibrationError:
        own = {name: tuple(np.shape(array)) for name, array in samples.example().items()}
        if given or own == shapes:
            raise
        return traced(own)


def opened_for(
    dense: model_io.Model,
    prepared: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    runtime: Runtime,
    feeds: Feeds | None = None,
    given: Sequence[BranchDecision] | None = None,
    example: Values = NO_VALUES,
) -> tuple[onnx.ModelProto, Branches, tuple[Note, ...]]:
    """The prepared model with branches opened, and prepared as far as these need it; see `verbs.branches`."""
    with _blaming(dense, runtime, shapes, example):
        specs = input_specs(prepared)
        known = {spec.name: fitted(example[spec.name], shapes[spec.name]) for spec in specs if spec.name in example}
        known = {spec.name: known[spec.name].astype(spec.dtype) for spec in specs if spec.name in known}
        opened, branches, notes = open_branches(prepared, shapes, runtime, feeds, given, known)
        if branches is NONE:
            return prepared, NONE, ()
        again = prepare(opened, dense.store)
    return again.model, branches, (*notes, *again.notes)


def retraced(
    subject: Subject,
    runtime: Runtime,
    prepared: onnx.ModelProto | None = None,
    notes: tuple[Note, ...] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    kinds: Collection[Kind] = PLAIN_KINDS,
    caches: bool | None = None,
) -> Subject:
    """The subject traced again, for these kinds; what is None is as it was."""
    return trace_at(
        subject.dense,
        subject.prepared if prepared is None else prepared,
        subject.notes if notes is None else notes,
        subject.input_shapes if shapes is None else shapes,
        runtime,
        kinds,
        subject.caches if caches is None else caches,
        subject.example,
        subject.branches,
    )


def _unsure(observed: Observed, invented: Sequence[str]) -> str:
    """What to say of shapes that were observed with made-up values, or that stay unknown because of them."""
    if not invented or (not observed.seen and observed.refusal is None):
        return ""
    advice = f"give {' '.join(f'--input-value {name}=VALUE' for name in invented)}"
    if observed.refusal is not None:
        return f"some shapes aren't known, because made-up values of inputs don't run ({observed.refusal}): {advice}"
    return f"some shapes may be others, because they depend on values of inputs that were made up: {advice}"


def resolve_shapes(
    model: onnx.ModelProto, given: Mapping[str, Shape], seen: Mapping[str, Shape] | None = None
) -> dict[str, Shape]:
    """One concrete shape for every input of a model; see `snp_onnx.sources.shapes`."""
    return _shapes_of(input_specs(model), given, seen)
