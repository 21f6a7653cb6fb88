"""Where a walk is cut: against every way to keep and to run again, and that no moment depends on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from onnx import helper

from snp_onnx.calibration.cut import Sizes, to_run_again
from snp_onnx.calibration.moments import MomentRequest
from snp_onnx.calibration.runner import Runtime, collect
from snp_onnx.calibration.walk import Walk
from tests.graphs import Net


def graph(seed: int) -> dict[int, onnx.NodeProto]:
    """Six nodes, each of one or two earlier tensors."""
    rng = np.random.default_rng(seed)
    nodes = {}
    for index in range(6):
        known = ["x", *(f"t{earlier}" for earlier in range(index))]
        inputs = rng.choice(known, size=min(len(known), int(rng.integers(1, 3))), replace=False).tolist()
        nodes[index] = helper.make_node("Sum", inputs, [f"t{index}"])
    return nodes


def cost(nodes: dict[int, onnx.NodeProto], again: Iterable[int], wanted: set[str], sizes: Sizes) -> float:
    """Keep what is made by nodes that aren't run again, and run the others, as far as what is wanted needs it."""
    again, total, waiting, seen = set(again), 0.0, list(wanted), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name == "x":
            continue
        seen.add(name)
        index = int(name[1:])
        if index in again:
            total += sizes.making(nodes[index])
            waiting.extend(nodes[index].input)
        else:
            total += sizes.keeping(name)
    return total


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = graph(seed)
    elements = {f"t{index}": float(rng.integers(10, 2000)) for index in nodes}
    sizes = Sizes({**elements, "t5": 20.0 * elements["t5"]})
    wanted = {"t5", f"t{int(rng.integers(5))}"}
    found = to_run_again(nodes, set(), set(), wanted, sizes)
    ways = itertools.chain.from_iterable(itertools.combinations(nodes, count) for count in range(7))
    least = min(cost(nodes, way, wanted, sizes) for way in ways)
    assert cost(nodes, found, wanted, sizes) == pytest.approx(least, rel=1e-3)


def test_what_changes_runs_again_and_what_is_asked_for_is_kept() -> None:
    chain = {index: helper.make_node("Neg", [f"t{index - 1}"], [f"t{index}"]) for index in range(4)}
    sizes = Sizes({f"t{index}": 1000.0 for index in range(4)})
    assert 2 in to_run_again(chain, {2}, set(), {"t3"}, sizes)
    assert 1 not in to_run_again(chain, set(), {"t1"}, {"t3"}, sizes)
    assert to_run_again(chain, {2}, set(), {"t3"}, Sizes()) == [2]


def test_a_wide_tensor_is_made_again_from_the_narrow_one() -> None:
    narrow = helper.make_node("Conv", ["x", "a"], ["narrow"])
    wide = helper.make_node("Conv", ["narrow", "b"], ["wide"])
    dear = helper.make_node("Conv", ["narrow", "c"], ["wide"])
    sizes = Sizes(
        {"narrow": 100.0, "wide": 600.0}, {"a": (100, 6000, 3, 3), "b": (600, 100, 1, 1), "c": (600, 900, 3, 3)}
    )
    assert to_run_again({0: narrow, 1: wide}, set(), set(), {"wide"}, sizes) == [1]
    assert to_run_again({0: narrow, 1: dear}, set(), set(), {"wide"}, sizes) == []


@pytest.mark.parametrize("wide", [1e-3, 1e6])
def test_moments_are_the_same_wherever_it_is_cut(wide: float) -> None:
    net = Net(batch="N")
    first = net.conv_relu(net.image(), 3, 4)
    second = net.conv_relu(first, 4, 8)
    net.output(net.conv_relu(second, 8, 2))
    model = net.model()
    names = [node.output[0] for node in model.graph.node if node.op_type == "Relu"]
    shape = [dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(0)
    feeds = [{model.graph.input[0].name: rng.standard_normal(shape).astype(np.float32)} for _ in range(3)]
    requests = [MomentRequest(name, 1, 4) for name in names]
    whole = collect(model, requests, feeds, Runtime(threads=1))
    sizes = {node.output[0]: wide if number % 2 else 10.0 for number, node in enumerate(model.graph.node)}
    with Walk(model, feeds, Runtime(threads=1), sizes) as walk:
        for place, request in enumerate(requests):
            found = walk.run([request], names[place + 1 :])[request.key]
            np.testing.assert_allclose(found.gram, whole[request.key].gram, rtol=1e-4, atol=1e-5)
