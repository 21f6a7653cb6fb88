"""Running a model in segments: what crosses a boundary, what is run again, and two models side by side."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

import snp_onnx.calibration.walk as walk_module
from snp_onnx import CalibrationError
from snp_onnx.calibration.boundaries import Boundaries
from snp_onnx.calibration.moments import MomentRequest, Moments
from snp_onnx.calibration.runner import collect
from snp_onnx.calibration.segments import DENSE, Frontier, beside
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.calibration.walk import Walk
from snp_onnx.passes import prepare
from snp_onnx.tracing.surface import Surface
from tests.graphs import Net, feed_for
from tests.oracles import cut, difference, half_removed, run, traced
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]
CPU = Runtime(threads=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where boundaries put their files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files_in(folder: Path) -> list[Path]:
    """But for the lock that says whose they are."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


# boundaries


def batches(*sizes: int, dtype: npt.DTypeLike = np.float32) -> list[Array]:
    rng = np.random.default_rng(0)
    return [(9 * rng.standard_normal((size, 3, 5))).astype(dtype) for size in sizes]


@pytest.mark.parametrize("in_memory", [0, 200, 1 << 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_tensors_come_back_as_they_were(in_memory: int, dtype: npt.DTypeLike, folder: Path) -> None:
    first, second = batches(2, 0, 4, 1, dtype=dtype), batches(1, 1, 3, 0)
    second[2] = second[2][:, ::2].T  # not contiguous
    with Boundaries(in_memory) as kept:
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            kept.add(number, {"a": a, "b": b})
        for _ in range(2):  # they can be read again
            for given, found in zip(zip(first, second, strict=True), kept.feeds(["b", "a"]), strict=True):
                assert (found["a"].dtype, found["b"].dtype) == (np.dtype(dtype), np.float32)
                np.testing.assert_array_equal(found["a"], given[0])
                np.testing.assert_array_equal(found["b"], given[1])
        assert kept.dtype("a") == np.dtype(dtype)
        assert [len(feed["a"]) for feed in kept.feeds(["a"], every=2)] == [2, 4]
        assert bool(files_in(folder)) == (in_memory < 1 << 20)
    assert not list(folder.iterdir())


def test_what_is_not_needed_goes_and_makes_room(folder: Path) -> None:
    x = batches(2)[0]
    with Boundaries(in_memory=x.nbytes) as kept:
        kept.add(0, {"a": x, "b": x})
        (file,) = files_in(folder)
        assert [found["b"].tolist() for found in kept.feeds(["b"])] == [x.tolist()]
        assert file.stat().st_size >= x.nbytes
        kept.retain(["b"])
        assert files_in(folder) == [file]
        kept.add(0, {"c": x})  # where "a" was
        assert files_in(folder) == [file]
        kept.retain(["c"])
        assert not files_in(folder)
        with pytest.raises(KeyError):
            kept.dtype("a")


def test_a_tensor_that_is_read_outlives_its_file(folder: Path) -> None:
    with Boundaries(in_memory=0) as kept:
        kept.add(0, {"a": np.arange(6.0)})
        (feed,) = list(kept.feeds(["a"]))
        kept.retain([])
        assert feed["a"].tolist() == [0, 1, 2, 3, 4, 5]
        with pytest.raises(ValueError, match="read-only"):
            feed["a"][0] = 1


def test_a_disk_without_room_is_said(folder: Path) -> None:
    with Boundaries(in_memory=0) as kept:
        for path in folder.iterdir():
            shutil.rmtree(path)
        with pytest.raises(CalibrationError, match="TMPDIR"):
            kept.add(0, {"a": np.ones(3)})


# walks


def interesting(model: onnx.ModelProto) -> list[MomentRequest]:
    """Channel moments of every floating activation of rank 2 or more that a run shows, in graph order."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output if name]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    found = []
    for name, value in zip(names, run(shown, feed_for(model, 2)), strict=True):
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 1 and value.shape[0] == 2:
            found.append(MomentRequest(name, 1, value.ndim))
    return found


def assert_same(one: Mapping[str, Moments], other: Mapping[str, Moments], rounding: float = 1e-6) -> None:
    assert set(one) == set(other)
    for key, moments in one.items():
        assert moments.count == other[key].count
        most = np.abs(moments.gram).max(initial=0.0)
        np.testing.assert_allclose(moments.gram, other[key].gram, rtol=rounding, atol=rounding * most)
        np.testing.assert_allclose(moments.mean, other[key].mean, rtol=10 * rounding, atol=rounding)


def tiny(monkeypatch: pytest.MonkeyPatch, in_memory: int = 64) -> None:
    """Let nearly everything go through files."""
    monkeypatch.setattr(walk_module, "Boundaries", lambda: Boundaries(in_memory))


WALKED = (
    *("chain", "residual-identity", "residual-projection", "option-a-script", "concat", "dense-net", "unet-sizes"),
    *("if-capture", "if-captures-constant", "if-captures-extent", "loop-capture", "flatten-computed", "tied-embedding"),
    *("shuffle-dynamic", "separate-computed", "llama", "constant-nodes", "dequantised", "half-se-gate", "two-heads"),
)


@pytest.mark.parametrize("name", WALKED)
def test_segments_give_what_one_run_gives(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Tensor by tensor; each run starts from what the one before left."""
    tiny(monkeypatch)
    model = prepare(CATALOGUE[name].model("N")).model
    feeds = [feed_for(model, batch, batch) for batch in (2, 1, 3)]
    requests = interesting(model)
    assert len(requests) > 2
    whole = collect(model, requests, feeds, CPU)
    found: dict[str, Moments] = {}
    with Walk(model, iter(feeds), CPU) as walk:
        for number, request in enumerate(requests):
            found |= walk.run([request], later=[other.tensor for other in requests[number + 1 :]])
    assert_same(whole, found, 1e-6 if CATALOGUE[name].dtype == "float32" else 1e-3)
    assert not list(folder.iterdir())


class Segments:
    """The models that a walk really runs, by their nodes' first outputs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: list[list[str]] = []
        self.kept: list[list[str]] = []
        self.batches: list[int] = []

        def spy(model: onnx.ModelProto, requests: Any, feeds: Any, runtime: Any, **more: Any) -> Any:
            given = list(feeds)
            self.nodes.append([node.output[0] for node in model.graph.node])
            self.kept.append(list(more["keep"]))
            self.batches.append(len(given))
            return collect(model, requests, given, runtime, **more)

        monkeypatch.setattr(walk_module, "collect", spy)


def line() -> onnx.ModelProto:
    """t1 … t5: Conv, Relu, Conv, Relu, Conv; and beside it a constant branch t6 = Neg(c1), t7 = Mul(t4, t6)."""
    net = Net(batch="N")
    x = net.conv_relu(net.conv_relu(net.image(), 3, 4), 4, 5)
    net.output(net.conv(x, 5, 2))
    net.output(net.Mul(x, net.Neg(net.normal(5, 1, 1))))
    return net.model()


def request(tensor: str) -> MomentRequest:
    return MomentRequest(tensor, 1, 4)


def test_a_node_is_run_once_and_only_boundaries_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, model = Segments(monkeypatch), line()
    feeds = [feed_for(model, 2, seed) for seed in range(4)]
    with Walk(model, feeds, CPU) as walk:
        walk.run([request("t2")], later=["t4", "t5", "t7"])
        walk.run([request("t4")], later=["t5", "t7"])
        walk.run([request("t7")], later=["t5"], every=1)
        walk.run([request("t5")], every=3)
    assert seen.nodes == [["t1", "t2"], ["t3", "t4"], ["t6", "t7"], ["t5"]]  # t6 is constant: run where it is needed
    assert seen.kept == [["t2"], ["t4"], [], []]
    assert seen.batches == [4, 4, 4, 2]


def test_constants_are_run_again_and_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, model = Segments(monkeypatch), line()
    with Walk(model, [feed_for(model, 2)], CPU) as walk:
        for _ in range(2):
            walk.run([request("t7")], later=["t7", "t5"])
            walk.run([request("t5")], later=["t7", "t5"])
    assert not any("t6" in kept for kept in seen.kept)
    frontier = Frontier(model.graph)
    frontier.advance(frontier.needed(["t7"]))
    assert frontier.needed(["t6"]).sources == ()
    assert [model.graph.node[index].output[0] for index in frontier.needed(["t6"]).nodes] == ["t6"]
    assert frontier.needed(["t5"]).sources == ("t4",)


def test_without_later_nothing_is_kept_and_nothing_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, model = Segments(monkeypatch), line()
    with Walk(model, [feed_for(model, 2)], CPU) as walk:
        for _ in range(2):
            walk.run([request("t4")])
    assert seen.nodes == [["t1", "t2", "t3", "t4"]] * 2
    assert seen.kept == [[], []]


def test_what_later_does_not_name_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = line()
    with Walk(model, [feed_for(model, 2)], CPU) as walk:
        walk.run([request("t2")], later=["t4"])
        walk.run([request("t4")], later=["t5"])
        walk.run([request("t5")])
        with pytest.raises(KeyError):
            walk.run([request("t2")])


def test_weights_written_between_runs_count_where_a_node_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = line(), [feed_for(line(), 3, seed) for seed in range(2)]
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weight = numpy_helper.to_array(model.graph.initializer[2]) * 2 + 1
    changed.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "w2"))
    held = [index for index, node in enumerate(model.graph.node) if node.output[0] in ("t3", "t4")]
    requests = [request("t4")]
    before, after = collect(model, requests, feeds, CPU), collect(changed, requests, feeds, CPU)
    seen = Segments(monkeypatch)
    with Walk(model, feeds, CPU) as walk:
        assert_same(walk.run(requests, later=["t4", "t5"], hold=held), before)
        walk.write({"w2": weight})
        assert_same(walk.run(requests, later=["t4", "t5"]), after)
        walk.write({"w2": weight * 3})  # too late: the node has been run
        assert_same(walk.run(requests, later=["t5"]), after)
    assert seen.nodes == [["t1", "t2", "t3", "t4"], ["t3", "t4"], []]
    assert seen.kept == [["t2"], ["t4"], []]
    with pytest.raises(AssertionError):
        assert_same(before, after)


def test_cross_moments_between_segments() -> None:
    model, feeds = line(), [feed_for(line(), 3, seed) for seed in range(2)]
    crossed = MomentRequest("t4", 1, 4, cross_with="t2", lattice=(2, 3))
    whole = collect(model, [crossed], feeds, CPU)[crossed.key]
    with Walk(model, feeds, CPU) as walk:
        walk.run([request("t2")], later=["t2", "t3"])
        walk.run([request("t3")], later=["t2", "t4"])
        found = walk.run([crossed])[crossed.key]
    assert whole.cross is not None
    assert found.cross is not None
    assert found.cross.shape == (5, 4)
    np.testing.assert_allclose(found.cross, whole.cross, rtol=1e-6, atol=1e-6)


def test_integer_inputs_and_tokens_cross_boundaries(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    tiny(monkeypatch, 0)
    net = Net(batch="N")
    ids = net.input("ids", 7, dtype=np.int64)
    x = net.Gather(net.normal(11, 6), ids, axis=0)
    y = net.Add(net.linear(net.Relu(net.linear(x, 6, 9)), 9, 6), x)
    net.output(net.Mul(y, net.unsqueeze(net.Cast(ids, to=1), 2)))
    model = net.model()
    rng = np.random.default_rng(0)
    feeds = [{"ids": rng.integers(0, 11, (size, 7))} for size in (3, 1, 2)]
    requests = [MomentRequest(node.output[0], 2, 3) for node in model.graph.node if node.op_type in ("Relu", "Mul")]
    whole = collect(model, requests, feeds, CPU)
    with Walk(model, feeds, CPU) as walk:
        found = walk.run(requests[:1], later=[requests[1].tensor])
        found |= walk.run(requests[1:])
    assert_same(whole, found)


def test_empty_batches_are_counted_as_nothing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    tiny(monkeypatch, 0)
    model = line()
    feeds = [feed_for(model, size, size) for size in (2, 0, 1)]
    whole = collect(model, [request("t4")], feeds, CPU)
    with Walk(model, feeds, CPU) as walk:
        walk.run([request("t2")], later=["t4"])
        assert_same(whole, walk.run([request("t4")]))
    assert next(iter(whole.values())).count == 3 * 64


@pytest.mark.parametrize("where", ["feeds", "run"])
def test_files_are_gone_after_a_failure(where: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    tiny(monkeypatch, 0)
    model = line()
    walks: list[Walk] = []

    def broken() -> Iterator[dict[str, Array]]:
        yield feed_for(model, 2)
        assert files_in(folder)
        if where == "feeds":
            raise RuntimeError("no more samples")
        yield {"x": np.ones((2, 4, 8, 8), np.float32)}

    def walked() -> None:
        with Walk(model, broken(), CPU) as walk:
            walks.append(walk)
            walk.run([request("t2")], later=["t5"])

    with pytest.raises((RuntimeError, CalibrationError), match=r"no more samples|cannot run the batch"):
        walked()
    assert len(walks) == (where == "run")
    assert not list(folder.iterdir())


# side by side


def outputs_of(model: onnx.ModelProto, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return run(shown, feed)


def relabelled(model: onnx.ModelProto) -> None:
    """All nodes of one name, which onnx allows and the runtime refuses in one graph."""
    for node in model.graph.node:
        node.name = ""


@pytest.mark.parametrize("spoil", [None, relabelled])
@pytest.mark.parametrize("name", [*WALKED, *("listed-initialisers-ir3", "custom-operator", "weight-as-output")])
def test_both_halves_compute_what_each_model_does(name: str, spoil: Callable[[onnx.ModelProto], None] | None) -> None:
    dense = prepare(CATALOGUE[name].model("N")).model
    trace = traced(dense, feed_for(dense, 1))
    pruned = cut(dense, trace, half_removed(trace))
    if spoil is not None:
        spoil(dense)
        spoil(pruned)
    before = dense.SerializeToString(), pruned.SerializeToString()
    both = beside(dense, pruned, Surface())
    assert (dense.SerializeToString(), pruned.SerializeToString()) == before
    constants = {tensor.name for tensor in dense.graph.initializer}
    feed = feed_for(dense, 3)
    names = [value.name for value in dense.graph.output if value.name not in constants]
    found = outputs_of(both, [*names, *(DENSE + name for name in names)], feed)
    alone = [outputs_of(model, names, feed) for model in (pruned, dense)]
    assert difference(alone[0], found[: len(names)]) == 0
    assert difference(alone[1], found[len(names) :]) == 0
    if trace.groups:
        assert difference(alone[1], alone[0]) > 0.01
    assert not both.graph.output


def test_bodies_see_the_tensors_of_their_own_half() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "w"], ["inner"]), helper.make_node("Relu", ["inner"], ["made"])],
        "body", [], [helper.make_tensor_value_info("made", 1, None)],
    )  # fmt: skip
    same = [helper.make_node("Identity", ["h"], ["same"])]
    straight = helper.make_graph(same, "straight", [], [helper.make_tensor_value_info("same", 1, None)])
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("If", ["switch"], ["y"], then_branch=body, else_branch=straight),
    ]
    halves = []
    for shift in (1.0, 5.0):
        constants = [numpy_helper.from_array(np.float32([shift]), "w")]
        inputs = [helper.make_tensor_value_info("x", 1, ["N", 3]), helper.make_tensor_value_info("switch", 9, [])]
        outputs = [helper.make_tensor_value_info("y", 1, None)]
        graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
        halves.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    both = beside(*halves, Surface())
    for switch, shifts in ((True, (1.0, 5.0)), (False, (0.0, 0.0))):
        feed = {"x": np.ones((2, 3), np.float32), "switch": np.array(switch)}
        dense, pruned = outputs_of(both, [DENSE + "y", "y"], feed)
        assert (dense == 1 + shifts[0]).all()
        assert (pruned == 1 + shifts[1]).all()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_batches_left_behind_catch_up(count: int) -> None:
    """First one in four takes part, then one in two, then all: what is asked then is of all of them."""
    net = Net()
    x = net.conv_relu(net.image(), 3, 4)
    y = net.conv_relu(x, 4, 4)
    net.output(net.Add(net.conv(y, 4, 4), x))
    model = net.model()
    feeds = [feed_for(model, 1 + number % 2) for number in range(count)]
    tensors = [node.output[0] for node in model.graph.node]
    requests = [MomentRequest(name, 1, 4) for name in tensors]
    every = {request.key: collect(model, [request], feeds, CPU)[request.key] for request in requests}

    def check(found: Mapping[str, Moments], used: Sequence[int]) -> None:
        for key, moments in found.items():
            (request,) = (request for request in requests if request.key == key)
            expected = collect(model, [request], [feeds[number] for number in used], CPU)[key]
            assert moments.count == expected.count
            np.testing.assert_allclose(moments.gram, expected.gram, rtol=1e-5, atol=1e-6)

    with Walk(model, iter(feeds), CPU, every=4) as walk:
        check(walk.run(requests[:2], later=tensors[2:]), range(0, count, 4))
        walk.rejoin(2)
        check(walk.run(requests[2:3], later=tensors[2:]), range(0, count, 2))
        walk.rejoin()
        found = walk.run(requests[2:], later=tensors[-1:])
        check(found, range(count))
        assert {key: found[key].count for key in found} == {key: every[key].count for key in found}


def test_batches_left_behind_catch_up_with_the_weights_as_they_are_now() -> None:
    """And with the model's inputs, where later runs read them."""
    net = Net()
    x = net.image()
    h = net.conv_relu(x, 3, 4)
    net.output(net.Concat(net.conv(h, 4, 4), x, axis=1))
    model = net.model()
    feeds = [feed_for(model, 2) for _ in range(4)]
    outputs = [node.output[0] for node in model.graph.node]
    hidden, last = MomentRequest(outputs[1], 1, 4), MomentRequest(outputs[-1], 1, 4)
    weight = next(tensor.name for tensor in model.graph.initializer if tensor.name == "w1")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    with Walk(model, feeds, CPU, every=2) as walk:
        walk.run([hidden], later=[hidden.tensor], hold=range(2))
        values = np.full((4, 3, 3, 3), 0.1, np.float32)
        walk.write({weight: values})
        walk.run([hidden], later=outputs[2:])
        walk.rejoin()
        found = walk.run([last], later=[outputs[-1]])[last.key]
    for tensor in changed.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array(values, weight))
    expected = collect(changed, [last], feeds, CPU)[last.key]
    assert found.count == expected.count
    np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-5, atol=1e-6)
