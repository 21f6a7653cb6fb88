"""What a refit aims at, layer by layer, and where producer and consumer are solved together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from snp_onnx.calibration.tangents import Region
from snp_onnx.passes import prepare
from snp_onnx.planning.aims import Aim, find_aims
from snp_onnx.planning.chains import Chain, find_chains
from snp_onnx.planning.scarcity import SCARCITY
from snp_onnx.tracing import Trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.op import Op
from tests.graphs import Net, feed_for
from tests.oracles import traced
from tests.topologies import CATALOGUE

Draw = Callable[[Net], None]
MANY = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """The aims of a model that has lost some units, by the weight of their layer."""

    trace: Trace
    flow: Flow
    alive: Mask
    aims: tuple[Aim, ...]

    @property
    def order(self) -> list[str]:
        return [aim.layer.linear.weight for aim in self.aims]

    def aim(self, weight: str) -> Aim:
        return self.aims[self.order.index(weight)]

    def chains(self, weight: str) -> tuple[Chain, ...]:
        return find_chains(self.flow, self.alive, self.aim(weight), MANY)

    def chain(self, weight: str) -> Chain | None:
        found = self.chains(weight)
        assert len(found) <= 1
        return found[0] if found else None

    def made_by(self, weight: str) -> str:
        """The output of the node that reads a weight."""
        return next(linear.output for linear in self.trace.linears if linear.weight == weight)

    def ends(self, weight: str) -> tuple[str, list[str]] | None:
        """The producer's weight and the operators between, of the chain that ends in a layer."""
        chain = self.chain(weight)
        return None if chain is None else (chain.producer.linear.weight, [op.type for op in chain.links])


def found(prepared: onnx.ModelProto, removed: tuple[str, ...] | None = None, samples: int = MANY) -> Found:
    """Two units of each of these groups go, or of every group."""
    trace = traced(prepared, feed_for(prepared, 1))
    groups = trace.groups if removed is None else [trace.group(name) for name in removed]
    alive = trace.alive([group.labels[1:3] for group in groups])
    flow = Flow(prepared, trace)
    return Found(trace, flow, alive, find_aims(flow, alive, samples))


def drawn(draw: Draw, removed: tuple[str, ...] | None = None, samples: int = MANY, opset: int = 17) -> Found:
    net = Net(batch="N", opset=opset)
    draw(net)
    return found(net.model(), removed, samples)  # as it is: `prepare` would part what is shared


def topology(name: str, *removed: str, samples: int = MANY) -> Found:
    return found(prepare(CATALOGUE[name].model("N")).model, removed or None, samples)


# aims


def test_nothing_removed_is_nothing_to_aim_at() -> None:
    model = prepare(CATALOGUE["residual-identity"].model("N")).model
    trace = traced(model, feed_for(model, 1))
    assert find_aims(Flow(model, trace), np.ones(trace.label_count, dtype=np.bool_), MANY) == ()


def test_before_a_residual_add_the_aim_is_the_sum_less_the_shortcut() -> None:
    seen = topology("residual-identity", "w2:0")
    assert seen.order == ["w3", "w4"]  # w1 and w2 come before every cut
    block, last = seen.aims
    (add,) = (op for op in seen.trace.ops if op.type == "Add")
    assert (block.total, block.shortcuts) == (add.outputs[0], (seen.made_by("w1").replace("t1", "t2"),))
    assert block.kept == {}
    assert (last.total, last.shortcuts) == (seen.made_by("w4"), ())
    assert block.layer.output == seen.made_by("w3")
    assert block.layer.bias == "b3"
    assert len(block.layer.reading.columns) == 4 * 9


def test_a_cut_stream_is_aimed_at_where_it_is_left() -> None:
    seen = topology("residual-identity", "w1:0")
    assert seen.order == ["w2", "w3", "w4"]
    block = seen.aim("w3")
    (axis,) = block.kept
    assert axis == 1
    assert block.kept[axis].tolist() == [0, 3, 4, 5, 6, 7]
    assert seen.aim("w4").kept == {}


def test_a_projection_comes_before_the_sum_it_goes_into() -> None:
    seen = topology("residual-projection")
    assert seen.order.index("w4") < seen.order.index("w3")
    branch, projection = seen.aim("w3"), seen.aim("w4")
    (add,) = (op for op in seen.trace.ops if op.type == "Add")
    assert (projection.total, projection.shortcuts) == (seen.made_by("w4"), ())
    assert (branch.total, branch.shortcuts) == (add.outputs[0], (seen.made_by("w4"),))


def test_of_two_branches_of_equal_depth_one_makes_up_for_the_other() -> None:
    def draw(net: Net) -> None:
        x = net.conv_relu(net.image(), 3, 8)
        net.output(net.conv(net.Relu(net.Add(net.conv(x, 8, 6), net.conv(x, 8, 6, k=1))), 6, 4))

    seen = drawn(draw, ("w1:0",))
    assert seen.order == ["w2", "w3", "w4"]
    assert [aim.shortcuts for aim in seen.aims] == [(), (seen.made_by("w2"),), ()]


def test_a_sum_that_isnt_just_an_add_is_no_aim() -> None:
    def scaled(net: Net) -> None:
        stem = net.conv_relu(net.image(), 3, 8)
        x = net.conv(net.conv_relu(stem, 8, 6), 6, 8)
        net.output(net.conv(net.Add(net.Mul(x, net.const(0.5)), stem), 8, 4))

    def broadcast(net: Net) -> None:
        stem = net.conv_relu(net.image(), 3, 8)
        x = net.conv(net.conv_relu(net.GlobalAveragePool(stem), 8, 6, k=1), 6, 8, k=1)
        net.output(net.conv(net.Add(x, stem), 8, 4))

    def read_twice(net: Net) -> None:
        stem = net.conv_relu(net.image(), 3, 8)
        x = net.conv(net.conv_relu(stem, 8, 6), 6, 8)
        net.output(net.conv(net.Add(x, stem), 8, 4), net.conv(x, 8, 2))

    for draw in (scaled, broadcast, read_twice):
        seen = drawn(draw, ("w2:0",))
        assert (seen.aim("w3").total, seen.aim("w3").shortcuts) == (seen.made_by("w3"), ())


def test_layers_before_every_cut_stay() -> None:
    assert topology("chain", "w2:0").order == ["w3"]
    assert topology("chain", "w1:0").order == ["w2", "w3"]
    assert topology("two-heads", "w1:0").order == ["w2", "w3"]
    assert topology("concat", "w2:0").order == ["w3"]


def test_weights_and_biases_that_others_read_stay() -> None:
    tied = found(CATALOGUE["tied-weights"].model("N"))
    assert {linear.weight for linear in tied.trace.linears} == {"w1", "w2", "w3"}
    assert tied.order == ["w3"]
    shared = found(CATALOGUE["shared-bias"].model("N"))
    assert shared.order == ["w2", "w3", "w4"]
    assert [aim.layer.bias for aim in shared.aims] == [None, None, "b1"]
    assert [aim.layer.offset(shared.flow.weights).shape for aim in shared.aims] == [(8,), (8,), (4,)]
    assert found(CATALOGUE["tied-embedding"].model("N")).order == []


def test_layers_that_are_no_plain_product_stay() -> None:
    def alpha(net: Net) -> None:
        x = net.Relu(net.dense(net.input("x", 5), 5, 6))
        x = net.Relu(net.op("Gemm", x, net.weight(6, 6, fan_in=6), net.bias(6), transB=1, alpha=0.5))
        net.output(net.dense(x, 6, 3))

    assert drawn(alpha, ("w1:0",)).order == ["w3"]
    assert topology("grouped").order == ["w3"]  # not the grouped one
    assert "w2" not in topology("transposed").order  # a ConvTranspose


@pytest.mark.parametrize(("samples", "order"), [(1, []), (2, ["w3"]), (3, ["w3"]), (4, ["w2", "w3"])])
def test_layers_with_few_rows_for_their_inputs_stay(samples: int, order: list[str]) -> None:
    """8 x 8 positions a sample; 8 - 2 channels under 3 x 3 taps need 216 rows, 24 - 2 under one tap 88."""
    assert SCARCITY.least_refit_rows == 4

    def draw(net: Net) -> None:
        x = net.conv_relu(net.image(), 3, 8)
        net.output(net.conv(net.conv_relu(x, 8, 24), 24, 4, k=1))

    assert drawn(draw, samples=samples).order == order


def test_matrices_go_there_and_back() -> None:
    for name in ("chain", "flatten-gemm-plain", "matmul-bias", "behind-transpose", "conv-1d"):
        seen = topology(name)
        for aim in seen.aims:
            layer, weights = aim.layer, seen.flow.weights
            matrix, root = layer.matrix(weights), weights.path(layer.linear.weight)
            assert root is not None
            assert matrix.shape[0] == len(layer.offset(weights))
            values = layer.values(weights, matrix, layer.offset(weights))
            assert (values[root.root] == weights.array(root.root)).all()
            doubled = layer.values(weights, 2 * matrix, layer.offset(weights))[root.root]
            assert (doubled == 2 * weights.array(root.root)).all()
            assert set(values) == {root.root} | ({layer.bias} if layer.bias else set())


# chains


def test_a_chain_runs_from_layer_to_layer() -> None:
    seen = topology("chain")
    assert seen.ends("w2") == ("w1", ["Relu"])
    assert seen.ends("w3") == ("w2", ["Relu"])
    assert topology("residual-identity", "w2:0").ends("w3") == ("w2", ["Relu"])


def test_per_channel_layers_belong_to_a_chain() -> None:
    seen = topology("depthwise")
    (weight,) = seen.order
    ends = seen.ends(weight)
    assert ends is not None
    assert ends[0] == "w1"
    assert [kind for kind in ends[1] if kind != "Conv"] == ["Relu", "Clip"]
    assert ends[1].count("Conv") == 1
    chain = seen.chain(weight)
    assert chain is not None
    convs = [link.outputs[0] for link in chain.links if isinstance(link, Op)]
    assert sorted(chain.windows) == sorted([*convs, next(aim.layer.linear.output for aim in seen.aims)])
    assert topology("depthwise-twofold").ends("w3") is None  # each channel becomes two


def test_hidden_layers_of_transformers_are_chains() -> None:
    def draw(net: Net) -> None:
        x = net.input("x", 5, 6)
        net.output(net.Add(net.linear(net.Gelu(net.linear(x, 6, 12)), 12, 6), x))

    seen = drawn(draw, opset=20)
    assert seen.ends("w2") == ("w1", ["Gelu"])
    chain = seen.chain("w2")
    assert chain is not None
    assert (chain.producer.bias, seen.aim("w2").layer.bias) == ("b1", "b2")


def _erf_gelu(net: Net, x: str) -> str:
    half = net.Mul(x, net.Add(net.Erf(net.Div(x, net.const(1.4142135))), net.const(1.0)))
    return net.Mul(half, net.const(0.5))


def _tanh_gelu(net: Net, x: str) -> str:
    inner = net.Add(x, net.Mul(net.Pow(x, net.const(3.0)), net.const(0.044715)))
    return net.Mul(net.Mul(x, net.const(0.5)), net.Add(net.Tanh(net.Mul(inner, net.const(0.7978846))), net.const(1.0)))


def _swish(net: Net, x: str) -> str:
    return net.Mul(x, net.Sigmoid(x))


@pytest.mark.parametrize("spelled", [_erf_gelu, _tanh_gelu, _swish])
def test_an_activation_may_be_spelled_with_several_nodes(spelled: Callable[[Net, str], str]) -> None:
    def draw(net: Net) -> None:
        x = net.input("x", 5, 6)
        net.output(net.Add(net.linear(spelled(net, net.linear(x, 6, 12)), 12, 6), x))

    chain = drawn(draw).chain("w2")
    assert chain is not None
    assert chain.producer.linear.weight == "w1"
    regions = [link for link in chain.links if isinstance(link, Region)]
    assert (regions[0].source, regions[-1].output) == (chain.producer.output, drawn(draw).aim("w2").layer.linear.input)


def test_behind_a_gate_each_producer_has_a_chain() -> None:
    def draw(net: Net) -> None:
        x = net.input("x", 5, 6)
        gate, up = _swish(net, net.linear(x, 6, 12, bias=False)), net.linear(x, 6, 12, bias=False)
        net.output(net.Add(net.linear(net.Mul(gate, up), 12, 6, bias=False), x))

    seen = drawn(draw)
    assert [chain.producer.linear.weight for chain in seen.chains("w3")] == ["w1", "w2"]
    assert len({chain.links[-1].output for chain in seen.chains("w3") if isinstance(chain.links[-1], Region)}) == 1


def test_no_chain_where_the_inside_of_an_activation_is_read_elsewhere() -> None:
    def draw(net: Net) -> None:
        x = net.linear(net.input("x", 5, 6), 6, 12)
        sigmoid = net.Sigmoid(x)
        net.output(net.linear(net.Mul(x, sigmoid), 12, 6), net.linear(sigmoid, 12, 3))

    seen = drawn(draw)
    assert seen.aims
    assert all(find_chains(seen.flow, seen.alive, aim, MANY) == () for aim in seen.aims)


def test_only_a_layer_that_lost_inputs_ends_a_chain() -> None:
    seen = topology("chain", "w1:0")
    assert seen.ends("w2") is not None
    assert seen.ends("w3") is None


def test_no_chain_across_branches_sums_or_unknown_operators() -> None:
    def branching(net: Net) -> None:
        x = net.conv_relu(net.image(), 3, 8)
        net.output(net.conv(x, 8, 4), net.conv(x, 8, 2))

    def summed(net: Net) -> None:
        x = net.image()
        net.output(net.conv(net.Add(net.conv(x, 3, 8), net.conv(net.Neg(x), 3, 8)), 8, 4))

    def pooled(net: Net) -> None:
        x = net.MaxPool(net.conv_relu(net.image(), 3, 8), kernel_shape=[2, 2])
        net.output(net.conv(x, 8, 4))

    def gated(net: Net) -> None:
        x = net.conv(net.image(), 3, 8)
        net.output(net.conv(net.Mul(x, net.Softmax(x)), 8, 4))

    def shown(net: Net) -> None:
        x = net.Relu(net.conv(net.image(), 3, 8))
        net.output(net.conv(x, 8, 4), net.conv(net.op("Identity", x), 8, 2))

    def shared_bias(net: Net) -> None:
        x, bias = net.input("x", 5, 6), net.bias(8)
        first, second = (net.Relu(net.Add(net.MatMul(x, net.weight(6, 8, fan_in=6)), bias)) for _ in range(2))
        net.output(net.linear(first, 8, 4), net.linear(second, 8, 4))

    for draw in (branching, summed, pooled, gated, shown):
        seen = drawn(draw)
        assert seen.aims
        assert all(find_chains(seen.flow, seen.alive, aim, MANY) == () for aim in seen.aims)
    assert drawn(shared_bias).order == ["w3", "w4"]
    assert drawn(shared_bias).ends("w3") is None  # what is added isn't the layer's own


def test_no_chain_where_the_weight_is_the_left_operand() -> None:
    seen = topology("matmul-left", "w2:0")
    assert "w3" in seen.order
    assert seen.ends("w3") is None


def test_no_chain_in_half_precision() -> None:
    seen = topology("half-conv-bn-relu")
    assert len(seen.aims) == 2
    assert [find_chains(seen.flow, seen.alive, aim, MANY) for aim in seen.aims] == [(), ()]
    single = topology("conv-bn-relu")
    assert all(find_chains(single.flow, single.alive, aim, MANY) for aim in single.aims)


@pytest.mark.parametrize("opset", [9, 10, 17])
def test_strides_need_a_slice_of_opset_10(opset: int) -> None:
    def draw(net: Net) -> None:
        x = net.conv_relu(net.conv_relu(net.image(), 3, 8), 8, 6)
        net.output(net.conv(x, 6, 4, strides=[2, 2]))

    seen = drawn(draw, opset=opset)
    assert seen.ends("w2") == ("w1", ["Relu"])
    assert (seen.ends("w3") is None) == (opset == 9)
