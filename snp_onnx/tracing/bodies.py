"""Multiply-accumulates in bodies of If, Loop and Scan, where nothing is cut, and what the count of MACs leaves out.

The shapes in a body follow from those outside. The more expensive branch of an If counts. The body of a Loop counts as
often as a constant says, the body of a Scan once for every position; any other body counts once, which a note says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from snp_onnx.cost import Term, constants_of, is_matrix, is_uncounted, node_parts
from snp_onnx.external import bodies_of
from snp_onnx.tracing.branches import is_opened
from snp_onnx.tracing.facts import Facts, infer_graph
from snp_onnx.tracing.op import Op, ops_of

ENDLESS = 2**31 - 1
"""Trips (number) from which on the limit of a Loop says nothing: exporters write such numbers for `while`."""


@dataclass(frozen=True, slots=True)
class Counted:
    """MACs of bodies, one term for each node of the main graph, and what they leave out, by operator."""

    terms: tuple[Term, ...] = ()
    uncounted: tuple[tuple[str, int], ...] = ()
    once: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class _Tally:
    """What one body costs."""

    macs: float
    uncounted: Counter[str]
    once: Counter[str]

    def add(self, other: _Tally) -> None:
        self.macs += other.macs
        self.uncounted += other.uncounted
        self.once += other.once


def count_bodies(model: onnx.ModelProto, facts: Facts) -> Counted:
    """What the nodes of the main graph cost inside, and the nodes anywhere whose cost isn't known."""
    counting, known = _Counting(model), _copied(facts)
    whole, terms = _Tally(0.0, Counter(), Counter()), []
    matrices = _matrices(model.graph)
    for op in ops_of(model):
        found = counting.node(op, known, matrices)
        if op.has_subgraph and found.macs:
            terms.append(Term(op.name, (), found.macs))
        whole.add(found)
    return Counted(tuple(terms), tuple(sorted(whole.uncounted.items())), tuple(sorted(whole.once.items())))


@dataclass(frozen=True, slots=True, eq=False)
class _Counting:
    """Counts nodes; shapes of a node's outputs that only its bodies tell go into the facts."""

    model: onnx.ModelProto

    def node(self, op: Op, facts: Facts, matrices: frozenset[str]) -> _Tally:
        if not op.has_subgraph:
            return _of_node(op, facts, matrices)
        if op.is_standard and op.type == "If":
            return self._branches(op, facts, matrices)
        given, times = _entering(op, facts)
        bodies = [self._body(body, facts, given, matrices) for _, body in bodies_of(op.node)]
        tally = _Tally(0.0, Counter(), Counter({_kind(op): 1}) if times is None else Counter())
        for found, _ in bodies:
            tally.add(_Tally(found.macs * (1 if times is None else times), found.uncounted, found.once))
        if op.is_standard and op.type in ("Loop", "Scan") and times is not None:
            _leave(op, facts, bodies[0][1], next(body for _, body in bodies_of(op.node)), times)
        return tally

    def _branches(self, op: Op, facts: Facts, matrices: frozenset[str]) -> _Tally:
        """The more expensive branch, or that whose nodes stand outside for the time being, which costs nothing here.

        Output shapes are those of the branch that is taken, where that is known.
        """
        bodies = dict(bodies_of(op.node))
        opened = {place: body for place, body in bodies.items() if is_opened(body)}
        found = {place: (body, *self._body(body, facts, (), matrices)) for place, body in (opened or bodies).items()}
        dearest = max(found, key=lambda place: found[place][1].macs)
        chosen = facts.values.get(op.input(0))
        taken = dearest if chosen is None else "then_branch" if chosen.reshape(-1)[:1].any() else "else_branch"
        body, _, inside = found.get(taken, found[dearest])
        _tell(facts, zip(op.outputs, [value.name for value in body.output], strict=False), inside)
        tallies = [tally for _, tally, _ in found.values()]
        uncounted, once = tallies[0].uncounted, tallies[0].once
        for tally in tallies[1:]:
            uncounted, once = uncounted | tally.uncounted, once | tally.once
        return _Tally(found[dearest][1].macs, uncounted, once)

    def _body(
        self,
        body: onnx.GraphProto,
        outside: Facts,
        given: Sequence[tuple[int, tuple[int, ...]] | None],
        matrices: frozenset[str],
    ) -> tuple[_Tally, Facts]:
        """The cost of one run of a body, and the facts inside; `given` are type and shape of its inputs."""
        facts, tally = _copied(outside), _Tally(0.0, Counter(), Counter())
        for value, known in zip(body.input, given, strict=False):
            if known is not None:
                facts.types[value.name], facts.shapes[value.name] = known
        held = matrices | _matrices(body)
        infer_graph(body, self.model, facts, enter=lambda op, known: tally.add(self.node(op, known, held)))
        for op in ops_of(self.model, body):
            if not op.has_subgraph:
                tally.add(_of_node(op, facts, held))
        return tally, facts


def _of_node(op: Op, facts: Facts, matrices: frozenset[str]) -> _Tally:
    if is_uncounted(op.node, facts.shapes, matrices):
        return _Tally(0.0, Counter({_kind(op): 1}), Counter())
    macs = 0.0
    for factors, scale in node_parts(op.node, facts.shapes) or ():
        for tensor, axis in factors:
            scale *= facts.shapes[tensor][axis]
        macs += scale
    return _Tally(macs, Counter(), Counter())


def _kind(op: Op) -> str:
    return f"{op.domain}::{op.type}" if op.domain else op.type


def _matrices(graph: onnx.GraphProto) -> frozenset[str]:
    return frozenset(name for name, tensor in constants_of(graph) if is_matrix(tensor))


def _copied(facts: Facts) -> Facts:
    shapes, types, holders = dict(facts.shapes), dict(facts.types), dict(facts.holders)
    return Facts(shapes, types, dict(facts.values), holders=holders)


def _entering(op: Op, facts: Facts) -> tuple[list[tuple[int, tuple[int, ...]] | None], int | None]:
    """Type and shape of the inputs of a body, and how often it runs; None where that isn't known."""
    known = [(facts.types[n], facts.shapes[n]) if n in facts.shapes and n in facts.types else None for n in op.inputs]
    if op.is_standard and op.type == "Loop":
        limit = facts.values.get(op.input(0))
        times = None if limit is None or limit.size != 1 else int(limit.reshape(-1)[0])
        scalars = [(onnx.TensorProto.INT64, ()), (onnx.TensorProto.BOOL, ())]
        return [*scalars, *known[2:]], None if times is None or times >= ENDLESS else max(times, 0)
    if op.is_standard and op.type == "Scan" and op.version >= 9:
        states = len(known) - int(op.attr("num_scan_inputs", 0))
        axes = op.attr("scan_input_axes", None) or [0] * (len(known) - states)
        times = None
        for place, axis in enumerate(axes, states):
            entry = known[place]
            if entry is not None and entry[1]:
                kind, shape = entry
                axis %= len(shape)
                times, known[place] = shape[axis], (kind, shape[:axis] + shape[axis + 1 :])
        return known, times
    return [], None


def _leave(op: Op, facts: Facts, inside: Facts, body: onnx.GraphProto, times: int) -> None:
    """Shapes of what a Loop or Scan gives: states as the body leaves them, and one slice for every run."""
    first = 1 if op.type == "Loop" else 0
    states = len(op.inputs) - (2 if op.type == "Loop" else int(op.attr("num_scan_inputs", 0)))
    names = [value.name for value in body.output][first:]
    _tell(facts, zip(op.outputs[:states], names[:states], strict=False), inside)
    axes = op.attr("scan_output_axes", None) or [0] * len(names[states:])
    for output, name, axis in zip(op.outputs[states:], names[states:], axes, strict=False):
        if output and name in inside.shapes and name in inside.types:
            shape = list(inside.shapes[name])
            shape.insert(int(axis) % (len(shape) + 1), times)
            facts.types.setdefault(output, inside.types[name])
            facts.shapes.setdefault(output, tuple(shape))


def _tell(facts: Facts, pairs: Iterable[tuple[str, str]], inside: Facts) -> None:
    for output, name in pairs:
        if output and name in inside.shapes and name in inside.types:
            facts.types.setdefault(output, inside.types[name])
            facts.shapes.setdefault(output, inside.shapes[name])
