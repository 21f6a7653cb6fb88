"""The driver: walks a graph once, lets each operator's rule speak, and settles what may be removed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx

from snp_onnx.cost import FLOATS, NARROW, constants_of, is_matrix, multiplies
from snp_onnx.external import bodies_of
from snp_onnx.tracing.attention import find_attention
from snp_onnx.tracing.bodies import count_bodies
from snp_onnx.tracing.branches import handed_by, is_opened
from snp_onnx.tracing.caches import find_caches, possible_caches
from snp_onnx.tracing.elsewhere import bar_other_units, facts_nearby, infer_elsewhere
from snp_onnx.tracing.equal_cuts import equal_cuts
from snp_onnx.tracing.extents import bar_extents, bar_numbers
from snp_onnx.tracing.facts import AxisOf, Facts, Seen, Shape, infer_facts
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import PLAIN_KINDS, Kind, Trace, conclude
from snp_onnx.tracing.heads import Attention
from snp_onnx.tracing.labels import INSIDE
from snp_onnx.tracing.norms import open_norms
from snp_onnx.tracing.op import Op, ops_of
from snp_onnx.tracing.padding import mask_of
from snp_onnx.tracing.rules import HOLDING, RULES
from snp_onnx.tracing.tracer import Tracer, output_axis


def trace(
    model: onnx.ModelProto,
    input_shapes: Mapping[str, Shape],
    observed: Mapping[str, Seen] | None = None,
    kinds: Collection[Kind] = PLAIN_KINDS,
    caches: bool = False,
) -> Trace:
    """Units, groups and barriers of a model.

    `input_shapes` gives one concrete shape for every true input; `observed` what a run showed of tensors that inference
    can't tell. The model isn't changed. Anything the rules don't know becomes a barrier, never a guess.
    With the kind `head-dims` an attention's units are the dimensions inside its heads where these may go, and heads
    only where they may not. With `caches` the heads of keys and values that are graph inputs or outputs may go too.
    """
    facts = infer_facts(model, input_shapes, observed)
    plain = infer_facts(model, input_shapes) if observed else facts  # nothing is observed elsewhere
    facts.elsewhere = infer_elsewhere(model, plain, input_shapes)
    opened = _Opened(open_norms(model) if Kind.STREAM in kinds else frozenset())
    tracer, ops = _walk(model, facts, opened)
    equal = equal_cuts(tracer, lambda chosen: _walk(model, facts, replace(opened, equal=chosen))[0])
    if equal:
        opened = replace(opened, equal=equal)
        tracer, ops = _walk(model, facts, opened)
    if caches:
        tracer, ops = _walk(model, facts, replace(opened, surface=possible_caches(model, tracer)))
        opened = replace(opened, surface=find_caches(model, tracer, ops))
        tracer, ops = _walk(model, facts, opened)
    bodies = count_bodies(model, facts)
    inside = None
    if Kind.HEAD_DIMS in kinds:
        inside = find_attention(Flow(model, conclude(tracer, ops, bodies, mask_of(model))))
        opened = replace(opened, inside=inside)
        tracer, ops = _walk(model, facts, opened)
    _compare_nearby(model, tracer, opened, input_shapes)
    return conclude(tracer, ops, bodies, mask_of(model), inside)


@dataclass(frozen=True, slots=True, eq=False)
class _Opened:
    """What a walk leaves open that is barred otherwise."""

    norms: frozenset[str] = frozenset()
    """Norms that may lose width."""
    surface: frozenset[AxisOf] = frozenset()
    """Axes of graph inputs and outputs."""
    inside: Attention | None = None
    """Where dimensions inside heads may go."""
    equal: frozenset[int] = frozenset()
    """Grouped convolutions of which every group loses the same positions."""


def _compare_nearby(model: onnx.ModelProto, tracer: Tracer, opened: _Opened, input_shapes: Mapping[str, Shape]) -> None:
    """A walk at extents nearby, where the model has any: what is a unit there too may go."""
    there = facts_nearby(model, tracer.facts, input_shapes)
    if there is None:
        return
    try:
        found, _ = _walk(model, there, opened)
    except (AssertionError, IndexError, ValueError):
        return  # inference takes these shapes, and no runtime would: the model has one size only
    bar_other_units(tracer, found)


def _walk(model: onnx.ModelProto, facts: Facts, opened: _Opened) -> tuple[Tracer, list[Op]]:
    """One walk over the graph: every rule has spoken."""
    inside = opened.inside
    initialisers = frozenset(tensor.name for tensor in model.graph.initializer)
    ops = list(ops_of(model))
    readers = Counter(name for op in ops for name in set(op.reads))
    shared = frozenset(name for name, count in readers.items() if count > 1)
    tracer = Tracer(facts, initialisers, shared, inside.contractions if inside is not None else {})
    tracer.open_norms, tracer.equal = opened.norms, opened.equal
    _enter_inputs(model, tracer, opened.surface)
    for op in ops:
        _visit(op, tracer)
        _bar_captures(op, tracer)
    followed = {op.index for op in facts.value_ops}
    for op in ops:
        if not _is_shape_arithmetic(op, facts):
            bar_extents(op, tracer, op.index in followed)
    _decline_rest(ops, tracer)
    for value in model.graph.output:
        tracer.barrier_all(None, value.name, "graph output", opened.surface)
        bar_numbers(None, tracer, value.name, "its extent is a graph output")
    if inside is not None:
        for tensor, axis in inside.dims:
            tracer.classes.flag(tracer.axes(tensor)[axis], INSIDE)
    tracer.products.settle()
    return tracer, ops


def unknown_shapes(model: onnx.ModelProto, facts: Facts) -> tuple[str, ...]:
    """Tensors whose shape inference couldn't tell: worth one observing run."""
    known = facts.shapes.keys() | facts.holders.keys()
    return tuple(name for op in ops_of(model) for name in op.outputs if name and name not in known)


def declared_shapes(model: onnx.ModelProto, facts: Facts) -> tuple[str, ...]:
    """Tensors of the main graph whose shape is known by its declaration alone: a run knows better."""
    return tuple(name for node in model.graph.node for name in node.output if name in facts.declared)


def _enter_inputs(model: onnx.ModelProto, tracer: Tracer, opened: Collection[AxisOf]) -> None:
    for value in model.graph.input:
        if not tracer.is_constant(value.name) and tracer.knows(value.name):
            labels = [tracer.classes.fresh(n) for n in tracer.shape(value.name)]
            tracer.set_axes(value.name, labels)
            tracer.barrier_all(None, value.name, "graph input", opened)
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        tracer.set_axes(name, [tracer.classes.fresh(n) for n in tracer.shape(name)])
        tracer.barrier_all(None, name, "sparse initialiser")


def _visit(op: Op, tracer: Tracer) -> None:
    if _is_shape_arithmetic(op, tracer.facts):
        for name in op.outputs:
            tracer.set_still(name)
        return
    rule, refusal = RULES.get((op.domain, op.type)), _refusal(op, tracer)
    if rule is None or refusal is not None:
        _bar_node(op, tracer, refusal or _no_rule(op))
    else:
        known = len(tracer.linears)
        rule(op, tracer)
        tracer.pass_layers(op, known)
        _bar_lone_positions(op, tracer)
        evaluable = op.is_evaluable and not op.has_subgraph  # others can't be evaluated
        inputs = [name for name in op.inputs if name and evaluable]
        if inputs and op.type != "ConstantOfShape" and all(tracer.is_constant(name) for name in inputs):
            made = [name for name in op.outputs if tracer.knows(name)]
            tracer.mark_constant(made, max(inputs, key=lambda name: math.prod(tracer.shape(name))))


def _refusal(op: Op, tracer: Tracer) -> str | None:
    """Why no rule can speak for a node; None where one can."""
    if (op.domain, op.type) not in RULES or (op.has_subgraph and op.type != "If"):
        return _no_rule(op)
    held = tracer.facts.holders if (op.domain, op.type) in HOLDING else {}
    names = (name for name in (*op.inputs, *op.outputs) if name)
    unknown = next((name for name in names if not tracer.knows(name) and name not in held), None)
    if unknown is not None:
        return f"the shape of {unknown} is not known"
    return "empty tensor" if any(0 in tracer.shape(name) for name in op.outputs if tracer.knows(name)) else None


def _bar_lone_positions(op: Op, tracer: Tracer) -> None:
    """A window of one position can't shrink, whatever the axis it was taken from."""
    for name in op.outputs:
        for axis, labels in enumerate(tracer.axes(name) if tracer.knows(name) else ()):
            if len(labels) == 1:
                tracer.barrier(op, name, axis, "the only position of its axis")


def _is_shape_arithmetic(op: Op, facts: Facts) -> bool:
    """Integer values that are followed as facts: they feed shapes and carry no units. Codes of a weight do."""
    known = [name for name in op.outputs if name]
    integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    is_code = op.type in ("Cast", "Sub") and any(facts.types.get(name) in NARROW for name in op.inputs)
    is_code |= op.type == "Sub" and len(facts.shapes.get(op.input(0), ())) > 1
    return (
        op.type != "Constant"
        and not is_code
        and bool(known)
        and all(name in facts.values and facts.types[name] in integers for name in known)
    )


def _bar_node(op: Op, tracer: Tracer, reason: str) -> None:
    for name in op.inputs:
        tracer.barrier_all(op, name, reason)
    for name in op.outputs:
        tracer.set_barred(op, name, reason)


_UNTAKEN = (
    "inside a branch of If that is not taken",
    "read inside a branch of If that is not taken",
    "its extent is read inside a branch of If that is not taken",
)
"""Why something stays whole: it stands in a branch that stays as it is, or is read there, or its extent is."""


def _bar_captures(op: Op, tracer: Tracer) -> None:
    """What a control-flow body reads from outside is sliced by nobody."""
    if not op.has_subgraph:
        return
    bodies = [body for _, body in bodies_of(op.node)]
    is_open = op.type == "If" and any(map(is_opened, bodies))
    reasons = _UNTAKEN
    if not is_open:
        within = f"inside a body of {op.type}", f"read inside a body of {op.type}"
        reasons = (*within, f"its extent is read inside a body of {op.type}")
    closed = [body for body in bodies if op.type != "If" or handed_by(body) is None]
    readers: dict[str, Op] = {}
    for name, reader in _read_inside(op, closed):
        readers.setdefault(name, reader)
    for name, reader in readers.items():
        tracer.barrier_all(reader, name, reasons[1])
        bar_numbers(reader, tracer, name, reasons[2])
        if _is_weight(name, tracer):
            axis = output_axis(reader, len(tracer.shape(name)))
            tracer.decline(reader, name, axis, tracer.shape(name), reasons[1])
    for name, tensor in _constants_inside(closed):
        if is_matrix(tensor):
            reader = readers.get(name, op)
            tracer.decline(reader, name, output_axis(reader, len(tensor.dims)), tuple(tensor.dims), reasons[0])


def _read_inside(op: Op, bodies: Iterable[onnx.GraphProto]) -> Iterator[tuple[str, Op]]:
    """What is read in bodies of a node, and in theirs, with the node there that reads it."""
    for graph in bodies:
        for node in graph.node:
            inner = replace(op, node=node)
            yield from ((name, inner) for name in node.input)
            yield from _read_inside(inner, [body for _, body in bodies_of(node)])
        yield from ((value.name, op) for value in graph.output)


def _constants_inside(bodies: Iterable[onnx.GraphProto]) -> Iterator[tuple[str, onnx.TensorProto]]:
    for graph in bodies:
        yield from constants_of(graph)
        for inner in graph.node:
            yield from _constants_inside([body for _, body in bodies_of(inner)])


def _is_weight(name: str, tracer: Tracer) -> bool:
    """Whether a tensor is a constant that may be a layer's weight: floats or codes along two axes or more."""
    if not name or not tracer.is_constant(name) or not tracer.knows(name):
        return False
    return tracer.facts.types.get(name) in FLOATS | NARROW and sum(extent > 1 for extent in tracer.shape(name)) > 1


def _decline_rest(ops: Iterable[Op], tracer: Tracer) -> None:
    """Weights that a node multiplies with, or does what is not known, and that no rule has told of."""
    told = {(linear.op.index, linear.weight) for linear in tracer.linears}
    told |= {(-1, tracer.root(weight)) for weight, *_ in tracer.declined}
    for op in ops:
        if not (multiplies(op.node) or (op.domain, op.type) not in RULES) or op.has_subgraph:
            continue
        for name in dict.fromkeys(op.inputs[:2] if op.type == "Gemm" else op.inputs):  # C isn't multiplied
            if _is_weight(name, tracer) and not told & {(op.index, name), (-1, tracer.root(name))}:
                shape = tracer.shape(name)
                tracer.decline(op, name, output_axis(op, len(shape)), shape, _why_whole(op, name, tracer))


def _why_whole(op: Op, weight: str, tracer: Tracer) -> str:
    """What the node's rule said of the weight, or of what is multiplied with it."""
    said = [barrier for barrier, _ in tracer.barriers if barrier.node == op.name]
    said.sort(key=lambda barrier: barrier.tensor != weight)
    return said[0].reason if said else _refusal(op, tracer) or _no_rule(op)


def _no_rule(op: Op) -> str:
    return f"no rule for operator {op.domain + '::' if op.domain else ''}{op.type}"
