"""Axes that merge units with the batch, with heads or with pixels: what varies, what then stays, and what comes out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.passes import prepare
from snp_onnx.tracing import Trace
from snp_onnx.tracing.facts import Shape
from tests import topologies_layout as layout
from tests import topologies_merged as merged
from tests.graphs import Batch, Net, feed_for
from tests.oracles import difference, run, traced, with_copies

Draw = Callable[[Net], None]


def drawn(draw: Draw, batch: Batch = "N", opset: int = 17, has_dynamic_sides: bool = False) -> onnx.ModelProto:
    net = Net(opset, batch)
    net.has_dynamic_sides = has_dynamic_sides
    draw(net)
    return prepare(net.model()).model


def trace_of(model: onnx.ModelProto, batch: int = 1, size: int = 8) -> Trace:
    return traced(model, feed_for(model, batch, sides={"h": size, "w": size, "s": size, "t": size}))


# what varies


def varying(trace: Trace, tensor: str) -> list[bool | None]:
    return [trace.facts.varies(tensor, axis) for axis in range(len(trace.facts.shapes[tensor]))]


def test_extents_vary_where_the_inputs_do() -> None:
    trace = trace_of(drawn(merged.open_slice, has_dynamic_sides=True))
    flat = next(op for op in trace.ops if op.type == "Flatten")
    assert varying(trace, flat.input(0)) == [True, False, True, True]
    assert varying(trace, flat.outputs[0]) == [True, True]
    assert varying(trace_of(drawn(merged.open_slice)), flat.outputs[0]) == [True, False]
    assert varying(trace_of(drawn(merged.open_slice, batch=2)), flat.outputs[0]) == [False, False]


def joined_with_past(net: Net) -> None:
    """A mask of past and present positions: its extent is their sum."""
    past, now = net.input("past", "p", 6), net.input("now", "q", 6)
    rows = net.linear(net.Concat(past, now, axis=1), 6, 8)
    rows = net.Mul(rows, net.unsqueeze(net.input("seen", "p + q"), 2))
    net.output(net.linear(net.Relu(rows), 8, 4))


def with_table(net: Net) -> None:
    """Positions from a table of eight, cut to the sequence: longer ones there can't be."""
    rows = net.linear(net.input("x", "s", 6), 6, 8)
    table = net.Slice(net.normal(1, 8, 8), net.const([0]), net.extent(rows, 1), net.const([1]))
    net.output(net.linear(net.Relu(net.Add(rows, table)), 8, 4))


@pytest.mark.parametrize(
    ("draw", "shapes"),
    [
        (joined_with_past, {"past": (1, 3, 6), "now": (1, 1, 6), "seen": (1, 4)}),
        (with_table, {"x": (1, 8, 6)}),
    ],
)
def test_extents_that_depend_on_each_other_vary_together(draw: Draw, shapes: dict[str, Shape]) -> None:
    model = drawn(draw)
    trace = traced(model, {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()})
    assert varying(trace, trace.linears[-1].output) == [True, True, False]


def test_an_extent_that_inference_cannot_tell_is_not_known_to_vary() -> None:
    net = Net(batch="N")
    x = net.op("Reshape", net.input("x", 12), net.input("shape", 2, dtype="int64", batched=False))
    net.output(net.linear(net.Relu(net.linear(x, 6, 8)), 8, 4))
    model = net.model()
    trace = traced(model, {"x": np.ones((2, 12), np.float32), "shape": np.array([4, 6])})
    assert varying(trace, trace.linears[-1].output) == [None, None]


# what then stays


@pytest.mark.parametrize(
    ("draw", "kind"),
    [
        (merged.heads_split, "Split"),
        (merged.heads_gathered, "Gather"),
        (merged.heads_halved, "Slice"),
        (merged.heads_padded, "Pad"),
    ],
)
def test_places_of_an_axis_that_varies_keep_it_whole(draw: Draw, kind: str) -> None:
    """With a batch of one the axis counts heads alone: only another batch tells."""
    for batch in (1, 3):
        found = [stop.barrier for stop in trace_of(drawn(draw), batch).stops]
        told = [
            barrier for barrier in found if barrier.reason == f"{kind} at fixed places of an axis whose extent varies"
        ]
        assert told
        assert all(barrier.node.startswith("n") for barrier in told)
    assert not [stop for stop in trace_of(drawn(draw, batch=2)).stops if "fixed places" in stop.barrier.reason]


def test_units_are_those_of_every_batch_size() -> None:
    """Two orders of batch and heads agree at one batch size: what they tie together there isn't tied elsewhere."""
    for batch in (1, 2):
        trace = trace_of(drawn(merged.heads_in_two_orders), batch)
        assert [group.id for group in trace.groups] == ["w1:1"]
        assert {b.reason for b in trace.barriers} >= {"its units are others at another batch or size"}
    assert len(trace_of(drawn(merged.heads_in_two_orders, batch=1)).groups) == 2


def test_a_bias_by_batch_and_head_keeps_the_heads() -> None:
    """There are no places to pick that would be right in every batch."""
    for batch in (1, 3):
        found = {
            stop.barrier.reason: stop.barrier.node
            for stop in trace_of(drawn(merged.heads_with_given_bias), batch).stops
        }
        ops = {op.name: op.type for op in trace_of(drawn(merged.heads_with_given_bias), batch).ops}
        assert ops[found["a bias by batch and head stays whole"]] == "Add"


def places_of_pixels(net: Net) -> None:
    """The first 192 entries of a flat map: three channels of 8 x 8 pixels."""
    flat = net.slice(net.Flatten(net.conv_relu(net.image(), 3, 6)), 1, 0, 192)
    mean = net.reduce("ReduceMean", net.reshape(flat, 0, 3, -1), [2], keepdims=0)
    net.output(net.dense(mean, 3, 4))


def test_pixels_have_places_at_one_size_only() -> None:
    assert [len(group) for group in trace_of(drawn(places_of_pixels)).groups] == [3]
    trace = trace_of(drawn(places_of_pixels, has_dynamic_sides=True))
    assert trace.groups == ()
    assert {b.reason for b in trace.barriers} >= {"Slice at fixed places of an axis whose extent varies"}


def behind_unknown(net: Net) -> None:
    """Channels and pixels of a map whose size the caller gives."""
    shape = net.Concat(net.const([-1, 3]), net.input("size", 2, dtype="int64", batched=False), axis=0)
    flat = net.Flatten(net.conv_relu(net.Reshape(net.input("x", 192), shape), 3, 6))
    net.output(net.MatMul(net.slice(flat, 1, 0, 192), net.weight(192, 4, fan_in=192)))


def test_units_that_occur_more_than_once_count_as_varying_where_nothing_is_known() -> None:
    net = Net(batch="N")
    behind_unknown(net)
    trace = traced(net.model(), {"x": np.ones((1, 192), np.float32), "size": np.array([8, 8])})
    assert trace.stops[0].barrier.reason == "Slice at fixed places of an axis whose extent varies"


# what comes out


@pytest.mark.parametrize(
    ("draw", "batch"),
    [
        (merged.heads_sliced, "N"),
        (merged.heads_with_bias, "N"),
        (merged.layer_on_heads, "N"),
        (merged.tiled_over_pixels, "N"),
        (merged.gemm_matrix_bias, 8),
        (merged.gemm_constant_left, 8),
        (merged.reduced_over_tokens, "N"),
        (merged.norm_over_tokens, "N"),
        (layout.batch_as_channels, "N"),
    ],
)
def test_copies_vanish_and_leave_the_outputs_at_every_batch_size(draw: Draw, batch: Batch) -> None:
    """With `best` and its refit: what it aims at has other places in every batch."""
    model = drawn(draw, batch)
    model = with_copies(model, trace_of(model))
    data = [feed_for(model, 8, seed=seed) for seed in range(30)]
    result = snp_onnx.prune(model, data, target_params=0.8, preset="best", ridge=1e-6, fold="channel")
    assert result.report.pruned.params <= 0.8 * result.report.dense.params
    for rows in (1, 3) if batch == "N" else (8,):
        feed = feed_for(model, rows, seed=99)
        assert difference(run(model, feed), run(result.model, feed)) < 1e-3


def test_without_copies_the_outputs_change() -> None:
    model = drawn(merged.norm_over_tokens)
    data = [feed_for(model, 8, seed=seed) for seed in range(30)]
    result = snp_onnx.prune(model, data, target_params=0.6, preset="best", ridge=1e-6)
    feed = feed_for(model, 3, seed=99)
    assert difference(run(model, feed), run(result.model, feed)) > 1e-2
