"""Whether rows of axis 0 are samples: tried on the model, for every form in which rows may be mixed or apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import snp_onnx
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.sources.batch_axis import Runnable
from snp_onnx.sources.inputs import Array, input_specs
from snp_onnx.sources.samples import Part, Preprocess, Samples, open_samples
from snp_onnx.verbs.reading import runnable

HEAD = '<ir_version: 8, opset_import: ["": 17]> g '
CPU = Runtime(threads=1)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": normal(4, 4),
    "w2": normal(4, 4, seed=1),
    "k2": normal(4, 4, 3, seed=1),
    "k": normal(4, 4, 3),
    "k1": normal(4, 4, 1),
    "filters": normal(6, 3, 3, 3),
    "gates": normal(1, 32, 4),
    "again": normal(1, 32, 8),
    "flat": np.array([-1, 4]),
}


def model_of(text: str) -> onnx.ModelProto:
    """The graph, with those of the common weights that it names."""
    model = parser.parse_model(HEAD + text)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in WEIGHTS.items() if n in used)
    return model


def opened(text: str, source: Any, samples: int | None = None) -> Samples:
    model = model_of(text)
    return open_samples(source, input_specs(model), samples=samples, model=runnable(model, CPU))


def feeds(*shapes: tuple[int, ...], name: str = "x") -> list[dict[str, Array]]:
    return [{name: normal(*shape, seed=index)} for index, shape in enumerate(shapes)]


TURNED = "t = Transpose <perm = [1, 2, 0]> (x) "
BACK = "y = Transpose <perm = [2, 0, 1]> (c)"
ROWS: Mapping[str, tuple[str, Any, Any]] = {
    "hidden layer": ("(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", normal(40, 4), {"y": 0}),
    "names of both axes alike": ("(float[d, d] x) => (float[d, 4] y) { y = MatMul(x, w) }", normal(40, 4), {"y": 0}),
    "rows on another axis of the output": (
        "(float[N, 3, 8, 8] x) => (float[T, N, C] y) "
        "{ c = Conv(x, filters) m = ReduceMean <axes = [2], keepdims = 0> (c) y = Transpose <perm = [2, 0, 1]> (m) }",
        normal(20, 3, 8, 8),
        {"y": 1},
    ),
    "rows that become several": (
        "(float[N, 3, 4] x) => (float[M, 4] y) { y = Reshape(x, flat) }",
        normal(20, 3, 4),
        {"y": 0},
    ),
    "rows that become several, outermost last": (
        "(float[N, 3, 4] x) => (float[M, 4] y) { t = Transpose <perm = [1, 0, 2]> (x) y = Reshape(t, flat) }",
        normal(20, 3, 4),
        {"y": 0},
    ),
    "pairs of all rows beside the rows": (
        "(float[N, 4] x) => (float[N, 4] y, float[N, N] p) { y = MatMul(x, w) t = Transpose(y) p = MatMul(y, t) }",
        normal(20, 4),
        {"y": 0, "p": 0},
    ),
    "a mean beside the rows": (
        "(float[N, 4] x) => (float[N, 4] y, float[1, 4] m) { y = MatMul(x, w) m = ReduceMean <axes = [0]> (y) }",
        normal(20, 4),
        {"y": 0, "m": None},
    ),
    "classes and NaN": (
        "(float[N, 4] x) => (int64[N] c, float[N, 4] s, bool[N, 4] b) "
        "{ c = ArgMax <axis = 1, keepdims = 0> (x) s = Sqrt(x) b = IsNaN(s) }",
        normal(20, 4),
        {"c": 0, "s": 0, "b": 0},
    ),
    "nothing but what is found": (
        "(float[N, 4] x) => (int64[2, D] y) { y = NonZero(x) }",
        np.maximum(normal(20, 4), 0),
        {"y": None},
    ),
    "noise": (
        "(float[N, 4] x) => (float[N, 4] y, float[N, 4] z) { r = RandomNormalLike(x) y = Add(x, r) z = Relu(x) }",
        normal(20, 4),
        {"y": 0, "z": 0},
    ),
    "rounded by the extremes of a batch": (
        "(float[N, 4] x) => (float[N, 4] y) { q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
        np.linspace(1, 300, 160).reshape(40, 4).astype(np.float32),
        {"y": 0},
    ),
    "a constant": (
        "(float[N, 4] x) => (float[N, 4] y) { e = Exp(x) s = ReduceSum <noop_with_empty_axes = 1> (e) y = Div(s, e) }",
        normal(20, 4),
        {"y": 0},
    ),
    "one row at a time": (
        "(float[N, 4] x) => (float[1, 4] y) { o = Constant <value_ints = [1, 4]> () y = Reshape(x, o) }",
        normal(20, 4),
        {"y": 0},
    ),
    "fixed batch": ("(float[4, 4] x) => (float[4, 4] y) { y = MatMul(x, w) }", normal(20, 4), {"y": 0}),
    "fixed batch, nothing but what is found": (
        "(float[4, 4] x) => (int64[2, D] y) { y = NonZero(x) }",
        np.maximum(normal(20, 4), 0),
        {"y": None},
    ),
    "fixed batch, rows last": (
        "(float[4, 4] x) => (float[4, 4] y) { m = MatMul(x, w) y = Transpose(m) }",
        normal(20, 4),
        {"y": 1},
    ),
}
MIXED: Mapping[str, tuple[str, Any]] = {
    "time first": (
        "(float[T, 1, 4] x) => (float[T, 1, 4] y) {" + TURNED + "c = Conv <pads = [1, 1]> (t, k) " + BACK + "}",
        feeds(*[(32, 1, 4)] * 12),
    ),
    "time first, ends cut off": (
        "(float[T, 1, 4] x) => (float[S, 1, 4] y) {" + TURNED + "c = Conv(t, k) " + BACK + "}",
        feeds(*[(32, 1, 4)] * 12),
    ),
    "time first, every second step": (
        "(float[T, 1, 4] x) => (float[S, 1, 4] y) {" + TURNED + "c = Conv <strides = [2]> (t, k1) " + BACK + "}",
        feeds(*[(32, 1, 4)] * 12),
    ),
    "recurrent over one series": (
        "(float[T, 1, 4] x) => (float[T, 1, 1, 8] y) { y = LSTM <hidden_size = 8> (x, gates, again) }",
        feeds(*[(9, 1, 4)] * 12),
    ),
    "recurrent over some series": (
        "(float[T, N, 4] x) => (float[T, 1, N, 8] y) { y = LSTM <hidden_size = 8> (x, gates, again) }",
        feeds(*[(9, 5, 4)] * 12),
    ),
    "recurrent, its last state": (
        "(float[T, N, 4] x) => (float[1, N, 8] h) { y, h = LSTM <hidden_size = 8> (x, gates, again) }",
        feeds(*[(9, 5, 4)] * 12),
    ),
    "attention over axis 0": (
        "(float[T, 4] x) => (float[T, 4] y) "
        "{ q = MatMul(x, w) t = Transpose(x) l = MatMul(q, t) p = Softmax(l) a = MatMul(p, x) y = Add(x, a) }",
        feeds(*[(9, 4)] * 12),
    ),
    "a mean over axis 0": (
        "(float[T, 4] x) => (float[1, 4] y) { r = MatMul(x, w) y = ReduceMean <axes = [0]> (r) }",
        feeds(*[(9, 4), (7, 4)] * 6),
    ),
    "normalised by the batch": (
        "(float[N, 4] x) => (float[N, 4] y) "
        "{ m = ReduceMean <axes = [0]> (x) d = Sub(x, m) v = ReduceL2 <axes = [0]> (d) y = Div(d, v) }",
        feeds(*[(9, 4)] * 12),
    ),
    "a matrix of neighbours": (
        "(float[V, 4] x, float[V, V] a) => (float[V, 4] y) { m = MatMul(a, x) y = MatMul(m, w) }",
        [{"x": normal(v, 4), "a": normal(v, v)} for v in (5, 6, 7) * 4],
    ),
    "a matrix of neighbours, axes without names": (
        "(float[?, 4] x, float[?, ?] a) => (float[?, 4] y) { m = MatMul(a, x) y = MatMul(m, w) }",
        [{"x": normal(v, 4), "a": normal(v, v)} for v in (5, 6, 7) * 4],
    ),
    "inputs of different lengths": (
        "(float[A, 4] x, float[B, 4] z) => (float[C, 4] y) { m = Concat <axis = 0> (x, z) y = MatMul(m, w) }",
        [{"x": normal(v, 4), "z": normal(v - 2, 4)} for v in (5, 6, 7) * 4],
    ),
    "edges by number": (
        "(float[V, 4] x, int64[E] e) => (float[E, 4] y) { y = Gather(x, e) }",
        [{"x": normal(v, 4), "e": rng().integers(0, v, 3 * v)} for v in (5, 6, 7) * 4],
    ),
    "time first, rounded by the extremes": (
        "(float[T, 1, 4] x) => (float[T, 1, 4] y) { q, s, z = DynamicQuantizeLinear(x) "
        "d = DequantizeLinear(q, s, z) t = Transpose <perm = [1, 2, 0]> (d) c = Conv <pads = [1, 1]> (t, k) "
        + BACK
        + "}",
        feeds(*[(32, 1, 4)] * 12),
    ),
    "time first, of fixed length": (
        "(float[8, 1, 4] x) => (float[8, 1, 4] y) {" + TURNED + "c = Conv <pads = [1, 1]> (t, k) " + BACK + "}",
        feeds(*[(8, 1, 4)] * 12),
    ),
    "no batch declared": (
        "(float[8, 4] x, float s) => (float[8, 4] y) { y = Mul(x, s) }",
        [{"x": normal(8, 4), "s": np.float32(2)}] * 12,
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_do_not_mix_are_samples(name: str) -> None:
    text, data, axes = ROWS[name]
    with opened(text, {"x": data}) as samples:
        assert not samples.is_whole
        assert samples.count == len(data)
        assert samples.output_axes == axes
        assert not [note for note in samples.notes if "batch axis" in note]
        got = np.concatenate([feed["x"] for feed in samples.batches(4, Part.ALL)])
        np.testing.assert_array_equal(got, data)


@pytest.mark.parametrize("name", MIXED)
def test_feeds_whose_rows_mix_are_samples_as_a_whole(name: str) -> None:
    text, given = MIXED[name]
    with opened(text, given) as samples:
        assert samples.is_whole
        assert samples.count == 12
        assert samples.output_axes is not None
        assert set(samples.output_axes.values()) == {None}
        for got, wanted in zip(samples.batches(64, Part.ALL), given, strict=True):
            for key, values in wanted.items():
                np.testing.assert_array_equal(got[key], values)
        notes = [note for note in samples.notes if "no batch axis" in note]
        assert notes == [note for note in notes if "each of 12 feeds is one sample, fed whole" in note]
        assert len(notes) == (name != "no batch declared")


def test_one_feed_is_said_to_be_one_sample() -> None:
    text, given = MIXED["time first"]
    with opened(text, given[0]) as samples:
        assert samples.count == 1
        assert any("give more feeds" in note for note in samples.notes)


def test_samples_are_counted_in_feeds_and_none_is_read_beyond() -> None:
    text, given = MIXED["time first"]
    asked = []

    def source() -> Iterable[dict[str, Array]]:
        for index, feed in enumerate(given):
            asked.append(index)
            yield feed

    with opened(text, source(), samples=3) as samples:
        assert samples.count == 3
        assert asked == [0, 1, 2]
        assert [len(feed["x"]) for feed in samples.batches(64, Part.ALL)] == [32] * 3


def test_an_iterator_is_read_once_for_rows_too() -> None:
    text, data, _ = ROWS["hidden layer"]
    with opened(text, iter([{"x": row[None]} for row in data])) as samples:
        np.testing.assert_array_equal(np.concatenate([f["x"] for f in samples.batches(16, Part.ALL)]), data)


def test_a_long_series_is_cut_into_blocks_of_the_fixed_length() -> None:
    text, _ = MIXED["time first, of fixed length"]
    data = normal(8 * 12 + 3, 1, 4)
    with opened(text, {"x": data}) as samples:
        assert samples.is_whole
        assert samples.count == 12
        got = np.concatenate([feed["x"] for feed in samples.batches(64, Part.ALL)])
        np.testing.assert_array_equal(got, data[: 8 * 12])


def test_made_up_series_have_the_length_asked_for() -> None:
    model = model_of(MIXED["time first"][0])
    with open_samples(
        "random", input_specs(model), Preprocess(), 5, 0, {"x": (6, 1, 4)}, model=runnable(model, CPU)
    ) as found:
        assert [feed["x"].shape for feed in found.batches(64, Part.ALL)] == [(6, 1, 4)] * 5


def test_names_of_axes_decide_where_a_single_row_tells_nothing() -> None:
    text = "(float[V, 4] x, float[V, V] a) => (float[V, 4] y) { m = MatMul(a, x) y = MatMul(m, w) }"
    with opened(text, [{"x": normal(1, 4), "a": normal(1, 1)}] * 3) as samples:
        assert samples.is_whole
        assert any("its name is that of another axis" in note for note in samples.notes)


def test_images_as_many_as_high_and_wide_are_rows() -> None:
    text = "(float[d, 3, d, d] x) => (float[d, 6, e, e] y) { y = Conv(x, filters) }"
    with opened(text, {"x": normal(8, 3, 8, 8)}) as samples:
        assert not samples.is_whole


def test_small_batches_are_tried_on_few_rows() -> None:
    model, seen = model_of(ROWS["hidden layer"][0]), []
    one = runnable(model, CPU, 1)

    def run(feed: Mapping[str, Array]) -> Mapping[str, Array]:
        seen.append(len(feed["x"]))
        return one.run(feed)

    open_samples(normal(20, 4), input_specs(model), model=replace(one, run=run))
    assert seen == [2, 1]


def test_made_up_graphs_have_the_size_asked_for() -> None:
    text = "(float[V, 4] x, float[V, V] a) => (float[V, 4] y) { m = MatMul(a, x) y = MatMul(m, w) }"
    model, shapes = model_of(text), {"x": (5, 4), "a": (5, 5)}
    with open_samples("random", input_specs(model), Preprocess(), 6, 0, shapes, model=runnable(model, CPU)) as found:
        assert [feed["a"].shape for feed in found.batches(64, Part.ALL)] == [(5, 5)] * 6


def test_without_a_model_declared_axes_decide() -> None:
    model = model_of(MIXED["time first"][0])
    with open_samples(MIXED["time first"][1], input_specs(model)) as samples:
        assert not samples.is_whole
        assert samples.output_axes is None
        assert samples.count == 32 * 12


def test_a_single_row_tells_nothing_and_a_fixed_batch_of_one_is_not_tried() -> None:
    def refuse(_: Mapping[str, Array]) -> Mapping[str, Array]:
        raise AssertionError

    for dim in ("N", "1"):
        specs = input_specs(model_of(f"(float[{dim}, 4] x) => (float[M, 4] y) {{ y = Relu(x) }}"))
        given = normal(1 if dim == "N" else 20, 4)
        with open_samples(given, specs, model=Runnable(refuse, {"y": (None, 4)})) as samples:
            assert not samples.is_whole


SERIES = (
    "(float[T, 1, 4] x) => (float[T, 1, 4] y) {"
    + TURNED
    + "h = Conv <pads = [1, 1]> (t, k) r = Relu(h) c = Conv <pads = [1, 1]> (r, k2) "
    + BACK
    + "}"
)


def test_prune_and_compare_feed_series_whole_and_agree() -> None:
    dense, given = model_of(SERIES), feeds(*[(20 + index % 3, 1, 4) for index in range(30)])
    result = snp_onnx.prune(dense, given, target_macs=0.6, preset="fast")
    held_out = [given[place] for place in Part.HELD_OUT.choose(np.arange(30))]
    (note,) = [note for note in result.report.notes if "no batch axis" in note]
    assert "each of 30 feeds is one sample" in note
    compared = snp_onnx.compare(dense, result.model, held_out)
    assert [entry.relative_l2 for entry in compared.fidelity] == pytest.approx(
        [entry.relative_l2 for entry in result.report.fidelity]
    )
    run = {name: runnable(model, CPU).run for name, model in (("dense", dense), ("pruned", result.model))}
    before, after = (np.concatenate([run[name](feed)["y"].ravel() for feed in held_out]) for name in run)
    wanted = np.linalg.norm(before - after) / np.linalg.norm(before)
    assert result.report.fidelity[0].relative_l2 == pytest.approx(wanted, rel=1e-4)


def test_every_verb_warns_of_samples_that_repeat() -> None:
    dense = model_of("(float[N, 4] x) => (float[N, 4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w2) }")
    for data, text in (
        (np.zeros((64, 4), np.float32), "are the same: statistics"),
        (np.tile(normal(4, 4), (16, 1)), "only 4 of the"),
    ):
        result = snp_onnx.prune(dense, {"x": data}, target_macs=0.8, preset="fast")
        compared = snp_onnx.compare(dense, result.model, {"x": data})
        for warnings in (result.report.warnings, compared.warnings):
            assert len([warning for warning in warnings if text in warning]) == 1
