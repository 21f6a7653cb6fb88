"""`prune_static` beside onnxruntime's `quantize_static`: one reader, one set of names, int8 after pruning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import snp_onnx
from tests.command_line import classifier, files, images
from tests.oracles import run


class Reader(CalibrationDataReader):
    """Batches of six images, as a user writes it."""

    def __init__(self, count: int = 8) -> None:
        self.batches = [{"x": images(6, seed)} for seed in range(count)]
        self.given: Iterator[dict[str, Any]] = iter(self.batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.given, None)

    def rewind(self) -> None:
        self.given = iter(self.batches)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(classifier(), path)
    return path


def test_prune_then_quantise_with_the_same_reader(model: Path, tmp_path: Path) -> None:
    pruned, ready, quantised = (tmp_path / name for name in ("pruned.onnx", "ready.onnx", "int8.onnx"))
    reader = Reader()
    result = snp_onnx.prune_static(model, pruned, reader, target_macs=0.6, extra_options={"threads": 1})
    assert result.report.pruned.macs <= 0.6 * result.report.dense.macs
    assert onnx.load(pruned).SerializeToString() == result.model.SerializeToString()
    reader.rewind()
    quant_pre_process(pruned, ready)
    quantize_static(ready, quantised, reader, QuantFormat.QDQ, weight_type=QuantType.QInt8, per_channel=True)
    feed = {"x": images(6, 50)}
    plain, small = (run(onnx.load(path), feed)[0] for path in (pruned, quantised))
    assert np.linalg.norm(small - plain) < 0.2 * np.linalg.norm(plain)


def test_half_of_the_macs_where_nothing_else_is_asked_for(model: Path, tmp_path: Path) -> None:
    fast = {"preset": "fast", "threads": 1}
    found = snp_onnx.prune_static(model, tmp_path / "a.onnx", Reader(), extra_options=fast)
    assert found.plan.target == {"kind": "macs", "value": 0.5}
    found = snp_onnx.prune_static(model, tmp_path / "b.onnx", Reader(), extra_options=fast | {"target_params": 0.7})
    assert found.plan.target == {"kind": "params", "value": 0.7}


def test_nodes_are_named_as_they_are(tmp_path: Path) -> None:
    proto = classifier()
    first, second = (node for node in proto.graph.node if node.op_type == "Conv")
    first.name, second.name = "a.b", "a+b"  # as patterns they would match other names, or nothing
    fast = {"preset": "fast", "threads": 1}

    def widths(**options: Any) -> list[int]:
        output = tmp_path / "out.onnx"
        found = snp_onnx.prune_static(proto, output, Reader(), target_macs=0.9, extra_options=fast, **options)
        return [group.after for group in found.report.groups]

    assert widths(nodes_to_prune=["a+b"])[0] == 8
    assert widths(nodes_to_exclude=["a+b"])[1] == 12
    assert widths(nodes_to_exclude=["a.b"])[0] == 8


def test_weights_beside_the_model(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned.onnx"
    snp_onnx.prune_static(
        model, output, Reader(), use_external_data_format=True, extra_options={"preset": "fast", "threads": 1}
    )
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("pruned.onnx")]) == 2
    assert run(onnx.load(output), {"x": images(3)})[0].shape == (3, 4)


def test_wrong_arguments_change_nothing(model: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    reader = Reader()
    with pytest.raises(snp_onnx.PlanError, match="name another file"):
        snp_onnx.prune_static(model, model, reader)
    with pytest.raises(snp_onnx.PlanError, match="include"):
        snp_onnx.prune_static(
            model, tmp_path / "a.onnx", reader, nodes_to_prune=["n1"], extra_options={"include": "n1"}
        )
    with pytest.raises(snp_onnx.PlanError):
        snp_onnx.prune_static(model, tmp_path / "no folder" / "a.onnx", reader)
    with pytest.raises(TypeError, match="wieghts"):
        snp_onnx.prune_static(model, tmp_path / "a.onnx", reader, extra_options={"wieghts": 1})
    assert files(tmp_path) == before
    assert reader.get_next() is not None
