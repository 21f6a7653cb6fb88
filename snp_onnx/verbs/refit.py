"""Sequential refit: layer after layer of a pruned model is solved anew on the inputs that the layers before it give.

Dense and pruned model run side by side, segment by segment, each from the activations that the last one left, so that
all of it costs a few passes. Where a producer reaches its consumer over a chain, both are then solved for the
consumer's aim: the producer by one regularised Gauss-Newton step, the consumer by least squares again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from snp_onnx.calibration.moments import MomentRequest, Moments
from snp_onnx.calibration.samples import Part
from snp_onnx.calibration.segments import DENSE, beside
from snp_onnx.calibration.walk import Walk
from snp_onnx.planning.aims import Aim, Layer, find_aims
from snp_onnx.planning.chains import Chain, find_chain
from snp_onnx.planning.rations import joint_every, most_rows, most_samples
from snp_onnx.subspace import refit, refit_error
from snp_onnx.tracing import Linear
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.weights import Weights
from snp_onnx.verbs.gauss_newton import Joint, Pair
from snp_onnx.verbs.measure import Calibration

Array = npt.NDArray[Any]
Values = Mapping[str, Array]

REFIT_RIDGE = 10.0
"""The anchor of the refit in units of the fold's: it learns from errors, not only from redundancy."""

ENOUGH_SAMPLES = 1000
"""With fewer the anchor grows in proportion: positions of one sample are much alike, so samples count, not rows."""


def refit_layers(
    flow: Flow,
    dense: onnx.ModelProto,
    pruned: onnx.ModelProto,
    alive: Mask,
    ridge: float,
    calibration: Calibration,
    keep: Callable[[Array], Array] = lambda array: array,
) -> dict[str, Array]:
    """New values of the pruned model's initialisers by name; neither model is changed.

    `flow` is the dense model's, `alive` says what the pruned one has of it; `keep` puts values where they stay.
    """
    calibration = replace(calibration, every=max(calibration.every, -(-calibration.count // most_samples(flow))))
    aims = find_aims(flow, alive, calibration.count)
    if not aims:
        return {}
    chains = [find_chain(flow, alive, aim, calibration.count) for aim in aims]
    both = beside(dense, pruned)
    pair = Pair.of(both)
    every = [joint_every(flow, chain, calibration.count) for chain in chains]
    anchor = REFIT_RIDGE * ridge * max(1.0, ENOUGH_SAMPLES / calibration.count)
    steps = [_Step.of(pair, number, *given) for number, given in enumerate(zip(aims, chains, every, strict=True))]
    small = replace(
        calibration, batch_size=min([calibration.batch_size, *(most_rows(flow, chain) for chain in chains)])
    )
    with Walk(both, small.batches(Part.CALIBRATION), calibration.runtime) as walk:
        refitting = _Refitting(walk, pair.weights, anchor, keep)
        for number, step in enumerate(steps):
            calibration.progress("refit", number, len(steps))
            refitting.take(step, [name for later in steps[number + 1 :] for name in later.wanted])
    return refitting.values


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One layer: the tensor that holds its aim, the moments that solve it, and the chain that ends in it."""

    layer: Layer
    inputs: MomentRequest
    outputs: MomentRequest
    joint: Joint | None

    @classmethod
    def of(cls, pair: Pair, number: int, aim: Aim, chain: Chain | None, every: int) -> _Step:
        """The step of an aim; its nodes are added to the graph of both models."""
        name = f"aim::{number}"
        pair.graph.node.extend(_aim_nodes(name, aim, pair.graph))
        inputs = replace(aim.layer.reading.request, cross_with=name)
        outputs = MomentRequest(name, inputs.axis, inputs.rank, lattice=inputs.lattice)
        joint = None if chain is None else Joint.of(pair, f"joint::{number}", chain, aim.layer, name, every)
        return cls(aim.layer, inputs, outputs, joint)

    @property
    def wanted(self) -> list[str]:
        """The tensors that the step asks for."""
        mine = [self.inputs.tensor, self.outputs.tensor]
        return mine if self.joint is None else [*mine, self.joint.chain.producer.linear.input]


def _aim_nodes(name: str, aim: Aim, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """What a layer should give, as a tensor: the dense total at the positions that stayed, less the pruned shortcut."""
    wanted = DENSE + aim.total
    for axis, positions in aim.kept.items():
        kept = numpy_helper.from_array(positions, f"{name}::kept{axis}")
        graph.initializer.append(kept)
        yield helper.make_node("Gather", [wanted, kept.name], [f"{name}::cut{axis}"], axis=axis)
        wanted = f"{name}::cut{axis}"
    inputs = [wanted] if aim.shortcut is None else [wanted, aim.shortcut]
    yield helper.make_node("Sub" if aim.shortcut else "Identity", inputs, [name])


@dataclass(slots=True)
class _Refitting:
    """The walk, the weights as they are now, what was written so far, and the last layer's input moments."""

    walk: Walk
    weights: Weights
    ridge: float
    keep: Callable[[Array], Array]
    values: dict[str, Array] = field(default_factory=dict)
    inputs: dict[Linear, Moments] = field(default_factory=dict)

    def take(self, step: _Step, later: Sequence[str]) -> None:
        """Solve one layer; over its chain with its producer, if that lowers the error."""
        if step.joint is None:
            self._solve(step, self._moments(step, later))
            return
        producer = step.joint.chain.producer
        known = self.inputs.get(producer.linear)
        alone = self._solve(step, self._moments(step, [*step.wanted, *later], step.joint.nodes))
        written = [name for layer in (step.layer, producer) for name in self._roots(layer)]
        before, inputs = {name: self.weights.array(name).copy() for name in written}, self.inputs
        self._write(step.joint.step(self.walk, self.weights, self.ridge, known))
        together = self._solve(step, self._moments(step, [*later, producer.linear.input]))
        if not together <= alone:
            self._write(before)
            self.inputs = inputs
            self.walk.redo(step.joint.nodes)  # later layers must see what the restored weights give

    def _moments(self, step: _Step, later: Sequence[str], hold: Sequence[int] = ()) -> tuple[Moments, Moments]:
        found = self.walk.run([step.inputs, step.outputs], later, hold)
        self.inputs = {step.layer.linear: found[step.inputs.key]}
        return found[step.inputs.key], found[step.outputs.key]

    def _solve(self, step: _Step, moments: tuple[Moments, Moments]) -> float:
        """Write the layer's least-squares weights; the error that is left, infinite where a moment isn't finite."""
        inputs, aims = moments
        if not (inputs.is_finite and aims.is_finite):
            return float("inf")
        cross = inputs.cross
        assert cross is not None
        present, bias = step.layer.matrix(self.weights), step.layer.offset(self.weights)
        fixed = bias if step.layer.bias is None else None
        weight, bias = refit(inputs.gram, inputs.mean, cross, aims.mean, present, fixed, self.ridge)
        self._write(step.layer.values(self.weights, weight, bias))
        return refit_error(inputs.gram, inputs.mean, cross, aims.mean, float(np.trace(aims.gram)), weight, bias)

    def _roots(self, layer: Layer) -> list[str]:
        path = self.weights.path(layer.linear.weight)
        return [name for name in (path.root if path else None, layer.bias) if name is not None]

    def _write(self, values: Values) -> None:
        values = {name: self.keep(array) for name, array in values.items()}
        self.walk.write(values)
        self.values |= values
