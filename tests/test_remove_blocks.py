"""Removed blocks: the network without them, by independent ways to know what that computes."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from models.tiny import TINY
from snp_onnx.errors import PassError
from snp_onnx.passes import DropIdentities, EliminateDead, RemoveBlocks, prepare, rewrite
from snp_onnx.tracing import Block, BlockKind
from tests.graphs import Net, feed_for
from tests.oracles import run
from tests.test_depth_blocks import EXPECTED, blocks_of, exported, recipe_feed
from tests.test_random_graphs import STEPS, Map
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]


def without(model: onnx.ModelProto, *blocks: Block, tidy: bool = False) -> onnx.ModelProto:
    last = [DropIdentities.after(blocks)] if tidy else []
    return rewrite(model, [RemoveBlocks(blocks), EliminateDead(), *last]).model


def assert_sound(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)


def zero_branches(model: onnx.ModelProto, *blocks: Block) -> onnx.ModelProto:
    """Every sum adds zero times what the block's branch gives: the network without it, where its last node adds."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "nought"))
    adds = [[copy.graph.node[i] for i in block.nodes if copy.graph.node[i].op_type == "Add"][-1] for block in blocks]
    for block, total in zip(blocks, [add.output[0] for add in adds], strict=True):  # nodes move when others are put in
        add = next(node for node in copy.graph.node if total in node.output)
        place = next(place for place, name in enumerate(add.input) if name != block.input)
        index = list(copy.graph.node).index(add)
        times = helper.make_node("Mul", [add.input[place], "nought"], [f"{block.name}/nothing"])
        add.input[place] = times.output[0]
        copy.graph.node.insert(index, times)
    return copy


def chain(
    skip: tuple[int, ...] = (), count: int = 3, zero: tuple[int, ...] = (), batch: int | str = "N"
) -> onnx.ModelProto:
    """Residual blocks in a row; weights are drawn for those of `skip` too, and are zero in the last layer of `zero`."""
    net = Net(batch=batch)
    x = net.conv_relu(net.image(), 3, 4)
    for number in range(count):
        inner = net.conv(net.conv_relu(x, 4, 5), 5, 4)
        if number in zero:
            for tensor in net.initialisers[-2:]:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
        x = x if number in skip else net.Relu(net.Add(inner, x))
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 4, 3))
    model = net.model()
    return rewrite(model, [EliminateDead()]).model if skip else model


def sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (0, 2), (0, 1, 2)])
def test_a_chain_is_the_same_as_one_built_without_the_blocks(gone: tuple[int, ...]) -> None:
    dense = chain()
    blocks = blocks_of(dense)
    small = without(dense, *(blocks[place] for place in gone), tidy=True)
    built = chain(gone)
    feed = feed_for(dense, 3)
    np.testing.assert_array_equal(run(small, feed)[0], run(built, feed)[0])
    assert len(small.graph.node) == len(built.graph.node) == len(dense.graph.node) - 5 * len(gone)
    assert sizes(small) == {name: shape for name, shape in sizes(dense).items() if name in sizes(small)}
    assert sorted(sizes(small).values()) == sorted(sizes(built).values())
    assert np.abs(run(small, feed)[0] - run(dense, feed)[0]).max() > 0.01


def test_a_branch_of_zeros_leaves_no_trace() -> None:
    dense = chain(zero=(1,))
    feed = feed_for(dense, 3)
    small = without(dense, blocks_of(dense)[1])
    np.testing.assert_array_equal(run(small, feed)[0], run(dense, feed)[0])


@pytest.mark.parametrize("exporter", ["ts", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_branch_of_every_recipe_goes_as_if_it_gave_zero(name: str, exporter: str) -> None:
    model = exported(name, exporter)
    before = model.SerializeToString()
    simple = [block for block in blocks_of(model, recipe_feed(name)) if block.is_removable and not block.parts]
    assert simple
    for block in simple:
        small, tidy = without(model, block), without(model, block, tidy=True)
        reference = zero_branches(model, block)
        for rows in (1, 3):
            feed = recipe_feed(name, rows)
            wanted = run(reference, feed)
            for found in (small, tidy):
                for ours, theirs in zip(run(found, feed), wanted, strict=True):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())
        assert len(model.graph.node) - len(small.graph.node) == len(block.nodes) - 1
        if "fused" not in name:
            assert_sound(tidy)
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "super-resolution"])
def test_a_layer_goes_with_all_that_is_in_it(name: str) -> None:
    model = exported(name, "ts")
    found = blocks_of(model, recipe_feed(name))
    for layer in (block for block in found if block.parts):
        parts = [block for block in found if block.name in layer.parts]
        small = without(model, *parts, layer, tidy=True)
        assert small == without(model, layer, tidy=True)
        assert_sound(small)
        feed = recipe_feed(name, 3)
        if name == "bert":  # its last norm goes too: what the norm before gave
            reference = replaced_by_hand(model, layer)
        else:
            reference = zero_branches(model, *(parts if layer.kind == BlockKind.LAYER else [layer]))
        for ours, theirs in zip(run(small, feed), run(reference, feed), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 * np.abs(theirs).max())


def replaced_by_hand(model: onnx.ModelProto, block: Block) -> onnx.ModelProto:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    maker = next(node for node in copy.graph.node if block.output in node.output)
    maker.CopyFrom(helper.make_node("Identity", [block.input], [block.output]))
    return copy


def test_names_stay_and_the_outputs_name_too() -> None:
    dense = chain()
    first, second, _ = blocks_of(dense)
    small = without(dense, first, second)
    tensors = {name for node in small.graph.node for name in node.output}
    assert tensors < {name for node in dense.graph.node for name in node.output}
    assert {first.output, second.output} < tensors
    kept = {node.name: node for node in dense.graph.node}
    copies = [node for node in small.graph.node if node.op_type == "Identity"]
    assert [node.name for node in copies] == [f"{first.name}/removed", f"{second.name}/removed"]
    for node in small.graph.node:
        if node.op_type != "Identity":
            assert node == kept[node.name]
    assert list(small.graph.output) == list(dense.graph.output)


def test_removing_again_changes_nothing_and_the_rest_is_found_again() -> None:
    dense = chain()
    first, second, third = blocks_of(dense)
    once = without(dense, first, third)
    assert without(once, first, third) == once
    tidy = without(dense, first, third, tidy=True)
    assert rewrite(tidy, [DropIdentities.after([first, third])]).model == tidy
    for model in (once, tidy):
        (left,) = blocks_of(model)
        assert (left.name, left.output, left.stage) == (second.name, second.output, 0)
        assert len(left.nodes) == 5
    np.testing.assert_array_equal(
        run(without(once, second, tidy=True), feed := feed_for(dense, 2))[0], run(chain((0, 1, 2)), feed)[0]
    )


def test_a_block_that_ends_in_an_output_leaves_its_name() -> None:
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 4)
    y = net.Add(x, net.conv_relu(x, 4, 4))
    net.output(y, net.conv(y, 4, 2))
    model = net.model()
    (block,) = blocks_of(model)
    small = without(model, block, tidy=True)
    assert_sound(small)
    assert [value.name for value in small.graph.output] == [value.name for value in model.graph.output]
    assert [node.op_type for node in small.graph.node] == ["Conv", "Identity", "Conv"]
    feed = feed_for(model, 3)
    for ours, theirs in zip(run(small, feed), run(zero_branches(model, block), feed), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_block_on_the_models_input() -> None:
    net = Net(batch="N")
    x = net.image(3)
    net.output(net.Add(net.conv_relu(x, 3, 3), x))
    model = net.model()
    (block,) = blocks_of(model)
    small = without(model, block, tidy=True)
    assert_sound(small)
    feed = feed_for(model, 3)
    np.testing.assert_array_equal(run(small, feed)[0], feed["x"])


def captured(straight: bool) -> onnx.ModelProto:
    """A block whose output is read inside a body, or is what the body gives."""
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 4)
    y = net.Add(x, net.conv_relu(x, 4, 4))
    shown = helper.make_tensor_value_info(y if straight else "r", 1, None)
    body = helper.make_graph([] if straight else [helper.make_node("Neg", [y], ["r"])], "b", [], [shown])
    net.output(net.conv(net.op("If", net.const(True, dtype=bool), then_branch=body, else_branch=body), 4, 2))
    return net.model()


def test_bodies_that_capture_the_output_read_the_input() -> None:
    model = captured(straight=False)
    (block,) = blocks_of(model)
    small = without(model, block, tidy=True)
    feed = feed_for(model, 3)
    np.testing.assert_array_equal(run(small, feed)[0], run(zero_branches(model, block), feed)[0])
    assert "Identity" not in [node.op_type for node in small.graph.node]
    tidied = rewrite(captured(straight=True), [RemoveBlocks((block,)), DropIdentities.after([block])]).model
    assert "Identity" in [node.op_type for node in tidied.graph.node]  # its output goes by the name that the body gives


def test_tidying_leaves_other_identities_alone() -> None:
    net = Net(batch="N")
    x = net.Identity(net.conv(net.image(), 3, 4))
    net.output(net.conv(net.Add(x, net.conv_relu(x, 4, 4)), 4, 2))
    model = net.model()
    small = without(model, *blocks_of(model), tidy=True)
    assert [node.op_type for node in small.graph.node] == ["Conv", "Identity", "Conv"]


def test_what_cannot_go_is_refused() -> None:
    dense = chain()
    first, second, _ = blocks_of(dense)
    fixed = Block("sum", BlockKind.RESIDUAL, first.input, first.output, first.nodes, 0, "its shortcut is pooled")
    with pytest.raises(PassError, match="block sum can't be removed: its shortcut is pooled"):
        without(dense, fixed)
    small = without(dense, first, tidy=True)
    wanted = f"block {first.name} isn't in this graph: there is no tensor {first.output}"
    with pytest.raises(PassError, match=re.escape(wanted)):
        without(small, first)
    with pytest.raises(PassError, match=f"there is no tensor {second.input}"):
        without(small, second)


def test_a_fixed_batch_and_every_size_of_a_dynamic_one() -> None:
    fixed = chain(batch=2)
    small = without(fixed, *blocks_of(fixed)[:2], tidy=True)
    assert run(small, feed_for(fixed, 2))[0].shape == (2, 3)
    dynamic = chain()
    small = without(dynamic, *blocks_of(dynamic)[:2], tidy=True)
    for rows in (1, 4):
        assert run(small, feed_for(dynamic, rows))[0].shape == (rows, 3)


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_topology_without_its_blocks(name: str) -> None:
    batch = CATALOGUE[name].batches[-1]
    model = prepare(CATALOGUE[name].model(batch)).model
    for block in blocks_of(model, feed_for(model, 1)):
        if block.is_removable:
            tidy = without(model, block, tidy=True)
            for rows in (1, 3) if isinstance(batch, str) else (batch,):
                feed = feed_for(model, rows)
                for ours, theirs in zip(run(tidy, feed), run(replaced_by_hand(model, block), feed), strict=True):
                    np.testing.assert_array_equal(ours, theirs)


def test_every_recipe_with_blocks_is_among_the_tiny_ones() -> None:
    assert set(EXPECTED) <= set(TINY)


def crossed(data: st.DataObject) -> onnx.ModelProto:
    """Random layers, and sums with whatever of the same shape there was before."""
    net = Net(batch="N", seed=data.draw(st.integers(0, 99)))
    maps = [Map(net.conv_relu(net.image(4), 4, 4), 4, 8)]
    for _ in range(data.draw(st.integers(2, 7))):
        x = maps[-1]
        if x.channels >= 4:
            x = data.draw(st.sampled_from(STEPS))(net, x, data)
        fitting = [m for m in maps if (m.channels, m.side) == (x.channels, x.side) and m.name != x.name]
        if fitting and data.draw(st.booleans()):
            pair = [x.name, data.draw(st.sampled_from(fitting)).name]
            total = net.Add(*(pair if data.draw(st.booleans()) else pair[::-1]))
            x = Map(net.Relu(total) if data.draw(st.booleans()) else total, x.channels, x.side)
        maps.append(x)
    last = maps[-1]
    outputs = [net.conv(last.name, last.channels, 3)]
    if data.draw(st.booleans()):
        outputs.append(data.draw(st.sampled_from(maps[1:])).name)
    net.output(*dict.fromkeys(outputs))
    return prepare(net.model()).model


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_random_networks_without_their_blocks(data: st.DataObject) -> None:
    model = crossed(data)
    feed = feed_for(model, 3)
    dense = run(model, feed)
    for block in blocks_of(model):
        if not block.is_removable:
            continue
        tidy = without(model, block, tidy=True)
        assert_sound(tidy)
        found = run(tidy, feed)
        for ours, theirs in zip(found, run(replaced_by_hand(model, block), feed), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for ours, theirs in zip(found, run(zero_branches(model, block), feed), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * (1 + np.abs(theirs).max()))
        assert [ours.shape for ours in found] == [theirs.shape for theirs in dense]
        assert len(model.graph.node) - len(without(model, block).graph.node) == len(block.nodes) - 1
