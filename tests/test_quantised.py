"""Models that onnxruntime's quantiser wrote: cut where scales allow it, folded as floats, or declined and told why."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import snp_onnx
from snp_onnx.passes import Dequantise, EliminateDead, Requantise, narrow_weights, prepare, rewrite
from tests.command_line import Bench, bench, call, classifier, images
from tests.graphs import Net, feed_for
from tests.oracles import cut, difference, half_removed, last_removed, run, tolerance, traced, zeroed

U8S8: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
WAYS: dict[str, dict[str, Any]] = {
    "per-channel": U8S8,
    "per-tensor": {**U8S8, "per_channel": False},
    "signed": {**U8S8, "activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},
    "unsigned-weights": {**U8S8, "weight_type": QuantType.QUInt8},
    "seven-bits": {**U8S8, "reduce_range": True},
    "float-biases": {**U8S8, "extra_options": {"QuantizeBias": False}},
    "dedicated-pairs": {**U8S8, "extra_options": {"DedicatedQDQPair": True}},
    "sixteen-bits": {**U8S8, "activation_type": QuantType.QUInt16},
    "runtime-domain": {**U8S8, "extra_options": {"UseQDQContribOps": True}},
    "fake-weights": {**U8S8, "extra_options": {"AddQDQPairToWeight": True}},
}
every_way = pytest.mark.parametrize("way", WAYS)
some_ways = pytest.mark.parametrize("way", ["per-channel", "unsigned-weights", "float-biases", "fake-weights"])
"""What differs in how it is written again."""
FAST: dict[str, Any] = {"preset": "fast", "threads": 1}


class Reader(CalibrationDataReader):
    """Batches under the name of the model's input."""

    def __init__(self, name: str, rows: npt.NDArray[np.float32]) -> None:
        self.given: Iterator[dict[str, Any]] = iter([{name: rows[i : i + 8]} for i in range(0, len(rows) - 7, 8)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.given, None)


def quantised(model: onnx.ModelProto, folder: Path, rows: npt.NDArray[np.float32] | None = None, **way: Any) -> Path:
    """The file that `quantize_static` writes."""
    output = folder / "quantised.onnx"
    reader = Reader(model.graph.input[0].name, images(32) if rows is None else rows)
    quantize_static(model, output, reader, **{"quant_format": QuantFormat.QDQ, **way})
    return output


def residual() -> onnx.ModelProto:
    """A stem, a residual block, a strided convolution, a pool and a classifier."""
    net = Net(batch="N", seed=4)
    stem = net.conv_relu(net.image(), 3, 8)
    x = net.Relu(net.Add(net.conv(net.conv_relu(stem, 8, 10), 10, 8), stem))
    x = net.conv_relu(net.conv_relu(x, 8, 12), 12, 6)
    net.output(net.dense(net.Flatten(net.GlobalAveragePool(x)), 6, 4))
    return net.model()


@cache
def case(way: str) -> bytes:
    """The residual network in one of the quantiser's forms."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return quantised(residual(), Path(folder), **WAYS[way]).read_bytes()


def model_of(way: str) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(case(way))


def relative(found: onnx.ModelProto, wanted: onnx.ModelProto, feed: dict[str, Any], optimised: bool = False) -> float:
    a, b = (run(model, feed, optimised, exact=True)[0] for model in (found, wanted))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# cut as they are


@every_way
def test_cut_equals_zeroed(way: str) -> None:
    prepared = prepare(model_of(way)).model
    trace = traced(prepared, feed_for(prepared, batch=1))
    assert sorted(len(group) for group in trace.groups) == [6, 8, 10, 12]
    for mask in (half_removed(trace), last_removed(trace)):
        result, silent = cut(prepared, trace, mask), zeroed(prepared, trace, mask)
        onnx.checker.check_model(result)
        for batch in (1, 3):
            feed = feed_for(prepared, batch)
            expected = run(silent, feed)
            assert difference(expected, run(result, feed)) <= tolerance(expected)
    assert difference(run(prepared, feed), run(result, feed)) > 0.0  # even one unit of each is felt


@every_way
def test_every_axis_of_scales_is_cut_with_its_weight(way: str) -> None:
    prepared = prepare(model_of(way)).model
    trace = traced(prepared, feed_for(prepared, batch=1))
    result = cut(prepared, trace, half_removed(trace))
    held = {tensor.name: tuple(tensor.dims) for tensor in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            for name in node.input[1:]:
                assert held[name] in ((), (1,), (held[node.input[0]][axis % len(held[node.input[0]])],))


@some_ways
def test_a_plan_that_keeps_everything_leaves_the_bytes(way: str) -> None:
    model = model_of(way)
    plan = snp_onnx.prune(model, {"x": images(24)}, target_macs=0.99, **FAST).plan
    decisions = tuple(
        type(d)(d.group, d.kind, d.before, tuple(range(d.before)), d.order, d.variance) for d in plan.decisions
    )
    whole = type(plan)(plan.dense_sha256, decisions, plan.target, plan.options, plan.input_shapes)
    kept = snp_onnx.prune(model, {"x": images(24)}, plan=whole, **FAST).model
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepare(model).model.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in kept.graph.initializer}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


# folded as the floats they stand for


@every_way
def test_the_float_form_is_the_model_without_its_rounding(way: str) -> None:
    """Also where the quantiser left activation functions to the ends of its codes."""
    model = model_of(way)
    plain = rewrite(prepare(model).model, [Dequantise(), EliminateDead()]).model
    assert not {node.op_type for node in plain.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    feed = feed_for(model, 8)
    assert relative(plain, model, feed) < 0.1
    again = rewrite(plain, [Dequantise()])
    assert again.model.SerializeToString() == plain.SerializeToString()


def test_without_the_clips_the_float_form_is_another_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snp_onnx.passes.dequantise._NONNEGATIVE", frozenset(["Conv", "Add", "Gemm"]))
    model = model_of("per-channel")
    plain = rewrite(prepare(model).model, [Dequantise()]).model
    assert relative(plain, model, feed_for(model, 8)) > 0.3


@some_ways
def test_folding_brings_the_outputs_nearer(way: str) -> None:
    model = model_of(way)
    found = snp_onnx.prune(model, {"x": images(200)}, target_macs=0.7, **FAST)
    bare = snp_onnx.prune(model, plan=found.plan, fold="none", threads=1)
    test = {"x": images(64, seed=9)}
    for optimised in (False, True):
        assert relative(found.model, model, test, optimised) < 0.8 * relative(bare.model, model, test, optimised)
    assert found.report.pruned.macs <= 0.7 * found.report.dense.macs
    kinds = [{t.data_type for t in m.graph.initializer} for m in (found.model, model)]
    assert kinds[0] == kinds[1]
    assert any("pruned as the floats" in note for note in found.report.notes)
    assert not any("without folding" in warning for warning in found.report.warnings)


@some_ways
def test_biases_are_in_steps_of_input_times_weight(way: str) -> None:
    """Runtimes that fuse a layer take that for granted: optimised or not, the result is the same but for rounding."""
    result = snp_onnx.prune(model_of(way), {"x": images(64)}, target_macs=0.6, **FAST).model
    makers = {node.output[0]: node for node in result.graph.node}
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    count = 0
    for node in result.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[2] in makers:
            source, weight, bias = (held[makers[name].input[1]] for name in node.input)
            assert np.array_equal((source * weight).reshape(-1), bias.reshape(-1)[: weight.size])
            count += 1
    assert count == (0 if way == "float-biases" else 6)
    feed = {"x": images(16, seed=9)}
    plain, optimised = (run(result, feed, optimised, exact=True)[0] for optimised in (False, True))
    assert np.linalg.norm(plain - optimised) < 0.05 * np.linalg.norm(plain)


def test_seven_bits_stay_seven_bits() -> None:
    for way, most in (("seven-bits", 64), ("per-channel", 127)):
        model = model_of(way)
        assert bool(narrow_weights(model)) == (most == 64)
        result = snp_onnx.prune(model, {"x": images(64)}, target_macs=0.6, **FAST).model
        weights = [numpy_helper.to_array(t) for t in result.graph.initializer if t.data_type == TensorProto.INT8]
        reach = max(int(np.abs(w.astype(int)).max()) for w in weights if w.ndim > 1)
        assert most - 1 <= reach <= most


def test_a_channel_that_grows_gets_a_larger_scale_and_the_others_keep_their_codes() -> None:
    model = prepare(model_of("per-channel")).model
    plain = rewrite(model, [Dequantise(), EliminateDead()]).model
    values = {t.name: numpy_helper.to_array(t).copy() for t in plain.graph.initializer}
    name = next(name for name, array in values.items() if array.ndim == 4)
    before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    untouched = rewrite(model, [Requantise(values)])
    assert untouched.notes == ()
    values[name][2] *= 5.0
    result = rewrite(model, [Requantise(values)]).model
    after = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    node = next(node for node in model.graph.node if node.input[0] == name)
    ratio = after[node.input[1]] / before[node.input[1]]
    assert ratio[2] == pytest.approx(5.0, rel=0.02)
    assert np.allclose(np.delete(ratio, 2), 1.0, rtol=0.02)
    assert np.abs(after[name].astype(int) - before[name]).max() <= 2
    twice = rewrite(result, [Requantise({name: values[name]})])
    assert not any("weight" in note.text for note in twice.notes)


def test_weights_that_cannot_be_written_again_are_cut_as_they_are() -> None:
    """Their codes know one sign only: no folding, and a warning."""
    positive = model_of("unsigned-weights")
    for node in positive.graph.node:
        held = {tensor.name: tensor for tensor in positive.graph.initializer}
        zero = held.get(node.input[2]) if node.op_type == "DequantizeLinear" else None
        if zero is not None and node.input[0] in held and zero.data_type == TensorProto.UINT8:
            zero.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(zero)), zero.name))
    found = snp_onnx.prune(positive, {"x": images(64)}, target_macs=0.7, **FAST)
    assert any("cut without folding" in warning for warning in found.report.warnings)
    assert found.report.pruned.macs <= 0.7 * found.report.dense.macs
    assert np.isfinite(run(found.model, {"x": images(4)})[0]).all()


def test_half_of_a_real_network_in_int8(tmp_path: Path) -> None:
    """Digits: what cutting alone would leave is no classifier any more."""
    from tests.command_line import DIGITS, DIGITS_DATA

    with np.load(DIGITS_DATA) as arrays:
        rows, tests = (arrays[name][:600].astype(np.float32) / 16 for name in ("images", "test_images"))
        labels = arrays["test_labels"][:600]
    model = quantised(onnx.load(DIGITS), tmp_path, rows[:64], **U8S8)
    found = snp_onnx.prune(model, {"input": rows}, target_macs=0.5, **FAST)
    bare = snp_onnx.prune(model, plan=found.plan, fold="none", threads=1)

    def top1(result: onnx.ModelProto) -> float:
        return float((run(result, {"input": tests}, optimised=True)[0].argmax(axis=1) == labels).mean())

    assert top1(onnx.load(model)) > 0.98
    assert top1(found.model) > 0.95
    assert top1(bare.model) < 0.8
    assert found.report.pruned.params < 0.6 * found.report.dense.params
    assert found.report.pruned.bytes < 0.7 * found.report.dense.bytes


def test_a_saved_plan_makes_the_same_bytes(tmp_path: Path) -> None:
    model = model_of("per-channel")
    found = snp_onnx.prune(model, {"x": images(64)}, target_macs=0.6, **FAST)
    found.save_plan(tmp_path / "plan.json")
    again = snp_onnx.prune(model, plan=tmp_path / "plan.json", threads=1)
    assert again.model.SerializeToString() == found.model.SerializeToString()


def test_the_fidelity_that_is_asked_for_is_that_of_the_quantised_result() -> None:
    model = model_of("per-channel")
    found = snp_onnx.prune(model, {"x": images(64)}, min_fidelity=0.9, **FAST)
    assert found.report.fidelity[0].held >= 0.85  # other samples than those that chose
    assert found.report.pruned.macs < found.report.dense.macs
    assert any(node.op_type == "QuantizeLinear" for node in found.model.graph.node)


def test_bytes_are_those_of_the_quantised_file() -> None:
    model = model_of("per-channel")
    found = snp_onnx.prune(model, {"x": images(64)}, target_size=0.85, **FAST)
    assert found.report.pruned.bytes == found.model.ByteSize() <= 0.85 * len(case("per-channel"))
    assert found.report.pruned.bytes > 0.75 * len(case("per-channel"))


def test_the_clock_is_not_told_from_floats() -> None:
    model = model_of("per-channel")
    with pytest.raises(snp_onnx.PlanError, match=r"target-latency: a quantised model.*give --target-macs"):
        snp_onnx.prune(model, {"x": images(24)}, target_latency=0.7, **FAST)
    with pytest.raises(snp_onnx.PlanError, match="round-to auto"):
        snp_onnx.prune(model, {"x": images(24)}, target_macs=0.7, round_to="auto", **FAST)


# weight-only: integers that Cast, Sub and Mul make floats

FORMS = (
    "scales",
    "scalar",
    "rows",
    "first",
    "vector",
    "half",
    "zero",
    "zeros",
    "cast-zero",
    "int32-zero",
    "transposed",
)
every_form = pytest.mark.parametrize("form", FORMS)


def weight_only(form: str, rows: int = 24) -> onnx.ModelProto:
    """Three layers whose weights are int8, or uint8 with a zero point; half of the first layer's units are copies."""
    net = Net(batch="N", seed=3)
    hidden = net.Relu(net.MatMul(net.input("x", rows), stored_weight(net, form, rows, 64, copies=True)))
    gates = net.Softmax(net.MatMul(hidden, stored_weight(net, form, 64, rows)), axis=-1)
    net.output(net.MatMul(gates, stored_weight(net, form, rows, rows)))
    return net.model()


def stored_weight(net: Net, form: str, rows: int, columns: int, copies: bool = False) -> str:
    is_unsigned = "zero" in form
    codes = net.rng.integers(-127, 128, (rows, columns))
    scales = net.rng.uniform(0.005, 0.02, (1, columns))
    if copies:
        codes[:, columns // 2 :] = codes[:, : columns // 2]
        scales[:, columns // 2 :] = scales[:, : columns // 2]
    if form == "scalar":
        scales = np.array(0.01)
    elif form == "rows":
        scales = net.rng.uniform(0.005, 0.02, (rows, 1))
    elif form == "vector":
        scales = scales[0]
    if form == "transposed":
        codes, scales = codes.T, scales.T
    stored = net.const(codes + 128 * is_unsigned, dtype=np.uint8 if is_unsigned else np.int8)
    if form == "int32-zero":
        stored = net.Sub(net.Cast(stored, to=TensorProto.INT32), net.const(128, dtype=np.int32))
    value = net.Cast(stored, to=TensorProto.FLOAT)
    if form == "zero":
        value = net.Sub(value, net.const(128.0))
    elif form == "zeros":
        value = net.Sub(value, net.const(np.full((1, columns), 128.0)))
    elif form == "cast-zero":
        value = net.Sub(value, net.Cast(net.const(128, dtype=np.uint8), to=TensorProto.FLOAT))
    scale = net.const(scales, dtype=np.float16 if form == "half" else np.float32)
    if form == "half":
        scale = net.Cast(scale, to=TensorProto.FLOAT)
    value = net.Mul(scale, value) if form in ("first", "scalar") else net.Mul(value, scale)
    return net.Transpose(value, perm=[1, 0]) if form == "transposed" else value


def codes_in(model: onnx.ModelProto) -> list[npt.NDArray[Any]]:
    narrow = (TensorProto.INT8, TensorProto.UINT8)
    return [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type in narrow and len(t.dims) == 2]


def rows_of(count: int, seed: int = 1) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)


@every_form
def test_codes_stay_codes_and_are_folded(form: str) -> None:
    model = weight_only(form)
    found = snp_onnx.prune(model, {"x": rows_of(300)}, target_params=0.75, ridge=1e-6, latency=False, **FAST)
    before, after = codes_in(model), codes_in(found.model)
    assert [a.dtype for a in after] == [b.dtype for b in before]
    assert not [
        t.name for t in found.model.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 64
    ]
    assert np.array_equal(after[2], before[2])  # nothing was cut from it
    assert found.report.dense.params == sum(b.size for b in before)
    assert found.report.pruned.params == sum(a.size for a in after) <= 0.75 * found.report.dense.params
    assert found.report.pruned.bytes < 0.9 * found.report.dense.bytes
    test = {"x": rows_of(32, seed=9)}
    bare = snp_onnx.prune(model, plan=found.plan, fold="none", threads=1, latency=False)
    assert relative(found.model, model, test) < min(0.05, 0.5 * relative(bare.model, model, test))
    assert found.report.warnings == ()


def test_a_size_in_bytes_counts_codes() -> None:
    model = weight_only("scales")
    found = snp_onnx.prune(model, {"x": rows_of(300)}, target_size=0.85, latency=False, **FAST)
    assert 0.7 * found.report.dense.bytes < found.report.pruned.bytes <= 0.85 * found.report.dense.bytes
    assert found.report.pruned.bytes == found.model.ByteSize()


def test_the_float_form_of_codes_is_what_they_stand_for() -> None:
    for form in FORMS:
        model = weight_only(form)
        plain = rewrite(prepare(model).model, [Dequantise(), EliminateDead()])
        assert len(plain.notes) == 1
        assert {node.op_type for node in plain.model.graph.node} <= {"MatMul", "Relu", "Softmax", "Transpose"}
        assert relative(plain.model, model, {"x": rows_of(8)}) < 1e-5
        values = {t.name: numpy_helper.to_array(t) for t in plain.model.graph.initializer}
        assert rewrite(prepare(model).model, [Requantise(values)]).notes == ()


@pytest.mark.parametrize("is_declared", [True, False])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_codes_of_a_model_of_half_floats_stand_for_these(kind: int, is_declared: bool) -> None:
    """The type of a Mul need not be declared."""
    net = Net(batch="N", dtype=onnx.helper.tensor_dtype_to_np_dtype(kind))
    codes = net.const(np.random.default_rng(0).integers(-90, 90, (8, 6)), dtype=np.int8)
    weight = net.Mul(net.Cast(codes, to=kind), net.const(np.full((1, 6), 0.01)))
    net.output(net.MatMul(net.input("x", 8), weight))
    model = net.model()
    if not is_declared:
        del model.graph.value_info[:]
    plain = rewrite(model, [Dequantise(), EliminateDead()]).model
    assert [t.data_type for t in plain.graph.initializer] == [kind]


def test_what_is_no_code_of_both_signs_is_cut_as_it_is() -> None:
    """Bytes from 0 on without a zero point, or shifted behind their scale: no floats are made of them either."""
    model = weight_only("zero")
    for node in model.graph.node:
        if node.op_type == "Sub":
            node.op_type = "Add"
    found = snp_onnx.prune(model, {"x": rows_of(300)}, target_params=0.75, latency=False, **FAST)
    assert [a.dtype for a in codes_in(found.model)] == [np.uint8] * 3
    assert any("cut without folding" in warning for warning in found.report.warnings)
    assert found.report.pruned.bytes < found.report.dense.bytes


# declined


def check_declined(here: Bench, capsys: pytest.CaptureFixture[str], *said: str) -> None:
    """`prune` ends with exit code 3 and one line; nothing is written."""
    outcome = here.prune(capsys, "--no-latency")
    assert outcome.code == 3, outcome.err
    lines = [line for line in outcome.lines if line.startswith("error")]
    assert len(lines) == 1
    assert all(text in lines[0] for text in (*said, "prune the float model, then quantise it"))
    assert not here.output.exists()
    assert all(text in "".join(call(capsys, "inspect", here.model).out.split()) for text in said)


def test_operators_that_compute_in_integers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = quantised(classifier(), tmp_path, quant_format=QuantFormat.QOperator, **U8S8)
    check_declined(bench(tmp_path, onnx.load(path)), capsys, "QLinearConv", "QGemm")


def test_operators_that_quantise_while_they_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize_dynamic(classifier(), tmp_path / "dynamic.onnx", weight_type=QuantType.QUInt8)
    check_declined(bench(tmp_path, onnx.load(tmp_path / "dynamic.onnx")), capsys, "ConvInteger", "MatMulInteger")


def test_weights_of_four_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = quantised(classifier(), tmp_path, **{**U8S8, "weight_type": QuantType.QInt4})
    check_declined(bench(tmp_path, onnx.load(path)), capsys, "byte")


def test_weights_in_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    net = Net(opset=21, batch="N")
    x = net.input("x", 16)
    for cin, cout in ((16, 32), (32, 16), (16, 4)):
        codes = net.const(rng.integers(-90, 90, (cin, cout)), f"w{cin}{cout}", np.int8)
        scales = net.const(rng.uniform(0.001, 0.002, (cin // 16, cout)))
        x = net.Relu(net.MatMul(x, net.DequantizeLinear(codes, scales, axis=0, block_size=16)))
    net.output(x)
    here = bench(tmp_path, net.model(), {"x": rng.standard_normal((48, 16)).astype(np.float32)})
    check_declined(here, capsys, "blocks")


def test_float_layers_beside_integer_ones_are_cut(tmp_path: Path) -> None:
    """What a quantised operator reads or gives stays whole; what lies between float layers doesn't."""
    float_model = residual()
    kept = [node.name for node in float_model.graph.node if node.op_type == "Conv"][:3]
    path = quantised(float_model, tmp_path, quant_format=QuantFormat.QOperator, nodes_to_exclude=kept, **U8S8)
    found = snp_onnx.inspect(path)
    assert [group.before for group in found.groups] == [10]
    assert any("QLinear" in stop.reason for stop in found.barriers)


def test_a_quantised_operator_taken_for_a_float_one_is_noticed() -> None:
    """MatMulInteger knows no scales: as a MatMul its units would be removable."""
    info = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(np.ones((4, 4), np.int8), f"w{i}") for i in (1, 2)]
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w1"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=TensorProto.INT8),
        helper.make_node("MatMulInteger", ["b", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.INT8, [2, 4])], [info("y", TensorProto.INT32, [2, 4])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = traced(model, {"x": np.ones((2, 4), np.int8)})
    assert found.groups == ()
    assert {stop.barrier.reason for stop in found.stops} == {
        "MatMulInteger works on quantised values: prune the float model, then quantise it"
    }
