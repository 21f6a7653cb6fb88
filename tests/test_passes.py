"""The passes one by one: what each changes, what it leaves alone, and that a second run changes nothing more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

from snp_onnx.errors import TRACEBACK, ModelError, PassError, PlanError
from snp_onnx.passes import (
    EliminateDead,
    FoldBatchNorm,
    FoldConstants,
    FoldWeights,
    LiftConstants,
    Outcome,
    Pass,
    SeparateShared,
    SliceUnits,
    prepare,
    rewrite,
)
from snp_onnx.passes.fold_constants import computed_weights
from snp_onnx.tracing import driver
from tests.graphs import Array, Net, feed_for
from tests.oracles import cut, difference, half_removed, run, tolerance, traced
from tests.topologies import CATALOGUE


@pytest.fixture(autouse=True)
def run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass runs twice, and is held to its contract."""
    monkeypatch.setenv(TRACEBACK, "1")


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def held(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    onnx.checker.check_model(after, full_check=True)
    feed = feed_for(before, batch=2)
    expected = run(before, feed)
    assert difference(expected, run(after, feed)) <= tolerance(expected)


def outcomes(model: onnx.ModelProto, step: Pass) -> tuple[bool, bool]:
    """Whether a pass changes a graph, and whether it changes it again."""
    graph = gs.import_onnx(model)
    return step(graph).changed, step(graph).changed


# every pass: once, and not again


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("constant-nodes", LiftConstants()),
        ("shared-bias", SeparateShared()),
        ("conv-bn-relu", FoldBatchNorm()),
        *(
            (name, FoldConstants(computed_weights(CATALOGUE[name].model())))
            for name in ("weight-norm", "packed-equally", "packed-by-size", "cropped-weight")
        ),
    ],
)
def test_a_pass_changes_what_it_is_for_once(name: str, step: Pass) -> None:
    source = CATALOGUE[name].model("N")
    before = source.SerializeToString()
    rewritten = rewrite(source, [step])
    assert_same_function(source, rewritten.model)
    assert source.SerializeToString() == before
    assert outcomes(source, step) == (True, False)
    net = Net()
    net.output(net.conv(net.image(), 3, 4))
    other = net.model()
    assert outcomes(other, step) == (False, False)
    assert rewrite(other, [step]).notes == ()


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_preparing_twice_changes_nothing_more(name: str) -> None:
    once = prepare(CATALOGUE[name].model(2)).model
    again = prepare(once)
    assert again.notes == ()
    assert kinds(again.model) == kinds(once)
    assert {n: a.tobytes() for n, a in held(again.model).items()} == {n: a.tobytes() for n, a in held(once).items()}


def test_slicing_twice_changes_nothing_more() -> None:
    model = CATALOGUE["chain"].model(2)
    trace = traced(model, feed_for(model, 2))
    assert outcomes(model, SliceUnits(trace, half_removed(trace))) == (True, False)


def test_dead_nodes_go_and_unused_inputs_stay() -> None:
    net = Net()
    x = net.conv(net.image(), 3, 4)
    net.Relu(net.conv(x, 4, 6))
    net.input("unused", 3)
    net.output(x)
    model = net.model()
    result = rewrite(model, [EliminateDead()]).model
    assert kinds(result) == ["Conv"]
    assert set(held(result)) == {"w1", "b1"}
    assert [value.name for value in result.graph.input] == ["x", "unused"]
    assert outcomes(model, EliminateDead()) == (True, False)


# BatchNormalization


def folded(net: Net) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = net.model()
    return model, rewrite(model, [FoldBatchNorm()]).model


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_into_a_convolution(bias: bool) -> None:
    net = Net()
    net.output(net.Relu(net.bn(net.conv(net.image(), 3, 6, bias=bias), 6)))
    source, result = folded(net)
    assert kinds(result) == ["Conv", "Relu"]
    assert_same_function(source, result)


@pytest.mark.parametrize("group", [1, 2, 6])
def test_batch_norm_is_folded_into_a_transposed_convolution(group: int) -> None:
    net = Net()
    net.output(net.bn(net.transposed(net.conv(net.image(), 3, 6), 6, 12, group=group), 12))
    source, result = folded(net)
    assert kinds(result) == ["Conv", "ConvTranspose"]
    assert_same_function(source, result)


@pytest.mark.parametrize("trans", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_into_a_gemm(trans: bool, bias: bool) -> None:
    net = Net()
    net.output(net.bn(net.dense(net.input("x", 5), 5, 6, trans=trans, bias=bias), 6))
    source, result = folded(net)
    assert kinds(result) == ["Gemm"]
    assert_same_function(source, result)


def test_batch_norm_stays_where_folding_would_be_wrong() -> None:
    def scaled(net: Net) -> str:
        return net.bn(net.Gemm(net.input("x", 5), net.weight(5, 6, fan_in=5), net.bias(6), alpha=0.5), 6)

    def read_twice(net: Net) -> str:
        x = net.conv(net.image(), 3, 6)
        return net.Add(net.bn(x, 6), x)

    def shared_weight(net: Net) -> str:
        x, weight = net.image(), net.weight(6, 3, 3, 3, fan_in=27)
        return net.Add(net.bn(net.Conv(x, weight), 6), net.Conv(x, weight))

    def given_out(net: Net) -> str:
        x = net.conv(net.image(), 3, 6)
        net.output(x)
        return net.bn(x, 6)

    def weight_given_out(net: Net) -> str:
        net.output("w1")
        return net.bn(net.conv(net.image(), 3, 6), 6)

    def before(net: Net) -> str:
        return net.conv(net.bn(net.image(), 3), 3, 6)

    for draw in (scaled, read_twice, shared_weight, given_out, weight_given_out, before):
        net = Net()
        net.output(draw(net))
        source, result = folded(net)
        assert kinds(result) == kinds(source), draw.__name__
        assert_same_function(source, result)


def test_metadata_stays_with_the_convolution_that_takes_the_name_of_its_norm() -> None:
    net = Net(opset=21)
    net.output(net.bn(net.conv(net.image(), 3, 6), 6))
    source, result = folded(net)
    (node,) = result.graph.node
    assert (node.name, node.doc_string) == ("n1", "about n1")
    assert node.metadata_props == source.graph.node[0].metadata_props


# shared and computed constants


def test_shared_vectors_are_separated_and_shared_weights_are_not() -> None:
    source = CATALOGUE["shared-bias"].model()
    result = rewrite(source, [SeparateShared()])
    biases = [node.input[2] for node in result.model.graph.node if node.op_type == "Conv"]
    assert len(set(biases)) == len(biases)
    assert [note.subject for note in result.notes] == ["c1"]
    tied = rewrite(CATALOGUE["tied-weights"].model(), [SeparateShared()]).model
    weights = [node.input[1] for node in tied.graph.node if node.op_type == "Conv"]
    assert len(set(weights)) == len(weights) - 1


def test_a_bias_shared_for_good_is_cut_for_each_layer_alone() -> None:
    prepared = prepare(CATALOGUE["shared-bias"].model(2)).model
    trace = traced(prepared, feed_for(prepared, 2))
    alive = trace.alive([trace.group("w1:0").labels[:5]])
    result = cut(prepared, trace, alive)
    sizes = {node.input[1]: len(held(result)[node.input[2]]) for node in result.graph.node if node.op_type == "Conv"}
    assert sizes == {"w1": 3, "w2": 8, "w3": 8, "w4": 4}


def test_constants_of_every_kind_are_lifted() -> None:
    net = Net()
    x = net.input("x", 4)
    for attribute, value in (("value_float", 2.0), ("value_floats", [1.0, 2.0, 3.0, 4.0])):
        x = net.Add(x, net.op("Constant", **{attribute: value}))
    shape = net.op("Constant", value_ints=[-1, 2, 2])
    net.output(net.Gather(net.Reshape(x, shape), net.op("Constant", value_int=1), axis=1))
    source = net.model()
    result = rewrite(source, [LiftConstants()]).model
    assert "Constant" not in kinds(result)
    assert [(a.dtype, a.shape) for a in held(result).values()] == [
        (np.float32, ()),
        (np.float32, (4,)),
        (np.int64, (3,)),
        (np.int64, ()),
    ]
    assert_same_function(source, result)


def test_a_constant_that_is_given_out_stays_a_node() -> None:
    net = Net()
    shift = net.op("Constant", value_floats=[1.0, 2.0])
    net.output(net.Add(net.input("x", 2), shift), shift)
    source = net.model()
    result = rewrite(source, [LiftConstants()]).model
    assert kinds(result) == ["Constant", "Add"]
    assert_same_function(source, result)


def test_a_constant_that_a_branch_reads_is_lifted_too() -> None:
    source = CATALOGUE["if-captures-constant"].model("N")
    result = rewrite(source, [LiftConstants()]).model
    assert "Constant" not in kinds(result)
    assert_same_function(source, result)


def test_what_a_weight_reads_twice_is_dropped_once() -> None:
    net = Net()
    half = net.Neg(net.normal(4, 5))
    net.output(net.MatMul(net.input("x", 4), net.Add(net.Exp(half), half)))
    source = net.model()
    result = prepare(source).model
    assert kinds(result) == ["MatMul"]
    assert_same_function(source, result)


def test_a_computed_weight_that_is_given_out_stays_computed() -> None:
    net = Net()
    weight = net.Mul(net.normal(4, 5), net.normal(4, 1))
    net.output(net.MatMul(net.input("x", 4), weight), weight)
    source = net.model()
    result = prepare(source).model
    assert kinds(result) == ["Mul", "MatMul"]
    assert_same_function(source, result)


# folded weights


@pytest.mark.parametrize("name", ["weight-norm", "packed-equally", "packed-by-size", "cropped-weight"])
def test_what_weights_are_computed_from_goes(name: str) -> None:
    source = CATALOGUE[name].model()
    folded = rewrite(source, [FoldConstants(computed_weights(source)), EliminateDead()]).model
    before, after = (sum(a.size for a in held(m).values() if a.dtype.kind == "f") for m in (source, folded))
    assert after <= before
    assert not {"Split", "Pad", "Div"}.intersection(kinds(folded))


def test_what_a_wider_one_is_computed_from_stays() -> None:
    """A table repeated at run time isn't written out because a weight comes from the same constant."""
    net = Net()
    packed = net.normal(8, 8)
    x = net.Relu(net.MatMul(net.input("x", 8), net.Tanh(packed)))
    net.output(net.Add(x, net.slice(net.op("Tile", packed, net.const([50, 1])), 0, 0, 1)))
    model = prepare(net.model()).model
    assert kinds(model) == ["MatMul", "Relu", "Tile", "Slice", "Add"]


@pytest.mark.parametrize("kind", ["RandomNormalLike", "Dropout"])
def test_what_is_drawn_at_run_time_is_no_constant(kind: str) -> None:
    net = Net()
    operands = [net.const(0.5), net.const(True)] if kind == "Dropout" else []
    net.output(net.MatMul(net.input("x", 8), net.op(kind, net.normal(8, 8), *operands)))
    assert kinds(prepare(net.model()).model) == [kind, "MatMul"]


def test_a_weight_that_nothing_can_compute_is_named() -> None:
    net = Net()
    weight = net.op("StringNormalizer", net.op("StringNormalizer", net.normal(8, 8)))
    net.output(net.MatMul(net.input("x", 8), weight))
    with pytest.raises(ModelError, match=r"node n1 \(StringNormalizer\) computes a weight from constants"):
        prepare(net.model())


def test_folded_weights_are_written_in_the_type_of_the_old() -> None:
    source = CATALOGUE["half-flatten-gemm"].model()
    values = np.arange(held(source)["w3"].size, dtype=np.float64).reshape(held(source)["w3"].shape)
    result = rewrite(source, [FoldWeights({"w3": values})])
    assert held(result.model)["w3"].dtype == np.float16
    np.testing.assert_array_equal(held(result.model)["w3"], values)
    assert [note.subject for note in result.notes] == ["w3"]
    assert rewrite(result.model, [FoldWeights({"w3": values})]).notes == ()


def test_folded_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(PassError, match=r"FoldWeights.*w2 has shape"):
        rewrite(CATALOGUE["chain"].model(), [FoldWeights({"w2": np.zeros((2, 2))})])


# operands that name sizes


def test_a_shape_joined_of_numbers_is_corrected_where_it_is_joined() -> None:
    """No nodes are added: the number inside the Concat is changed."""
    source = CATALOGUE["separate-computed"].model("N")
    trace = traced(source, feed_for(source, 1))
    result = cut(source, trace, half_removed(trace))
    assert kinds(result) == kinds(source)


def test_a_shape_that_several_read_is_corrected_for_one() -> None:
    """One computed shape for two maps that are cut differently: entries are overwritten in front of the reader."""
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, 6)
    y = net.conv_relu("x", 3, 6)
    shape = net.computed_shape(net.extent(x, 0), 6, 64)
    parts = [net.Reshape(part, shape) for part in (x, y)]
    net.output(net.conv(parts[0], 6, 2, rank=1), net.conv(parts[1], 6, 2, rank=1))
    source = net.model()
    trace = traced(source, feed_for(source, 1))
    assert [len(group) for group in trace.groups] == [6, 6]
    alive = trace.alive([trace.groups[0].labels[:1], trace.groups[1].labels[:4]])
    result = cut(source, trace, alive)
    assert kinds(result).count("ScatterElements") == 2
    assert [output.shape for output in run(result, feed_for(source, 3))] == [(3, 2, 64), (3, 2, 64)]


def outer_product(net: Net) -> None:
    """Channels and steps of two signals, merged pair by pair by computed numbers and parted again."""
    left, right = (
        net.Relu(net.conv(net.input(name, 3, extent), 3, width, rank=1))
        for name, extent, width in (("a", "h", 6), ("b", "w", 4))
    )
    product = net.Mul(net.unsqueeze(left, 3, 4), net.unsqueeze(right, 1, 2))
    rows, first, second = net.extent("a", 0), net.extent("a", 2), net.extent("b", 2)
    merged = net.Concat(rows, net.Mul(first, net.const([6])), net.Mul(second, net.const([4])), axis=0)
    apart = net.Concat(rows, net.const([6]), first, net.const([4]), second, axis=0)
    pooled = net.reduce("ReduceMean", net.Reshape(net.Reshape(product, merged), apart), [2, 4], keepdims=0)
    turned = net.Transpose(net.MatMul(pooled, net.weight(4, 5, fan_in=4)), perm=[0, 2, 1])
    net.output(net.MatMul(turned, net.weight(6, 2, fan_in=6)))


def test_two_extents_that_vary_cannot_both_be_inferred(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracer bars such a shape; should it fail to, no wrong model comes of it."""
    net = Net(17, "N")
    outer_product(net)
    source, sides = net.model(), {"h": 5, "w": 7}
    assert traced(source, feed_for(source, 1, sides=sides)).groups == ()
    monkeypatch.setattr(driver, "bar_extents", lambda *_: None)
    trace = traced(source, feed_for(source, 1, sides=sides))
    assert sorted(len(group) for group in trace.groups) == [4, 6]
    with pytest.raises(PassError, match="two extents of this Reshape vary from run to run"):
        cut(source, trace, half_removed(trace))


@pytest.mark.parametrize(("opset", "kind"), [(9, "Scatter"), (10, "Scatter"), (11, "ScatterElements")])
def test_computed_entries_are_overwritten_in_old_opsets_too(opset: int, kind: str) -> None:
    source = CATALOGUE["shuffle-dynamic"].model("N", opset)
    trace = traced(source, feed_for(source, 1))
    result = cut(source, trace, half_removed(trace))
    assert kind in kinds(result)
    run(result, feed_for(source, 3))


def test_declared_shapes_follow_and_symbolic_ones_stay() -> None:
    source = CATALOGUE["merged-with-batch"].model("N")
    trace = traced(source, feed_for(source, 1))
    result = cut(source, trace, half_removed(trace))
    before, after = (
        {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in m.graph.value_info}
        for m in (source, result)
    )
    kept = set(after) & set(before)
    assert any(after[name] != before[name] for name in kept)
    for name in kept:
        assert [n is None for n in after[name]] == [n is None for n in before[name]], name


@pytest.mark.parametrize("wrong", [("N", 4, 8), ("N", 17)])
def test_a_declared_shape_that_is_not_the_tensors_goes(wrong: tuple[str | int, ...]) -> None:
    """The runtime only warns of one; beside cut tensors the checker would refuse it."""
    net = Net(batch="N")
    h = net.Relu(net.linear(net.input("x", 6), 6, 8, bias=False))
    net.output(net.linear(h, 8, 3, bias=False))
    source = net.model()
    for value in source.graph.value_info:
        if value.name == h:
            value.CopyFrom(onnx.helper.make_tensor_value_info(h, onnx.TensorProto.FLOAT, wrong))
    trace = traced(source, feed_for(source, 1))
    step = SliceUnits(trace, half_removed(trace))
    result = rewrite(source, [step]).model
    onnx.checker.check_model(result, full_check=True)
    assert h not in [v.name for v in result.graph.value_info if v.type.tensor_type.HasField("shape")]
    assert outcomes(result, step) == (False, False)


# the pipeline


@dataclass(frozen=True, slots=True)
class Failing(Pass):
    """A pass that breaks."""

    error: Exception

    def __call__(self, graph: gs.Graph) -> Outcome:
        raise self.error


def test_a_pass_that_breaks_is_named() -> None:
    with pytest.raises(PassError, match="pass Failing failed: KeyError: 'x'"):
        rewrite(CATALOGUE["chain"].model(), [Failing(KeyError("x"))])
    with pytest.raises(PlanError, match="said already"):
        rewrite(CATALOGUE["chain"].model(), [Failing(PlanError("said already"))])


@dataclass(frozen=True, slots=True)
class Renaming(Pass):
    """A pass that renames the first node and reports what it is told to."""

    says: bool = True
    ending: str = ""
    lacks: str = ""
    left: str = ""

    def __call__(self, graph: gs.Graph) -> Outcome:
        first = graph.nodes[0]
        first.name = f"{first.name}{self.ending}" if self.ending else "renamed"
        return Outcome(self.says)

    def requires(self, graph: gs.Graph) -> str:
        return self.lacks

    def ensures(self, graph: gs.Graph) -> str:
        return self.left


@dataclass(frozen=True, slots=True)
class Disordering(Pass):
    """A pass that puts the last node first."""

    def __call__(self, graph: gs.Graph) -> Outcome:
        is_done = graph.nodes[0].op == "Relu"
        if not is_done:
            graph.nodes.insert(0, graph.nodes.pop(1))
        return Outcome(not is_done)


def test_contracts_are_asked_whenever_a_pass_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACEBACK)
    model = CATALOGUE["chain"].model()
    with pytest.raises(PassError, match="pass Renaming can't run: no luck"):
        rewrite(model, [Renaming(lacks="no luck")])
    with pytest.raises(PassError, match="pass Renaming broke its contract: half of it"):
        rewrite(model, [Renaming(left="half of it")])
    assert rewrite(model, [Renaming(), Renaming(ending="x")]).model.graph.node[0].name == "renamedx"


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (Renaming(ending="x"), "run again, it changed something more"),
        (Renaming(says=False), "it changed something and says otherwise"),
        (Renaming(), "run again, it changed something more"),
        (Disordering(), "nothing before n2 gives t1"),
    ],
)
def test_a_pass_that_breaks_its_contract_is_found_when_all_run_twice(
    step: Pass, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CATALOGUE["chain"].model()
    with pytest.raises(PassError, match=f"pass {type(step).__name__} broke its contract: {why}"):
        rewrite(model, [step])
    monkeypatch.setenv(TRACEBACK, "0")
    rewrite(model, [step])


def test_a_pass_that_reports_a_change_it_did_not_make_is_found() -> None:
    model = CATALOGUE["chain"].model()
    model.graph.node[0].name = "renamed"
    with pytest.raises(PassError, match="it changed nothing and says otherwise"):
        rewrite(model, [Renaming()])


PROMISES: tuple[tuple[str, Pass, str], ...] = (
    ("constant-nodes", LiftConstants(), "Constant node w1 can still become an initialiser"),
    ("conv-bn-relu", FoldBatchNorm(), "n2 still stands behind n1"),
)


@pytest.mark.parametrize(("name", "step", "left"), PROMISES, ids=[name for name, *_ in PROMISES])
def test_what_a_pass_promises_is_missing_before_it_ran(name: str, step: Pass, left: str) -> None:
    graph = gs.import_onnx(CATALOGUE[name].model())
    assert step.ensures(graph) == left
    step(graph)
    assert step.ensures(graph) == ""


def test_dead_nodes_break_the_promise_that_there_are_none() -> None:
    net = Net()
    x = net.conv(net.image(), 3, 4)
    net.Relu(x)
    net.output(x)
    graph = gs.import_onnx(net.model())
    assert EliminateDead().ensures(graph) == "nothing reads what node n2 gives"
    EliminateDead()(graph)
    assert EliminateDead().ensures(graph) == ""


def test_a_cut_needs_the_shapes_of_its_trace_and_leaves_what_is_alive() -> None:
    model = CATALOGUE["chain"].model(2)
    trace = traced(model, feed_for(model, 2))
    step, graph = SliceUnits(trace, half_removed(trace)), gs.import_onnx(model)
    assert (step.requires(graph), step.ensures(graph)) == (
        "",
        "w1 has shape (8, 3, 3, 3), and (4, 3, 3, 3) of (8, 3, 3, 3) should be left",
    )
    step(graph)
    assert (step.requires(graph), step.ensures(graph)) == ("", "")
    weight = graph.tensors()["w1"]
    weight.values = weight.values[:2]
    assert step.requires(graph) == "w1 has shape (2, 3, 3, 3), and (8, 3, 3, 3) when it was traced"


def test_where_nothing_changes_the_model_itself_comes_back() -> None:
    model = CATALOGUE["chain"].model(2)
    same = rewrite(model, [LiftConstants(), EliminateDead()])
    assert same.model is model
    assert not same.changed
    assert same.own is not model
    assert same.own == model
    changed = rewrite(model, [FoldWeights({"w1": np.zeros((8, 3, 3, 3), np.float32)})])
    assert changed.changed
    assert changed.own is changed.model


def test_initialisers_that_nothing_reads_or_that_are_inputs_go_in_any_case() -> None:
    model = CATALOGUE["chain"].model(2)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "unread"))
    assert "unread" not in held(rewrite(model, []).model)
    listed = CATALOGUE["listed-initialisers-ir3"].model()
    assert [value.name for value in rewrite(listed, []).model.graph.input] == ["x"]


def test_listed_initialisers_become_plain_ones_and_that_is_said() -> None:
    source = CATALOGUE["listed-initialisers-ir3"].model()
    prepared = prepare(source)
    assert prepared.model.ir_version == 4
    assert [value.name for value in prepared.model.graph.input] == ["x"]
    assert any("were listed as graph inputs" in note.text for note in prepared.notes)
    onnx.checker.check_model(prepared.model, full_check=True)


def test_initialisers_that_version_3_should_list_make_it_version_4() -> None:
    source = CATALOGUE["listed-initialisers-ir3"].model()
    del source.graph.input[1:]
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(source)
    prepared = prepare(source).model
    assert prepared.ir_version == 4
    onnx.checker.check_model(prepared, full_check=True)


def test_local_functions_are_inlined_and_that_is_said() -> None:
    prepared = prepare(CATALOGUE["local-function"].model())
    assert not prepared.model.functions
    assert kinds(prepared.model) == ["Conv", "Mul", "Relu", "Conv", "Mul", "Relu", "Conv"]
    assert any("inlined" in note.text for note in prepared.notes)
