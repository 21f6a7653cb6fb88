"""Einsum: which equations are layers or attention, and which are written as MatMul before the tracing."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.passes import prepare, rewrite
from snp_onnx.passes.einsum_to_matmul import EinsumToMatMul
from tests.graphs import Net, feed_for
from tests.oracles import assert_valid, difference, run, tolerance, traced
from tests.topologies import CATALOGUE

Draw = Callable[[Net], None]


# equations


def _with_equation(equation: str, *weight: int) -> Draw:
    """Between two layers, on twelve channels, five positions."""

    def draw(net: Net) -> None:
        net.output_rank = 3
        x = net.linear(net.input("x", 5, 6), 6, 12)
        net.output(net.linear(net.op("Einsum", x, net.weight(*weight, fan_in=12), equation=equation), 10, 4))

    return draw


@pytest.mark.parametrize(
    ("equation", "weight", "groups", "reason"),
    [
        ("bij,jk->bik", (12, 10), {"w1:1": 12, "w2:1": 10}, ""),
        ("bij , kj -> bik", (10, 12), {"w1:1": 12, "w2:0": 10}, ""),
        ("abc,cd", (12, 10), {"w1:1": 12, "w2:1": 10}, ""),
        ("bij,bjk->bik", (2, 12, 10), {}, "contracted between two activations"),
        ("bij,ijk->bik", (5, 12, 10), {}, "contracted between two activations"),
        ("...j,jk->...k", (12, 10), {}, "no rule for this equation of an Einsum: ...j,jk->...k"),
        ("bij,kk->bik", (10, 10), {}, "no rule for this equation of an Einsum: bij,kk->bik"),
        ("bij,kl->bik", (10, 3), {}, "an Einsum sums over this axis"),
    ],
)
def test_equations(equation: str, weight: tuple[int, ...], groups: dict[str, int], reason: str) -> None:
    net = Net()
    _with_equation(equation, *weight)(net)
    model = net.model()
    trace = traced(model, feed_for(model, 1))
    assert {group.id: len(group) for group in trace.groups} == groups
    assert {barrier.reason for barrier in trace.barriers} - {"graph output"} == ({reason} if reason else set())


# the pass


def _single(equation: str, source: tuple[int, ...], weight: tuple[int, ...], is_left: bool = False) -> onnx.ModelProto:
    net = Net()
    x = net.input("x", *source, batched=False)
    w = net.weight(*weight, fan_in=9)
    net.output(net.op("Einsum", *((w, x) if is_left else (x, w)), equation=equation))
    return net.model()


@pytest.mark.parametrize(
    ("equation", "source", "weight", "kinds"),
    [
        ("bij,jk->bik", (2, 5, 6), (6, 3), ["MatMul"]),
        ("bij , kj -> bik", (2, 5, 6), (3, 6), ["MatMul"]),
        ("abc,cd", (2, 5, 6), (6, 3), ["MatMul"]),
        ("abc,cde->abde", (2, 5, 6), (6, 3, 2), ["MatMul", "Reshape"]),
        ("abcd,cde->abe", (2, 5, 3, 2), (3, 2, 6), ["Reshape", "MatMul"]),
        ("abcd,edc->abe", (2, 5, 3, 2), (6, 2, 3), ["Reshape", "MatMul"]),
        ("abcd,cdef->abef", (2, 5, 3, 2), (3, 2, 4, 6), ["Reshape", "MatMul", "Reshape"]),
    ],
)
def test_products_become_a_matmul(
    equation: str, source: tuple[int, ...], weight: tuple[int, ...], kinds: list[str]
) -> None:
    model = _single(equation, source, weight)
    before = model.SerializeToString()
    rewritten = rewrite(model, [EinsumToMatMul()])
    assert [node.op_type for node in rewritten.model.graph.node] == kinds
    assert [note.text for note in rewritten.notes] == ["an Einsum written as MatMul"]
    feed = feed_for(model, 1)
    expected = run(model, feed)
    assert difference(expected, run(rewritten.model, feed)) <= tolerance(expected)
    assert_valid(rewritten.model, feed)
    assert model.SerializeToString() == before
    assert rewrite(rewritten.model, [EinsumToMatMul()]).model == rewritten.model


def test_a_weight_of_bfloat16_becomes_a_matmul_too() -> None:
    net = Net(batch="n", dtype=ml_dtypes.bfloat16)
    _with_equation("bij,kj->bik", 10, 12)(net)
    model = net.model()
    assert "Einsum" not in [node.op_type for node in prepare(model).model.graph.node]
    feed = {name: values.astype(np.float32) for name, values in feed_for(model, 30).items()}
    assert snp_onnx.inspect(model).groups
    result = snp_onnx.prune(model, feed, target_macs=0.7, preset="fast")
    assert result.report.pruned.macs < result.report.dense.macs
    kinds = {tensor.data_type for tensor in result.model.graph.initializer}
    assert kinds == {onnx.TensorProto.BFLOAT16}


@pytest.mark.parametrize(
    ("equation", "source", "weight"),
    [
        ("bij,jk->ibk", (2, 5, 6), (6, 3)),  # the output's order is another
        ("bij,ik->bjk", (2, 5, 6), (5, 3)),  # not the last index
        ("bij,bjk->bik", (2, 5, 6), (2, 6, 3)),  # a weight for every sample
        ("bij,jk->bk", (2, 5, 6), (6, 3)),  # positions are summed too
        ("bij,j->bi", (2, 5, 6), (6,)),  # nothing is added
        ("...j,jk->...k", (2, 5, 6), (6, 3)),
        ("bij,jk,kl->bil", (2, 5, 6), (6, 3)),
    ],
)
def test_what_is_no_product_stays(equation: str, source: tuple[int, ...], weight: tuple[int, ...]) -> None:
    model = _single(equation, source, weight)
    if equation.count(",") == 2:
        model.graph.node[0].input.append(model.graph.node[0].input[1])
    assert rewrite(model, [EinsumToMatMul()]).model.graph.node == model.graph.node


def test_a_weight_that_others_read_is_not_rearranged() -> None:
    net = Net()
    x, w = net.input("x", 5, 6), net.weight(6, 3, 2, fan_in=6)
    net.output(net.op("Einsum", x, w, equation="abc,cde->abde"), net.Relu(w))
    model = net.model()
    assert rewrite(model, [EinsumToMatMul()]).model.graph.node == model.graph.node
    plain = Net()
    x, w = plain.input("x", 5, 6), plain.weight(6, 6, fan_in=6)
    plain.output(plain.MatMul(plain.op("Einsum", x, w, equation="abc,cd->abd"), w))
    kinds = [node.op_type for node in rewrite(plain.model(), [EinsumToMatMul()]).model.graph.node]
    assert kinds == ["MatMul", "MatMul"]  # as it lies it may be shared


def test_the_weight_may_stand_on_the_left() -> None:
    model = _single("jk,bij->bik", (2, 5, 6), (6, 3), is_left=True)
    rewritten = rewrite(model, [EinsumToMatMul()]).model
    assert [node.op_type for node in rewritten.graph.node] == ["MatMul"]
    feed = feed_for(model, 1)
    assert difference(run(model, feed), run(rewritten, feed)) <= tolerance(run(model, feed))


def _encoder(by_equation: bool) -> onnx.ModelProto:
    net = Net(batch="N", seed=7)
    x = net.linear(net.input("x", 5, 6), 6, 12)

    def product(y: str, weight: str) -> str:
        return net.op("Einsum", y, weight, equation="bij,jk->bik") if by_equation else net.MatMul(y, weight)

    hidden = net.Relu(net.Add(product(x, net.weight(12, 24, fan_in=12)), net.bias(24)))
    x = net.Add(x, net.Add(product(hidden, net.weight(24, 12, fan_in=24)), net.bias(12)))
    net.output(net.linear(x, 12, 4))
    return net.model()


def test_equations_are_pruned_like_products() -> None:
    data = {"x": np.random.default_rng(3).standard_normal((300, 5, 6)).astype(np.float32)}
    results = [snp_onnx.prune(_encoder(by_equation), data, target_macs=0.6) for by_equation in (False, True)]
    assert len({tuple((g.id, g.after) for g in result.report.groups) for result in results}) == 1
    feed = {"x": data["x"][:9]}
    expected, found = (run(result.model, feed) for result in results)
    assert difference(expected, found) <= tolerance(expected)


def test_heads_of_equations_fold() -> None:
    """Weights of three axes become matrices, so that what heads contributed is folded like any other."""
    model = CATALOGUE["einsum-heads"].model("N")
    prepared = prepare(model).model
    assert [node.op_type for node in prepared.graph.node].count("Einsum") == 2  # logits and weighted values
    (group,) = (g for g in traced(prepared, feed_for(prepared, 1)).groups if g.kind == "heads")
    result = snp_onnx.prune(model, feed_for(model, 100), target_macs=0.8, preset="fast")
    assert {g.id: g.after for g in result.report.groups}[group.id] < len(group)
    assert not [warning for warning in result.report.warnings if "cut without folding" in warning]
