"""Chains: a producer, what lies between, and the consumer behind it, where both can be solved for the consumer's aim.

With units gone, the producer need not give the dense model's channels any more, as long as the consumer makes the right
sum of what it gives. A chain is where that freedom can be used: one way from the producer to the consumer, over
activations, however they are spelled, and per-channel layers. Behind a gate two producers meet: each has a chain, along
which the other one's output counts as given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from snp_onnx.calibration.moments import Window
from snp_onnx.calibration.tangents import Link, Region
from snp_onnx.planning.aims import Aim, Layer, find_layer
from snp_onnx.planning.windows import window_of
from snp_onnx.tracing import Linear
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.op import Op

ACTIVATIONS = frozenset(
    (
        *("Relu", "LeakyRelu", "ThresholdedRelu", "Clip", "Elu", "Celu", "Selu", "Sigmoid", "HardSigmoid"),
        *("HardSwish", "Tanh", "Softplus", "Softsign", "Mish", "Gelu", "Erf", "Identity", "Neg", "Swish"),
    )
)
"""Elementwise functions of one tensor, whose slope can be taken."""

PARTS = ACTIVATIONS | frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Reciprocal", "Max", "Min"))
"""What exporters spell activations with."""

WIDENING = 2
"""A convolution with so many times more outputs than inputs widens."""

FUSED_ACTIVATIONS = frozenset(("Gelu", "QuickGelu", "FastGelu", "BiasGelu"))
"""Those of onnxruntime, two of which add a bias first."""


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A producer and what lies between its output and its consumer, in order.

    `windows` are those of the convolutions after the producer, the consumer's included, by output.
    """

    producer: Layer
    links: tuple[Link, ...]
    windows: Mapping[str, Window]


def find_chains(flow: Flow, alive: Mask, aim: Aim, samples: int, always: bool = False) -> tuple[Chain, ...]:
    """The chains that end in the layer of an aim, if that lost inputs: two behind a gate, otherwise one or none.

    `always`: also if it lost none.
    """
    trace, consumer = flow.trace, aim.layer.linear
    lost = not alive[trace.axes[consumer.weight][consumer.in_axis]].all()
    if not (lost or always) or not _is_right(consumer) or trace.facts.types[consumer.input] != onnx.TensorProto.FLOAT:
        return ()
    walk = _Back(flow, alive, samples, {linear.op.index: linear for linear in trace.linears})
    links: list[Link] = []
    tensor = consumer.input
    while flow.is_sole(tensor) or links:
        found = walk.step(tensor)
        if isinstance(found, Layer):
            chain = walk.chain(found, consumer, links)
            return (chain,) if chain is not None else ()
        if isinstance(found, list):
            gated = [walk.chain(layer, consumer, [*links, region]) for layer, region in found]
            return tuple(chain for chain in gated if chain is not None)
        if found is None:
            return ()
        links.append(found)
        tensor = found.source if isinstance(found, Region) else found.input(0)
    return ()


def worth_a_step(
    flow: Flow, alive: Mask, aims: Sequence[Aim], chains: Sequence[tuple[Chain, ...]]
) -> tuple[list[Aim], list[tuple[Chain, ...]]]:
    """The aims, with their chains, but for those of convolutions that widen whole inputs and start a chain.

    Such a layer is solved anew with its consumer; before that it can hardly make up for an input that changed.
    """
    starts = {chain.producer.linear for found in chains for chain in found}
    left = []
    for aim, found in zip(aims, chains, strict=True):
        linear = aim.layer.linear
        whole = alive[flow.trace.axes[linear.weight][linear.in_axis]].all()
        outputs = flow.shape(linear.weight)[linear.out_axis]
        if (
            found
            or linear.op.type != "Conv"
            or not (whole and linear in starts and outputs >= WIDENING * len(aim.layer.reading.columns))
        ):
            left.append((aim, found))
    return [aim for aim, _ in left], [found for _, found in left]


@dataclass(frozen=True, slots=True, eq=False)
class _Back:
    """The way back from a consumer."""

    flow: Flow
    alive: Mask
    samples: int
    linears: Mapping[int, Linear]

    def step(self, tensor: str) -> Layer | Link | list[tuple[Layer, Region]] | None:
        """What gives a tensor: the producer, one more link, or the producers on both sides of a gate."""
        maker = self.flow.maker(tensor)
        if maker is None:
            return None
        if self._producer(tensor) is not None:
            return self._layer(tensor)
        if maker.is_standard and _is_depthwise(self.flow, maker):
            return maker if self.flow.is_sole(maker.input(0)) else None
        ops, sources = self._region(tensor)
        if len(sources) == 1:
            return Region(ops, sources[0], tensor)
        layers = [self._layer(source) for source in sources]
        if len({layer.linear.input for layer in layers if layer is not None}) != 1 or None in layers:
            return None
        return [(layer, Region(ops, layer.output, tensor)) for layer in layers if layer is not None]

    def chain(self, producer: Layer, consumer: Linear, backwards: list[Link]) -> Chain | None:
        """The chain of a producer, where the tangent of all its links can be written."""
        convs = [op for op in (*backwards, consumer.op) if isinstance(op, Op) and op.type == "Conv"]
        windows = {op.outputs[0]: window_of(self.flow.trace, self.linears[op.index]) for op in convs}
        if any(op.version < 10 and max(windows[op.outputs[0]].strides) > 1 for op in convs):
            return None  # the way back ends in a Slice with an end computed at run time
        return Chain(producer, tuple(reversed(backwards)), windows)

    def _layer(self, tensor: str) -> Layer | None:
        """The mixing layer that gives exactly this tensor, where it may be solved anew."""
        producer = self._producer(tensor)
        layer = None if producer is None else find_layer(self.flow, self.alive, producer, self.samples)
        return layer if layer is not None and layer.output == tensor and _is_right(layer.linear) else None

    def _producer(self, tensor: str) -> Linear | None:
        """The mixing layer that gives a tensor, itself or through the Add of its bias."""
        maker = self.flow.maker(tensor)
        if maker is not None and maker.is_standard and maker.type == "Add":
            before = [self.flow.maker(name) for name in maker.inputs if not self.flow.weights.knows(name)]
            maker = before[0] if len(before) == 1 else None
        linear = None if maker is None else self.linears.get(maker.index)
        return linear if linear is not None and linear.mixes else None

    def _region(self, output: str) -> tuple[tuple[Op, ...], tuple[str, ...]]:
        """The fewest elementwise nodes that make `output` of one tensor, or of two producers' where a gate is.

        No sources where something else takes part, or somebody outside reads what is inside.
        """
        flow = self.flow
        ops: dict[int, Op] = {}
        frontier, ends = {output}, set[str]()
        while frontier:
            tensor = max(frontier, key=lambda name: _place(flow.maker(name)))
            maker = flow.maker(tensor)
            if maker is None or not flow.are_alike(tensor, output):
                return (), ()
            frontier.discard(tensor)
            if tensor != output and self._producer(tensor) is not None:
                ends.add(tensor)
            elif _is_part(maker):
                ops[maker.index] = maker
                frontier.update(name for name in maker.inputs if name and not flow.weights.knows(name))
            else:
                return (), ()
            if len(frontier | ends) == 1:
                break
        sources = tuple(sorted(frontier | ends))
        inside = {name for op in ops.values() for name in op.outputs} - {output} | set(sources)
        closed = all(reader.index in ops for name in inside for reader in flow.readers.get(name, ()))
        if not closed or not 1 <= len(sources) <= 2 or any(flow.is_output(name) for name in inside):
            return (), ()
        return tuple(ops[index] for index in sorted(ops)), sources


def _place(op: Op | None) -> int:
    return -1 if op is None else op.index


def _is_part(op: Op) -> bool:
    return op.type in (PARTS if op.is_standard else FUSED_ACTIVATIONS if op.domain == "com.microsoft" else ())


def _is_right(linear: Linear) -> bool:
    """Whether the weight is the right operand, as in all tangents."""
    return linear.op.input(0) == linear.input and linear.op.is_standard


def _is_depthwise(flow: Flow, op: Op) -> bool:
    """One filter a channel: what comes out of a channel depends on it alone."""
    channels = flow.shape(op.input(0))[1] if op.type == "Conv" else 0
    return op.type == "Conv" and op.attr("group", 1) == channels == flow.shape(op.outputs[0])[1]
