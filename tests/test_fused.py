"""Fused operators: the same outcome as for separate nodes, attributes and shapes of what stays, and costs by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx.cost import mac_terms, total
from snp_onnx.passes import prepare, rewrite
from snp_onnx.passes.eliminate_dead import EliminateDead
from snp_onnx.passes.name_sums import NameSums
from snp_onnx.passes.resize_attention import keep_scale
from snp_onnx.planning.aims import find_aims
from snp_onnx.planning.chains import find_chains
from snp_onnx.tracing import trace as snp_trace
from snp_onnx.tracing.facts import infer_facts
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.op import Op
from tests import topologies_fused as fused
from tests.graphs import Net, feed_for
from tests.oracles import cut, difference, one_kept, run, traced
from tests.topologies import CATALOGUE

Draw = Callable[[Net], None]
MANY = 10_000
MULTI_HEAD = "MultiHeadAttention"
FUSED = [name for name, topology in CATALOGUE.items() if topology.draw.__module__ == fused.__name__]


def prepared(name: str, batch: int | str = 2) -> onnx.ModelProto:
    return prepare(CATALOGUE[name].model(batch)).model


def node_of(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def attributes(model: onnx.ModelProto, kind: str) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node_of(model, kind).attribute}


# attributes


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("projection", "Attention", {"num_heads": 1}),
        ("projection-uneven", "Attention", {"num_heads": 1, "qkv_hidden_sizes": [4, 4, 6]}),
        ("projection-values", "Attention", {"num_heads": 4, "qkv_hidden_sizes": [16, 16, 4]}),
        ("multi-head", "MultiHeadAttention", {"num_heads": 1}),
        ("multi-head-values", "MultiHeadAttention", {"num_heads": 4}),
        ("group-query", "GroupQueryAttention", {"num_heads": 2, "kv_num_heads": 1, "do_rotary": 1}),
        ("group-query-packed", "GroupQueryAttention", {"num_heads": 2, "kv_num_heads": 1}),
        ("group-query-single", "GroupQueryAttention", {"num_heads": 1, "kv_num_heads": 1}),
        ("rotated", "RotaryEmbedding", {"num_heads": 0}),
        ("rotated-half", "RotaryEmbedding", {"num_heads": 1, "rotary_embedding_dim": 4}),
        ("standard-joined", "Attention", {"q_num_heads": 2, "kv_num_heads": 1, "is_causal": 1}),
        ("standard-joined", "RotaryEmbedding", {"num_heads": 2}),
        ("standard-apart", "Attention", {}),
    ],
)
def test_attributes_name_what_stays(name: str, kind: str, expected: dict[str, Any]) -> None:
    """One unit of every group stays: a head, or a dim of the values in every head where heads can't go."""
    model = prepared(name)
    trace = traced(model, feed_for(model, 1))
    assert attributes(cut(model, trace, one_kept(trace)), kind) == expected


def test_the_scale_is_written_out_where_dims_go() -> None:
    node = gs.Node("MultiHeadAttention", "n", {"num_heads": 2})
    plain = Op(onnx.helper.make_node("MultiHeadAttention", [], [], num_heads=2), 0, 1)
    keep_scale(node, plain, 16, 16)
    assert "scale" not in node.attrs
    keep_scale(node, plain, 16, 9)
    assert node.attrs["scale"] == 0.25
    given = gs.Node("MultiHeadAttention", "n", {"num_heads": 2, "scale": 0.5})
    keep_scale(given, Op(onnx.helper.make_node("MultiHeadAttention", [], [], scale=0.5), 0, 1), 16, 9)
    assert given.attrs["scale"] == 0.5


# shapes and types


@pytest.mark.parametrize("name", FUSED)
def test_inferred_shapes_are_those_of_a_run(name: str) -> None:
    """Nothing has to be observed, in any graph of fused operators."""
    model = prepared(name)
    feed = feed_for(model, 1)
    facts = infer_facts(model, {name: array.shape for name, array in feed.items()})
    names = [name for node in model.graph.node for name in node.output if name]
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    for name, array in zip(names, run(shown, feed), strict=True):
        assert facts.shapes[name] == array.shape, name
        assert facts.types[name] == onnx.helper.np_dtype_to_tensor_dtype(array.dtype), name


# costs


@pytest.mark.parametrize(
    ("name", "kind", "macs"),
    [  # batch 2, five positions
        ("multi-head", "MultiHeadAttention", 2 * 5 * 5 * (16 + 20)),
        ("multi-head-cross", "MultiHeadAttention", 2 * 5 * 5 * (16 + 16)),
        ("multi-head-cached", "MultiHeadAttention", 2 * 5 * 8 * (16 + 16)),
        ("projection", "Attention", 2 * 5 * 12 * 48 + 2 * 5 * 5 * (16 + 16)),
        ("projection-uneven", "Attention", 2 * 5 * 12 * 56 + 2 * 5 * 5 * (16 + 24)),
        ("projection-cached", "Attention", 2 * 5 * 12 * 48 + 2 * 5 * 8 * (16 + 16)),
        ("group-query", "GroupQueryAttention", 2 * 5 * 5 * (96 + 96)),
        ("group-query-packed", "GroupQueryAttention", 2 * 5 * 5 * (96 + 96)),
        ("group-query-cached", "GroupQueryAttention", 2 * 1 * 6 * (96 + 96)),
        ("standard-joined", "Attention", 2 * 5 * 5 * (24 + 24)),
        ("standard-apart", "Attention", 2 * 5 * 5 * (16 + 20)),
        ("standard-cached", "Attention", 2 * 5 * 8 * (16 + 16)),
        ("fused-matmul-left", "FusedMatMul", 2 * 5 * 12 * 10),
    ],
)
def test_costs_by_hand(name: str, kind: str, macs: int) -> None:
    model = prepared(name)
    shapes = infer_facts(model, {name: array.shape for name, array in feed_for(model, 1).items()}).shapes
    (node,) = (node for node in model.graph.node if node.op_type == kind)
    terms = [term for term in mac_terms(model, shapes) if term.name == node.name]
    assert total(terms, lambda tensor, axis: shapes[tensor][axis]) == macs


# what onnxruntime has for other devices only


@pytest.mark.parametrize(
    ("draw", "weights", "macs"),
    [
        (fused.multi_head_packed, {"w2": (12, 36)}, 2 * 5 * 5 * (16 + 16)),
        (fused.multi_head_pairs, {"w2": (12, 12), "w3": (12, 24)}, 2 * 5 * 5 * (16 + 16)),
    ],
)
def test_packed_operands_lose_whole_heads(draw: Draw, weights: dict[str, tuple[int, int]], macs: int) -> None:
    """The CPU has no kernel for them: nothing here is run."""
    net = Net()
    draw(net)
    model = net.model()
    trace = snp_trace(model, {"x": (2, 5, 6)})
    assert {group.id: len(group) for group in trace.groups} == {"w1:1": 12, "w2:1": 4}
    terms = [term for term in mac_terms(model, trace.facts.shapes) if term.name == node_of(model, MULTI_HEAD).name]
    assert total(terms, lambda tensor, axis: trace.facts.shapes[tensor][axis]) == macs
    result = cut(model, trace, trace.alive([trace.group("w2:1").labels[2:3]]))
    assert attributes(result, MULTI_HEAD) == {"num_heads": 3}
    held = {tensor.name: tuple(tensor.dims) for tensor in result.graph.initializer}
    assert {name: held[name] for name in weights} == weights
    heads = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}["w2"]
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}["w2"]
    np.testing.assert_array_equal(heads, np.delete(before.reshape(12, 4, -1), 2, axis=1).reshape(12, -1))


# biases and sums inside


def _feed_forward(net: Net, x: str, width: int, is_fused: bool) -> str:
    """A post-norm part: MatMul, bias and GELU, MatMul, bias, residual Add and LayerNormalization."""
    first, last = net.linear(x, width, 24, bias=False), net.bias(24)
    if is_fused:
        hidden = net.op("BiasGelu", first, last, domain="com.microsoft")
    else:
        hidden = net.op("Gelu", net.Add(first, last), domain="com.microsoft")
    out, bias = net.linear(hidden, 24, width, bias=False), net.bias(width)
    gain, shift = net.normal(width, shift=1.0), net.normal(width)
    if is_fused:
        return net.op("SkipLayerNormalization", out, x, gain, shift, bias, domain="com.microsoft", epsilon=1e-5)
    return net.LayerNormalization(net.Add(net.Add(out, bias), x), gain, shift, epsilon=1e-5)


def _encoder(is_fused: bool) -> onnx.ModelProto:
    net = Net(batch="N", seed=7)
    net.domains["com.microsoft"] = 1
    net.output_rank = 3
    x = net.linear(net.input("x", 5, 6), 6, 12)
    for _ in range(2):
        x = _feed_forward(net, x, 12, is_fused)
    net.output(net.linear(x, 12, 4))
    return net.model()


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_fused_and_separate_nodes_are_pruned_alike(preset: str) -> None:
    """Biases that BiasGelu adds, and sums that SkipLayerNormalization hides, fold and refit as the open ones do."""
    rng = np.random.default_rng(3)
    data = {"x": rng.standard_normal((300, 5, 6)).astype(np.float32) + 0.5}
    separate, joined = (snp_onnx.prune(_encoder(f), data, target_macs=0.6, preset=preset) for f in (False, True))
    assert [(g.id, g.after) for g in separate.report.groups] == [(g.id, g.after) for g in joined.report.groups]
    assert separate.report.pruned.macs == joined.report.pruned.macs
    feed = {"x": data["x"][:9]}
    expected = run(separate.model, feed)
    assert difference(expected, run(joined.model, feed)) < 1e-4
    assert difference(run(_encoder(True), feed), expected) > 2e-2  # or nothing was left to agree on
    kinds = [node.op_type for node in joined.model.graph.node]
    assert kinds.count("BiasGelu") == kinds.count("SkipLayerNormalization") == 2
    assert all(len(node.output) == 1 for node in joined.model.graph.node)


def test_a_refit_aims_at_the_sum_inside_and_knows_the_bias_inside() -> None:
    model = prepare(_encoder(True)).model
    trace = traced(model, feed_for(model, 1))
    aims = find_aims(Flow(model, trace), trace.alive([group.labels[:6] for group in trace.groups]), MANY)
    by_weight = {aim.layer.linear.weight: aim for aim in aims}
    first, skip = (node.output for node in model.graph.node if node.op_type == "SkipLayerNormalization")
    assert [by_weight[name].total for name in ("w3", "w5")] == [first[3], skip[3]]
    shortcuts = [by_weight[name].shortcuts for name in ("w3", "w5")]
    assert shortcuts == [(node_of(model, "Add").output[0],), (first[0],)]
    assert by_weight["w3"].bias is None
    inner = by_weight["w4"]  # aims at its own output: the bias that BiasGelu adds is counted in
    assert (inner.total, inner.shortcuts) == (inner.layer.linear.output, ())
    assert inner.bias == inner.layer.bias
    assert inner.bias is not None


@pytest.mark.parametrize(("is_fused", "kinds"), [(False, ["Gelu"]), (True, ["BiasGelu"])])
def test_producer_and_consumer_are_solved_together_over_fused_activations(is_fused: bool, kinds: list[str]) -> None:
    model = prepare(_encoder(is_fused)).model
    trace = traced(model, feed_for(model, 1))
    flow, alive = Flow(model, trace), trace.alive([group.labels[:6] for group in trace.groups if not group.is_stream])
    aim = next(aim for aim in find_aims(flow, alive, MANY) if aim.layer.linear.weight == "w3")
    (chain,) = find_chains(flow, alive, aim, MANY)
    assert [op.type for op in chain.links] == kinds
    assert aim.layer.is_apart is chain.producer.is_apart is is_fused


def test_a_bias_that_is_not_the_layers_own_keeps_the_sum_from_being_an_aim() -> None:
    """Two biases before the norm: the second would be counted twice."""
    net = Net(batch="N")
    net.domains["com.microsoft"] = 1
    net.output_rank = 3
    x = net.linear(net.input("x", 5, 6), 6, 12)
    y = net.linear(net.Relu(net.linear(x, 12, 10)), 10, 12)
    inputs = [y, x, net.normal(12), net.normal(12), net.bias(12)]
    net.output(net.linear(net.op("SkipLayerNormalization", *inputs, domain="com.microsoft"), 12, 4))
    model = prepare(net.model()).model
    trace = traced(model, feed_for(model, 1))
    aims = find_aims(Flow(model, trace), trace.alive([trace.groups[0].labels[:4]]), MANY)
    assert [(aim.total, aim.shortcuts, aim.bias) for aim in aims[:1]] == [(y, (), None)]


def test_sums_are_named_for_the_time_of_the_work() -> None:
    source = CATALOGUE["skip-norm"].model(2)
    named = rewrite(source, [NameSums()]).model
    assert [len(node.output) for node in named.graph.node if node.op_type.startswith("Skip")] == [4]
    assert rewrite(named, [NameSums()]).model == named
    back = rewrite(named, [EliminateDead()]).model
    assert [list(node.output) for node in back.graph.node] == [list(node.output) for node in source.graph.node]
    kept = rewrite(CATALOGUE["skip-norm-with-sum"].model(2), [NameSums(), EliminateDead()]).model
    assert [len(node.output) for node in kept.graph.node if node.op_type.startswith("Skip")] == [4, 4]


# whole runs


@pytest.mark.parametrize(
    "name", ["projection", "multi-head", "skip-norm-with-sum", "standard-joined", "half-projection"]
)
def test_fused_models_are_pruned_and_verified(name: str) -> None:
    """Also where the checker refuses the dense model already."""
    model = CATALOGUE[name].model("N")
    feed = feed_for(model, 120)
    result = snp_onnx.prune(model, feed, target_macs=0.8)
    assert result.report.pruned.macs <= 0.8 * result.report.dense.macs
    assert np.isfinite(run(result.model, feed_for(model, 3))[0].astype(np.float64)).all()


def test_a_fold_before_attention_is_least_squares() -> None:
    """Its weight multiplies its input: what is lost there is folded into it, bias included."""
    net = Net(batch="N", seed=2)
    fused.projection(net)
    model = net.model()
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((400, 5, 6)).astype(np.float32) + 1.0, "mask": np.ones((400, 5), dtype=np.int32)}
    result = snp_onnx.prune(model, data, target_macs=0.8, include=r"^n1$", streams=True, preset="fast")
    ((width, kept),) = [(g.before, g.after) for g in result.report.groups if g.before != g.after]
    assert kept < width == 12
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    assert held["w2"].shape == (kept, 48)
    dense = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert not np.allclose(held["b2"], dense["b2"])
    inputs = data["x"].reshape(-1, 6)
    before = (inputs @ dense["w1"] + dense["b1"]) @ dense["w2"] + dense["b2"]
    after = (inputs @ held["w1"] + held["b1"]) @ held["w2"] + held["b2"]
    assert np.abs(after - before).max() < 0.01 * np.abs(before).max()  # six inputs: the rest are combinations
