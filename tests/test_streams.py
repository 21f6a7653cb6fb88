"""Residual streams: a rotation changes nothing, cutting what is rotated is exact, what can't be rotated says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.errors import PlanError, TargetError
from snp_onnx.passes import prepare, rotate_streams
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.preprocess import Preprocess
from snp_onnx.sources.samples import open_samples
from snp_onnx.subspace import centring, principal_axes, sensitivity
from snp_onnx.subspace import turned as turn
from snp_onnx.tracing import Group, Kind, Trace, trace
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.norms import OPEN_NORMS
from snp_onnx.tracing.streams import Stream, Unrotated, find_streams
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.result import Stopwatch
from snp_onnx.verbs.streams import turn_streams
from snp_onnx.verbs.subject import load_subject, trace_at
from tests import streams
from tests.graphs import Array, Net, feed_for
from tests.oracles import assert_same_surface, assert_valid, cut, difference, run, tolerance, traced

KINDS = frozenset(Kind)
Build = Callable[[Net], None]

NETS: dict[str, tuple[Build, int]] = {
    "layer_norm": (partial(streams.pre_norm, norm=streams.layer_norm), 17),
    "layer_norm_bare": (partial(streams.pre_norm, norm=streams.layer_norm, bias=False), 17),
    "layer_norm_parts": (partial(streams.pre_norm, norm=streams.layer_norm_parts, positions="fixed"), 13),
    "rms_parts": (partial(streams.pre_norm, norm=streams.rms_parts, positions="none", bias=False), 17),
    "rms_power": (partial(streams.pre_norm, norm=streams.rms_power), 18),
    "rms_norm": (partial(streams.pre_norm, norm=streams.rms_norm), 23),
    "vision": (streams.vision, 17),
}


def built(name: str, dtype: type = np.float32) -> onnx.ModelProto:
    build, opset = NETS[name]
    net = Net(opset, batch=3, dtype=dtype)
    build(net)
    return prepare(net.model()).model


def feed(model: onnx.ModelProto, seed: int = 1) -> dict[str, Array]:
    given = feed_for(model, 3, seed)
    words = np.random.default_rng(seed)
    return {n: words.integers(0, streams.WORDS, a.shape) if a.dtype == np.int64 else a for n, a in given.items()}


def orthogonal(seed: int = 0) -> Array:
    normal = np.random.default_rng(seed).standard_normal((streams.WIDTH, streams.WIDTH))
    return np.asarray(np.linalg.qr(normal)[0])


def turned(model: onnx.ModelProto, basis: Array | None = None) -> tuple[onnx.ModelProto, Trace]:
    """The model with its stream in another basis, and its trace with the stream open."""
    flow = Flow(model, traced(model, feed(model)))
    (stream,) = find_streams(flow)
    assert isinstance(stream, Stream), stream
    result = rotate_streams(model, flow, [stream], {} if basis is None else {stream.id: basis}).model
    return result, trace(result, {name: array.shape for name, array in feed(model).items()}, kinds=KINDS)


def stream_of(found: Trace) -> Group:
    (group,) = [group for group in found.groups if group.kind is Kind.STREAM]
    return group


def without(found: Trace, count: int, seed: int = 0) -> Mask:
    """`count` units of the stream go."""
    labels = stream_of(found).labels
    return found.alive([np.random.default_rng(seed).choice(labels, count, replace=False)])


def silenced(model: onnx.ModelProto, found: Trace, alive: Mask) -> onnx.ModelProto:
    """The model at full width with zeros in place of everything that writes to the removed units."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    readers = {linear.weight: linear.in_axis for linear in found.linears}
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        for axis, labels in enumerate(found.axes.get(tensor.name, ())):
            if axis != readers.get(tensor.name) and len(labels) == values.shape[axis]:
                np.moveaxis(values, axis, -1)[..., ~alive[labels]] = 0
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("basis", [None, orthogonal()], ids=["plain", "rotated"])
def test_a_rotation_changes_no_output(name: str, basis: Array | None) -> None:
    model = built(name)
    before = model.SerializeToString(deterministic=True)
    result, _ = turned(model, basis)
    expected = run(model, feed(model))
    assert difference(expected, run(result, feed(model))) < 1e-5
    assert_valid(result, feed(model))
    assert model.SerializeToString(deterministic=True) == before
    kept = [entry for entry in result.metadata_props if entry.key != OPEN_NORMS]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    assert_same_surface(model, result)


@pytest.mark.parametrize("name", NETS)
def test_cutting_equals_silencing(name: str) -> None:
    """Oracle (a): what is left computes what the whole network does when nothing writes to the removed units."""
    model = built(name)
    result, found = turned(model, orthogonal())
    for count in (1, 7, streams.WIDTH - 1):
        alive = without(found, count)
        expected = run(silenced(result, found, alive), feed(model))
        small = cut(result, found, alive)
        assert difference(expected, run(small, feed(model))) <= 4 * tolerance(expected)
        assert difference(run(model, feed(model)), expected) > 0.01  # the removed units did say something
        assert_valid(small, feed(model))


def test_a_norm_that_the_runtime_fused() -> None:
    net = Net(17, batch=3)
    streams.pre_norm(net, streams.rms_fused)
    model = net.model()
    result, found = turned(model, orthogonal())
    assert difference(run(model, feed(model)), run(result, feed(model))) < 1e-5
    alive = without(found, 7)
    expected = run(silenced(result, found, alive), feed(model))
    assert difference(expected, run(cut(result, found, alive), feed(model))) <= 4 * tolerance(expected)


def test_a_cut_that_forgets_the_width_is_caught() -> None:
    """The oracle fails where epsilon or gain keep their dense values."""
    model = built("rms_parts")
    result, found = turned(model, orthogonal())
    alive = without(found, 8)
    expected = run(silenced(result, found, alive), feed(model))
    for suffix, value in (("/epsilon_pruned", streams.EPSILON), ("/gain_pruned", 1.0)):
        small = cut(result, found, alive)
        forgotten = [tensor for tensor in small.graph.initializer if tensor.name.endswith(suffix)]
        assert len(forgotten) == 5
        for tensor in forgotten:
            wrong = np.full_like(numpy_helper.to_array(tensor), value)
            tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
        assert difference(expected, run(small, feed(model))) > 1e-3, suffix


def rows(model: onnx.ModelProto, count: int = 60) -> dict[str, Array]:
    """Calibration rows for every input."""
    parts = [feed(model, seed) for seed in range(count // 3)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_subspace(model: onnx.ModelProto, rank: int) -> onnx.ModelProto:
    """The model with all that is written to the stream projected on `rank` directions."""
    flow = Flow(model, traced(model, feed(model)))
    (stream,) = find_streams(flow)
    assert isinstance(stream, Stream)
    directions = orthogonal(3)[:, :rank]
    directions = np.linalg.qr(centring(streams.WIDTH) @ directions)[0] if stream.is_centred else directions
    written = {flow.weights.root(writer.op.input(writer.place)) for writer in stream.writers}
    for tensor in model.graph.initializer:
        if tensor.name in written:
            values = turn(numpy_helper.to_array(tensor), -1, directions @ directions.T)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return model


@pytest.mark.parametrize("name", ["layer_norm", "rms_parts"])
def test_a_stream_of_low_rank_vanishes(name: str) -> None:
    """Oracle (b): all writers in a subspace of rank r; on its principal axes the stream needs r entries, unfolded."""
    rank = 6
    model = in_subspace(built(name), rank)
    dense, prepared, notes = load_subject(model)
    shapes = {n: a.shape for n, a in feed(model).items()}
    with open_samples(rows(model), input_specs(prepared), Preprocess(), None, 0, {}) as samples:
        calibration = Calibration(samples, 3, Runtime(), Stopwatch(), lambda *_: None)
        result = turn_streams(trace_at(dense, prepared, notes, shapes, Runtime()), calibration, {}).model
    found = trace(result, shapes, kinds=KINDS)
    expected = run(model, feed(model, 99))
    for kept, close in ((rank, True), (rank - 1, False)):
        small = cut(result, found, found.alive([stream_of(found).labels[kept:]]))
        assert (difference(expected, run(small, feed(model, 99))) < 1e-4) == close


def test_principal_axes_come_in_the_order_of_their_energy() -> None:
    x = np.random.default_rng(0).standard_normal((40, 5)) * [5, 1, 3, 2, 4]
    axes = principal_axes(x.T @ x)
    energy = np.diag(axes.T @ x.T @ x @ axes)
    assert np.allclose(axes.T @ axes, np.eye(5))
    assert np.allclose(energy, np.square(np.linalg.svd(x)[1]))  # as the singular values are: descending


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_principal_axes_with_one_reader_are_reduced_rank_regression(kept: int) -> None:
    """No k-dimensional approximation of x W is better than the truncated SVD of x W itself (Eckart-Young)."""
    rng = np.random.default_rng(kept)
    x = rng.standard_normal((60, 6)) @ rng.standard_normal((6, 6))
    weight = rng.standard_normal((6, 8)) * np.geomspace(1, 30, 6)[:, None]
    gram = x.T @ x
    axes = principal_axes(gram, sensitivity([(gram, weight)], power=1.0))[:, :kept]
    singular = np.linalg.svd(x @ weight)[1]
    least = np.square(singular[kept:]).sum()
    # x' = x P with P onto span(axes), along the directions that the weight's metric sends there
    metric = weight @ weight.T
    projector = metric @ axes @ np.linalg.solve(axes.T @ metric @ axes, axes.T)
    assert np.isclose(np.square((x - x @ projector) @ weight).sum(), least, rtol=1e-6)
    by_energy = principal_axes(gram)[:, :kept]
    assert np.square((x - x @ by_energy @ by_energy.T) @ weight).sum() > 1.01 * least


@pytest.mark.parametrize("is_declared", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_stream_of_half_floats_keeps_its_type(dtype: Any, is_declared: bool) -> None:
    """Where nothing declares it too: norms and shifts that are written are of the stream's type."""
    model = built("layer_norm", dtype)
    if not is_declared:
        del model.graph.value_info[:]
    result = snp_onnx.prune(model, rows(model), target_macs=0.8, units=["channels", "stream"], preset="fast")
    assert [group.kind for group in result.report.groups if group.after < group.before].count("stream") == 1
    kinds = {tensor.data_type for tensor in result.model.graph.initializer}
    assert onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) in kinds
    assert onnx.TensorProto.DOUBLE not in kinds


@pytest.mark.parametrize("name", ["layer_norm", "rms_parts"])
def test_half_floats(name: str) -> None:
    model = built(name, np.float16)
    result, found = turned(model, orthogonal())
    expected = run(model, feed(model))
    assert difference(expected, run(result, feed(model))) < 0.02
    alive = without(found, 5)
    silent = run(silenced(result, found, alive), feed(model))
    assert difference(silent, run(cut(result, found, alive), feed(model))) < 0.02


def unrotated(net: Net) -> Unrotated:
    model = prepare(net.model()).model
    (found,) = find_streams(Flow(model, traced(model, feed(model))))
    assert isinstance(found, Unrotated), found
    return found


def test_a_post_norm_network_stays_and_says_why() -> None:
    net = Net(17, batch=3)
    streams.post_norm(net)
    assert "post-norm" in unrotated(net).barrier.reason
    model = net.model()
    result = snp_onnx.prune(model, rows(model), target_macs=0.9, units=["channels", "heads", "stream"])
    assert not [group for group in result.report.groups if group.kind == "stream"]
    assert any("post-norm" in note for note in result.report.notes)
    with pytest.raises(TargetError, match="post-norm"):
        snp_onnx.prune(model, rows(model), target_macs=0.9, units=["stream"])


def gelu_on_stream(net: Net) -> None:
    x = net.Add(x := streams.embedded(net), net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.linear(streams.layer_norm(net, net.Tanh(x)), 16, 3))


def read_without_norm(net: Net) -> None:
    x = streams.embedded(net)
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.linear(x, 16, 3))


def stream_is_output(net: Net) -> None:
    x = streams.embedded(net)
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(streams.rms_parts(net, x))


def one_entry_scaled(net: Net) -> None:
    x = streams.embedded(net)
    x = net.Add(x, net.Mul(net.linear(streams.layer_norm(net, x), 16, 16), net.normal(16)))
    net.output(net.linear(streams.layer_norm(net, x), 16, 3))


def one_number_added(net: Net) -> None:
    x = net.Add(streams.embedded(net), net.const(0.5))
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.linear(streams.layer_norm(net, x), 16, 3))


def shift_before_a_sum(net: Net) -> None:
    x = streams.embedded(net)
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.linear(net.reduce("ReduceSum", streams.layer_norm(net, x), [1], keepdims=0), 16, 3))


def entries_apart(net: Net) -> None:
    x = streams.embedded(net)
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.linear(streams.layer_norm(net, x), 16, 3), net.linear(net.slice(x, -1, 0, 6), 6, 3))


def scaled_gemm(net: Net) -> None:
    x = net.reshape(streams.embedded(net), -1, 16)
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.Gemm(streams.layer_norm(net, x), net.weight(16, 3, fan_in=16), net.bias(3), alpha=2.0))


def rounded(net: Net) -> None:
    x = net.Cast(net.Cast(streams.embedded(net), to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.linear(streams.layer_norm(net, x), 16, 3))


def quantised(net: Net) -> None:
    x = streams.embedded(net)
    codes = net.const(net.rng.integers(-100, 100, (16, 16)), dtype=np.int8)
    weight = net.DequantizeLinear(codes, net.const(0.01), net.const(0, dtype=np.int8))
    x = net.Add(x, net.MatMul(streams.layer_norm(net, x), weight))
    net.output(net.linear(streams.layer_norm(net, x), 16, 3))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (gelu_on_stream, "Tanh works on single entries"),
        (read_without_norm, "read without a norm"),
        (stream_is_output, "graph output|with and without mean"),
        (one_entry_scaled, "scaled one by one"),
        (one_number_added, "same number is added"),
        (shift_before_a_sum, "shift can't move"),
        (entries_apart, "one by one"),
        (scaled_gemm, "shift can't move"),
        (rounded, "whole numbers"),
        (quantised, "quantised"),
    ],
)
def test_what_forbids_a_rotation(build: Build, reason: str) -> None:
    net = Net(17, batch=3)
    build(net)
    assert re.search(reason, unrotated(net).barrier.reason), unrotated(net)


def test_without_the_kind_the_stream_stays_a_barrier() -> None:
    model = built("rms_parts")
    result, _ = turned(model, orthogonal())
    plain = traced(result, feed(model))
    assert [group.kind for group in plain.groups] == [group.kind for group in traced(model, feed(model)).groups]
    assert any("ReduceMean reduces this axis" in stop.barrier.reason for stop in plain.stops)


def test_a_foreign_mark_opens_nothing() -> None:
    """The metadata names means of squares; one that isn't in the chain we write stays a barrier."""
    model = built("rms_parts")
    mean = next(node.output[0] for node in model.graph.node if node.op_type == "ReduceMean")
    for value in (f'["{mean}"]', "not json", "3"):
        del model.metadata_props[:]
        model.metadata_props.add(key=OPEN_NORMS, value=value)
        found = trace(model, {n: a.shape for n, a in feed(model).items()}, kinds=KINDS)
        assert all(group.kind is not Kind.STREAM for group in found.groups)


def test_tied_embeddings_are_parted() -> None:
    net = Net(17, batch=3)
    x = streams.embedded(net)
    x = net.Add(x, net.linear(streams.layer_norm(net, x), 16, 16))
    net.output(net.MatMul(streams.layer_norm(net, x), net.Transpose("table", perm=[1, 0])))
    model = prepare(net.model()).model
    flow = Flow(model, traced(model, feed(model)))
    (stream,) = find_streams(flow)
    assert isinstance(stream, Stream)
    rewritten = rotate_streams(model, flow, [stream], {stream.id: orthogonal()})
    assert sum("shared by several" in note.text for note in rewritten.notes) == 2
    assert difference(run(model, feed(model)), run(rewritten.model, feed(model))) < 1e-5


def test_prune_by_stream_and_apply_the_plan_again(tmp_path: Path) -> None:
    net = Net(17, batch="n")
    streams.pre_norm(net, streams.layer_norm)
    model = net.model()
    data = {"ids": np.random.default_rng(0).integers(0, streams.WORDS, (200, streams.LENGTH))}
    result = snp_onnx.prune(model, data, target_macs=0.7, units=["channels", "heads", "stream"])
    (group,) = [group for group in result.report.groups if group.kind == "stream"]
    assert group.after < group.before
    result.save_plan(tmp_path / "plan.json")
    again = snp_onnx.prune(model, plan=tmp_path / "plan.json")
    sample = {"ids": data["ids"][:7]}
    assert difference(run(result.model, sample), run(again.model, sample)) <= tolerance(run(again.model, sample))
    (tmp_path / "plan.npz").unlink()
    with pytest.raises(PlanError, match="sidecar"):
        snp_onnx.prune(model, plan=tmp_path / "plan.json")


def test_only_what_is_asked_for_changes() -> None:
    """Without the kind, results are those of a network whose stream nobody looked at; with it, an open stream goes."""
    net = Net(17, batch="n")
    streams.pre_norm(net, streams.layer_norm)
    model = net.model()
    data = {"ids": np.random.default_rng(0).integers(0, streams.WORDS, (120, streams.LENGTH))}
    given = {"preset": "fast", "target_macs": 0.8}
    plain = snp_onnx.prune(model, data, **given)
    assert plain.plan.options["kinds"] == ["channels", "heads"]
    assert not plain.bases
    assert any(node.op_type == "LayerNormalization" for node in plain.model.graph.node)
    assert all(entry.key != OPEN_NORMS for entry in plain.model.metadata_props)
    asked = snp_onnx.prune(model, data, units=["channels", "heads", "stream"], **given)
    assert [name for name in asked.bases if name.startswith("stream:")]
    assert all(node.op_type != "LayerNormalization" for node in asked.model.graph.node)


def test_a_sliced_stream_can_be_pruned_again() -> None:
    net = Net(17, batch="n")
    streams.pre_norm(net, streams.rms_parts)
    data = {"ids": np.random.default_rng(0).integers(0, streams.WORDS, (120, streams.LENGTH))}
    once = snp_onnx.prune(net.model(), data, units=["stream"], target_macs=0.9)
    twice = snp_onnx.prune(once.model, data, units=["stream"], target_macs=0.9)
    first, second = (next(g for g in r.report.groups if g.kind == "stream") for r in (once, twice))
    assert second.before == first.after > second.after
    assert twice.report.fidelity[0].cosine > 0.9


def test_head_dimensions_and_stream_together() -> None:
    net = Net(17, batch="n")
    streams.pre_norm(net, streams.layer_norm)
    model = net.model()
    data = {"ids": np.random.default_rng(0).integers(0, streams.WORDS, (120, streams.LENGTH))}
    result = snp_onnx.prune(model, data, units=["channels", "head-dims", "stream"], target_macs=0.6)
    assert {"stream", "head-dims"} <= {group.kind for group in result.report.groups if group.after < group.before}
    assert {name.split(":")[0] for name in result.bases} == {"stream", "head-dims"}
    assert result.report.fidelity[0].cosine > 0.8
