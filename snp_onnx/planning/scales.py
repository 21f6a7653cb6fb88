"""Scales: what the error of a layer counts for beside the errors of others, when a budget is shared out.

The error e of a layer counts relative to the variance V of the sum that its output goes into, and for the less the more
layers behind it can make up for it when they are refitted: e / (V (1 + a r)), with r layers on the shortest way to an
output of the graph. A layer that adds to a residual stream lies on the way of what passes it by. What a last layer gets
wrong, one in front of an output of the graph, is not repaired. Its channels mean different things: each counts relative
to its own variance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from snp_onnx.tracing import Linear
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.op import Op

Vector = npt.NDArray[np.float64]

MOST_CHANNELS = 64
"""Channels of an output up to which each counts by itself: the more there are, the more alike is what they mean."""

FLOOR = 1e-6
"""Share of the mean variance of a last layer's outputs that each of them is taken to have at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """The share a, and for every node, by its index, how many layers behind it can make up for its errors.

    `last` are the nodes of layers from which a way leads to an output of the graph past no other layer, and whose
    output isn't added to another branch.
    """

    repair: float
    behind: Mapping[int, int]
    last: frozenset[int] = frozenset()

    @classmethod
    def of(cls, flow: Flow, consumers: Iterable[Linear], repair: float) -> Scales:
        """The scales of the layers that lose inputs."""
        ends = layers_behind(flow, flow.trace.linears)
        last = {
            linear.op.index
            for linear in flow.trace.linears
            if ends.get(linear.op.index) == 0 and flow.residual(flow.bias(linear)[1]) is None
        }
        return cls(repair, layers_behind(flow, consumers), frozenset(last))

    def discount(self, op: Op) -> float:
        """1 / (1 + a r) of a node."""
        return 1.0 / (1.0 + self.repair * self.behind.get(op.index, 0))

    def is_by_channel(self, linear: Linear, outputs: int) -> bool:
        """Whether each output of a layer counts relative to its own variance: of a last layer with few."""
        return linear.op.index in self.last and outputs <= MOST_CHANNELS

    def factor(self, linear: Linear, total: float) -> float:
        """What a layer's weight is multiplied by, so that its squared error is on the common scale.

        total : the variance of the sum that its output goes into, over all channels.
        """
        return float(np.sqrt(self.discount(linear.op) / total)) if total > 0.0 else 1.0

    def factors(self, linear: Linear, variances: Vector) -> Vector:
        """The same for every output of a last layer alone, (O,), from their variances (O,)."""
        own = len(variances) * np.maximum(variances, FLOOR * float(variances.mean()))
        return np.asarray(np.sqrt(np.divide(self.discount(linear.op), own, out=np.ones(len(own)), where=own > 0.0)))


def layers_behind(flow: Flow, consumers: Iterable[Linear]) -> dict[int, int]:
    """How many of these layers lie behind each node, by its index, on the shortest way to an output of the graph."""
    by_op = {linear.op.index: linear for linear in consumers}
    sums = [flow.residual(flow.bias(linear)[1]) for linear in by_op.values()]
    passes = {(shortcut, total) for total, shortcut in filter(None, sums)}
    fewest: dict[str, int] = dict.fromkeys(flow.outputs, 0)
    found: dict[int, int] = {}
    for op in reversed(flow.trace.ops):
        ahead = [fewest[name] for name in op.outputs if name in fewest]
        if not ahead:
            continue
        least = min(ahead)
        found[op.index] = least
        for name in op.reads:
            is_passed = any((name, output) in passes for output in op.outputs)
            cost = least + (1 if op.index in by_op or is_passed else 0)
            fewest[name] = min(fewest.get(name, cost), cost)
    return found
