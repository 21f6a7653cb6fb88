"""The sequential refit on whole models: against least squares on the rows, what it may touch, and what it brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from scipy import linalg

import snp_onnx
import snp_onnx.planning.course as course_module
from snp_onnx import PruneResult
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.calibration.walk import Walk
from snp_onnx.passes import FoldWeights, prepare, rewrite
from snp_onnx.planning import rations
from snp_onnx.planning.options import BEST
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.preprocess import Preprocess
from snp_onnx.sources.samples import Part, open_samples
from snp_onnx.tracing import Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.verbs.gauss_newton import Joint
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.refit import refit_layers
from snp_onnx.verbs.result import Stopwatch
from tests.command_line import DIGITS, DIGITS_DATA, images, small
from tests.graphs import Net, feed_for
from tests.oracles import assert_valid, cut, difference, run, traced
from tests.test_fast import patches_of
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]
Draw = Callable[[Net], None]


@dataclass(frozen=True, slots=True)
class Cut:
    """A dense model, the same without some units, and the samples for a refit."""

    dense: onnx.ModelProto
    trace: Trace
    alive: Mask
    pruned: onnx.ModelProto
    data: dict[str, Array]

    def values(self, ridge: float = 1e-3, batch_size: int = 16) -> dict[str, Array]:
        """What the refit writes."""
        with open_samples(self.data, input_specs(self.dense), Preprocess(), None, 0, {}) as samples:
            calibration = Calibration(samples, batch_size, Runtime(threads=1), Stopwatch(), lambda *_: None)
            flow = Flow(self.dense, self.trace)
            return refit_layers(flow, self.dense, self.pruned, self.alive, ridge, calibration)

    def seen(self) -> dict[str, Array]:
        """The samples that decide."""
        with open_samples(self.data, input_specs(self.dense), Preprocess(), None, 0, {}) as samples:
            feeds = list(samples.batches(1, Part.CALIBRATION))
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in self.data}

    def with_values(self, values: dict[str, Array]) -> onnx.ModelProto:
        return rewrite(self.pruned, [FoldWeights(values)]).model


def cut_at(model: onnx.ModelProto, data: dict[str, Array], *groups: str) -> Cut:
    """Every other unit of these groups goes (of all, if none is named)."""
    dense = prepare(model).model
    trace = traced(dense, feed_for(dense, 1))
    chosen = [trace.group(name) for name in groups] or trace.groups
    alive = trace.alive([group.labels[1::2] for group in chosen])
    return Cut(dense, trace, alive, cut(dense, trace, alive), data)


def drawn(draw: Draw, count: int = 200, *groups: str) -> Cut:
    net = Net(batch="N", seed=4)
    draw(net)
    model = net.model()
    return cut_at(model, feed_for(model, count), *groups)


def shown(model: onnx.ModelProto, feed: dict[str, Array], *tensors: str) -> list[Array]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return [found.astype(np.float64) for found in run(copy, feed)]


@contextmanager
def without_chains() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course_module, "find_chains", lambda *_: ())
        yield


# the numbers


def _two_blocks(net: Net) -> None:
    """t2 stem; t5 and t8 what the blocks give, t6 and t9 the sums; t10 = Relu, t11 the output."""
    x = net.conv_relu(net.image(), 3, 8)
    for _ in range(2):
        x = net.Add(net.conv(net.conv_relu(x, 8, 6), 6, 8), x)
    net.output(net.conv(net.Relu(x), 8, 4))


def test_every_layer_is_the_least_squares_solution_on_what_it_gets() -> None:
    """Blocks towards the dense sum less the pruned shortcut, the last layer towards its own dense output."""
    case = drawn(_two_blocks, 18, "w2:0", "w4:0")  # so few samples that the lattice leaves nothing out
    with without_chains():
        values = case.values(ridge=1e-13)
    model, feed = case.with_values(values), case.seen()
    assert {"w3", "b3", "w4", "b4", "w5", "b5", "w6", "b6"} == set(values)
    convs = {node.input[1]: node for node in model.graph.node if node.op_type == "Conv"}
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    for place, name in enumerate(("w3", "w5", "w6")):
        conv = convs[name]
        (x,) = shown(model, feed, conv.input[0])
        total, shortcut = conv.output[0], None
        if place < 2:
            total = adds[place].output[0]
            shortcut = next(tensor for tensor in adds[place].input if tensor != conv.output[0])
        aim = shown(case.dense, feed, total)[0]
        if shortcut is not None:
            aim = aim - shown(model, feed, shortcut)[0]
        rows = patches_of(x, 1, 1)
        wanted = aim.transpose(0, 2, 3, 1).reshape(-1, aim.shape[1])
        best = linalg.lstsq(np.c_[rows, np.ones(len(rows))], wanted)[0]
        scale = np.abs(best).max()
        np.testing.assert_allclose(values[name].reshape(len(best[0]), -1), best[:-1].T, atol=2e-4 * scale)
        np.testing.assert_allclose(values[f"b{name[1:]}"], best[-1], atol=2e-4 * scale)
        if place == 1:  # the error of the first block makes the aim another one than without it
            own = aim + shown(model, feed, shortcut or "")[0] - shown(case.dense, feed, shortcut or "")[0]
            assert np.abs(own - aim).max() > 0.1


@pytest.mark.parametrize("trans", [True, False])
def test_dense_layers_are_least_squares_too(trans: bool) -> None:
    def draw(net: Net) -> None:
        net.output(net.dense(net.Tanh(net.dense(net.input("x", 6), 6, 8, trans)), 8, 3, trans))

    case = drawn(draw, 400)
    with without_chains():
        values = case.values(ridge=1e-13)
    feed = case.seen()
    (hidden,), (wanted,) = shown(case.pruned, feed, "t2"), shown(case.dense, feed, "t3")
    best = linalg.lstsq(np.c_[hidden, np.ones(len(hidden))], wanted)[0]
    np.testing.assert_allclose(values["w2"].T if trans else values["w2"], best[:-1], atol=1e-3)
    np.testing.assert_allclose(values["b2"], best[-1], atol=1e-3)
    assert set(values) == {"w2", "b2"}


def consumer_error(case: Cut, values: dict[str, Array]) -> float:
    """How far the pruned model's output is from the dense one's, on the samples that decide."""
    feed = case.seen()
    dense, found = run(case.dense, feed)[0], run(case.with_values(values), feed)[0]
    return float(np.square(dense.astype(np.float64) - found).sum())


def _pair(net: Net) -> None:
    net.output(net.conv(net.conv_relu(net.image(), 3, 12), 12, 4))


def _separable(net: Net) -> None:
    x = net.Clip(net.conv(net.image(), 3, 12, k=1), net.const(0.0), net.const(2.0))
    x = net.Clip(net.conv(x, 12, 12, group=12, strides=[2, 2]), net.const(0.0), net.const(2.0))
    net.output(net.conv(x, 12, 4, k=1))


def _hidden(net: Net) -> None:
    net.output(net.linear(net.Tanh(net.linear(net.input("x", 5, 6), 6, 12)), 12, 6))


def _spelled(net: Net) -> None:
    x = net.linear(net.input("x", 5, 6), 6, 12)
    net.output(net.linear(net.Mul(x, net.Sigmoid(x)), 12, 6))


def _gated(net: Net) -> None:
    x = net.input("x", 5, 6)
    gate, up = net.linear(x, 6, 12), net.linear(x, 6, 12)
    net.output(net.linear(net.Mul(net.Mul(gate, net.Sigmoid(gate)), up), 12, 6))


def _gated_twice(net: Net) -> None:
    x = net.input("x", 5, 6)
    for _ in range(2):
        gate, up = net.linear(x, 6, 12), net.linear(x, 6, 12)
        x = net.Add(net.linear(net.Mul(net.Mul(gate, net.Sigmoid(gate)), up), 12, 6), x)
    net.output(net.linear(x, 6, 4))


JOINT: dict[str, Draw] = {
    "pair": _pair,
    "separable": _separable,
    "hidden": _hidden,
    "spelled": _spelled,
    "gated": _gated,
}


@pytest.mark.parametrize("name", JOINT)
def test_the_joint_step_lowers_the_consumers_error(name: str) -> None:
    case = drawn(JOINT[name], 300)
    with without_chains():
        alone = case.values()
    together = case.values()
    assert {"w1", "b1"} <= set(together) - set(alone)
    errors = [consumer_error(case, values) for values in ({}, alone, together)]
    assert errors[2] < 0.995 * errors[1]
    assert errors[1] < 0.97 * errors[0]


def _three(net: Net) -> None:
    """The middle layer is the consumer of one chain and the producer of the next."""
    x = net.conv_relu(net.conv_relu(net.image(), 3, 12), 12, 12)
    net.output(net.conv(x, 12, 4))


REJECTED: dict[str, tuple[Draw, list[str]]] = {
    **{name: (draw, ["w1"]) for name, draw in JOINT.items()},
    "gated": (_gated, ["w1", "w2"]),
    "three": (_three, ["w1", "w2"]),
    "blocks": (_two_blocks, ["w2", "w4"]),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_joint_step_that_does_harm_is_taken_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left, in later layers neither: they see what the restored weights give."""
    draw, producers = REJECTED[name]
    case = drawn(draw, 300)
    with without_chains():
        alone = case.values()

    def harmful(self: Joint, walk: Any, weights: Any, rho: float, inputs: Any) -> dict[str, Array]:
        honest(self, walk, weights, rho, inputs)
        producer = self.chain.producer
        matrix = np.random.default_rng(0).standard_normal(producer.matrix(weights).shape)
        taken.append(producer.linear.weight)
        return producer.values(weights, matrix, producer.offset(weights))

    taken: list[str] = []
    honest = Joint.step
    monkeypatch.setattr(Joint, "step", harmful)
    values = case.values()
    assert taken == producers
    after, wanted = (run(case.with_values(found), case.seen())[0] for found in (values, alone))
    assert after.tobytes() == wanted.tobytes()


def test_a_step_taken_back_behind_a_gate_leaves_the_first_one_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second producer's step is rejected after the first one's was kept: what only that needs is run again."""
    case = drawn(_gated_twice, 300)
    honest, every = Joint.step, course_module.find_chains

    def harmful(self: Joint, walk: Any, weights: Any, *given: Any) -> dict[str, Array]:
        found, producer = honest(self, walk, weights, *given), self.chain.producer
        if producer.linear.weight not in ("w2", "w5"):
            return found
        matrix = np.random.default_rng(0).standard_normal(producer.matrix(weights).shape)
        return producer.values(weights, matrix, producer.offset(weights))

    monkeypatch.setattr(Joint, "step", harmful)
    values = case.values()
    monkeypatch.setattr(Joint, "step", honest)
    monkeypatch.setattr(course_module, "find_chains", lambda *given: every(*given)[:1])
    after, wanted = (run(case.with_values(found), case.seen())[0] for found in (values, case.values()))
    np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-5)


# what it may touch


def test_keeping_everything_leaves_every_weight() -> None:
    for name in ("residual-projection", "depthwise", "separate"):
        dense = prepare(CATALOGUE[name].model("N")).model
        trace = traced(dense, feed_for(dense, 1))
        everything = np.ones(trace.label_count, dtype=np.bool_)
        case = Cut(dense, trace, everything, cut(dense, trace, everything), feed_for(dense, 40))
        assert case.values() == {}
    result = snp_onnx.prune(small(), images(), target_macs=1.0)
    assert difference(run(small(), {"x": images()}), run(result.model, {"x": images()})) == 0


@pytest.mark.parametrize("name", ["tied-weights", "shared-bias"])
def test_what_several_nodes_read_stays_as_it_was(name: str) -> None:
    dense = CATALOGUE[name].model("N")
    trace = traced(dense, feed_for(dense, 1))
    alive = trace.alive([group.labels[1::2] for group in trace.groups])
    case = Cut(dense, trace, alive, cut(dense, trace, alive), feed_for(dense, 60))
    readers: dict[str, int] = {}
    for node in dense.graph.node:
        for tensor in node.input:
            readers[tensor] = readers.get(tensor, 0) + 1
    values = case.values()
    assert values
    assert max(readers.values()) > 1
    assert all(readers[tensor] == 1 for tensor in values)


@pytest.mark.parametrize("name", ["residual-projection", "unet", "separate", "flatten-gemm", "behind-transpose"])
def test_only_values_change(name: str) -> None:
    """Nodes, names, shapes and types are those of the model without a refit; so is everything before the first cut."""
    model = CATALOGUE[name].model("N")
    case = cut_at(model, feed_for(prepare(model).model, 60))
    before = case.pruned.SerializeToString()
    values = case.values()
    assert values
    assert case.pruned.SerializeToString() == before
    after = case.with_values(values)
    assert list(after.graph.node) == list(case.pruned.graph.node)
    tensors = [{t.name: (t.data_type, tuple(t.dims)) for t in m.graph.initializer} for m in (case.pruned, after)]
    assert tensors[0] == tensors[1]
    held = [{t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (case.pruned, after)]
    changed = {tensor for tensor, array in held[0].items() if not np.array_equal(array, held[1][tensor])}
    assert changed
    assert changed <= set(values)
    assert_valid(after, feed_for(after, 3))


def test_half_precision_is_refitted_in_its_own_type() -> None:
    values = {}
    for dtype in (np.float32, np.float16):
        case = cut_at(small(dtype=dtype), {"x": images(100).astype(dtype)})
        with without_chains():
            values[dtype] = case.values()
        assert {array.dtype for array in values[dtype].values()} == {np.dtype(dtype)}
        assert consumer_error(case, values[dtype]) < 0.9 * consumer_error(case, {})
    assert set(values[np.float16]) == set(values[np.float32]) == {"w2", "b2", "w3", "b3"}
    for name, array in values[np.float32].items():
        np.testing.assert_allclose(values[np.float16][name].astype(np.float32), array, atol=0.02 * np.abs(array).max())


def test_batches_of_any_size_give_the_same_refit() -> None:
    case = drawn(_two_blocks, 18)  # no lattice: its offsets go by the batch
    with without_chains():
        one, other = (case.values(batch_size=size) for size in (5, 16))
    assert set(one) == set(other)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], atol=1e-4 * np.abs(array).max())


# the whole road


def digits(**options: Any) -> PruneResult:
    given = {"input_array": "images", "scale": 1 / 16, "samples": 600, "target_macs": 0.5}
    return snp_onnx.prune(DIGITS, DIGITS_DATA, **(given | options))


def held(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: tensor.raw_data for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def best() -> PruneResult:
    return digits()


def test_a_refit_lowers_the_error_on_samples_held_back(best: PruneResult) -> None:
    plain = digits(refine="none")
    assert best.report.options["refine"] == "sequential"
    assert plain.report.options["refine"] == "none"
    assert best.report.pruned == plain.report.pruned
    assert best.report.fidelity[0].relative_l2 < 0.8 * plain.report.fidelity[0].relative_l2
    assert best.report.fidelity[0].cosine > plain.report.fidelity[0].cosine
    fast = digits(preset="fast", repair=BEST.repair)
    assert held(fast.model) == held(plain.model)
    other = digits(preset="fast", repair=0.0)
    assert held(other.model) != held(plain.model)


def test_the_same_refit_twice_gives_the_same_bytes(best: PruneResult) -> None:
    again = digits()
    assert again.model.SerializeToString() == best.model.SerializeToString()
    assert again.plan == best.plan
    assert again.report.warnings == best.report.warnings == ()


def test_large_maps_are_refitted_on_fewer_samples(best: PruneResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layers on a quarter, the others on all: the error is hardly larger, and far below the fold's."""
    joined: list[int] = []
    honest = Walk.rejoin

    def rejoin(self: Walk, every: int = 1) -> None:
        joined.append(every)
        honest(self, every)

    monkeypatch.setattr(Walk, "rejoin", rejoin)
    monkeypatch.setattr(rations, "MAP_BYTES", 2**21)
    monkeypatch.setattr(rations, "LEAST_OF_LARGE", 24)
    few, plain = digits(), digits(refine="none")
    assert joined
    assert joined[-1] == 1
    assert joined == sorted(set(joined), reverse=True)
    errors = [result.report.fidelity[0].relative_l2 for result in (best, few, plain)]
    assert errors[1] < 1.15 * errors[0] < 0.95 * errors[2]
    assert held(few.model) != held(best.model)


def test_a_plans_sidecar_has_the_refitted_weights(best: PruneResult, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    best.save_plan(path)
    again = snp_onnx.prune(DIGITS, plan=path)
    assert again.report.warnings == ()
    assert again.model.SerializeToString() == best.model.SerializeToString()
    with np.load(path.with_suffix(".npz")) as arrays:
        assert len(arrays.files) > 4
    by_plan = {"target_macs": None, "plan": path}
    assert held(digits(**by_plan).model) == held(best.model)
    assert held(digits(**by_plan, refine="none").model) != held(best.model)


def test_progress_is_told_layer_by_layer() -> None:
    heard: list[tuple[str, int, int]] = []
    digits(progress=lambda *event: heard.append(event))
    steps = [event for event in heard if event[0] == "refit"]
    assert steps
    assert [done for _, done, _ in steps] == list(range(len(steps)))
    assert {total for *_, total in steps} == {len(steps)}
