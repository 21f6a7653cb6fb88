"""What errors of different layers are compared by: layers behind that can repair them, and the outputs' own spread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import snp_onnx
from models.tiny import TINY
from snp_onnx.passes import prepare
from snp_onnx.planning.options import Preset
from snp_onnx.planning.scales import FLOOR, MOST_CHANNELS, Scales, layers_behind
from snp_onnx.tracing.flow import Flow
from tests.exports import export_bytes
from tests.graphs import Net, feed_for
from tests.oracles import traced
from tools.bench import recipes

Array = npt.NDArray[Any]


# layers behind


def chain(net: Net) -> None:
    x = net.conv_relu(net.conv_relu(net.conv_relu(net.image(), 3, 6), 6, 6), 6, 6)
    net.output(net.conv(x, 6, 4))


def residual(net: Net) -> None:
    """A stem, two blocks of two layers each, and a head on the stream."""
    x = net.conv_relu(net.image(), 3, 6)
    for _ in range(2):
        x = net.Add(net.conv(net.conv_relu(x, 6, 5), 5, 6), x)
    net.output(net.conv(x, 6, 4))


def two_heads(net: Net) -> None:
    """One head of a layer, and one of two, on the same features."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 6), 6, 6)
    net.output(net.conv(x, 6, 4), net.conv(net.conv_relu(x, 6, 5), 5, 4))


def early(net: Net) -> None:
    """An output after the first layer's successor."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 6), 6, 6)
    net.output(x, net.conv(net.conv_relu(net.conv_relu(x, 6, 6), 6, 6), 6, 4))


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (chain, {"w1": 3, "w2": 2, "w3": 1, "w4": 0}),
        (residual, {"w1": 3, "w2": 3, "w3": 2, "w4": 2, "w5": 1, "w6": 0}),
        (two_heads, {"w1": 2, "w2": 1, "w3": 0, "w4": 1, "w5": 0}),
        (early, {"w1": 1, "w2": 0, "w3": 2, "w4": 1, "w5": 0}),
    ],
)
def test_layers_on_the_shortest_way_to_an_output(draw: Callable[[Net], None], expected: dict[str, int]) -> None:
    net = Net(batch="N")
    draw(net)
    model = prepare(net.model()).model
    flow = Flow(model, traced(model, feed_for(model, 2)))
    behind = layers_behind(flow, flow.trace.linears)
    assert {linear.weight: behind[linear.op.index] for linear in flow.trace.linears} == expected


def test_layers_without_units_repair_nothing() -> None:
    net = Net(batch="N")
    chain(net)
    model = prepare(net.model()).model
    flow = Flow(model, traced(model, feed_for(model, 2)))
    last = [linear for linear in flow.trace.linears if linear.weight == "w4"]
    behind = layers_behind(flow, last)
    assert [behind[linear.op.index] for linear in flow.trace.linears] == [1, 1, 1, 0]


# factors


def test_errors_count_by_variance_and_by_what_lies_behind() -> None:
    net = Net(batch="N")
    chain(net)
    model = prepare(net.model()).model
    flow = Flow(model, traced(model, feed_for(model, 2)))
    scales = Scales.of(flow, flow.trace.linears, 0.5)
    first, last = flow.trace.linears[0], flow.trace.linears[-1]
    assert scales.discount(first.op) == pytest.approx(0.4)
    assert scales.factor(first, 25.0) ** 2 == pytest.approx(0.4 / 25.0)
    assert scales.factor(first, 0.0) == 1.0
    variances = np.array([4.0, 1e-12, 9.0, 0.0])
    floor = FLOOR * variances.mean()
    np.testing.assert_allclose(scales.factors(last, variances) ** 2, 0.25 / np.array([4.0, floor, 9.0, floor]))
    assert scales.factors(last, np.zeros(4)).tolist() == [1.0] * 4
    assert [scales.is_by_channel(linear, n) for linear, n in ((last, 4), (last, MOST_CHANNELS + 1), (first, 4))] == [
        True,
        False,
        False,
    ]


# decisions


def heads(scale: float, join: bool = False) -> onnx.ModelProto:
    """Two heads on hidden units, of which half matter for either; the second is scaled. They may be one layer."""
    net = Net(batch="N", seed=2)
    h = net.Relu(net.dense(net.input("x", 24), 24, 32))
    rows = []
    for own, gain in (("left", 1.0), ("right", scale)):
        weight = net.rng.standard_normal((32, 6)) * np.where((np.arange(32) < 16) == (own == "left"), 1.0, 0.2)[:, None]
        rows.append(gain * weight)
    weights = [np.concatenate(rows, axis=1)] if join else rows
    net.output(*(net.MatMul(h, net.const(weight)) for weight in weights))
    return net.model()


def noise(*shape: int, seed: int = 3) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kept(model: onnx.ModelProto, **options: Any) -> dict[str, tuple[int, ...]]:
    result = snp_onnx.prune(model, noise(600, 24), target_macs=0.7, **options)
    return {decision.group: tuple(decision.kept) for decision in result.plan.decisions}


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize("join", [False, True])
def test_the_scale_of_a_head_decides_nothing(preset: str, join: bool) -> None:
    (units,) = kept(heads(1.0, join), preset=preset).values()
    left = sum(unit < 16 for unit in units)
    assert 4 <= left <= len(units) - 4
    for scale in (0.01, 100.0):
        assert kept(heads(scale, join), preset=preset) == kept(heads(1.0, join), preset=preset)


def test_a_power_of_depth_moves_widths_to_the_back() -> None:
    net = Net(batch="N", seed=5)
    x = net.input("x", 24)
    for _ in range(4):
        x = net.Relu(net.dense(x, 24, 24))
    net.output(net.dense(x, 24, 6))
    widths = [
        {group: len(units) for group, units in kept(net.model(), preset="fast", repair=power).items()}
        for power in (0.0, 2.0)
    ]
    groups = sorted(widths[0])
    assert widths[0][groups[0]] > widths[1][groups[0]]
    assert widths[0][groups[-1]] < widths[1][groups[-1]]


# presets


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "bert")]


@pytest.mark.parametrize("name", ["mlp", "resnet20-b", *SLOW])
def test_more_work_is_not_worse(name: str) -> None:
    """Beyond noise, on samples that decided nothing; `tools.bench.recipes` asks the same of every recipe."""
    size = TINY[name]["in_size"]
    calibration, fresh = (recipes.samples(name, size, rows, seed) for rows, seed in ((200, 1), (100, 2)))
    found = recipes.errors(export_bytes(name, **TINY[name]), calibration, fresh)
    assert recipes.wrong_order(found) == []
    assert found[Preset.BEST] < 0.9 * found[Preset.PAPER]
