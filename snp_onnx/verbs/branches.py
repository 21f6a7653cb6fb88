"""Which branches of an If are opened for a model to be pruned inside: those that the samples take, both where they do.

A branch that no sample takes has no statistics and stays as it is. Where samples take both, each has the statistics of
its own samples: all branches are run then, and gates say whose rows count. Without samples, what the input shapes
decide is taken, else both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from snp_onnx.calibration.segments import Frontier, piece
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.errors import SnpError
from snp_onnx.external import bodies_of
from snp_onnx.passes import Note
from snp_onnx.passes.open_branches import Gates, OpenedBranch, add_gates, close_branches, nodes_of, open_branch
from snp_onnx.planning.plan import BranchDecision
from snp_onnx.sources.examples import NO_VALUES
from snp_onnx.tracing.facts import Shape, infer_facts
from snp_onnx.tracing.op import Op, ops_of
from snp_onnx.verbs.settings import Feed

BRANCHES = ("then_branch", "else_branch")
APART = (
    "samples take both branches, and one can't be run on samples of the other: both stay as they are; prune with "
    "samples of one, and the result with samples of the other"
)
Rows = tuple[float, float]
"""How many samples take the first and the second branch."""

Feeds = Callable[[], Iterable[tuple[int, Feed]]]
"""All samples in batches, each with how many they are."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A branch that was opened: the share of the samples that come to its If and take it, None where none were run.

    `gate` says whether it is taken; empty where it always is.
    """

    branch: OpenedBranch
    share: float | None
    gate: str


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """What was opened of a model, in this order, and what was decided of each If."""

    openings: tuple[OpenedBranch | Gates, ...] = ()
    entries: tuple[_Entry, ...] = ()
    decisions: tuple[BranchDecision, ...] = ()

    def closed(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A pruned model with every branch back in its If."""
        return close_branches(model, self.openings)

    def gates(self, model: onnx.ModelProto) -> dict[str, str]:
        """For every tensor of a branch that not all samples take, what says whether it is taken."""
        found: dict[str, str] = {}
        for entry in self.entries:
            if entry.gate:
                nodes = (model.graph.node[index] for index in nodes_of(model.graph, entry.branch))
                found.update({name: entry.gate for node in nodes for name in node.output if name})
        return found

    def shares(self, model: onnx.ModelProto, cost: Callable[[onnx.NodeProto], float]) -> dict[str, float]:
        """How much of what a node costs counts, by its first output: the share of the samples that come to it.

        Of two branches without samples the more expensive one counts.
        """
        found: dict[str, float] = {}
        for pair in self._pairs():
            nodes = [[model.graph.node[index] for index in nodes_of(model.graph, e.branch)] for e in pair]
            costs = [sum(cost(node) * found.get(node.output[0], 1.0) for node in inside) for inside in nodes]
            dearest = int(np.argmax(costs))
            for number, (entry, inside) in enumerate(zip(pair, nodes, strict=True)):
                share = float(number == dearest) if entry.share is None else entry.share
                found.update({node.output[0]: share * found.get(node.output[0], 1.0) for node in inside})
        return found

    def _pairs(self) -> Iterator[list[_Entry]]:
        """The branches of each If, those of inner ones first."""
        by_choice: dict[str, list[_Entry]] = {}
        for entry in self.entries:
            by_choice.setdefault(entry.branch.output, []).append(entry)
        yield from reversed(by_choice.values())


NONE = Branches()


def open_branches(
    model: onnx.ModelProto,
    shapes: Mapping[str, Shape],
    runtime: Runtime,
    feeds: Feeds | None = None,
    given: Sequence[BranchDecision] | None = None,
    known: Feed = NO_VALUES,
) -> tuple[onnx.ModelProto, Branches, tuple[Note, ...]]:
    """The model with branches opened; the very same one where there is nothing to open.

    `given` are the decisions of an earlier plan, in the order in which they were made. Without samples, `known` are
    values of inputs. Where samples take both branches of an If and one can't be run on samples of the other, both stay
    closed.
    """
    if not any(_is_choice(op) for op in ops_of(model)):
        return model, NONE, ()
    opening = _Opening.of(model, _Source(shapes, runtime, feeds, given, known))
    opening.run()
    if feeds is None or not opening.has_gates or _is_runnable(opening.model, runtime, feeds):
        return opening.result()
    opening = _Opening.of(model, _Source(shapes, runtime, feeds, given, known), has_pairs=False)
    opening.run()
    return opening.result()


def _is_choice(op: Op) -> bool:
    return op.is_standard and op.type == "If" and any(op.outputs)


def _name(op: Op) -> str:
    """What an If is found by: its first output."""
    return next(name for name in op.outputs if name)


def _is_runnable(model: onnx.ModelProto, runtime: Runtime, feeds: Feeds) -> bool:
    """Whether all samples can be run with every branch."""
    try:
        session = open_session(model, runtime, stays=True)
        for _, feed in feeds():
            run(session, feed)
    except SnpError:
        return False
    return True


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """Where it is known from which branches are taken: an earlier plan, samples, or shapes and values of inputs."""

    shapes: Mapping[str, Shape]
    runtime: Runtime
    feeds: Feeds | None
    given: Sequence[BranchDecision] | None
    known: Feed

    @property
    def is_measured(self) -> bool:
        return self.feeds is not None and self.given is None

    def rows(self, model: onnx.ModelProto, level: Sequence[Op], gates: Sequence[str], first: int) -> list[Rows | None]:
        """How many samples take each branch of these Ifs; None where nothing is known.

        `gates` say whether samples come to them; `first` is the place of the first one among all that were come by.
        """
        conditions = [op.input(0) for op in level]
        if self.given is not None:
            here = [*self.given[first:], *[BranchDecision("", ())] * len(level)][: len(level)]
            return [(float(BRANCHES[0] in each.opened), float(BRANCHES[1] in each.opened)) for each in here]
        if self.feeds is not None:
            return list(_count(model, list(zip(conditions, gates, strict=True)), self.feeds(), self.runtime))
        return self._decided(model, conditions)

    def _decided(self, model: onnx.ModelProto, conditions: Sequence[str]) -> list[Rows | None]:
        """What shapes decide, or values of inputs that are known."""
        graph, values = Frontier(model.graph), infer_facts(model, self.shapes).values
        read = {name: graph.needed([name]).sources for name in conditions}
        sure = [(name, "") for name, sources in read.items() if sources and self.known.keys() >= set(sources)]
        counted = _count(model, sure, [(1, self.known)], self.runtime) if sure else []
        found = {name: rows for (name, _), rows in zip(sure, counted, strict=True)}
        return [found.get(n, _of_condition(values[n]) if n in values else None) for n in conditions]


@dataclass(slots=True, eq=False)
class _Opening:
    """Opens level by level: what stands in a branch that is opened comes next."""

    model: onnx.ModelProto
    source: _Source
    has_pairs: bool
    """Whether both branches of an If may be opened."""
    openings: list[OpenedBranch | Gates] = field(default_factory=list)
    entries: list[_Entry] = field(default_factory=list)
    decisions: list[BranchDecision] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    gates: dict[str, str] = field(default_factory=dict)
    """By an If in a branch that not all samples take, what says whether they do."""

    @classmethod
    def of(cls, model: onnx.ModelProto, source: _Source, has_pairs: bool = True) -> _Opening:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return cls(copy, source, has_pairs)

    @property
    def has_gates(self) -> bool:
        return any(isinstance(opening, Gates) for opening in self.openings)

    def result(self) -> tuple[onnx.ModelProto, Branches, tuple[Note, ...]]:
        branches = Branches(tuple(self.openings), tuple(self.entries), tuple(self.decisions))
        return self.model, branches, tuple(self.notes)

    def run(self) -> None:
        seen: set[str] = set()
        while level := [op for op in ops_of(self.model) if _is_choice(op) and _name(op) not in seen]:
            seen.update(_name(op) for op in level)
            gates = [self.gates.get(_name(op), "") for op in level]
            rows = self.source.rows(self.model, level, gates, len(self.decisions))
            for op, taken in zip(level, rows, strict=True):
                self._open(op, taken)

    def _open(self, op: Op, rows: Rows | None) -> None:
        wanted = [branch for branch, taken in zip(BRANCHES, rows or (1.0, 1.0), strict=True) if taken]
        if not all(_hands_tensors(body) for _, body in bodies_of(op.node)) or (len(wanted) > 1 and not self.has_pairs):
            wanted = []
        self.decisions.append(BranchDecision(_name(op), tuple(wanted)))
        self._tell(op, wanted, rows)
        outer = self.gates.get(_name(op), "")
        taken = dict.fromkeys(BRANCHES, outer)
        if len(wanted) > 1:
            gates = add_gates(self.model, _name(op), outer)
            self.openings.append(gates)
            taken = dict(gates.taken)
        for branch in wanted:
            before = {_name(other) for other in ops_of(self.model) if _is_choice(other)}
            opened = open_branch(self.model, _name(op), branch)
            inside = {_name(other) for other in ops_of(self.model) if _is_choice(other)} - before
            self.gates.update(dict.fromkeys(inside, taken[branch]))
            share = rows[BRANCHES.index(branch)] / sum(rows) if rows is not None and self.source.is_measured else None
            self.openings.append(opened)
            self.entries.append(_Entry(opened, share, taken[branch]))

    def _tell(self, op: Op, wanted: Sequence[str], rows: Rows | None) -> None:
        if rows is None or not self.source.is_measured:
            return
        if len(wanted) == 1:
            left = next(branch for branch in BRANCHES if branch not in wanted)
            self.notes.append(Note(op.name, f"no sample takes its {left}, which stays as it is"))
        elif min(rows) > 0 and not self.has_pairs:
            self.notes.append(Note(op.name, APART))


def _hands_tensors(body: onnx.GraphProto) -> bool:
    """Whether a branch gives tensors, and no sequences or optional values."""
    return all(value.type.WhichOneof("value") in (None, "tensor_type") for value in body.output)


def _of_condition(value: np.ndarray[Any, Any]) -> Rows:
    is_taken = bool(np.asarray(value).reshape(-1)[:1].any())
    return float(is_taken), float(not is_taken)


def _count(
    model: onnx.ModelProto, conditions: Sequence[tuple[str, str]], feeds: Iterable[tuple[int, Feed]], runtime: Runtime
) -> list[Rows]:
    """How many samples of those that come there find each condition true, and how many false.

    A condition comes with what says whether samples come there; where it is empty, they do.
    """
    wanted = list(dict.fromkeys(name for pair in conditions for name in pair if name))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {name: onnx.numpy_helper.to_array(constants[name]) for name in wanted if name in constants}
    found = np.zeros((len(conditions), 2))
    session = None
    for count, feed in feeds:
        asked = [name for name in wanted if name not in known and name not in feed]
        if asked and session is None:
            session = open_session(_part(model, asked, feed), runtime, stays=True)
        values = {**known, **feed, **(run(session, feed) if asked and session is not None else {})}
        for number, (condition, gate) in enumerate(conditions):
            if not gate or any(_of_condition(values[gate])[:1]):
                found[number] += count * np.array(_of_condition(values[condition]))
    return [(float(first), float(second)) for first, second in found]


def _part(model: onnx.ModelProto, wanted: Sequence[str], feed: Feed) -> onnx.ModelProto:
    """The part of the model that gives these tensors."""
    stretch = Frontier(model.graph).needed(wanted)
    nodes = [model.graph.node[index] for index in stretch.nodes]
    part = piece(model, nodes, {name: feed[name].dtype for name in stretch.sources})
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return part
