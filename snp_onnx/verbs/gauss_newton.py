"""One Gauss-Newton step for a producer: the change of its weights that best serves the aim of its consumer.

With the consumer's residual r and the tangent J of the chain between, it minimises over the change D

    mean ‖r - J D‖² + Σ_o s_o D_o Λ D_oᵀ

by a few conjugate-gradient iterations, preconditioned with K ⊗ (H + Λ) of the producer's inputs
(`subspace.centred`), s_o the gain from its output o to the consumer's outputs, K the same of two outputs together, s on
its diagonal. Nothing but the gradient and the products leaves the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from scipy import linalg

from snp_onnx.calibration.moments import MomentRequest, Moments, Squares
from snp_onnx.calibration.tangents import Link, Region, Tangent
from snp_onnx.calibration.walk import Walk
from snp_onnx.planning.aims import Layer
from snp_onnx.planning.chains import Chain
from snp_onnx.subspace import conjugate_gradients
from snp_onnx.tracing.branches import is_gate
from snp_onnx.tracing.op import Op, ops_of
from snp_onnx.tracing.weights import Weights

Array = npt.NDArray[Any]

CURVATURE_EVERY = 2
"""Products with the curvature use one in so many of the batches that the gradient uses: it needs less of them."""

TOGETHER = 0.5
"""How often two outputs are active together, where each of them is half of the time: as a share of that."""

ITERATIONS = 2
"""More would fit the samples rather than the layer, and each is a pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Dense and pruned model as one graph that grows, its nodes by first output, and its weights as they are now."""

    graph: onnx.GraphProto
    ops: Mapping[str, Op]
    weights: Weights

    @classmethod
    def of(cls, both: onnx.ModelProto) -> Pair:
        return cls(both.graph, {op.outputs[0]: op for op in ops_of(both)}, Weights(both))


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """A chain with its tangent: the requests for the gradient and for products with the curvature.

    `nodes` are the chain's own in the graph of both models, to be run again once the producer has changed; the step
    sees one in `every` batches.
    """

    chain: Chain
    consumer: Layer
    tangent: Tangent
    gradient: MomentRequest
    curvature: MomentRequest
    nodes: tuple[int, ...]
    every: int

    @classmethod
    def of(cls, pair: Pair, name: str, chain: Chain, consumer: Layer, aim: str, every: int) -> Joint:
        """The step towards the tensor `aim`; its nodes and constants are added to the graph."""
        both, producer, now = pair.graph, chain.producer, pair.ops
        first, last = (now[layer.linear.op.outputs[0]] for layer in (producer, consumer))
        links = [_as_now(link, now) for link in chain.links]
        rows = producer.reading.request
        # nodes of the dense model may have other attributes
        mask = None if rows.row_mask is None or is_gate(rows.row_mask) else rows.row_mask
        tangent = Tangent(name, links, last, chain.windows, rows.row_axes, mask)
        moved = tangent.forward(first)
        given = consumer.output
        if consumer.is_apart and consumer.bias is not None:
            given = tangent.plus(given, consumer.bias)
        gradient = tangent.back(tangent.less(aim, given))
        curvature = tangent.back(moved)
        both.node.extend(tangent.nodes)
        both.initializer.extend(tangent.constants)
        weights = pair.weights
        like = weights.array(producer.linear.weight)
        for place, shape in ((tangent.weight, like.shape), (tangent.bias, producer.offset(weights).shape)):
            both.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), place))
        requests = [_request(producer, tensor) for tensor in (gradient, curvature)]
        between = [op for link in links for op in (link.ops if isinstance(link, Region) else (link,))]
        chained = {name for op in (first, *between, last) for name in op.outputs} | {producer.output, consumer.output}
        nodes = tuple(i for i, node in enumerate(both.node) if chained.intersection(node.output))
        return cls(chain, consumer, tangent, requests[0], requests[1], nodes, every)

    def step(
        self, walk: Walk, weights: Weights, anchor: Callable[[Moments], float], inputs: Moments | None
    ) -> dict[str, Array]:
        """New values of the producer's initialisers; none where a moment isn't finite.

        `anchor` gives the strength of the ridge for the moments of the producer's inputs; these are `inputs`, if they
        were taken already.
        """
        producer = self.chain.producer
        asked = producer.reading.request
        found = walk.run([self.gradient, *([asked] if inputs is None else [])], every=self.every)
        x, g = inputs or found[asked.key], found[self.gradient.key]
        if not (x.is_finite and g.is_finite):
            return {}
        present, bias = producer.matrix(weights), producer.offset(weights)
        is_affine = producer.bias is not None
        mean = x.mean if is_affine else np.zeros_like(x.mean)
        normal = x.centred.with_ridge(anchor(x), is_affine, in_place=True)
        factor, ridge = normal.factor_on(in_place=True), normal.ridge
        gain = self._gain(weights)

        def curvature(change: Array) -> Array:
            self._hold(walk, weights, change, mean)
            product = self._change(
                walk.run([self.curvature], every=CURVATURE_EVERY * self.every)[self.curvature.key], mean
            )
            product[:, :-1] += gain[:, None] * ridge * change[:, :-1]
            return product

        outer = linalg.cho_factor(self._mixed(weights, gain), lower=True, check_finite=False)

        def precondition(change: Array) -> Array:
            solved = factor.solve(change[:, :-1].T).T
            return np.asarray(linalg.cho_solve(outer, np.c_[solved, change[:, -1]], check_finite=False))

        solved = conjugate_gradients(self._change(g, mean), curvature, precondition, ITERATIONS)
        change, shift = solved[:, :-1], solved[:, -1] - solved[:, :-1] @ mean
        return producer.values(weights, present + change, bias + shift)

    def _change(self, moments: Moments, mean: Array) -> Array:
        """Jᵀ u as a change of [weight | output mean], (O, C + 1), averaged; the last 0 where no bias is free."""
        cross = moments.cross
        assert cross is not None
        total = moments.mean if self.chain.producer.bias is not None else np.zeros(len(cross))
        return np.asarray(np.c_[cross - np.outer(total, mean), total])

    def _hold(self, walk: Walk, weights: Weights, change: Array, mean: Array) -> None:
        """Let the tangent's initialisers hold a change."""
        producer = self.chain.producer
        weight = producer.shaped(weights, change[:, :-1]).astype(np.float32)
        bias = (change[:, -1] - change[:, :-1] @ mean).astype(np.float32)
        walk.write({self.tangent.weight: weight, self.tangent.bias: bias})

    def _mixed(self, weights: Weights, gain: Array) -> Array:
        """The gain as a matrix (O, O): what changes of two outputs do together, `gain` on the diagonal."""
        consumer = self.consumer.matrix(weights)
        columns = consumer.reshape(len(consumer), len(gain), -1)
        together = np.einsum("aot,apt->op", columns, columns, optimize=True)
        for op in (link for link in self.chain.links if isinstance(link, Op)):
            taps = np.asarray(weights.array(op.input(1)), np.float64).reshape(len(gain), -1)
            together = together * (taps @ taps.T)
        together *= TOGETHER
        np.fill_diagonal(together, gain)
        return np.asarray(together)

    def _gain(self, weights: Weights) -> Array:
        """s (O,): the energy that a unit change of each of the producer's outputs has at the consumer's."""
        consumer = self.consumer.matrix(weights)
        columns = np.square(consumer).sum(axis=0)
        outputs = len(self.chain.producer.matrix(weights))
        gain: Array = columns.reshape(outputs, -1).sum(axis=1)
        for op in (link for link in self.chain.links if isinstance(link, Op)):
            taps = np.square(np.asarray(weights.array(op.input(1)), np.float64)).reshape(outputs, -1)
            gain = gain * taps.sum(axis=1)
        most = float(gain.max())
        return np.asarray(np.maximum(gain, 1e-6 * most if most > 0.0 else 1.0))


def _as_now(link: Link, now: Mapping[str, Op]) -> Link:
    """A link of the dense model with the nodes of the pruned one, whose attributes may differ."""
    if isinstance(link, Op):
        return now[link.outputs[0]]
    return replace(link, ops=tuple(now[op.outputs[0]] for op in link.ops))


def _request(producer: Layer, tensor: str) -> MomentRequest:
    """The producer's outputs against its inputs, at every position."""
    reading = producer.reading.request
    return MomentRequest(
        tensor,
        reading.axis,
        reading.rank,
        row_mask=reading.row_mask,
        cross_with=producer.linear.input,
        cross_window=reading.window,
        squares=Squares.NONE,
    )
