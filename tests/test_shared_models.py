"""Networks that somebody else trained and exported, pruned validly; skipped where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import snp_onnx

pytestmark = pytest.mark.shared

FOLDER = Path(os.environ.get("SNP_ONNX_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared")) / "models"

SHAPES = {
    "mobilenetv2_1.0_224_imagenet": {"input": (1, 3, 224, 224)},
    "resnet20_cifar10_ts": {},
    "resnet56_cifar10_dynamo": {},
    "resnet56_cifar10_ts": {},
    "resnet8large_cifar10_mlperftiny": {},
    "stories260k_llama_ts": {"input_ids": (1, 24)},
    "superres_core": {"_ppp5_expanded": (1, 1, 48, 40)},
    "ultraface_rfb320": {},
}
"""Input shapes where axes besides the batch are dynamic; which groups must be found is below."""

LEAST_GROUPS = {"mobilenetv2_1.0_224_imagenet": 25, "resnet20_cifar10_ts": 12, "resnet56_cifar10_ts": 30,
                "resnet56_cifar10_dynamo": 30, "resnet8large_cifar10_mlperftiny": 6, "stories260k_llama_ts": 5,
                "superres_core": 3, "ultraface_rfb320": 25}  # fmt: skip


BLOCKS = {"mobilenetv2_1.0_224_imagenet": (10, 10), "resnet20_cifar10_ts": (9, 7), "resnet56_cifar10_ts": (27, 25),
          "resnet56_cifar10_dynamo": (27, 25), "resnet8large_cifar10_mlperftiny": (3, 1),
          "stories260k_llama_ts": (15, 15), "superres_core": (0, 0), "ultraface_rfb320": (1, 0)}  # fmt: skip
"""How many blocks are listed, and how many of these may go."""


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_blocks_of_a_real_network(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here: set SNP_ONNX_BENCH_DATA")
    blocks = snp_onnx.inspect(path, input_shapes=SHAPES[name]).blocks
    assert (len(blocks), sum(not block.reason for block in blocks)) == BLOCKS[name]
    assert 0 <= sum(block.macs_share for block in blocks if not block.parts) <= 1


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_real_network_is_pruned_validly(name: str, tmp_path: Path) -> None:
    path = FOLDER / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here: set SNP_ONNX_BENCH_DATA")
    before = path.read_bytes()
    result = snp_onnx.prune(
        path,
        "random",
        target_macs=0.8,
        samples=24,
        batch_size=8,
        streams=True,
        threads=1,
        input_shapes=SHAPES[name],
    )
    report = result.report
    assert report.pruned.macs <= 0.8 * report.dense.macs
    assert len(report.groups) >= LEAST_GROUPS[name]
    assert all(np.isfinite(entry.cosine) for entry in report.fidelity)
    result.save(tmp_path / "small.onnx")
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)
    assert (tmp_path / "small.onnx").stat().st_size == report.pruned.bytes < report.dense.bytes
    assert path.read_bytes() == before
