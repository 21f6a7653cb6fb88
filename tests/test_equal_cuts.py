"""Grouped convolutions that lose the same positions of every group: what is planted goes, and folds are per group."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import snp_onnx
from snp_onnx.planning.folding import fold
from snp_onnx.planning.layers import layers_of
from tests.graphs import Net, feed_for
from tests.oracles import difference, run
from tests.test_planning import planned

Array = npt.NDArray[Any]


def twice(values: Array, axis: int) -> Array:
    """The second half of an axis repeats the first."""
    half = np.take(values, range(values.shape[axis] // 2), axis)
    return np.concatenate([half, half], axis)


def shuffled_copies() -> onnx.ModelProto:
    """A unit of ShuffleNetV1 of three groups with 12 positions each; of four that are read together two are copies."""
    net = Net(batch="N", seed=2)
    x = net.conv_relu(net.image(), 3, 12)
    first = twice(net.rng.normal(size=(3, 3, 4, 4, 1, 1)) * 0.5, axis=2).reshape(36, 4, 1, 1)
    h = net.Relu(net.op("Conv", x, net.const(first), group=3))
    apart = net.Transpose(net.reshape(h, 0, 3, 12, 8, 8), perm=[0, 2, 1, 3, 4])
    kernels = twice(net.rng.normal(size=(3, 4, 3, 1, 3, 3)) * 0.4, axis=1).reshape(36, 1, 3, 3)
    h = net.op("Conv", net.reshape(apart, 0, 36, 8, 8), net.const(kernels), group=36, pads=[1] * 4)
    x = net.Relu(net.Add(x, net.conv(h, 36, 12, k=1, group=3)))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 12, 5))
    return net.model()


def copies_in_two() -> onnx.ModelProto:
    """As in AlexNet: two groups between plain convolutions; half of the positions of each repeat the others."""
    net = Net(batch="N", seed=2)
    x = net.conv_relu(net.image(), 3, 8)
    weight = twice(net.rng.normal(size=(2, 8, 4, 3, 3)) * 0.2, axis=1).reshape(16, 4, 3, 3)
    x = net.Relu(net.op("Conv", x, net.const(weight), group=2, pads=[1] * 4))
    net.output(net.conv(x, 16, 4))
    return net.model()


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize(("model", "share"), [(shuffled_copies(), 0.8), (copies_in_two(), 0.6)], ids=["shuffle", "two"])
def test_copies_in_every_group_go_for_nothing(model: onnx.ModelProto, share: float, preset: str) -> None:
    feed = feed_for(model, 120)
    result = snp_onnx.prune(model, feed, target_macs=share, preset=preset, ridge=1e-6)
    assert result.report.pruned.macs <= share * result.report.dense.macs
    for batch in (1, 3):
        other = feed_for(model, batch, seed=5)
        assert difference(run(model, other), run(result.model, other)) < 1e-2


@pytest.mark.parametrize("transposed", [False, True])
def test_every_group_is_folded_by_its_own_least_squares(transposed: bool) -> None:
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, 12)
    out = net.transposed(x, 12, 6, group=2, k=1) if transposed else net.conv(x, 12, 6, k=1, group=2)
    net.output(out)
    found = planned(net.model())
    (group,) = found.trace.groups
    (linear,) = group.consumers
    alive = found.trace.alive([group.labels[[1, 4]]])
    values = fold(found.flow, alive, found.statistics, 1e-9, affine=True).values
    inputs = np.moveaxis(found.values(linear.input), 1, -1).reshape(-1, 2, 6)
    dense, now = (a.astype(np.float64) for a in (found.flow.weights.array("w2"), values["w2"]))
    kept = [0, 2, 3, 5]
    for number in range(2):
        own = slice(6 * number, 6 * number + 6) if transposed else slice(3 * number, 3 * number + 3)
        before, after = (w[own, ..., 0, 0].T if transposed else w[own, ..., 0, 0] for w in (dense, now))
        x = inputs[:, number]
        columns = x[:, kept] if transposed else np.c_[x[:, kept], np.ones(len(x))]  # there no bias takes a constant
        solved = np.linalg.lstsq(columns, x @ before.T, rcond=None)[0]
        assert np.allclose(after[:, kept].T, solved[:4], atol=1e-4)
        assert not after[:, [1, 4]].any()
        if not transposed:
            gained = (values["b2"] - found.flow.weights.array("b2"))[3 * number : 3 * number + 3]
            assert np.allclose(gained, solved[4], atol=1e-4)


def test_whole_groups_go_where_they_can() -> None:
    net = Net(batch="N")
    x = net.Relu(net.conv(net.conv_relu(net.image(), 3, 12), 12, 12, group=4))
    net.output(net.conv(x, 12, 4))
    found = planned(net.model())
    assert [len(group) for group in found.trace.groups] == [4]
    assert not any(linear.is_equal for linear in found.trace.linears)


@pytest.mark.parametrize(("group", "expected"), [(4, 2), (2, 2)])
def test_kernels_are_timed_with_the_groups_that_stay(group: int, expected: int) -> None:
    """Of four groups two go; of two groups both stay, with half of their positions."""
    net = Net(batch="N")
    net.output(net.conv(net.Relu(net.conv(net.conv_relu(net.image(), 3, 12), 12, 12, group=group)), 12, 4))
    found = planned(net.model())
    layers = {layer.op.outputs[0]: layer for layer in layers_of(found.model, found.trace, found.trace.groups)}
    grouped = next(linear for linear in found.trace.linears if linear.groups > 1)
    layer = layers[grouped.output]
    kernel = layer.kernel([value / 2 for value in layer.dense])
    (kept,) = (a.i for a in onnx.NodeProto.FromString(kernel.node).attribute if a.name == "group")
    assert kept == expected
