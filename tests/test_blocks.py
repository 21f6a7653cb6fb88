"""Moments block by block are those of one pass, as Gram matrices and as rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from snp_onnx.calibration import blocks
from snp_onnx.calibration.moments import MomentRequest
from snp_onnx.calibration.runner import collect
from snp_onnx.calibration.sessions import BFLOAT16, Runtime, open_session, run
from snp_onnx.calibration.widening import has_narrow, is_widened, widened
from tests.graphs import Net

COLUMNS = 24


def network() -> onnx.ModelProto:
    """Three layers on 24 units, with a mask over the 5 positions."""
    net = Net(batch="n")
    x, mask = net.input("x", 5, COLUMNS), net.input("mask", 5, dtype=np.bool_)
    for _ in range(3):
        x = net.Relu(net.linear(x, COLUMNS, COLUMNS))
    net.output(x)
    net.output(net.Not(mask))
    return net.model()


def feeds(batches: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    shape = (2, 5, COLUMNS)
    return [
        {"x": rng.standard_normal(shape).astype(np.float32), "mask": rng.random((2, 5)) < 0.7} for _ in range(batches)
    ]


@pytest.mark.parametrize("samples", [4, 40])
@pytest.mark.parametrize("mask", [None, "mask"])
@pytest.mark.parametrize("limit", [1, 10**9])
def test_blocks_give_what_one_pass_gives(monkeypatch, samples: int, mask: str | None, limit: int):
    """4 samples have 20 rows, fewer than the 24 columns: rows are kept in place of Gram matrices."""
    monkeypatch.setattr(blocks, "BLOCK", limit)
    model = network()
    tensors = ["x", *(node.output[0] for node in model.graph.node if node.op_type == "Relu")]
    requests = [MomentRequest(name, 2, 3, row_mask=mask) for name in reversed(tensors)]
    shapes = dict.fromkeys(tensors, (1, 5, COLUMNS))
    given, kept = feeds(samples // 2), []
    expected = collect(model, requests, given, Runtime())

    def keep(array: np.ndarray) -> np.ndarray:
        kept.append(array.shape)
        return array

    heard: list[tuple[int, int]] = []
    found = blocks.collect_in_blocks(
        model, requests, shapes, samples, given, Runtime(), keep, lambda *done: heard.append(done)
    )
    assert found.keys() == expected.keys()
    for key, moments in found.items():
        assert (moments.rows is not None) == (samples == 4)
        assert moments.count == expected[key].count
        np.testing.assert_allclose(moments.gram, expected[key].gram, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.mean, expected[key].mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.energies, np.diag(expected[key].gram), rtol=1e-4, atol=1e-5)
        assert moments.is_finite
    assert heard[-1] == (4, 4)
    assert len(heard) == (5 if limit == 1 else 2)
    assert len(kept) == 4


def test_moments_of_rows_add_up():
    request = MomentRequest("x", 2, 3)
    first, second = (collect(network(), [request], [feed], Runtime(), as_rows={request.key}) for feed in feeds())
    both = collect(network(), [request], feeds(), Runtime())[request.key]
    added = first[request.key] + second[request.key]
    assert added.rows is not None
    np.testing.assert_allclose(added.gram, both.gram, rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_finite_are_seen():
    request = MomentRequest("x", 2, 3)
    (feed,) = feeds(1)
    feed["x"][0, 0, 0] = np.inf
    assert not collect(network(), [request], [feed], Runtime(), as_rows={request.key})[request.key].is_finite


def test_bfloat16_runs_in_float32():
    net = Net(batch="n", dtype=BFLOAT16)
    x = net.input("x", 4)
    net.output(net.Cast(net.linear(x, 4, 3), to=onnx.TensorProto.BFLOAT16))
    model = net.model()
    before = model.SerializeToString(deterministic=True)
    wide = widened(model)
    assert model.SerializeToString(deterministic=True) == before
    assert has_narrow(model)
    assert is_widened(wide)
    assert not has_narrow(wide)
    feed = {"x": np.random.default_rng(0).standard_normal((6, 4)).astype(BFLOAT16)}
    (found,) = run(open_session(model, Runtime()), feed).values()
    weight, bias = (numpy_helper.to_array(t).astype(np.float32) for t in model.graph.initializer)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, feed["x"].astype(np.float32) @ weight + bias, rtol=1e-5, atol=1e-6)
