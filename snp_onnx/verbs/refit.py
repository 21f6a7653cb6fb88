"""Sequential refit: layer after layer of a pruned model is solved anew on the inputs that the layers before it give.

Dense and pruned model run side by side, segment by segment, each from the activations that the last one left, so that
all of it costs a few passes. Where a producer reaches its consumer over a chain, both are then solved for the
consumer's aim: the producer by one regularised Gauss-Newton step, the consumer by least squares again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from snp_onnx.calibration.moments import MomentRequest, Moments, Squares
from snp_onnx.calibration.segments import DENSE, beside, feeds_beside
from snp_onnx.calibration.walk import Walk
from snp_onnx.planning.aims import Aim, Layer
from snp_onnx.planning.course import Leg, course_of
from snp_onnx.planning.detours import Detour
from snp_onnx.planning.rations import most_rows, most_samples
from snp_onnx.planning.scarcity import SCARCITY
from snp_onnx.sources.samples import Part
from snp_onnx.subspace import refit, refit_error
from snp_onnx.tracing import Linear
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.surface import surface_after
from snp_onnx.tracing.weights import Weights
from snp_onnx.verbs.gauss_newton import Joint, Pair
from snp_onnx.verbs.measure import Calibration, in_larger_batches

Array = npt.NDArray[Any]
Values = Mapping[str, Array]


def refit_layers(
    flow: Flow,
    dense: onnx.ModelProto,
    pruned: onnx.ModelProto,
    alive: Mask,
    ridge: float,
    calibration: Calibration,
    keep: Callable[[Array], Array] = lambda array: array,
    gone: Detour | None = None,
) -> dict[str, Array]:
    """New values of the pruned model's initialisers by name; neither model is changed.

    `flow` is the dense model's, `alive` says what the pruned one has of it; `keep` puts values where they stay. Where
    blocks are `gone`, `flow` is that of what is left of the dense model, and producers are solved anew together with
    consumers everywhere, unless this is a trial.
    """
    calibration = in_larger_batches(calibration, flow)
    calibration = replace(calibration, every=max(calibration.every, -(-calibration.count // most_samples(flow))))
    always = bool(gone and gone.moved) and not calibration.is_trial
    course = course_of(flow, alive, calibration.count, gone, always)
    if not course:
        return {}
    surface = surface_after(dense, flow.trace, alive)
    both = beside(dense, pruned, surface)
    pair = Pair.of(both)
    steps = [_Step.of(pair, number, leg) for number, leg in enumerate(course)]
    chains = [chain for leg in course for chain in leg.chains]
    rows = min([calibration.batch_size, *(most_rows(flow, chain) for chain in chains)])
    feeds = feeds_beside(replace(calibration, batch_size=rows).batches(Part.CALIBRATION), surface)
    every = course[0].every
    with Walk(both, feeds, calibration.runtime, _sizes(flow, alive), every) as walk:
        starts = {chain.producer.linear for chain in chains}
        refitting = _Refitting(walk, pair.weights, ridge, calibration.count, starts, keep)
        for number, (leg, step) in enumerate(zip(course, steps, strict=True)):
            calibration.progress("refit", number, len(steps))
            if leg.every < every:
                walk.rejoin(leg.every)
                every = leg.every
            behind = steps[number + 1 :]
            waiting = step.waiting(both.graph, behind) if step.pending else []
            refitting.take(step, [name for later in behind for name in later.wanted], waiting)
    return refitting.values


def _sizes(flow: Flow, alive: Mask) -> dict[str, float]:
    """Elements of one sample's activations, in the dense model and about as many as in the pruned one."""
    found: dict[str, float] = {}
    for name, shape in flow.trace.facts.shapes.items():
        if shape and not flow.weights.knows(name):
            found[DENSE + name] = float(np.prod(shape[1:]))
            shares = [float(alive[labels].mean()) for labels in flow.trace.axes.get(name, ()) if len(labels)]
            found[name] = found[DENSE + name] * float(np.prod(shares))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One layer: the moments that solve it towards its aim, and the chains that end in it.

    `pending` are outputs of layers that take part in the aim and have their turn later.
    """

    layer: Layer
    inputs: MomentRequest
    outputs: MomentRequest
    joints: tuple[Joint, ...]
    pending: frozenset[str]

    @classmethod
    def of(cls, pair: Pair, number: int, leg: Leg) -> _Step:
        """The step of a leg; its nodes are added to the graph of both models."""
        name, aim = f"aim::{number}", leg.aim
        pair.graph.node.extend(_aim_nodes(name, aim, pair.graph))
        inputs = replace(aim.layer.reading.request, cross_with=name)
        outputs = MomentRequest(
            name, inputs.axis, inputs.rank, lattice=inputs.lattice, row_mask=inputs.row_mask, squares=Squares.ENERGIES
        )
        joints = tuple(
            Joint.of(pair, f"joint::{number}::{place}", chain, aim.layer, name, leg.joint_every)
            for place, chain in enumerate(leg.chains)
        )
        return cls(aim.layer, inputs, outputs, joints, aim.pending)

    @property
    def wanted(self) -> list[str]:
        """The tensors that the step asks for."""
        mine = [name for name in (self.inputs.tensor, self.outputs.tensor, self.inputs.row_mask) if name]
        return [*mine, *self.sources]

    @property
    def sources(self) -> list[str]:
        """What the producers of its chains read, and the masks of their rows."""
        requests = [joint.chain.producer.reading.request for joint in self.joints]
        return [name for request in requests for name in (request.tensor, request.row_mask) if name]

    def held(self, first: int = 0) -> list[int]:
        """The nodes that are run again when one of these producers changes."""
        return [node for joint in self.joints[first:] for node in joint.nodes]

    def waiting(self, graph: onnx.GraphProto, later: Iterable[_Step]) -> list[int]:
        """The nodes of pending layers, and of the producers that are solved with them: they run again in their turn."""
        nodes = [index for index, node in enumerate(graph.node) if self.pending.intersection(node.output)]
        return [*nodes, *(node for step in later if step.layer.output in self.pending for node in step.held())]


def _aim_nodes(name: str, aim: Aim, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """What a layer should give, as a tensor: the dense total at the positions that stayed, less pruned shortcuts."""
    wanted = DENSE + aim.total
    if aim.bias is not None:
        yield helper.make_node("Add", [wanted, DENSE + aim.bias], [f"{name}::biased"])
        wanted = f"{name}::biased"
    for axis, positions in aim.kept.items():
        kept = numpy_helper.from_array(positions, f"{name}::kept{axis}")
        graph.initializer.append(kept)
        yield helper.make_node("Gather", [wanted, kept.name], [f"{name}::cut{axis}"], axis=axis)
        wanted = f"{name}::cut{axis}"
    for place, shortcut in enumerate(aim.shortcuts[:-1]):
        yield helper.make_node("Sub", [wanted, shortcut], [f"{name}::less{place}"])
        wanted = f"{name}::less{place}"
    yield helper.make_node("Sub" if aim.shortcuts else "Identity", [wanted, *aim.shortcuts[-1:]], [name])


@dataclass(slots=True)
class _Refitting:
    """The walk, the weights as they are now, what was written so far, and what is known of the inputs of `starts`.

    These are the producers of all chains. What comes into a layer doesn't change any more once it has had its step.
    """

    walk: Walk
    weights: Weights
    ridge: float
    samples: int
    starts: Collection[Linear]
    keep: Callable[[Array], Array]
    values: dict[str, Array] = field(default_factory=dict)
    known: dict[Linear, Moments] = field(default_factory=dict)

    def take(self, step: _Step, later: Sequence[str], waiting: Sequence[int] = ()) -> None:
        """Solve one layer; over each of its chains with the producer, if that lowers the error.

        Nodes that are `waiting` give what the layer counts with, but run again for a later one.
        """
        after = [*step.wanted, *later] if step.joints else later
        error = self._solve(step, self._moments(step, after, [*waiting, *step.held()]))
        for number, joint in enumerate(step.joints, 1):
            error = self._together(step, joint, error, after, [*waiting, *step.held(number)])
            self.known.pop(joint.chain.producer.linear, None)

    def _together(self, step: _Step, joint: Joint, alone: float, later: Sequence[str], hold: Sequence[int]) -> float:
        """Change the producer too; taken back where that doesn't lower the consumer's error. The error that is left."""
        producer = joint.chain.producer
        known = self.known.get(producer.linear)
        written = [name for layer in (step.layer, producer) for name in self._roots(layer)]
        before, inputs = {name: self.weights.array(name).copy() for name in written}, dict(self.known)
        self._write(joint.step(self.walk, self.weights, lambda found: self._anchor(producer, found), known))
        error = self._solve(step, self._moments(step, later, hold))
        if error <= alone:
            return error
        self._write(before)
        self.known = inputs
        self.walk.redo(joint.nodes)  # later layers must see what the restored weights give
        return alone

    def _moments(self, step: _Step, later: Sequence[str], hold: Sequence[int] = ()) -> tuple[Moments, Moments]:
        found = self.walk.run([step.inputs, step.outputs], later, hold)
        if step.layer.linear in self.starts:
            self.known[step.layer.linear] = found[step.inputs.key]
        return found[step.inputs.key], found[step.outputs.key]

    def _solve(self, step: _Step, moments: tuple[Moments, Moments]) -> float:
        """Write the layer's least-squares weights; the error that is left, infinite where a moment isn't finite."""
        inputs, aims = moments
        if not (inputs.is_finite and aims.is_finite):
            return float("inf")
        x, cross, aim = inputs.centred, inputs.cross_covariance(aims.mean), aims.mean
        present, bias = step.layer.matrix(self.weights), step.layer.offset(self.weights)
        fixed = bias if step.layer.bias is None else None
        weight, bias = refit(x, cross, aim, present, fixed, self._anchor(step.layer, inputs))
        self._write(step.layer.values(self.weights, weight, bias))
        return refit_error(x, cross, aim, float(aims.variance.sum()), weight, bias)

    def _anchor(self, layer: Layer, inputs: Moments) -> float:
        """The strength of the anchor for a layer with these inputs."""
        return SCARCITY.anchor(self.ridge, self.samples, layer.reading.rows_wanted, len(inputs.sum), inputs.count)

    def _roots(self, layer: Layer) -> list[str]:
        path = self.weights.path(layer.linear.weight)
        return [name for name in (path.root if path else None, layer.bias) if name is not None]

    def _write(self, values: Values) -> None:
        values = {name: self.keep(array) for name, array in values.items()}
        self.walk.write(values)
        self.values |= values
