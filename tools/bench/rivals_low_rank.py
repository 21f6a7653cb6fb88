"""Low rank: every convolution becomes two, through r channels in between.

A convolution stays as it is where its pair would not be cheaper. Three factorisations of W (M, C, k, k):

- spatial (arXiv 1405.3866): k x 1 to r channels, then 1 x k; truncated SVD of W as a (C k, k M) matrix;
- channel (arXiv 1412.6553 in its simplest form): k x k to r channels, then 1 x 1; truncated SVD of W as (M, C k k);
- response (arXiv 1505.06798, symmetric): the same shapes, but the r directions are the principal components of the
  convolution's outputs on the calibration images, and the bias keeps their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from tools.bench.rivals_judge import Bench, Way, open_session

Array = npt.NDArray[Any]
BATCH = 64
LATTICE = 2  # every second output position in both directions is enough for the moments
HALVINGS = 60


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """A square convolution of the dense model; `side` is its output's."""

    node: onnx.NodeProto
    weight: Array
    bias: Array
    stride: int
    pad: int
    side: int

    @property
    def macs(self) -> int:
        return int(self.weight.size) * self.side**2


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A factorisation at full rank R, strongest direction first.

    energies (R,); first (R, C, k, 1 or k); second (M, R, 1, 1 or k). The outputs are approximated around `centre` (M,).
    """

    conv: Conv
    energies: Array
    first: Array
    second: Array
    centre: Array

    @property
    def macs_per_rank(self) -> int:
        """What one more channel in between costs."""
        width = self.conv.side * (self.conv.stride if self.second.shape[3] > 1 else 1)
        return int(self.first[0].size * self.conv.side * width + self.second[:, 0].size * self.conv.side**2)

    def macs(self, rank: int) -> int:
        """Of the pair, or of the convolution where that is cheaper."""
        return min(self.macs_per_rank * rank, self.conv.macs)

    def bias(self, rank: int) -> Array:
        """centre + P (bias - centre), P the projection onto the directions kept."""
        offset = self.conv.bias - self.centre
        if not offset.any():
            return self.conv.bias
        directions = self.second[:, :rank, 0, 0]
        projected: Array = self.centre + directions @ (directions.T @ offset)
        return projected


Factorise = Callable[[Bench, Conv], Pair]
Ranks = Callable[[Pair, float], int]


def low_rank(bench: Bench, factorise: Factorise, ranks: Ranks) -> Way:
    """All convolutions factorised; the lowest threshold that meets the target."""
    pairs = [factorise(bench, conv) for conv in _convolutions(bench)]
    fixed = bench.dense_macs - sum(pair.conv.macs for pair in pairs)

    def way(target: float) -> onnx.ModelProto:
        cut, keep = 0.0, 1.0  # shares of threshold: at `cut` everything is kept
        for _ in range(HALVINGS):
            middle = (cut + keep) / 2
            spent = fixed + sum(pair.macs(ranks(pair, middle)) for pair in pairs)
            cut, keep = (cut, middle) if spent <= target * bench.dense_macs else (middle, keep)
        return _rewritten(bench.dense, {pair.conv.node.output[0]: (pair, ranks(pair, keep)) for pair in pairs})

    return way


def equal_energy(pair: Pair, threshold: float) -> int:
    """The smallest rank that leaves out at most `threshold` of the pair's energy."""
    captured = np.cumsum(pair.energies) / pair.energies.sum()
    return 1 + int(np.searchsorted(captured, 1.0 - threshold))


def equal_gain(pair: Pair, threshold: float) -> int:
    """Directions whose energy / sqrt(all energy) per MAC is above a price; log scale, one price for the network."""
    gains = pair.energies / np.sqrt(pair.energies.sum()) / pair.macs_per_rank
    return max(1, int((np.log10(np.maximum(gains, 1e-300)) > 40.0 * threshold - 30.0).sum()))


def spatial(bench: Bench, conv: Conv) -> Pair:
    """(C k, k M) = U S Vt; sqrt(S) on both sides."""
    filters, channels, rows, columns = conv.weight.shape
    matrix = conv.weight.transpose(1, 2, 3, 0).reshape(channels * rows, columns * filters)
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    first = (left * np.sqrt(values)).T.reshape(-1, channels, rows, 1)
    second = (np.sqrt(values)[:, None] * right).reshape(-1, 1, columns, filters).transpose(3, 0, 1, 2)
    return Pair(conv, values**2, first, second, conv.bias)


def channel(bench: Bench, conv: Conv) -> Pair:
    """(M, C k k) = U S Vt: first S Vt, second U."""
    matrix = conv.weight.reshape(len(conv.weight), -1).astype(np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    first = (values[:, None] * right).reshape(-1, *conv.weight.shape[1:])
    return Pair(conv, values**2, first, left[:, :, None, None], conv.bias)


def response(bench: Bench, conv: Conv) -> Pair:
    """Eigenvectors U of the outputs' covariance: first Ut W, second U."""
    mean, covariance = _outputs(bench)[conv.node.output[0]]
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    first = np.tensordot(vectors.T, conv.weight.astype(np.float64), axes=1)
    return Pair(conv, values, first, vectors[:, :, None, None], mean)


@cache
def _outputs(bench: Bench) -> Mapping[str, tuple[Array, Array]]:
    """Mean (M,) and covariance (M, M) of every convolution's output on the calibration images."""
    names = [conv.node.output[0] for conv in _convolutions(bench)]
    model = onnx.ModelProto()
    model.CopyFrom(bench.dense)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(model)
    sums: dict[str, Array] = {}
    for at in range(0, len(bench.inputs), BATCH):
        for name, found in zip(names, session.run(names, {"input": bench.inputs[at : at + BATCH]}), strict=True):
            rows = found[:, :, ::LATTICE, ::LATTICE].transpose(0, 2, 3, 1).reshape(-1, found.shape[1])
            rows = np.hstack([rows, np.ones((len(rows), 1))])  # float64; the last column counts and averages
            sums[name] = sums.get(name, 0.0) + rows.T @ rows
    return {name: _moments(total) for name, total in sums.items()}


def _moments(total: Array) -> tuple[Array, Array]:
    mean = total[:-1, -1] / total[-1, -1]
    return mean, total[:-1, :-1] / total[-1, -1] - np.outer(mean, mean)


def _convolutions(bench: Bench) -> list[Conv]:
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in bench.dense.graph.initializer}
    shapes = onnx.shape_inference.infer_shapes(bench.dense).graph.value_info
    sides = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][-1:] for value in shapes}
    found = []
    for node in bench.dense.graph.node:
        if node.op_type == "Conv":
            options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            weight, bias = weights[node.input[1]], weights[node.input[2]]
            found.append(Conv(node, weight, bias, options["strides"][0], options["pads"][0], sides[node.output[0]][0]))
    return found


def _rewritten(dense: onnx.ModelProto, decided: Mapping[str, tuple[Pair, int]]) -> onnx.ModelProto:
    """A copy of the model in which every pair that is cheaper takes its convolution's place."""
    model = onnx.ModelProto()
    model.CopyFrom(dense)
    nodes, dropped = [], set()
    for node in dense.graph.node:
        pair, rank = decided.get(node.output[0], (None, 0))
        if pair is None or pair.macs_per_rank * rank >= pair.conv.macs:
            nodes.append(node)
            continue
        made, tensors = _two_nodes(pair, rank)
        nodes += made
        model.graph.initializer.extend(tensors)
        dropped |= set(node.input[1:])
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in dropped]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    return model


def _two_nodes(pair: Pair, rank: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    conv, name = pair.conv, pair.conv.node.output[0]
    arrays = {"first": pair.first[:rank], "second": pair.second[:, :rank], "bias": pair.bias(rank)}
    tensors = [numpy_helper.from_array(a.astype(np.float32), f"{name}/{part}") for part, a in arrays.items()]
    first, second, bias = (tensor.name for tensor in tensors)
    between = f"{name}/between"
    wide = pair.second.shape[3] > 1
    pads = [(conv.pad, 0 if wide else conv.pad), (0, conv.pad if wide else 0)]
    strides = [(conv.stride, 1 if wide else conv.stride), (1, conv.stride if wide else 1)]
    made = [
        helper.make_node("Conv", [conv.node.input[0], first], [between], pads=[*pads[0], *pads[0]], strides=strides[0]),
        helper.make_node("Conv", [between, second, bias], [name], pads=[*pads[1], *pads[1]], strides=strides[1]),
    ]
    return made, tensors
