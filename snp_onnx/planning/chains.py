"""Chains: a producer, what lies between, and the consumer behind it, where both can be solved for the consumer's aim.

With units gone, the producer need not give the dense model's channels any more, as long as the consumer makes the right
sum of what it gives. A chain is where that freedom can be used: one way from the producer to the consumer, over
activations and per-channel layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from snp_onnx.calibration.moments import Window
from snp_onnx.planning.aims import Aim, Layer, find_layer
from snp_onnx.planning.readings import window_of
from snp_onnx.tracing import Linear
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.op import Op

ACTIVATIONS = frozenset(
    (
        *("Relu", "LeakyRelu", "ThresholdedRelu", "Clip", "Elu", "Celu", "Selu", "Sigmoid", "HardSigmoid"),
        *("HardSwish", "Tanh", "Softplus", "Softsign", "Mish", "Gelu", "Erf", "Identity", "Neg"),
    )
)
"""Elementwise functions of one tensor, whose slope can be taken."""

FUSED_ACTIVATIONS = frozenset(("Gelu", "QuickGelu", "FastGelu", "BiasGelu"))
"""Those of onnxruntime, two of which add a bias first."""


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A producer and the nodes from its output to its consumer, in order.

    `windows` are those of the convolutions after the producer, the consumer's included, by output.
    """

    producer: Layer
    links: tuple[Op, ...]
    windows: Mapping[str, Window]


def find_chain(flow: Flow, alive: Mask, aim: Aim, samples: int) -> Chain | None:
    """The chain that ends in the layer of an aim, if that lost inputs; None where there is no such chain."""
    trace, consumer = flow.trace, aim.layer.linear
    lost = not alive[trace.axes[consumer.weight][consumer.in_axis]].all()
    if not lost or not _is_right(consumer) or trace.facts.types[consumer.input] != onnx.TensorProto.FLOAT:
        return None
    linears = {linear.op.index: linear for linear in trace.linears}
    links: list[Op] = []
    tensor = consumer.input
    while flow.is_sole(tensor):
        maker = flow.maker(tensor)
        if maker is None:
            return None
        if maker.type in ("Conv", "Gemm", "MatMul", "Add") and (producer := _ends_in(flow, tensor, maker, linears)):
            layer = find_layer(flow, alive, producer, samples)
            if layer is None or layer.output != tensor or not _is_right(producer):
                return None
            convs = [op for op in (*links, consumer.op) if op.type == "Conv"]
            windows = {op.outputs[0]: window_of(trace, linears[op.index]) for op in convs}
            if any(op.version < 10 and max(windows[op.outputs[0]].strides) > 1 for op in convs):
                return None  # the way back ends in a Slice with an end computed at run time
            return Chain(layer, tuple(reversed(links)), windows)
        if not (_is_activation(flow, maker) or (maker.is_standard and _is_depthwise(flow, maker))):
            return None
        links.append(maker)
        tensor = maker.input(0)
    return None


def _is_right(linear: Linear) -> bool:
    """Whether the weight is the right operand, as in all tangents."""
    return linear.op.input(0) == linear.input and linear.op.is_standard


def _ends_in(flow: Flow, tensor: str, maker: Op, linears: dict[int, Linear]) -> Linear | None:
    """The mixing layer that gives a tensor, itself or through the Add of its bias."""
    if maker.type == "Add":
        before = [flow.maker(name) for name in maker.inputs if not flow.weights.knows(name)]
        if len(before) != 1 or before[0] is None:
            return None
        maker = before[0]
    linear = linears.get(maker.index)
    return linear if linear is not None and linear.mixes else None


def _is_activation(flow: Flow, op: Op) -> bool:
    """A function of one tensor, element by element; a constant bias may be added first."""
    known = ACTIVATIONS if op.is_standard else FUSED_ACTIVATIONS if op.domain == "com.microsoft" else ()
    return op.type in known and (op.is_standard or all(map(flow.weights.knows, op.inputs[1:])))


def _is_depthwise(flow: Flow, op: Op) -> bool:
    """One filter a channel: what comes out of a channel depends on it alone."""
    channels = flow.shape(op.input(0))[1] if op.type == "Conv" else 0
    return op.type == "Conv" and op.attr("group", 1) == channels == flow.shape(op.outputs[0])[1]
