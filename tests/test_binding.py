"""Bound runs and sums on a device, on the CPU: the bits of a plain run and of sums on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import snp_onnx
from snp_onnx.calibration import workers
from snp_onnx.calibration.binding import bind, device_of, summed_on_device
from snp_onnx.calibration.blocks import collect_in_blocks
from snp_onnx.calibration.moments import MomentRequest, Moments
from snp_onnx.calibration.runner import collect
from snp_onnx.calibration.sessions import CUDA, CUDA_OPTIONS, Runtime, open_session, run
from snp_onnx.errors import CalibrationError
from tests.command_line import images, small
from tests.graphs import Net
from tests.test_instrument import SEVERAL, assert_identical, feeds, feeds_whose_order_matters, relu_model

CPU = Runtime(threads=1)


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Passes sum as they do on CUDA; the list grows with each."""
    passes: list[int] = []

    def counted(*given: Any) -> Iterator[Any]:
        passes.append(1)
        yield from summed_on_device(*given)

    monkeypatch.setattr(workers, "device_of", lambda _: "another")
    monkeypatch.setattr(workers, "summed_on_device", counted)
    return passes


def test_sums_have_the_bits_of_sums_on_the_host(as_on_a_device: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    batches = feeds_whose_order_matters()
    found = collect(relu_model(4), SEVERAL, batches, CPU)
    assert as_on_a_device
    turned = collect(relu_model(4), SEVERAL[:1], batches[::-1], CPU)
    monkeypatch.setattr(workers, "device_of", device_of)
    assert_identical(found, collect(relu_model(4), SEVERAL, batches, CPU))
    with pytest.raises(AssertionError):
        assert_identical(turned, {key: found[key] for key in turned})


@pytest.mark.usefixtures("as_on_a_device")
def test_progress_is_heard_batch_by_batch() -> None:
    heard: list[int] = []
    collect(relu_model(2), [MomentRequest("h", 1, 2)], feeds(5, 4, count=3), CPU, progress=heard.append)
    assert heard == [0, 1, 2, 3]


@pytest.mark.usefixtures("as_on_a_device")
def test_without_a_batch() -> None:
    with pytest.raises(CalibrationError, match="no calibration batch"):
        collect(relu_model(2), [MomentRequest("h", 1, 2)], [], CPU)


@pytest.mark.usefixtures("as_on_a_device")
def test_units_that_vary_have_no_moments() -> None:
    batches = [*feeds(5, 4, count=2), *feeds(5, 3, count=2), *feeds(5, 4, count=1)]
    (found,) = collect(relu_model(2), [MomentRequest("h", 1, 2)], batches, CPU).values()
    assert not found.is_finite
    (one,) = collect(relu_model(2), [MomentRequest("h", 1, 2)], batches[:2], CPU).values()
    assert one.is_finite


@pytest.mark.parametrize("few", [False, True])
def test_a_walk_in_blocks(as_on_a_device: list[int], monkeypatch: pytest.MonkeyPatch, few: bool) -> None:
    """What is kept for the next block, and rows in place of Gram matrices, comes with every batch."""
    net = Net(batch="n")
    x = net.input("x", 6)
    for _ in range(3):
        x = net.Relu(net.linear(x, 6, 6))
    net.output(x)
    model = net.model()
    requests = [MomentRequest(node.output[0], 1, 2) for node in model.graph.node if node.op_type == "Relu"]
    shapes, batches = {request.tensor: (1, 6) for request in requests}, feeds(2, 6)
    monkeypatch.setattr("snp_onnx.calibration.blocks.BLOCK", 1)

    def found() -> dict[str, Moments]:
        return collect_in_blocks(
            model, requests, shapes, 3 if few else 60, batches, CPU, lambda array: array, lambda *_: None
        )

    on_device = found()
    assert as_on_a_device
    monkeypatch.setattr(workers, "device_of", device_of)
    for key, expected in found().items():
        assert (expected.rows is not None) == few
        np.testing.assert_array_equal(on_device[key].gram, expected.gram)
        np.testing.assert_array_equal(on_device[key].sum, expected.sum)


@pytest.mark.parametrize("preset", ["paper", "fast", "best"])
def test_the_plan_is_the_same(as_on_a_device: list[int], monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    def pruned() -> snp_onnx.PruneResult:
        return snp_onnx.prune(small(), {"x": images()}, target_macs=0.6, batch_size=5, preset=preset)

    found = pruned()
    assert as_on_a_device
    monkeypatch.setattr(workers, "device_of", device_of)
    expected = pruned()
    assert found.plan == expected.plan
    assert found.model.SerializeToString(deterministic=True) == expected.model.SerializeToString(deterministic=True)


# one feed, many runs


def test_a_bound_run_has_the_bits_of_a_plain_one() -> None:
    session, feed = open_session(small(), CPU), {"x": images(4), "unused": np.zeros(1)}
    bound = bind(session, feed)
    bound.run()
    first = bound.arrays()
    bound.run()
    expected = run(session, feed)
    assert first.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(bound.arrays()[name], array)
        np.testing.assert_array_equal(first[name], array)
        assert first[name].flags.owndata


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (1, 3)])
def test_every_type_and_layout_is_bound(dtype: str, shape: tuple[int, ...]) -> None:
    net = Net(batch="n", dtype=dtype)
    net.output(net.Identity(net.input("x", 3)))
    session = open_session(net.model(), CPU)
    values = np.arange(np.prod(shape)).reshape(shape[::-1]).T.astype(dtype, order="K")
    bound = bind(session, {"x": values})
    bound.run()
    (found,) = bound.arrays().values()
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype


def test_values_of_the_runtime_are_bound_as_they_are() -> None:
    session = open_session(relu_model(2), CPU)
    bound = bind(session, {"x": np.ones((2, 3), np.float32), "mask": np.ones((1, 1), np.int64)})
    bound.run()
    again = bind(session, {"x": bound.values()["y"], "mask": np.ones((1, 1), np.int64)})
    again.run()
    np.testing.assert_array_equal(again.arrays()["y"], np.zeros((2, 3)))


def test_what_cannot_be_bound_or_run_is_said() -> None:
    session = open_session(small(), CPU)
    with pytest.raises(CalibrationError, match="the batch lacks the input 'x'"):
        bind(session, {"z": images(1)})
    bound = bind(session, {"x": images(2, channels=5)})
    with pytest.raises(CalibrationError, match=r"cannot run the batch \(x \(2, 5, 8, 8\)\)"):
        bound.run()


# what CUDA is told


class Recorded:
    """An onnxruntime with CUDA, that remembers how a session was opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import onnxruntime

        self.providers: list[Any] = []
        self.options: list[Any] = []
        real = onnxruntime.InferenceSession

        def opened(payload: Any, options: Any, providers: Any, **more: Any) -> Any:
            self.providers.append(providers)
            self.options.append(options)
            return real(payload, options, providers=["CPUExecutionProvider"], **more)

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", opened)


@pytest.mark.filterwarnings("ignore:running on the CPU")
@pytest.mark.parametrize("timed", [False, True])
def test_cuda_computes_in_full_float32_and_repeatably(monkeypatch: pytest.MonkeyPatch, timed: bool) -> None:
    recorded = Recorded(monkeypatch)
    open_session(small(), Runtime("cuda"), timed=timed)
    ((name, options), last) = recorded.providers[0]
    assert (name, last) == (CUDA, "CPUExecutionProvider")
    assert options["use_tf32"] == "0"
    assert (options == CUDA_OPTIONS) != timed
    assert ("cudnn_conv_algo_search" in options) != timed
    assert recorded.options[0].use_deterministic_compute != timed
    open_session(small(), CPU)
    assert not recorded.options[1].use_deterministic_compute


def test_the_device_of_a_session() -> None:
    class OnCuda:
        def get_providers(self) -> list[str]:
            return [CUDA, "CPUExecutionProvider"]

    assert device_of(OnCuda()) == "cuda"
    assert device_of(open_session(small(), CPU)) == "cpu"


def test_sums_are_taken_in_float64() -> None:
    net = Net(batch="n")
    net.output(net.Identity(net.input("x", 3)))
    session = open_session(net.model(), CPU)
    array = np.array([[0.1, 1e8, -1e-8]], np.float32)
    answers = list(summed_on_device(session, [{"x": array}] * 3, (), CPU))
    assert answers[:2] == [{}, {}]
    (total,) = answers[2].values()
    assert total.dtype == np.float64
    wide = array.astype(np.float64)
    np.testing.assert_array_equal(total, wide + wide + wide)
