"""On CUDA: the plan, the moments and the outputs of the CPU. Skipped without a GPU, but for what the CPU can show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import snp_onnx
from snp_onnx.calibration import workers
from snp_onnx.calibration.binding import bind, summed_on_device
from snp_onnx.calibration.moments import MomentRequest
from snp_onnx.calibration.runner import collect
from snp_onnx.calibration.sessions import CUDA, Runtime, open_session
from snp_onnx.passes import prepare
from tests.graphs import feed_for
from tests.topologies import CATALOGUE
from tools import cuda_check

HAS_CUDA = CUDA in onnxruntime.get_available_providers()
PROVIDERS = [
    pytest.param("cpu", id="cpu-summed-as-on-a-device"),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_CUDA, reason="no CUDA: needs onnxruntime-gpu and a GPU")],
    ),
]
NETWORKS = ["chain", "residual-identity", "concat", "depthwise", "grouped", "separate", "llama", "global-pools"]
FLOAT32 = 1e-4
"""What two ways to add up float32 products may differ by, relative to the largest entry."""

on_every_provider = pytest.mark.parametrize("provider", PROVIDERS)


@pytest.fixture(autouse=True)
def on_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sums are always taken where the tensors are; the list grows with each pass."""
    passes: list[int] = []

    def counted(*given: Any) -> Any:
        passes.append(1)
        return summed_on_device(*given)

    monkeypatch.setattr(workers, "summed_on_device", counted)
    return passes


def as_on_a_device(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    if provider == "cpu":
        monkeypatch.setattr(workers, "device_of", lambda _: "another")


def model_and_feeds(name: str) -> tuple[Any, dict[str, Any]]:
    model = CATALOGUE[name].model("N")
    return model, feed_for(model, 64, seed=1)


@on_every_provider
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preset", ["paper", "best"])
def test_the_plan_and_the_outputs_are_those_of_the_cpu(
    name: str, preset: str, provider: str, on_device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, feeds = model_and_feeds(name)
    expected = snp_onnx.prune(model, feeds, target_macs=0.7, preset=preset)
    assert not on_device
    as_on_a_device(monkeypatch, provider)
    found = snp_onnx.prune(model, feeds, target_macs=0.7, preset=preset, provider=provider)
    assert on_device
    assert [(d.group, d.kept) for d in found.plan.decisions] == [(d.group, d.kept) for d in expected.plan.decisions]
    ours, theirs = (bind(open_session(r.model, Runtime()), feeds) for r in (found, expected))
    ours.run()
    theirs.run()
    for output, values in theirs.arrays().items():
        np.testing.assert_allclose(ours.arrays()[output], values, rtol=0, atol=20 * FLOAT32 * np.abs(values).max())


@on_every_provider
@pytest.mark.parametrize("name", NETWORKS)
def test_the_moments_are_those_of_the_cpu(name: str, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = model_and_feeds(name)
    prepared = prepare(model).model
    tensors = [node.output[0] for node in prepared.graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "Relu")]
    session = open_session(_showing(prepared, tensors), Runtime())
    shown = bind(session, feeds)
    shown.run()
    ranks = {name: value.ndim for name, value in shown.arrays().items()}
    requests = [MomentRequest(tensor, 1, ranks[tensor]) for tensor in tensors if ranks[tensor] >= 2]
    batches = [{key: array[at : at + 16] for key, array in feeds.items()} for at in range(0, 64, 16)]
    expected = collect(prepared, requests, batches, Runtime())
    as_on_a_device(monkeypatch, provider)
    found, again = (collect(prepared, requests, batches, Runtime(provider)) for _ in range(2))
    for key, moments in expected.items():
        assert found[key].count == moments.count
        scale = np.abs(moments.gram).max()
        np.testing.assert_allclose(found[key].gram, moments.gram, rtol=0, atol=FLOAT32 * scale)
        np.testing.assert_allclose(found[key].mean, moments.mean, rtol=0, atol=FLOAT32 * np.sqrt(scale))
        np.testing.assert_array_equal(found[key].gram, again[key].gram)


def _showing(model: Any, tensors: list[str]) -> Any:
    import onnx

    shown = onnx.ModelProto.FromString(model.SerializeToString())
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return shown


# the script for a CUDA machine


@pytest.mark.skipif(HAS_CUDA, reason="there is CUDA here")
def test_the_script_says_that_there_is_no_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_check.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no CUDAExecutionProvider here: pip install snp-onnx[gpu]" in line


def test_the_script_runs_on_the_cpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, on_device: list[int], tmp_path: Path
) -> None:
    monkeypatch.setenv("SNP_ONNX_BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(cuda_check, "PRESETS", ("paper",))
    few = ["--provider", "cpu", "--batch", "32", "--samples", "64", "--rounds", "2"]
    assert cuda_check.main(few) == 0
    assert on_device
    table = capsys.readouterr().out
    assert "provider cpu; Python" in table
    assert "| digits | 32 | passed | 0.0e+00 | 0.0e+00 | 0." in table
    monkeypatch.setattr(cuda_check, "MOMENTS", -1.0)
    monkeypatch.setattr(cuda_check, "OUTPUTS", -1.0)
    assert cuda_check.main(few) == 1
    assert "| failed: moments, outputs |" in capsys.readouterr().out
