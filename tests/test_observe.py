"""Shapes that no inference can tell: observed with the values of samples or as given, and honest where they aren't."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

import snp_onnx
from snp_onnx import CalibrationError, PlanError
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.passes import prepare
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Part, open_samples
from snp_onnx.tracing import trace
from snp_onnx.verbs.observe import Observed, observe
from tests.command_line import call
from tests.graphs import Net
from tests.oracles import difference, run
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]
Capture = pytest.CaptureFixture[str]
RNG = np.random.default_rng(0)


def twice(net: Net, x: str, cin: int, cout: int) -> str:
    """A layer of which the second half of the units repeats the first, so that half of them can go."""
    half = net.rng.standard_normal((cin, cout // 2)) / np.sqrt(cin)
    return net.Relu(net.MatMul(x, net.const(np.concatenate([half, half], axis=1))))


def body(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    """A branch that gives what its last node gives."""
    last = helper.make_tensor_value_info(nodes[-1].output[0], onnx.TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [last])


def reshaped(source: str, name: str, shape: Sequence[int]) -> onnx.GraphProto:
    """A branch that gives a tensor in a shape."""
    wanted = helper.make_node("Constant", [], [f"{name}_shape"], value_ints=list(shape))
    return body(name, wanted, helper.make_node("Reshape", [source, f"{name}_shape"], [f"{name}_out"]))


def rated() -> onnx.ModelProto:
    """Behind a layer of 16 units an If on an integer input: 16000 fits the model, anything else doesn't run."""
    net = Net(batch="N")
    x, rate = net.input("x", 6), net.input("rate", dtype=np.int64, batched=False)
    h = net.MatMul(twice(net, x, 6, 16), net.weight(16, 8, fan_in=16))
    branches = {"then_branch": reshaped(h, "t", [-1, 2, 4]), "else_branch": reshaped(h, "e", [-1, 3, 5])}
    parts = net.op("If", net.Equal(rate, net.const(16000)), **branches)
    net.output(net.MatMul(net.reduce("ReduceMean", parts, [1], keepdims=0), net.weight(4, 3, fan_in=4)))
    return net.model()


def rated_feed(rows: int) -> dict[str, Array]:
    return {"x": RNG.standard_normal((rows, 6)).astype(np.float32), "rate": np.array(16000)}


def cropped() -> onnx.ModelProto:
    """`x[:, :length]` before two layers: a length of 0 leaves nothing."""
    net = Net(batch="N")
    x, length = net.input("x", "T", 6), net.input("length", 1, dtype=np.int64, batched=False)
    few = net.op("Slice", x, net.const([0]), length, net.const([1]))
    net.output(net.MatMul(twice(net, few, 6, 16), net.weight(16, 4, fan_in=16)))
    return net.model()


def cropped_feed(rows: int, length: int, extent: int = 20) -> dict[str, Array]:
    return {"x": RNG.standard_normal((rows, extent, 6)).astype(np.float32), "length": np.array([length])}


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_branch_is_taken_as_in_the_samples(preset: str) -> None:
    model = rated()
    result = snp_onnx.prune(model, [rated_feed(1) for _ in range(40)], target_macs=0.7, preset=preset, ridge=1e-6)
    assert [group.after < group.before for group in result.report.groups] == [True]
    for rows in (1, 3):
        feed = rated_feed(rows)
        assert difference(run(model, feed), run(result.model, feed)) < 1e-3


def test_a_length_is_that_of_the_samples() -> None:
    model = cropped()
    result = snp_onnx.prune(model, [cropped_feed(1, 15) for _ in range(40)], target_macs=0.7, preset="fast", ridge=1e-6)
    assert result.report.dense.macs == 15 * (6 * 16 + 16 * 4)
    assert result.report.groups[0].after < 16
    feed = cropped_feed(3, 7)
    assert difference(run(model, feed), run(result.model, feed)) < 1e-3


def test_the_largest_sample_is_the_example() -> None:
    feeds = [cropped_feed(1, length, extent) for length, extent in ((3, 8), (5, 12), (4, 9))]
    with open_samples(feeds, input_specs(cropped())) as samples:
        example = samples.example()
    assert (example["x"].shape, example["length"].tolist()) == ((1, 12, 6), [5])
    comparison = snp_onnx.compare(cropped(), cropped(), feeds)
    assert comparison.dense.macs == 5 * (6 * 16 + 16 * 4)


def test_values_that_fit_their_own_sample_only() -> None:
    """The largest extents are of two samples; a shape that comes as values goes with one of them."""
    net = Net(batch="N")
    x, shape = net.input("x", "H", "W", batched=False), net.input("shape", 2, dtype=np.int64, batched=False)
    grid = net.op("Reshape", net.reshape(x, -1, 1), shape)
    net.output(net.MatMul(twice(net, net.unsqueeze(grid, 2), 1, 16), net.weight(16, 2, fan_in=16)))
    sizes = [(3, 8), (8, 3), (2, 2)]
    feeds = [{"x": RNG.standard_normal(size).astype(np.float32), "shape": np.array(size)} for size in sizes]
    comparison = snp_onnx.compare(net.model(), net.model(), feeds)
    assert comparison.input_shapes["x"] == (3, 8)
    assert comparison.dense.macs == 24 * (16 + 32)
    with pytest.raises(CalibrationError, match="cannot run the batch"):
        snp_onnx.compare(net.model(), net.model(), feeds, input_shapes={"x": (8, 8), "shape": (2,)})


def test_inspect_without_values_says_what_it_does_not_know() -> None:
    blind = snp_onnx.inspect(rated())
    assert [group.id for group in blind.groups] == ["c1:1"]
    (said,) = [note for note in blind.notes if "--input-value" in note]
    assert "made-up values" in said
    assert "--input-value rate=VALUE" in said
    assert [stop.weight for stop in blind.barriers] == ["w1", "w2"]
    assert "not known" in blind.barriers[1].reason
    seeing = snp_onnx.inspect(rated(), input_values={"rate": 16000})
    assert not [note for note in seeing.notes if "--input-value" in note]
    assert seeing.dense.macs == blind.dense.macs + 4 * 3


def test_inspect_with_made_up_lengths() -> None:
    shapes = {"x": (1, 20, 6)}
    blind, seeing = (
        snp_onnx.inspect(cropped(), input_shapes=shapes, input_values=values) for values in (None, {"length": 15})
    )
    assert [found.dense.macs for found in (blind, seeing)] == [160, 15 * 160]
    assert any("may be others" in note and "--input-value length=VALUE" in note for note in blind.notes)
    assert not any("--input-value" in note for note in seeing.notes)


def test_nothing_false_is_said_of_an_empty_model(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(cropped(), path)
    said = call(capsys, "inspect", path, "--input-shape", "x:1,20,6", "--input-value", "length=0").out
    assert "at most 0 % of the MACs" in said
    assert "empty tensor" in said
    assert "every axis may be cut" not in said
    net = Net(batch="N")
    net.output(net.Relu(net.input("x", 3)))
    onnx.save(net.model(), path)
    assert "there is nothing to cut" in call(capsys, "inspect", path).out


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("rate=fast", "--input-value rate: give numbers that int64 can hold"),
        ("rate", "give NAME=VALUE"),
        ("rate=", "give NAME=VALUE"),
        ("=3", "give NAME=VALUE"),
        ("rate=2.5", "--input-value rate: give numbers that int64 can hold"),
        ("rate=inf", "--input-value rate: give numbers that int64 can hold"),
        ("speed=1", "--input-value speed: the model has no such input; its inputs are x, rate"),
    ],
)
def test_values_that_make_no_sense(typed: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(rated(), path)
    outcome = call(capsys, "inspect", path, "--input-value", typed)
    assert outcome.code == 2
    assert said in outcome.err


def test_samples_have_their_own_values() -> None:
    with pytest.raises(PlanError, match="--input-value rate: the samples have"):
        snp_onnx.prune(rated(), [rated_feed(1)], target_macs=0.7, input_values={"rate": 8000})


def test_random_samples_take_given_values_and_so_does_a_plan_alone() -> None:
    model, values = rated(), {"rate": 16000}
    made = snp_onnx.prune(model, "random", target_macs=0.7, preset="fast", input_values=values, samples=16)
    alone = snp_onnx.prune(model, plan=made.plan, input_values=values)
    assert alone.report.dense.macs == made.report.dense.macs
    assert [group.after for group in alone.report.groups] == [group.after for group in made.report.groups]


def test_what_lies_before_a_failing_node_is_observed() -> None:
    net = Net(batch="N")
    net.domains = {"com.microsoft": 1}
    x = net.op("Trilu", net.unsqueeze(net.input("x", 6), 1), domain="com.microsoft")  # a shape that onnx can't tell
    wrong = net.op("Trilu", net.reshape(x, 5, -1, 4), domain="com.microsoft")
    net.output(net.MatMul(wrong, net.weight(4, 3, fan_in=4)))
    model = net.model()
    found = observe(model, [x, wrong], [{"x": np.zeros((1, 6), np.float32)}], Runtime(threads=1))
    assert found.seen == {x: ((1, 1, 6), onnx.TensorProto.FLOAT)}
    assert found.refusal is not None
    with pytest.raises(CalibrationError, match="cannot run the batch"):
        snp_onnx.inspect(model)


def unranked(kind: str) -> onnx.ModelProto:
    """An If whose branches give different ranks, or that nobody can tell, then a Reshape to another tensor's shape."""
    net = Net(batch="N")
    h = twice(net, net.input("x", 6), 6, 16)
    h = net.Relu(net.MatMul(h, net.weight(16, 8, fan_in=16)))
    high = net.unsqueeze(h, 1)
    axis = helper.make_node("Constant", [], ["axis"], value_ints=[1])
    lower = body("lower", axis, helper.make_node("Squeeze", [high, "axis"], ["low"]))
    same = body("same", helper.make_node("Identity", [high], ["high"]))
    is_one = net.Equal(net.extent(high, 1), net.const([1]))
    x = net.op("If", net.squeeze(is_one, 0), then_branch=lower, else_branch=same)
    x = net.op("Reshape", x, net.Shape(h)) if kind == "shape" else net.op("Reshape", x, net.const([-1, 8]))
    net.output(net.MatMul(net.Add(x, h), net.weight(8, 3, fan_in=8)))
    return net.model()


@pytest.mark.parametrize("kind", ["shape", "number"])
def test_a_rank_that_nobody_can_tell_is_a_barrier(kind: str) -> None:
    model = unranked(kind)
    del model.graph.value_info[:]
    blind = trace(prepare(model).model, {"x": (1, 6)})
    held = {stop.weight: stop.barrier for stop in blind.stops}
    assert [group.id for group in blind.groups] == ["c1:1"]
    assert held["w1"].node == "Squeeze(low)"
    assert "w2" in held
    inspection = snp_onnx.inspect(model)
    assert "w1" in {stop.weight for stop in inspection.barriers}
    for preset in ("fast", "best"):
        data = RNG.standard_normal((60, 6)).astype(np.float32)
        result = snp_onnx.prune(model, data, target_macs=0.75, preset=preset, ridge=1e-6)
        for rows in (1, 5):
            feed = {"x": RNG.standard_normal((rows, 6)).astype(np.float32)}
            assert difference(run(model, feed), run(result.model, feed)) < 1e-3


def named() -> onnx.ModelProto:
    """Rows of one name are left out."""
    net = Net(19, "N")
    x = net.input("x", 6)
    net.inputs.append(helper.make_tensor_value_info("name", onnx.TensorProto.STRING, ["N"]))
    net.initialisers.append(helper.make_tensor("unwanted", onnx.TensorProto.STRING, [1], [b"a"]))
    few = net.op("Compress", x, net.Not(net.Equal("name", "unwanted")), axis=0)
    net.output_rank = 2
    net.output(net.MatMul(twice(net, few, 6, 16), net.weight(16, 4, fan_in=16)))
    return net.model()


def test_values_may_be_words(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(named(), path)
    macs = [call(capsys, "inspect", path, "--input-value", f"name={word}").out.split()[0] for word in ("a", "b")]
    assert macs == ["0", "160"]


# extents of 0, and random numbers


def past(extent: int | str) -> onnx.ModelProto:
    """Positions joined to a past, which may be empty."""
    net = Net(batch="N")
    whole = net.op("Concat", net.input("past", extent, 6), net.input("x", 3, 6), axis=1)
    net.output(net.MatMul(twice(net, whole, 6, 16), net.weight(16, 4, fan_in=16)))
    return net.model()


def test_an_extent_of_zero_is_an_extent() -> None:
    assert [spec.shape for spec in input_specs(past(0))] == [(None, 0, 6), (None, 3, 6)]
    result = snp_onnx.prune(past(0), "random", target_macs=0.7, preset="fast", samples=16)
    assert result.report.groups[0].after < 16
    feeds = {"past": np.zeros((12, 1, 6), np.float32), "x": np.zeros((12, 3, 6), np.float32)}
    with pytest.raises(CalibrationError, match="does not fit input 'past'"):
        snp_onnx.prune(past(0), feeds, target_macs=0.7)


def test_a_dynamic_axis_may_be_given_as_empty(tmp_path: Path, capsys: Capture) -> None:
    assert snp_onnx.inspect(past("P"), input_shapes={"past": (1, 0, 6)}).dense.macs == 3 * 160
    path = tmp_path / "m.onnx"
    onnx.save(past("P"), path)
    for shape in ("0,2,6", "1,-2,6"):
        assert call(capsys, "inspect", path, "--input-shape", f"past:{shape}").code == 2


def tokens() -> onnx.ModelProto:
    """Numbers that are looked up in tables of 50 and of 7 rows, and others that are not."""
    net = Net(batch="N")
    kinds = {"dtype": np.int64}
    ids, kind, mask = net.input("ids", 4, **kinds), net.input("kind", 4, **kinds), net.input("mask", 4, **kinds)
    table, other = net.weight(50, 6, fan_in=6), net.weight(7, 6, fan_in=6)
    first = net.op("Gather", table, net.op("Cast", net.reshape(ids, -1, 2, 2), to=onnx.TensorProto.INT32))
    second = net.op("Gather", net.op("Identity", other), net.reshape(kind, -1, 2, 2))
    seen = net.op("Cast", net.reshape(mask, -1, 2, 2, 1), to=onnx.TensorProto.FLOAT)
    net.output(net.Mul(net.Add(first, second), seen), net.op("Gather", table, kind))
    return net.model()


def test_random_token_numbers_are_drawn_from_the_whole_table() -> None:
    specs = input_specs(tokens())
    assert [spec.below for spec in specs] == [50, 7, None]
    with open_samples("random", specs, samples=64, seed=1) as samples:
        (batch,) = samples.batches(64, Part.ALL)
    assert {name: (array.min(), array.max()) for name, array in batch.items()} == {
        "ids": (0, 49),
        "kind": (0, 6),
        "mask": (0, 1),
    }


def test_random_bytes_are_pixels() -> None:
    net = Net(batch="N")
    x, flags = net.input("x", 3, 8, 8, dtype=np.uint8), net.input("flags", 5, dtype=np.uint8)
    net.output(*(net.op("Cast", name, to=onnx.TensorProto.FLOAT) for name in (x, flags)))
    with open_samples("random", input_specs(net.model()), samples=20) as samples:
        (batch,) = samples.batches(20, Part.ALL)
    assert (batch["x"].max(), batch["flags"].max()) == (255, 1)


def test_random_values_that_are_given_are_the_same_in_every_sample() -> None:
    specs, values = input_specs(tokens()), {"kind": np.array(3), "mask": np.array([1, 0])}
    with open_samples("random", specs, samples=5, random_values=values) as samples:
        (batch,) = samples.batches(8, Part.ALL)
    assert batch["kind"].tolist() == [[3] * 4] * 5
    assert batch["mask"].tolist() == [[1, 0, 1, 0]] * 5


def test_a_loader_of_whole_feeds_has_an_example_too() -> None:
    def feeds() -> Iterator[dict[str, Array]]:
        yield from (rated_feed(rows) for rows in (1, 4, 2))

    with open_samples(feeds(), input_specs(rated())) as samples:
        assert samples.example()["x"].shape == (4, 6)


def declared_with(extent: int) -> onnx.ModelProto:
    """A Reshape by a shape that no inference follows; of its eight positions `extent` are declared."""
    net = Net(12, batch=1)
    h = net.linear(net.Relu(net.linear(net.input("x", 8, 6), 6, 12)), 12, 6)
    unknown = net.Cast(net.Cast(net.Shape(h), to=onnx.TensorProto.FLOAT), to=onnx.TensorProto.INT64)
    y = net.Reshape(h, unknown)
    net.output(net.linear(net.Relu(net.linear(y, 6, 10, bias=False)), 10, 4, bias=False))
    model = net.model()
    kept = [value for value in model.graph.value_info if value.name != y]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    model.graph.value_info.append(helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, [1, extent, 6]))
    return model


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_a_wrong_declaration_is_overruled_by_a_run(preset: str) -> None:
    """The runtime knows that tensor by its declaration alone too, and would count its rows by it."""
    right, wrong = declared_with(8), declared_with(3)
    assert snp_onnx.inspect(wrong).dense.macs == snp_onnx.inspect(right).dense.macs
    feed = {"x": np.random.default_rng(0).standard_normal((40, 8, 6)).astype(np.float32)}
    found = [snp_onnx.prune(model, feed, target_macs=0.7, preset=preset) for model in (right, wrong)]
    assert found[0].report.pruned.macs == found[1].report.pruned.macs < found[0].report.dense.macs
    assert [d.kept for d in found[0].plan.decisions] == [d.kept for d in found[1].plan.decisions]


def ranks_hidden(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """The model with an If behind a tensor, whose branches differ in rank."""
    hidden = onnx.ModelProto()
    hidden.CopyFrom(model)
    graph = hidden.graph
    place = next(place for place, node in enumerate(graph.node) if tensor in node.output)
    for node in graph.node[place + 1 :]:
        node.input[:] = ["hidden" if name == tensor else name for name in node.input]
    same = body("same", helper.make_node("Identity", [tensor], ["same_out"]))
    axis = helper.make_node("Constant", [], ["axis"], value_ints=[0])
    more = body("more", axis, helper.make_node("Unsqueeze", [tensor, "axis"], ["more_out"]))
    graph.node.insert(place + 1, helper.make_node("If", ["flag"], ["hidden"], then_branch=same, else_branch=more))
    graph.input.append(helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    del graph.value_info[:]
    return hidden


@pytest.mark.parametrize("name", ["residual-identity", "skip-norm-with-sum", "flatten-computed", "split", "separate"])
def test_tensors_without_a_shape_stop_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a rank isn't known, and no run tells it, everything that `inspect` looks for is looked for."""
    monkeypatch.setattr("snp_onnx.verbs.subject.observe", lambda *_: Observed())
    model = CATALOGUE[name].model("N")
    leaving = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if not leaving.intersection(node.output) and node.op_type in ("Conv", "MatMul", "Add", "Relu", "Softmax"):
            found = snp_onnx.inspect(ranks_hidden(model, node.output[0]))
            assert all(stop.reason for stop in found.barriers)
