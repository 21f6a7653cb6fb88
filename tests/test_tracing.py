"""The parts of tracing by themselves, and the share of real networks that may be removed."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from models.tiny import TINY, TRANSFORMERS
from snp_onnx.passes import prepare
from snp_onnx.tracing import Trace, trace, unknown_shapes
from snp_onnx.tracing.facts import infer_facts
from snp_onnx.tracing.labels import FIXED, HEAD, REPEATED, STILL, DisjointSet, still
from snp_onnx.tracing.products import Products
from snp_onnx.tracing.rules import RULES
from tests.exports import export_bytes
from tests.graphs import Net, feed_for
from tests.oracles import assert_counts, assert_valid, cut, difference, half_removed, run, tolerance, traced, zeroed
from tests.topologies import CATALOGUE

# labels


def test_the_root_of_a_class_is_its_smallest_label() -> None:
    classes = DisjointSet()
    a, b, c = (classes.fresh(3) for _ in range(3))
    classes.unite(c, b)
    classes.unite(b, a)
    for labels in (a, b, c):
        np.testing.assert_array_equal(classes.find(labels), a)


def test_uniting_broadcasts_and_keeps_classes_apart() -> None:
    classes = DisjointSet()
    grid = classes.fresh(6).reshape(2, 3)
    classes.unite(grid, grid[:, :1])
    assert len(np.unique(classes.find(grid.reshape(-1)))) == 2


@pytest.mark.parametrize("seed", range(5))
def test_classes_agree_with_a_plain_union_find(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, count = DisjointSet(), 3000
    labels = classes.fresh(count)
    parent = list(range(count))

    def root(x: int) -> int:
        while parent[x] != x:
            x = parent[x]
        return x

    for _ in range(20):
        left, right = rng.integers(0, count, (2, 60))
        classes.unite(labels[left], labels[right])
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((root(a), root(b)))
            parent[high] = low
    np.testing.assert_array_equal(classes.find(labels) - labels[0], [root(x) for x in range(count)])


def test_flags_belong_to_whole_classes() -> None:
    classes = DisjointSet()
    a, b = classes.fresh(4), classes.fresh(4)
    classes.flag(b[1:2], FIXED)
    classes.unite(a, b)
    classes.flag(a[2:3], HEAD)
    np.testing.assert_array_equal(classes.has(b, FIXED), [False, True, False, False])
    np.testing.assert_array_equal(classes.has(b, HEAD), [False, False, True, False])
    assert classes.is_live(a)
    classes.flag(a, FIXED)
    assert not classes.is_live(b)


def test_an_axis_of_one_position_never_shrinks() -> None:
    classes = DisjointSet()
    assert classes.fresh(1).tolist() == [STILL]
    assert not classes.is_live(classes.fresh(1))


# products


def test_splitting_what_was_merged_gives_the_factors_back() -> None:
    classes = DisjointSet()
    products = Products(classes)
    a, b = classes.fresh(3), classes.fresh(4)
    whole = products.merge([a, still(5), b])
    assert len(whole) == 60
    left, _, right = products.split(whole, [3, 5, 4])
    np.testing.assert_array_equal(left, a)
    np.testing.assert_array_equal(right, b)


def test_merging_the_factors_in_another_order_gives_the_whole_shuffled() -> None:
    classes = DisjointSet()
    products = Products(classes)
    whole = classes.fresh(12)
    a, b = products.split(whole, [3, 4])
    np.testing.assert_array_equal(products.merge([b, a]), whole.reshape(3, 4).T.reshape(-1))


@pytest.mark.parametrize(("barred", "carrier"), [(0, 1), (1, 0)])
def test_units_go_along_the_factor_that_is_not_barred(barred: int, carrier: int) -> None:
    classes = DisjointSet()
    products = Products(classes)
    whole = classes.fresh(12)
    factors = products.split(whole, [3, 4])
    classes.flag(factors[barred], FIXED)
    products.settle()
    grid = classes.find(whole).reshape(3, 4)
    assert (grid == grid.take([0], barred)).all()
    assert len(np.unique(grid)) == (3, 4)[carrier]
    assert classes.is_live(whole)


def test_heads_come_before_longer_factors_and_longer_before_shorter() -> None:
    classes = DisjointSet()
    products = Products(classes)
    heads, plain = classes.fresh(12), classes.fresh(12)
    classes.flag(products.split(heads, [3, 4])[0], HEAD)
    products.split(plain, [3, 4])
    products.settle()
    assert (len(np.unique(classes.find(heads))), len(np.unique(classes.find(plain)))) == (3, 4)


def test_units_go_along_what_is_computed_not_along_its_copies() -> None:
    classes = DisjointSet()
    products = Products(classes)
    heads, copies = classes.fresh(3), classes.fresh(4)
    classes.flag(copies, REPEATED)
    whole = products.merge([heads, copies])
    products.settle()
    np.testing.assert_array_equal(classes.find(whole).reshape(3, 4)[:, 0], classes.find(heads))
    assert len(np.unique(classes.find(whole))) == 3


def test_an_axis_of_one_unit_stays_whole_when_it_is_split() -> None:
    classes = DisjointSet()
    products = Products(classes)
    labels = classes.fresh(6)
    classes.unite(labels, labels[:1])
    products.split(labels, [2, 3])
    assert not classes.is_live(labels)


# facts


def test_shape_chains_are_followed_and_computed_again() -> None:
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, 8)
    inner = net.Div(net.extent(x, 1), net.const([2]))
    shape = net.computed_shape(net.extent(x, 0), 2, inner, -1)
    net.output(net.Reshape(x, shape))
    facts = infer_facts(net.model(), {"x": (5, 3, 8, 8)})
    np.testing.assert_array_equal(facts.values[shape], [5, 2, 4, -1])
    assert [facts.extents[origin] for origin in facts.origins[shape]] == [{(x, 0)}, set(), {(x, 1)}, set()]
    assert facts.origin_axes(shape) == {(x, 0), (x, 1)}
    changed = facts.revalue({**facts.shapes, x: (5, 6, 8, 8)})
    np.testing.assert_array_equal(changed[shape], [5, 2, 3, -1])
    np.testing.assert_array_equal(facts.values[shape], [5, 2, 4, -1])


def test_what_inference_cannot_tell_is_named_barred_and_learnt_from_a_run() -> None:
    model = CATALOGUE["custom-operator"].model(2)
    shapes = {"x": (2, 3, 8, 8)}
    unknown = unknown_shapes(model, infer_facts(model, shapes))
    assert unknown[0] == "t5"
    blind = trace(model, shapes)
    assert [group.id for group in blind.groups] == ["w1:0"]
    (found,) = {barrier.reason for barrier in blind.barriers}
    assert found == "no rule for operator com.microsoft::Trilu"
    assert [group.id for group in trace(model, shapes, {"t5": ((2, 6, 8, 8), onnx.TensorProto.FLOAT)}).groups] == [
        "w1:0",
        "w3:0",
    ]


def test_every_rule_names_an_operator_that_exists() -> None:
    loaded = {(schema.domain, schema.name) for schema in get_all_operator_schema()}
    for domain, name in RULES:
        assert onnx.defs.has(name, domain) or (domain, name) in loaded, name


# the trace


def test_a_group_names_its_producers_consumers_and_stream() -> None:
    model = CATALOGUE["residual-identity"].model(2)
    found = trace(model, {"x": (2, 3, 8, 8)})
    stream, inner = found.group("w1:0"), found.group("w2:0")
    assert [x.weight for x in stream.producers] == ["w1", "w3"]
    assert [x.weight for x in stream.consumers] == ["w2", "w4"]
    assert ([x.weight for x in inner.producers], [x.weight for x in inner.consumers]) == (["w2"], ["w3"])
    assert (stream.is_stream, inner.is_stream) == (True, False)


def test_only_sums_of_different_layers_are_streams() -> None:
    """Not rotary positions (halves of the same head), GELU by tanh (x + x^3), or a mask added to the scores."""
    llama = CATALOGUE["llama"].model(2)
    assert [group.is_stream for group in traced(llama, feed_for(llama, 2)).groups] == [False, False]
    for other in ("itself", "mask", "layer"):
        net = Net(batch=2)
        x = net.linear(net.input("x", 5, 6), 6, 8)
        given = net.reduce("ReduceMean", net.input("mask", 5, 6), [-1])
        added = {"itself": net.Mul(x, net.Mul(x, x)), "mask": given, "layer": net.linear(net.Tanh(x), 8, 8)}
        net.output(net.linear(net.Add(x, added[other]), 8, 4))
        model = net.model()
        streams = [group.is_stream for group in traced(model, feed_for(model, 2)).groups]
        assert streams == [other == "layer"], other


@pytest.mark.parametrize(("name", "query_heads"), [("llama", 2), ("key-value-groups", 2), ("separate", 1)])
def test_a_key_value_head_goes_with_its_query_heads(name: str, query_heads: int) -> None:
    model = CATALOGUE[name].model(2)
    found = traced(model, feed_for(model, 2))
    group = found.group("w2:1")
    assert [x.weight for x in group.producers] == ["w2", "w3", "w4"]
    assert [x.weight for x in group.consumers] == ["w5"]
    alive = found.alive([group.labels[:1]])
    before = [found.facts.shapes[f"w{n}"][1] for n in (2, 3, 4)]
    width = before[1] // len(group)
    assert [before[n] - found.shape_after(f"w{n + 2}", alive)[1] for n in range(3)] == [
        query_heads * width,
        width,
        width,
    ]


def test_a_barrier_names_tensor_axis_node_and_reason() -> None:
    model = CATALOGUE["mean-of-channels"].model(2)
    node = next(node for node in model.graph.node if node.op_type == "ReduceMean")
    barriers = trace(model, {"x": (2, 3, 8, 8)}).barriers
    (found,) = [barrier for barrier in barriers if barrier.reason == "ReduceMean reduces this axis"]
    assert (found.tensor, found.axis, found.node) == (node.input[0], 1, node.name)


def test_a_window_that_the_batch_decides_bars_what_it_is_cut_from() -> None:
    """Channels up to the number of the batch: another batch would take others."""
    net = Net(batch="N")
    x = net.conv_relu(net.image(), 3, 6)
    taken = net.Slice(x, net.const([0]), net.extent(x, 0), net.const([1]))
    net.output(net.conv(x, 6, 4), net.conv(net.Mul(taken, net.Neg(taken)), 3, 4))
    found = trace(net.model(), {"x": (3, 3, 8, 8)})
    assert found.groups == ()
    assert "Slice at a place that another extent decides" in {barrier.reason for barrier in found.barriers}


def test_two_entries_that_vary_bar_a_reshape_that_one_alone_does_not() -> None:
    """One can be left to -1 when it needs correcting, two can't."""
    found = []
    for height in (4, -1):
        net = Net(batch="N")
        x = net.conv_relu(net.image(), 3, 6)
        rows = net.Mul(net.extent(x, 0), net.const([6]))
        merged = net.Reshape(x, net.computed_shape(rows, height, 16))
        net.output(net.conv(net.Reshape(merged, net.computed_shape(net.extent(x, 0), 6, 8, 8)), 6, 4))
        found.append(trace(net.model(), {"x": (1, 3, 8, 8)}))
    assert [len(trace.groups) for trace in found] == [1, 0]
    reasons = {barrier.reason for barrier in found[1].barriers}
    assert "its extent in this Reshape varies with another axis" in reasons


def test_a_sparse_weight_is_not_cut() -> None:
    net = Net(batch=2)
    x = net.conv_relu(net.image(), 3, 6)
    net.output(net.conv(net.Conv(x, "sparse"), 4, 3))
    values = numpy_helper.from_array(np.ones(4, dtype=np.float32), "sparse")
    places = numpy_helper.from_array(np.arange(4, dtype=np.int64) * 6, "places")
    model = net.model()
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4, 6, 1, 1]))
    found = trace(model, {"x": (2, 3, 8, 8)}, {"t3": (2, 4, 8, 8)})
    assert found.groups == ()
    assert "the weight of this Conv is computed at run time" in {barrier.reason for barrier in found.barriers}


@pytest.mark.parametrize("operator", ["Expand", "Slice"])
def test_an_extent_read_where_a_shape_is_not_known_is_barred(operator: str) -> None:
    net = Net(batch=2)
    x = net.conv_relu(net.image(), 3, 6)
    places = net.op("NonZero", net.input("picked", dtype="bool"))
    if operator == "Expand":
        y = net.Expand(places, net.computed_shape(1, net.extent(x, 1), 2))
    else:
        y = net.Slice(places, net.const([0]), net.extent(x, 1), net.const([1]))
    net.output(net.conv(x, 6, 3), net.op("Cast", y, to=1))
    model = net.model()
    found = trace(model, {"x": (2, 3, 8, 8), "picked": (2,)})
    assert found.groups == ()
    (barrier,) = [barrier for barrier in found.barriers if "read as a number" in barrier.reason]
    assert barrier.reason == f"its extent is read as a number by {operator}"
    assert barrier.axis == 1


def test_shapes_follow_the_units_that_stay() -> None:
    model = CATALOGUE["flatten-gemm"].model(2)
    found = trace(model, {"x": (2, 3, 8, 8)})
    alive = found.alive([found.group("w1:0").labels[:2], found.group("w2:0").labels[3:]])
    assert [found.shape_after(name, alive) for name in ("w1", "b1", "w2", "w3")] == [
        (4, 3, 3, 3),
        (4,),
        (3, 256),
        (4, 3),
    ]
    assert found.facts.shapes["w2"] == (10, 384)


# real networks

GROUPS_AND_STREAMS = {
    "densenet121": (10, 0),
    "densenet40": (7, 0),
    "mlp": (2, 0),
    "mlp-bn": (2, 0),
    "mobilenetv2": (9, 2),
    "preresnet20": (6, 3),
    "preresnet56": (9, 3),
    "resnet110-a": (6, 3),
    "resnet18": (6, 2),
    "resnet20-a": (6, 3),
    "resnet20-b": (6, 3),
    "resnet34": (6, 2),
    "resnet50": (11, 2),
    "resnet56-a": (9, 3),
    "resnet56-b": (9, 3),
    "se-resnet18": (6, 2),
    "se-resnet18-linear": (6, 2),
    "shufflenetv1": (5, 1),
    "shufflenetv2": (10, 0),
    "squeezenet": (7, 0),
    "squeezenet-cifar": (7, 0),
    "super-resolution": (5, 1),
    "unet": (12, 0),
    "unet-bilinear": (12, 0),
    "unet-nearest": (12, 0),
    "vgg11": (10, 0),
    "vgg11-bn": (10, 0),
    "vgg16": (7, 0),
    "vgg16-bn": (7, 0),
    "vgg16-cifar": (5, 0),
    "vgg16-cifar-bn": (5, 0),
}
"""Groups and residual streams of the tiny recipes. ShuffleNetV1's grouped convolutions make all channels one unit."""

DYNAMO = ("mlp-bn", "preresnet20", "resnet20-a", "shufflenetv2", "densenet40", "unet-bilinear", "se-resnet18-linear")
KEPT_BN = ("resnet20-a", "preresnet20", "shufflenetv2", "densenet40", "mobilenetv2", "mlp-bn")
OTHERS = [name for name in TINY if name not in TRANSFORMERS]  # those have tests of their own
EXPORTS = [
    *(pytest.param(name, "ts", False, id=f"{name}-ts") for name in OTHERS),
    *(pytest.param(name, "ts", True, id=f"{name}-ts-bn") for name in KEPT_BN),
    *(pytest.param(name, "dynamo", False, id=f"{name}-dynamo") for name in DYNAMO),
    *(
        pytest.param(name, "dynamo", False, id=f"{name}-dynamo", marks=pytest.mark.slow)
        for name in OTHERS
        if name not in DYNAMO
    ),
]


@cache
def exported(name: str, exporter: str, keep_bn: bool) -> onnx.ModelProto:
    return export_bytes(name, exporter=exporter, keep_bn=keep_bn, **TINY[name])


def removable_share(found: Trace) -> float:
    """Positions of producers' output axes that are in a group, the graph's own outputs apart."""
    in_group = np.zeros(found.label_count, dtype=np.bool_)
    for group in found.groups:
        in_group[group.labels] = True
    ends = {stop.weight for stop in found.stops if stop.barrier.reason == "graph output"}
    axes = [found.axes[x.weight][x.out_axis] for x in found.linears if x.weight not in ends]
    return sum(int(in_group[labels].sum()) for labels in axes) / sum(len(labels) for labels in axes)


def test_every_recipe_has_an_expectation() -> None:
    assert set(GROUPS_AND_STREAMS) == set(OTHERS)


@pytest.mark.parametrize(("name", "exporter", "keep_bn"), EXPORTS)
def test_real_networks_are_cut_as_far_as_their_classes(name: str, exporter: str, keep_bn: bool) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    source = exported(name, exporter, keep_bn)
    prepared = prepare(source).model
    feed = feed_for(source, batch=2)
    dense = run(source, feed)
    assert difference(dense, run(prepared, feed)) <= tolerance(dense)
    found = traced(prepared, feed_for(source, batch=1))
    groups, streams = GROUPS_AND_STREAMS[name]
    assert (len(found.groups), sum(group.is_stream for group in found.groups)) == (groups, streams)
    assert removable_share(found) == (1.0 if groups else 0.0)
    mask = half_removed(found)
    result = cut(prepared, found, mask)
    expected = run(zeroed(prepared, found, mask), feed)
    assert difference(expected, run(result, feed)) <= tolerance(expected)
    assert_valid(result, feed)
    assert_counts(prepared, found, mask, result, feed_for(source, batch=1))
