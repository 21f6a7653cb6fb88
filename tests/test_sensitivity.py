"""Errors compared at the model's outputs: what a group is worth there decides how much of it stays."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx import PlanError, PruneResult
from tests.command_line import Bench, call
from tests.graphs import Net, feed_for


def two_branches(loudness: float) -> onnx.ModelProto:
    """Two hidden layers of the same kind; what the first gives is scaled before the sum."""
    net = Net(opset=20, batch="N", seed=1)
    x = net.input("x", 6, 8)
    quiet = net.Mul(net.linear(net.Gelu(net.linear(x, 8, 24)), 24, 8), net.const(loudness))
    loud = net.linear(net.Gelu(net.linear(x, 8, 24)), 24, 8)
    net.output(net.Add(quiet, loud))
    return net.model()


def pruned(model: onnx.ModelProto, **options: object) -> PruneResult:
    return snp_onnx.prune(model, feed_for(model, 100), target_macs=0.6, preset="fast", **options)


def widths(result: PruneResult) -> list[int]:
    return [group.after for group in result.report.groups]


def test_what_hardly_reaches_the_output_pays() -> None:
    model = two_branches(0.01)
    alike, weighed = (pruned(model, weigh=way) for way in ("layers", "outputs"))
    assert abs(widths(alike)[0] - widths(alike)[1]) <= 6
    assert widths(weighed)[0] <= 4
    assert widths(weighed)[1] >= 20
    errors = [result.report.fidelity[0].relative_l2 for result in (alike, weighed)]
    assert errors[1] < 0.5 * errors[0]


def test_equal_branches_stay_alike() -> None:
    found = widths(pruned(two_branches(1.0), weigh="outputs"))
    assert abs(found[0] - found[1]) <= 6


def test_attention_asks_for_it_and_other_models_do_not() -> None:
    net = Net(opset=20, batch="N", seed=1)
    x = net.input("x", 6, 8)
    q, k, v = (
        net.Transpose(net.Reshape(net.linear(x, 8, 8), net.const([0, 0, 4, 2])), perm=[0, 2, 1, 3]) for _ in "qkv"
    )
    mixed = net.MatMul(net.Softmax(net.MatMul(q, net.Transpose(k, perm=[0, 1, 3, 2])), axis=-1), v)
    joined = net.Reshape(net.Transpose(mixed, perm=[0, 2, 1, 3]), net.const([0, 0, 8]))
    x = net.Add(net.linear(joined, 8, 8), x)
    net.output(net.Add(net.linear(net.Gelu(net.linear(x, 8, 24)), 24, 8), x))
    attention = net.model()
    assert "weigh" in pruned(attention).report.timings
    assert "weigh" not in pruned(attention, weigh="layers").report.timings
    assert "weigh" not in pruned(two_branches(1.0)).report.timings


def test_the_same_twice() -> None:
    model = two_branches(0.1)
    first, second = (pruned(model, weigh="outputs").model.SerializeToString() for _ in range(2))
    assert first == second


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(PlanError, match="--weigh 'sums'"):
        pruned(two_branches(1.0), weigh="sums")


def test_scales_leave_the_order_of_units_alone() -> None:
    model = two_branches(0.01)
    plans = [pruned(model, weigh=way).plan for way in ("layers", "outputs")]
    orders = [[decision.order for decision in plan.decisions] for plan in plans]
    assert np.array_equal(orders[0], orders[1])


def test_the_command_line_has_it(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    target = ("--target-macs", 0.6, "--calibration", here.data, "--preset", "fast", "--quiet")
    report = here.folder / "report.json"
    outcome = call(capsys, "prune", here.model, here.output, *target, "--weigh", "outputs", "--report", report)
    assert (outcome.code, outcome.err) == (0, "")
    written = json.loads(report.read_text())
    assert written["options"]["weigh"] == "outputs"
    assert "weigh" in written["timings"]
    outcome = call(capsys, "prune", here.model, here.output, *target, "--weigh", "sums")
    assert outcome.code == 2
    assert "--weigh 'sums'" in outcome.err
