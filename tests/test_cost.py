"""What models cost: every operator that multiplies, weights wherever they stand, and what can't be counted is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, quantize_dynamic

import snp_onnx
from snp_onnx.cost import is_uncounted, node_parts, param_terms, total
from snp_onnx.passes import SplitFused, rewrite
from tests.command_line import images
from tests.graphs import Net
from tests.test_quantised import U8S8, quantised, residual

FAST: dict[str, Any] = {"preset": "fast", "threads": 1}


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parsed(graph: str, opset: int = 17, **weights: npt.NDArray[Any]) -> onnx.ModelProto:
    """A model from ONNX's text form, with these initialisers in its main graph."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "own" : 1]> g {graph}')
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def floats_in(graph: onnx.GraphProto) -> int:
    """Elements of floating-point constants, those in bodies too: what is in the file."""
    found = sum(int(np.prod(t.dims)) for t in graph.initializer if t.data_type == TensorProto.FLOAT)
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("t") and a.t.data_type == TensorProto.FLOAT:
                found += int(np.prod(a.t.dims))
            found += sum(floats_in(body) for body in ([a.g] if a.HasField("g") else a.graphs))
    return found


# recurrent layers


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_are_counted_and_listed(kind: str, gates: int, directions: int) -> None:
    net = Net(batch="N")
    x = net.Transpose(net.input("x", 6, 5), perm=[1, 0, 2])
    w, r = net.normal(directions, gates * 7, 5, name="W"), net.normal(directions, gates * 7, 7, name="R")
    direction = "bidirectional" if directions == 2 else "forward"
    net.output(net.ops(kind, x, w, r, outputs=2, hidden_size=7, direction=direction)[1])
    found = snp_onnx.inspect(net.model())
    assert found.dense.macs == 6 * directions * gates * 7 * (5 + 7)
    assert found.dense.params == floats_in(net.model().graph)
    listed = {stop.weight: (stop.weight_axis, stop.extent, stop.reason) for stop in found.barriers}
    reason = f"{kind} carries a state from step to step"
    assert listed == dict.fromkeys(("W", "R"), (1, gates * 7, reason))


def test_a_fixed_number_of_steps_is_no_batch() -> None:
    graph = "(float[9, 1, 5] x) => (float[9, 1, 1, 7] y) { y = GRU<hidden_size = 7>(x, W, R) }"
    model = parsed(graph, W=normal(1, 21, 5), R=normal(1, 21, 7))
    assert snp_onnx.inspect(model).dense.macs == 9 * 21 * (5 + 7)
    rows = parsed("(float[9, 5] x) => (float[9, 4] y) { y = MatMul(x, w) }", w=normal(5, 4))
    assert snp_onnx.inspect(rows).dense.macs == 5 * 4  # of one row


SCANNED = """(float[9, 5] x) => (float[9, 4] y) {
    z = Constant<value_floats = [0.0, 0.0, 0.0, 0.0]>()
    _, y = Scan<num_scan_inputs = 1, body = b (float[4] s, float[5] e) => (float[4] o, float[4] u) {
        m = MatMul(e, w) o = Add(m, s) u = Tanh(o)
    }>(z, x)
}"""

ALONG_TIME = """(float[9, 1, 5] x) => (float[9, 1, 4] y) {
    t = Transpose<perm = [1, 2, 0]>(x) c = Conv(t, w) y = Transpose<perm = [2, 0, 1]>(c)
}"""

NEIGHBOURS = "(float[9, 5] x, float[9, 9] a) => (float[9, 4] y) { h = MatMul(a, x) y = MatMul(h, w) }"

ROWS = """(float[9, 1, 5] x) => (float[9, 4, 1] y) {
    t = Transpose<perm = [0, 2, 1]>(x) y = Conv(t, w)
}"""

QUANTISED = """(float[9, 9] x) => (float[9, 4] y) {
    scale = Constant<value_float = 0.1>() w = DequantizeLinear(codes, scale) y = MatMul(x, w)
}"""


@pytest.mark.parametrize(
    ("graph", "weights", "macs"),
    [
        (SCANNED, {"w": normal(5, 4)}, 9 * 5 * 4),
        (ALONG_TIME, {"w": normal(4, 5, 1)}, 9 * 5 * 4),
        (NEIGHBOURS, {"w": normal(5, 4)}, 9 * 9 * 5 + 9 * 5 * 4),
        (ROWS, {"w": normal(4, 5, 1)}, 5 * 4),
        (QUANTISED, {"codes": np.ones((9, 4), np.int8)}, 9 * 4),
    ],
)
def test_what_an_operator_mixes_is_no_batch(graph: str, weights: dict[str, npt.NDArray[Any]], macs: int) -> None:
    """Steps of a Scan, positions of a convolution along time, nodes of a graph count all; rows count once."""
    assert snp_onnx.inspect(parsed(graph, **weights)).dense.macs == macs


# bodies

BRANCHES = """(float[N, 8] x, bool c) => (float[N, 4] y) {
    y = If(c) <
        then_branch = t () => (float[N, 4] a) <float[8, 4] big> { h = Relu(x) a = MatMul(h, big) },
        else_branch = e () => (float[N, 4] b) { k = MatMul(x, left) b = MatMul(k, right) }
    >
}"""


def branches(rank: int) -> onnx.ModelProto:
    model = parsed(BRANCHES, left=normal(8, rank), right=normal(rank, 4))
    body = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    del body.initializer[:]
    body.initializer.append(numpy_helper.from_array(normal(8, 4), "big"))
    return model


@pytest.mark.parametrize(("rank", "macs"), [(1, 8 * 4), (6, 8 * 6 + 6 * 4)])
def test_the_more_expensive_branch_counts(rank: int, macs: int) -> None:
    model = branches(rank)
    found = snp_onnx.inspect(model)
    assert found.dense.macs == macs
    assert found.dense.params == floats_in(model.graph) == 8 * 4 + 12 * rank
    listed = {stop.weight: (stop.weight_axis, stop.extent, stop.reason) for stop in found.barriers}
    assert listed["big"] == listed["right"] == (1, 4, "graph output")
    assert [group.id for group in found.groups] == (["left:1"] if rank > 1 else [])


def test_data_files_that_only_a_body_refers_to_are_counted(tmp_path: Path) -> None:
    model, path = branches(1), tmp_path / "model.onnx"
    onnx.save(
        model, path, save_as_external_data=True, location="weights.data", size_threshold=120, convert_attribute=True
    )
    outside = onnx.load(path, load_external_data=False)
    assert not any(tensor.external_data for tensor in outside.graph.initializer)
    body = next(a.g for a in outside.graph.node[0].attribute if a.name == "then_branch")
    assert body.initializer[0].external_data
    found = snp_onnx.inspect(path)
    assert found.dense.bytes == path.stat().st_size + (tmp_path / "weights.data").stat().st_size


def nested() -> onnx.ModelProto:
    """An LSTM two bodies down, behind a shape that only the branch that is taken tells."""
    return parsed(
        """(float[T, N, 5] x, bool c) => (float[1, N, 7] y) {
            y = If(c) <
                then_branch = t () => (float[1, N, 7] a) {
                    s = Shape(x)
                    first = Constant<value = int64[1] {0}>()
                    six = Constant<value = int64[1] {6}>()
                    n = Gather(s, first)
                    is_long = Equal(n, six)
                    z = If(is_long) <
                        then_branch = tt () => (float[T, N, 5] p) { p = Relu(x) },
                        else_branch = te () => (float[N, 5] q) { q = Squeeze(x, first) }
                    >
                    u, a = LSTM<hidden_size = 7>(z, W, R)
                },
                else_branch = e () => (float[1, N, 7] b) { b = Identity(rest) }
            >
        }""",
        W=normal(1, 28, 5),
        R=normal(1, 28, 7),
        rest=normal(1, 1, 7),
    )


def test_shapes_are_followed_into_bodies_of_bodies() -> None:
    found = snp_onnx.inspect(nested(), input_shapes={"x": (6, 1, 5)})
    assert found.dense.macs == 6 * 28 * (5 + 7)
    assert found.notes == ()
    assert {stop.weight: stop.weight_axis for stop in found.barriers} == {"W": 1, "R": 1}


LOOP = """(float[N, 8] x{entry}) => (float[N, 8] y) {{
    go = Constant<value = bool {{1}}>()
    y = Loop({limit}, go, x) <body = b (int64 i, bool g, float[N, 8] h) => (bool on, float[N, 8] k) {{
        on = Less(i, two)
        k = MatMul(h, w)
    }}>
}}"""


@pytest.mark.parametrize(
    ("limit", "entry", "times"),
    [("five", "", 5), ("n", ", int64 n", 1), ("endless", "", 1)],
)
def test_a_loop_counts_as_often_as_a_constant_says(limit: str, entry: str, times: int) -> None:
    numbers = {"five": np.array(5), "endless": np.array(2**63 - 1)}
    known = {limit: numbers[limit]} if limit in numbers else {}
    model = parsed(LOOP.format(limit=limit, entry=entry), w=normal(8, 8), two=np.array(2), **known)
    found = snp_onnx.inspect(model)
    assert found.dense.macs == times * 8 * 8
    assert ("counted in the MACs as one iteration: 1 Loop" in found.notes) == (times == 1)


def test_a_scan_counts_once_for_every_position() -> None:
    graph = """(float[7, N, 8] x, float[N, 8] start) => (float[N, 8] y, float[7, N, 3] ys) {
        y, ys = Scan<num_scan_inputs = 1, body = b (float[N, 8] s, float[N, 8] e) => (float[N, 8] o, float[N, 3] u) {
            m = MatMul(e, w)
            o = Add(m, s)
            u = MatMul(o, v)
        }>(start, x)
    }"""
    model = parsed(graph, w=normal(8, 8), v=normal(8, 3))
    found = snp_onnx.inspect(model, input_shapes={"x": (7, 1, 8), "start": (1, 8)})
    assert found.dense.macs == 7 * (8 * 8 + 8 * 3)


# fused and quantised forms


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """What onnxruntime's optimiser makes of a model and saves."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def test_what_quantisers_write_costs_what_the_float_model_costs(tmp_path: Path) -> None:
    dense = snp_onnx.inspect(residual()).dense
    static = onnx.load(quantised(residual(), tmp_path, quant_format=QuantFormat.QOperator, **U8S8))
    quantize_dynamic(residual(), tmp_path / "dynamic.onnx")
    dynamic = onnx.load(tmp_path / "dynamic.onnx")
    for model in (static, dynamic, optimised(dynamic, tmp_path)):
        found = snp_onnx.inspect(model)
        assert found.dense.macs == dense.macs
        assert dense.params <= found.dense.params <= dense.params + 8  # and scales of activations
        assert sum("works on quantised values" in stop.reason for stop in found.barriers) == 6


def test_a_quantised_recurrent_layer_costs_what_the_float_one_does(tmp_path: Path) -> None:
    graph = "(float[6, N, 5] x) => (float[1, N, 7] h) { y, h = LSTM<hidden_size = 7>(x, W, R) }"
    model = parsed(graph, W=normal(1, 28, 5), R=normal(1, 28, 7))
    model.graph.node[0].name = "lstm"
    quantize_dynamic(model, tmp_path / "dynamic.onnx")
    shapes = {"x": (6, 1, 5)}
    plain, small = (snp_onnx.inspect(m, input_shapes=shapes) for m in (model, tmp_path / "dynamic.onnx"))
    assert any(node.op_type == "DynamicQuantizeLSTM" for node in onnx.load(tmp_path / "dynamic.onnx").graph.node)
    assert (small.dense.macs, small.dense.params) == (plain.dense.macs, plain.dense.params)
    assert sorted(stop.weight for stop in small.barriers) == ["R_quantized", "W_quantized"]


def test_values_that_share_a_byte_count_one_by_one() -> None:
    """MatMulNBits: 32 x 6 weights of four bits, in blocks of 16."""
    codes, scales = np.zeros((6, 2, 8), np.uint8), normal(6, 2)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=32, N=6, bits=4, block_size=16
    )
    info = helper.make_tensor_value_info
    held = [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph([node], "g", [info("x", 1, ["N", 32])], [info("y", 1, ["N", 6])], held)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    )
    assert total(param_terms(model), lambda tensor, axis: codes.shape[axis]) == 32 * 6
    shapes = {"x": (1, 32), "w": codes.shape, "s": scales.shape, "y": (1, 6)}
    assert node_parts(node, shapes) == [((("x", 1), ("y", 0), ("y", 1)), 1.0)]


def test_an_optimised_model_is_pruned_like_the_one_that_was_exported(tmp_path: Path) -> None:
    model = residual()
    fused = optimised(model, tmp_path)
    assert any(node.op_type == "FusedConv" for node in fused.graph.node)
    found = [snp_onnx.prune(m, {"x": images(64)}, target_macs=0.7, latency=False, **FAST) for m in (model, fused)]
    assert found[0].report.pruned.macs == found[1].report.pruned.macs
    assert not any(node.op_type == "FusedConv" for node in found[1].model.graph.node)
    assert "FusedConv became Conv and its activation" in " ".join(found[1].report.notes)
    feed = {"x": images(8, seed=5)}
    a, b = (run_all(result.model, feed)[0] for result in found)
    assert np.allclose(a, b, atol=1e-4)


def run_all(model: onnx.ModelProto, feed: dict[str, Any]) -> list[npt.NDArray[Any]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


ACTIVATIONS = {"Relu": [], "LeakyRelu": [0.2], "Clip": [-0.1, 0.3], "HardSigmoid": [0.3, 0.4], "Tanh": [], "": []}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("opset", [9, 17])
def test_a_fused_convolution_split_computes_the_same(activation: str, opset: int) -> None:
    model = fused_convolution(activation, opset, has_sum=bool(activation))
    feed = {"x": normal(2, 3, 8, 8), "z": normal(2, 6, 8, 8, seed=1)}
    once = rewrite(model, [SplitFused()])
    assert once.model.graph.node[0].op_type == "Conv"
    assert np.allclose(run_all(model, feed)[0], run_all(once.model, feed)[0], atol=1e-5)
    assert rewrite(once.model, [SplitFused()]).notes == ()


def test_the_numbers_of_an_activation_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snp_onnx.passes.split_fused._NAMES", {"Clip": ("max", "min")})
    model = fused_convolution("Clip", 9, has_sum=False)
    feed = {"x": normal(2, 3, 8, 8), "z": normal(2, 6, 8, 8, seed=1)}
    split = rewrite(model, [SplitFused()]).model
    assert not np.allclose(run_all(model, feed)[0], run_all(split, feed)[0], atol=1e-2)


def fused_convolution(activation: str, opset: int, has_sum: bool) -> onnx.ModelProto:
    inputs = ["x", "w", "b", *(["z"] if has_sum else [])]
    attributes: dict[str, Any] = {"activation": activation} if activation else {}
    if ACTIVATIONS[activation]:
        attributes["activation_params"] = ACTIVATIONS[activation]
    node = helper.make_node(
        "FusedConv", inputs, ["y"], domain="com.microsoft", kernel_shape=[3, 3], pads=[1] * 4, **attributes
    )
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [info("x", 1, ["N", 3, 8, 8]), info("z", 1, ["N", 6, 8, 8])],
        [info("y", 1, ["N", 6, 8, 8])],
        [numpy_helper.from_array(normal(6, 3, 3, 3), "w"), numpy_helper.from_array(normal(6), "b")],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


# what can't be counted


def test_what_cannot_be_counted_is_told() -> None:
    graph = "(float[N, 8] x) => (float[N, 4] y) { h = own.Project(x, w) y = own.Project(h, v) }"
    model = parsed(graph, w=normal(8, 4), v=normal(4, 4))
    known = {"x": (1, 8), "w": (8, 4), "h": (1, 4), "v": (4, 4), "y": (1, 4)}
    first = model.graph.node[0]
    assert is_uncounted(first, known, {"w"})
    assert not is_uncounted(first, known, set())  # it reads no weight
    attention = helper.make_node("PackedAttention", ["x", "w"], ["h"], domain="com.microsoft")
    assert is_uncounted(attention, known, set())
    layer = helper.make_node("MatMul", ["x", "w"], ["h"])
    assert not is_uncounted(layer, known, {"w"})
    assert is_uncounted(layer, {}, {"w"})


def test_inspect_and_prune_name_what_is_not_in_the_macs() -> None:
    """ONNX's own inference knows no shape inside this body, because a custom operator stands before the layer."""
    net = Net(batch="N", seed=1)
    x = net.Relu(net.dense(net.input("x", 8), 8, 16))
    net.output(net.dense(x, 16, 8))
    model = net.model()
    y = model.graph.output[0].name
    info = helper.make_tensor_value_info
    inner = [helper.make_node("NonZero", [y], ["places"]), helper.make_node("Cast", ["places"], ["some"], to=1)]
    inner += [
        helper.make_node("MatMul", ["head", "some"], ["seen"]),
        helper.make_node("ReduceMax", ["seen"], ["most"], keepdims=0),
    ]
    inner += [helper.make_node("Identity", ["go"], ["on"])]
    entering, leaving = [info("i", 7, []), info("go", 9, [])], [info("on", 9, []), info("most", 1, [])]
    body = helper.make_graph(inner, "again", entering, leaving)
    model.graph.initializer.append(numpy_helper.from_array(normal(4, 2), "head"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(2), "times"))
    model.graph.node.append(helper.make_node("Loop", ["times", ""], ["extra"], body=body, name="loop"))
    model.graph.output.append(info("extra", 1, [2]))
    told = "not counted in the MACs: 1 MatMul"
    assert told in snp_onnx.inspect(model).notes
    feeds = [{"x": normal(1, 8, seed=n)} for n in range(40)]
    assert told in snp_onnx.prune(model, feeds, target_macs=0.8, latency=False, **FAST).report.notes


STACK = "(float[S, N, 8] x) => (float[S, N, 4] y) { h = Relu(x) y = MatMul(h, w) }"
DEFORMABLE = """(float[N, 3, 8, 8] x, float[N, 18, 8, 8] o) => (float[N, 4, 8, 8] y) {
    y = DeformConv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, o)
}"""
ELLIPSIS = '(float[B, N, 8] x) => (float[B, N, 4] y) { y = Einsum<equation = "...ij,jk->...ik">(x, w) }'


@pytest.mark.parametrize(
    ("graph", "weight", "shapes", "macs", "told"),
    [
        (STACK, (3, 8, 4), {"x": (3, 2, 8)}, 3 * 2 * 8 * 4, (2, "contracted with a constant of rank 3")),
        (DEFORMABLE, (4, 3, 3, 3), {}, 64 * 4 * 27, (0, "graph output")),
        (ELLIPSIS, (8, 4), {"x": (2, 3, 8)}, 2 * 3 * 8 * 4, (1, "no rule for this equation of an Einsum")),
    ],
)
def test_layers_without_units_are_counted_and_listed(
    graph: str, weight: tuple[int, ...], shapes: dict[str, tuple[int, ...]], macs: int, told: tuple[int, str]
) -> None:
    found = snp_onnx.inspect(parsed(graph, opset=19, w=normal(*weight)), input_shapes=shapes)
    assert (found.dense.macs, found.dense.params) == (macs, int(np.prod(weight)))
    (stop,) = found.barriers
    assert (stop.weight, stop.weight_axis) == ("w", told[0])
    assert stop.reason.startswith(told[1])


def test_codes_in_front_of_a_recurrent_layer_are_its_weights() -> None:
    graph = """(float[6, N, 5] x) => (float[1, N, 7] h) {
        wf = Cast<to = 1>(W) ws = Mul(wf, scale) rf = Cast<to = 1>(R) rs = Mul(rf, scale)
        y, h = LSTM<hidden_size = 7>(x, ws, rs)
    }"""
    codes = {name: np.ones((1, 28, extent), np.int8) for name, extent in (("W", 5), ("R", 7))}
    found = snp_onnx.inspect(parsed(graph, scale=np.float32(0.01), **codes), input_shapes={"x": (6, 1, 5)})
    assert (found.dense.macs, found.dense.params) == (6 * 28 * 12, 28 * 12)
    assert {stop.weight: stop.weight_axis for stop in found.barriers} == {"W": 1, "R": 1}


# targets


def capture(seed: int = 0) -> onnx.ModelProto:
    """Two layers, half of whose units are copies, and a large weight that both branches of an If read."""
    first = normal(16, 32, seed=seed)
    first[:, 16:] = first[:, :16]
    return parsed(
        """(float[N, 16] x, bool c) => (float[N, 256] y) {
            a = MatMul(x, first)
            r = Relu(a)
            h = MatMul(r, second)
            y = If(c) <
                then_branch = t () => (float[N, 256] p) { pp = MatMul(h, big) p = Relu(pp) },
                else_branch = e () => (float[N, 256] q) { qq = MatMul(h, big) q = Tanh(qq) }
            >
        }""",
        first=first,
        second=normal(32, 16, seed=seed + 1),
        big=normal(16, 256, seed=seed + 2),
    )


def capture_feeds() -> list[dict[str, Any]]:
    return [{"x": normal(1, 16, seed=n), "c": np.array(n % 2 == 0)} for n in range(120)]


def test_parameters_are_those_of_the_file_bodies_included() -> None:
    model = capture()
    found = snp_onnx.prune(model, capture_feeds(), target_params=0.95, ridge=1e-6, latency=False, **FAST)
    report = found.report
    assert report.dense.params == floats_in(model.graph) == 2 * 16 * 32 + 16 * 256
    assert report.pruned.params == floats_in(found.model.graph) <= 0.95 * report.dense.params
    assert [len(a.g.initializer) for node in found.model.graph.node for a in node.attribute if a.HasField("g")] == [
        0,
        0,
    ]
    for feed in capture_feeds()[:2]:
        assert np.allclose(run_all(model, feed)[0], run_all(found.model, feed)[0], rtol=1e-3, atol=0.05)


def test_a_share_of_the_parameters_that_bodies_alone_exceed_is_refused() -> None:
    feeds = [{**feed, "c": np.array(True)} for feed in capture_feeds()]  # the other branch reads the largest weight
    with pytest.raises(snp_onnx.TargetError, match=r"target-params 0\.4 can't be reached"):
        snp_onnx.prune(capture(), feeds, target_params=0.4, latency=False, **FAST)


def test_a_body_keeps_what_is_its_own() -> None:
    """A weight of a branch stays there, also where a body inside that branch is all that reads it."""
    model = parsed(
        """(float[N, 8] x, bool c) => (float[N, 4] y) {
            y = If(c) <
                then_branch = t () => (float[N, 4] a) <float[8, 4] own> {
                    a = If(c) <
                        then_branch = tt () => (float[N, 4] p) { p = MatMul(x, own) },
                        else_branch = te () => (float[N, 4] q) { r = MatMul(x, own) q = Neg(r) }
                    >
                },
                else_branch = e () => (float[N, 4] b) { b = MatMul(x, far) }
            >
        }""",
        far=normal(8, 4),
    )
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    del branch.initializer[:]
    branch.initializer.append(numpy_helper.from_array(normal(8, 4, seed=1), "own"))
    result = rewrite(model, []).model
    assert [tensor.name for tensor in result.graph.initializer] == ["far"]
    kept = next(a.g for a in result.graph.node[0].attribute if a.name == "then_branch")
    assert [tensor.name for tensor in kept.initializer] == ["own"]
    assert floats_in(result.graph) == floats_in(model.graph)
    for choice in (True, False):
        feed = {"x": normal(3, 8), "c": np.array(choice)}
        assert np.array_equal(run_all(model, feed)[0], run_all(result, feed)[0])
