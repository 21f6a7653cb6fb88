"""Inputs that are text: in every form that Python and files hold it, through calibration, timing and made-up values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import snp_onnx
from snp_onnx.errors import CalibrationError
from tests.graphs import Array, Net
from tests.oracles import assert_valid, run

COUNT = 120
KINDS = np.array([["a"], ["long"]] * (COUNT // 2))


def coded() -> onnx.ModelProto:
    """A row of numbers and a word, which is given out in other words too; half of the units are copies."""
    net = Net(13, batch="n")
    net.domains["ai.onnx.ml"] = 2
    x = net.input("x", 4)
    net.inputs.append(helper.make_tensor_value_info("kind", onnx.TensorProto.STRING, ["n", 1]))
    codes = {"keys_strings": ["a", "long"], "values_floats": [-1.0, 1.0]}
    e = net.op("LabelEncoder", "kind", domain="ai.onnx.ml", **codes)
    weight = net.rng.standard_normal((5, 8))
    h = net.Relu(net.MatMul(net.Concat(x, e, axis=1), net.const(np.concatenate([weight, weight], axis=1))))
    net.output(net.linear(h, 16, 3))
    return net.model()


def numbers(count: int = COUNT) -> Array:
    return np.random.default_rng(1).standard_normal((count, 4)).astype(np.float32)


def assert_right(model: onnx.ModelProto, result: snp_onnx.PruneResult) -> None:
    """Half of the units were copies, so nothing is lost; words decide something."""
    assert result.report.pruned.macs <= 0.6 * result.report.dense.macs
    feed = {"x": numbers(5), "kind": KINDS[:5].astype(object)}
    (expected,), (found,) = run(model, feed), run(result.model, feed)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(run(model, feed | {"kind": KINDS[1:6].astype(object)})[0] - expected).max() > 0.1
    assert_valid(result.model, feed)


@pytest.mark.parametrize(
    "kinds",
    [KINDS, KINDS.astype(object), KINDS.astype("S"), KINDS.astype(np.dtypes.StringDType()), KINDS.tolist()],
    ids=["unicode", "objects", "bytes", "strings", "lists"],
)
def test_words_in_memory_in_every_form(kinds) -> None:
    model = coded()
    result = snp_onnx.prune(model, {"x": numbers(), "kind": kinds}, target_macs=0.6, preset="fast", ridge=1e-6)
    assert_right(model, result)


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_words_in_a_file_and_by_the_clock(tmp_path: Path, preset: str) -> None:
    model = coded()
    np.savez(tmp_path / "rows.npz", x=numbers(), kind=KINDS)
    source = str(tmp_path / "rows.npz")
    result = snp_onnx.prune(model, source, target_macs=0.6, preset=preset, ridge=1e-6, latency=True)
    assert result.report.latency
    assert_right(model, result)


def test_words_that_a_loader_yields() -> None:
    def feeds() -> Iterator[dict[str, Array]]:
        for place in range(COUNT):
            yield {"x": numbers()[place : place + 1], "kind": KINDS[place : place + 1].astype(object)}

    model = coded()
    assert_right(model, snp_onnx.prune(model, feeds(), target_macs=0.6, preset="fast", ridge=1e-6))


def test_words_are_made_up_too() -> None:
    model = coded()
    assert snp_onnx.inspect(model).groups
    result = snp_onnx.prune(model, "random", target_macs=0.6, preset="fast")
    assert result.report.pruned.macs < result.report.dense.macs


@pytest.mark.parametrize(
    ("feed", "reason"),
    [
        ({"x": numbers(), "kind": np.arange(COUNT)[:, None]}, "holds int64, but input 'kind' .* takes strings"),
        ({"x": numbers(), "kind": np.array([["a"], [None]] * (COUNT // 2))}, "holds Python objects, but .* strings"),
        ({"x": np.repeat(KINDS, 4, axis=1), "kind": KINDS}, "holds <U4, but input 'x' .* takes float32"),
    ],
)
def test_what_is_no_text_or_no_number_is_refused(feed: dict[str, Array], reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        snp_onnx.prune(coded(), feed, target_macs=0.6)


@pytest.mark.parametrize("extent", ["n", 1])
def test_a_single_word_for_each_sample(extent: str | int) -> None:
    """Words along one axis, of any batch or one at a time."""
    net = Net(13, batch=extent)
    net.domains["ai.onnx.ml"] = 2
    net.inputs.append(helper.make_tensor_value_info("kind", onnx.TensorProto.STRING, [extent]))
    codes = {"keys_strings": list("abcd"), "values_floats": [0.0, 1.0, 2.0, 3.0]}
    e = net.unsqueeze(net.op("LabelEncoder", "kind", domain="ai.onnx.ml", **codes), 1)
    net.output(net.linear(net.Relu(net.linear(e, 1, 12)), 12, 3))
    model, words = net.model(), np.array(list("abcd") * 20)
    source = {"kind": words} if extent == "n" else [{"kind": word} for word in words[:, None].astype(object)]
    result = snp_onnx.prune(model, source, target_macs=0.6, preset="fast")
    feed = {"kind": words[:1].astype(object)}
    np.testing.assert_allclose(run(result.model, feed)[0], run(model, feed)[0], atol=0.2)
