"""Sequences and optionals: unpacked where their contents are known, else computed again wherever they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

import snp_onnx
from snp_onnx import ModelError
from snp_onnx.calibration.segments import Frontier
from snp_onnx.calibration.sessions import Runtime, open_session
from snp_onnx.calibration.sessions import run as run_session
from snp_onnx.passes import UnpackSequences, prepare, rewrite
from snp_onnx.tracing import trace
from snp_onnx.tracing.facts import infer_facts
from snp_onnx.tracing.holders import holders_of
from tests.graphs import Net
from tests.oracles import difference, run

Array = npt.NDArray[Any]
Drawing = Callable[[Net, str], Sequence[str]]
RNG = np.random.default_rng(0)
FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
SEQUENCE = helper.make_sequence_type_proto(FLOATS)


def twice(net: Net, x: str, cin: int, cout: int) -> str:
    """A layer of which the second half of the units repeats the first, so that half of them can go."""
    half = net.rng.standard_normal((cin, cout // 2)) / np.sqrt(cin)
    return net.Relu(net.MatMul(x, net.const(np.concatenate([half, half], axis=1))))


def drawn(draw: Drawing, opset: int = 18) -> onnx.ModelProto:
    """16 units, what is drawn on their tensor (N, 8), and 16 units behind each tensor (N, ...) that it gives."""
    net = Net(opset, "N")
    x = net.MatMul(twice(net, net.input("x", 6), 6, 16), net.weight(16, 8, fan_in=16))
    net.output_rank = 2
    for found in draw(net, x):
        flat = net.op("Flatten", found)
        net.output(net.MatMul(twice(net, flat, WIDE.get(draw, 8), 16), net.weight(16, 3, fan_in=16)))
    return net.model()


def at(net: Net, sequence: str, place: int) -> str:
    return net.op("SequenceAt", sequence, net.const(np.array(place)))


def body(name: str, *nodes: onnx.NodeProto, kind: onnx.TypeProto = FLOATS) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_value_info(nodes[-1].output[0], kind)])


# contents that are known


def split_by_sizes(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SplitToSequence", x, net.const([2, 4, 2]), axis=-1)
    return [at(net, parts, 1), at(net, parts, -2)]


def split_by_number(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SplitToSequence", x, net.const(np.array(4)), axis=1)
    return [at(net, parts, 0), at(net, parts, 1)]


def unbound(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SplitToSequence", net.reshape(x, -1, 2, 4), axis=1, keepdims=0)
    kept = net.op("SplitToSequence", net.reshape(x, -1, 2, 4), axis=1)
    return [at(net, parts, 0), at(net, parts, -1), at(net, kept, -1), at(net, kept, 1), at(net, kept, -2)]


def listed(net: Net, x: str) -> Sequence[str]:
    """SequenceEmpty, three inserted in another order, one erased at a place and one at the end."""
    several = net.op("SequenceInsert", net.op("SequenceEmpty"), net.Sigmoid(x))
    several = net.op("SequenceInsert", several, net.Tanh(x), net.const(np.array(0)))
    several = net.op("SequenceInsert", several, net.Relu(x), net.const(np.array(-1)))
    several = net.op("SequenceInsert", several, net.Exp(x))
    several = net.op("SequenceErase", net.op("SequenceErase", several), net.const(np.array(1)))
    return [at(net, several, 0), at(net, several, 1)]


def joined(net: Net, x: str) -> Sequence[str]:
    return [net.op("ConcatFromSequence", net.op("SequenceConstruct", net.Sigmoid(x), x), axis=-1)]


def stacked(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SplitToSequence", x, net.const([4, 4]), axis=1)
    several = net.op("SequenceInsert", parts, net.slice(x, 1, 2, 6))
    return [net.op("ConcatFromSequence", several, axis=axis, new_axis=1) for axis in (1, -1)]


def optional(net: Net, x: str) -> Sequence[str]:
    boxed, empty = net.op("Optional", x), net.op("Optional", type=FLOATS)
    number = net.op("Cast", net.op("OptionalHasElement", boxed), to=TensorProto.FLOAT)
    other = net.op("Cast", net.op("OptionalHasElement", empty), to=TensorProto.FLOAT)
    return [net.Add(net.op("OptionalGetElement", boxed), net.Mul(number, net.Add(other, number)))]


def optional_sequence(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SequenceConstruct", x, net.Sigmoid(x))
    held = net.op("OptionalGetElement", net.op("Optional", net.op("Identity", parts)))
    count = net.op("Cast", net.op("SequenceLength", held), to=TensorProto.FLOAT)
    return [net.Mul(at(net, held, 1), count)]


def read_in_a_branch(net: Net, x: str) -> Sequence[str]:
    """What a body gives under the name of an outer tensor."""
    inner = net.op("OptionalGetElement", net.op("Optional", net.Sigmoid(x)))
    branches = {"then_branch": body("t", helper.make_node("Identity", [inner], ["then_out"]))}
    branches["else_branch"] = body("e", helper.make_node("Relu", [inner], ["else_out"]))
    return [net.op("If", net.const(np.array(True)), **branches)]


KNOWN: tuple[Drawing, ...] = (
    *(split_by_sizes, split_by_number, unbound, listed, joined, stacked, optional, optional_sequence, read_in_a_branch),
)
WIDE = {split_by_sizes: 4, split_by_number: 4, unbound: 4, joined: 16, stacked: 12}


def kinds_in(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node if "Sequence" in node.op_type or "Optional" in node.op_type}


@pytest.mark.parametrize("draw", KNOWN)
def test_what_is_known_is_unpacked(draw: Drawing) -> None:
    model = drawn(draw)
    once = rewrite(model, [UnpackSequences()])
    prepared = prepare(model).model
    assert kinds_in(model)
    assert not kinds_in(prepared)
    assert once.notes
    assert not rewrite(once.model, [UnpackSequences()]).notes
    onnx.checker.check_model(prepared, full_check=True)
    for rows in (1, 3):
        feed = {"x": RNG.standard_normal((rows, 6)).astype(np.float32)}
        assert difference(run(model, feed), run(prepared, feed)) < 1e-6


@pytest.mark.parametrize("opset", [11, 13])
def test_older_forms_of_unsqueeze_and_split(opset: int) -> None:
    model = drawn(stacked, opset)
    feed = {"x": RNG.standard_normal((3, 6)).astype(np.float32)}
    assert difference(run(model, feed), run(prepare(model).model, feed)) < 1e-6


def test_an_element_that_is_an_output_keeps_its_name() -> None:
    net = Net(18, "N")
    x = net.input("x", 6)
    net.output(
        net.op("OptionalGetElement", net.op("Optional", net.Relu(x))), at(net, net.op("SequenceConstruct", x), 0)
    )
    prepared = prepare(net.model()).model
    assert [value.name for value in prepared.graph.output] == net.outputs
    assert not kinds_in(prepared)


# contents that are not


def computed_place(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SequenceConstruct", x, net.Sigmoid(x))
    place = net.op("Cast", net.op("Greater", net.ReduceMax("x", keepdims=0), net.const(np.array(99.0))), to=7)
    return [net.op("SequenceAt", parts, place), at(net, parts, 1)]


def from_a_branch(net: Net, x: str) -> Sequence[str]:
    """Both branches give sequences, of other sizes."""

    def parts(name: str, sizes: list[int]) -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], [f"{name}_sizes"], value_ints=sizes)
        split = helper.make_node("SplitToSequence", [x, f"{name}_sizes"], [f"{name}_out"], axis=1)
        return body(name, constant, split, kind=SEQUENCE)

    flag = net.op("Greater", net.ReduceMax("x", keepdims=0), net.const(np.array(99.0)))
    found = net.op("If", flag, then_branch=parts("t", [2, 6]), else_branch=parts("e", [4, 4]))
    return [at(net, found, 0), at(net, found, 1)]


def from_a_loop(net: Net, x: str) -> Sequence[str]:
    """A list that a loop extends."""
    more = helper.make_node("SequenceInsert", ["list_in", x], ["list_out"])
    on = helper.make_node("Identity", ["on_in"], ["on_out"])
    values = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on_in", "on_out")]
    number = helper.make_tensor_value_info("number", TensorProto.INT64, [])
    lists = [helper.make_value_info(name, SEQUENCE) for name in ("list_in", "list_out")]
    inner = helper.make_graph([more, on], "body", [number, values[0], lists[0]], [values[1], lists[1]])
    found = net.op("Loop", net.const(np.array(2)), "", net.op("SequenceEmpty"), body=inner)
    return [net.op("ConcatFromSequence", found, axis=1)]


def mapped(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SplitToSequence", x, net.const([4, 4]), axis=1)
    inner = body("each", helper.make_node("Sigmoid", ["part"], ["changed"]))
    inner.input.append(helper.make_value_info("part", FLOATS))
    found = net.op("SequenceMap", parts, body=inner)
    return [at(net, found, 0), at(net, found, 1)]


def counted_from_the_end(net: Net, x: str) -> Sequence[str]:
    parts = net.op("SplitToSequence", x, net.const(np.array(4)), axis=1)
    return [at(net, parts, -1), at(net, parts, 1)]


def rows(net: Net, x: str) -> Sequence[str]:
    """As many parts as there are rows in the batch."""
    return [net.op("ConcatFromSequence", net.op("SplitToSequence", x, axis=0), axis=0)]


UNKNOWN: tuple[tuple[Drawing, str], ...] = (
    (computed_place, "SequenceAt"),
    (from_a_branch, "If"),
    (from_a_loop, "Loop"),
    (mapped, "SequenceMap"),
    (counted_from_the_end, "SplitToSequence"),
    (rows, "SplitToSequence"),
)
WIDE |= {from_a_branch: 4, from_a_loop: 16, mapped: 4, counted_from_the_end: 4}


@pytest.mark.parametrize("preset", ["fast", "best"])
@pytest.mark.parametrize(("draw", "kind"), UNKNOWN)
def test_what_is_not_known_is_computed_again_where_it_is_read(draw: Drawing, kind: str, preset: str) -> None:
    model = drawn(draw)
    data = RNG.standard_normal((60, 6)).astype(np.float32)
    result = snp_onnx.prune(model, data, target_macs=0.7, preset=preset, ridge=1e-6)
    assert kind in {node.op_type for node in result.model.graph.node}
    assert len([group for group in result.report.groups if group.after < group.before]) > 1
    for count in (1, 5):
        feed = {"x": RNG.standard_normal((count, 6)).astype(np.float32)}
        assert difference(run(model, feed), run(result.model, feed)) < 1e-3


@pytest.mark.parametrize(("draw", "kind"), UNKNOWN)
def test_the_node_is_named_where_a_sequence_stops_a_layer(draw: Drawing, kind: str) -> None:
    model = drawn(draw)
    stops = {stop.weight: stop for stop in snp_onnx.inspect(model).barriers}
    named = next(node for node in model.graph.node if node.op_type == kind)
    readers = [node.name for node in model.graph.node if named.output[0] in node.input]
    near = {named.name, *readers} | {n.name for n in model.graph.node if n.op_type.startswith("S")}
    assert stops["w1"].node in near or stops["w1"].node.startswith(("SplitToSequence(", "SequenceInsert("))
    assert "Sequence" in stops["w1"].reason or kind in stops["w1"].reason


def test_sequences_are_told_from_tensors() -> None:
    held = [holders_of(drawn(draw).graph) for draw in (from_a_branch, from_a_loop, mapped)]
    for draw, found in zip((from_a_branch, from_a_loop, mapped), held, strict=True):
        model = drawn(draw)
        kinds = {name: node.op_type for node in model.graph.node for name in node.output}
        assert {kinds[name] for name in found} <= {"If", "Loop", "SequenceEmpty", "SequenceMap", "SplitToSequence"}
        assert found
        facts = infer_facts(model, {"x": (1, 6)})
        assert facts.holders.keys() <= found
        assert not facts.types.keys() & facts.holders.keys()


def test_nodes_that_give_a_sequence_are_never_done() -> None:
    graph = drawn(computed_place).graph
    frontier = Frontier(graph)
    (maker,) = (index for index, node in enumerate(graph.node) if node.op_type == "SequenceConstruct")
    readers = [node.output[0] for node in graph.node if node.op_type == "SequenceAt"]
    first = frontier.needed([readers[1]])
    assert maker in first.nodes
    frontier.advance(first)
    assert maker not in frontier.lasting(first)
    again = frontier.needed(readers)
    assert maker in again.nodes
    assert graph.node[maker].output[0] not in again.sources


def test_sizes_in_sequences_are_no_stacked_values() -> None:
    """onnx's reference gives a list, which isn't the value of a tensor."""
    net = Net(18, "N")
    x = net.input("x", 6)
    sizes = net.op("SplitToSequence", net.Shape(x), net.const([1, 1]), axis=0)
    net.output(net.op("Reshape", x, net.op("ConcatFromSequence", sizes, axis=0)))
    facts = infer_facts(net.model(), {"x": (1, 6)})
    assert sizes not in facts.values
    assert sizes not in facts.shapes
    assert trace(net.model(), {"x": (1, 6)}).groups == ()


# surfaces


def surfaced(kind: str) -> onnx.ModelProto:
    """A model whose input or output is a sequence or an optional."""
    net = Net(18, "N")
    net.output_rank = 2
    x = net.input("x", 6)
    if kind == "optional input":
        x = net.op("OptionalGetElement", x)
    if kind == "sequence input":
        x = at(net, x, 0)
    y = net.MatMul(twice(net, x, 6, 16), net.weight(16, 3, fan_in=16))
    ends = {"sequence output": ("SequenceConstruct", y, net.Sigmoid(y)), "optional output": ("Optional", y)}
    net.output(net.op(*ends[kind]) if kind in ends else y)
    model = net.model()
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 6])
    types = {"optional": helper.make_optional_type_proto, "sequence": helper.make_sequence_type_proto}
    word, _, side = kind.partition(" ")
    value = model.graph.input[0] if side == "input" else model.graph.output[0]
    value.type.CopyFrom(types[word](tensor if side == "input" else FLOATS))
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("kind", ["sequence output", "optional output", "optional input"])
@pytest.mark.parametrize("preset", ["fast", "best"])
def test_surfaces_that_are_no_tensors(kind: str, preset: str) -> None:
    model = surfaced(kind)
    data = RNG.standard_normal((60, 6)).astype(np.float32)
    result = snp_onnx.prune(model, data, target_macs=0.7, preset=preset, ridge=1e-6, latency=True)
    assert list(result.model.graph.output) == list(model.graph.output)
    assert list(result.model.graph.input) == list(model.graph.input)
    names = {"sequence output": ["t5[0]", "t5[1]"]}.get(kind, [model.graph.output[0].name])
    assert [entry.output for entry in result.report.fidelity] == names
    assert all(entry.compared == 1.0 and entry.error < 1e-4 for entry in result.report.fidelity)
    feed = {"x": data[:5]}
    before, after = (run_session(open_session(m, Runtime(threads=1)), feed) for m in (model, result.model))
    assert before.keys() == after.keys()
    assert difference(list(before.values()), list(after.values())) < 1e-3


def test_a_sequence_with_an_element_for_each_row() -> None:
    net = Net(18, "N")
    y = net.MatMul(twice(net, net.input("x", 6), 6, 16), net.weight(16, 3, fan_in=16))
    net.output(net.op("SplitToSequence", y, axis=0, keepdims=0))
    model = net.model()
    model.graph.output[0].type.CopyFrom(SEQUENCE)
    feeds = [{"x": RNG.standard_normal((rows, 6)).astype(np.float32)} for rows in (5, 3, 4) * 8]
    result = snp_onnx.prune(model, feeds, target_macs=0.7, preset="fast", ridge=1e-6)
    feed = {"x": RNG.standard_normal((7, 6)).astype(np.float32)}
    before, after = (run(m, feed)[0] for m in (model, result.model))
    assert len(before) == len(after) == 7
    assert difference(before, after) < 1e-3


def test_a_sequence_as_an_input_is_inspected_and_not_calibrated() -> None:
    model = surfaced("sequence input")
    inspection = snp_onnx.inspect(model)
    assert not inspection.groups
    assert all("shape of" in stop.reason for stop in inspection.barriers)
    with pytest.raises(ModelError, match="input 'x' is not a tensor"):
        snp_onnx.prune(model, np.zeros((40, 6), np.float32), target_macs=0.7)


def test_an_output_whose_length_differs_is_not_compared() -> None:
    short, long = surfaced("sequence output"), surfaced("sequence output")
    maker = next(node for node in long.graph.node if node.op_type == "SequenceConstruct")
    maker.input.append(maker.input[0])
    found = snp_onnx.compare(long, short, RNG.standard_normal((20, 6)).astype(np.float32))
    assert [(entry.output, entry.compared) for entry in found.fidelity] == [("t5[0]", 1), ("t5[1]", 1), ("t5[2]", 0)]
