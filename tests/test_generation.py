"""Generation with pruned decoders: token after token, at growing lengths, and told how many heads are left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

import snp_onnx
from snp_onnx import PruneResult

FOLDER = Path(os.environ.get("SNP_ONNX_BENCH_DATA", Path(__file__).resolve().parents[2] / "shared"))
STORIES = FOLDER / "models" / "stories260k_llama_ts.onnx"
TOKENS = FOLDER / "data" / "stories_tokens.npz"
Tokens = npt.NDArray[np.int64]


def decode(model: onnx.ModelProto, prompt: Tokens, count: int) -> Tokens:
    """`count` more tokens, the likeliest each time."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    tokens = prompt
    for _ in range(count):
        (logits,) = session.run(None, {"input_ids": tokens})
        assert np.isfinite(logits).all()
        tokens = np.concatenate([tokens, logits[:, -1:].argmax(-1)], axis=1)
    return tokens


def assert_causal(model: onnx.ModelProto, tokens: Tokens, start: int) -> None:
    """One run over the whole text picks the same tokens as running step by step did."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": tokens})
    assert np.array_equal(logits[:, start - 1 : -1].argmax(-1), tokens[:, start:])


def test_a_pruned_decoder_generates(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.transformers import Case, exported

    rng = np.random.default_rng(0)
    data = {"input_ids": rng.integers(0, 60, (60, 12))}
    dense = onnx.ModelProto.FromString(exported(Case("llama", "ts", "dynamic")))
    result = snp_onnx.prune(dense, data, target_macs=0.6, preset="fast")
    prompt = data["input_ids"][:2, :3]
    tokens = decode(result.model, prompt, 9)
    assert tokens.shape == (2, 12)
    assert_causal(result.model, tokens, 3)
    result.save(tmp_path / "small.onnx")
    numbers = json.loads((tmp_path / "small.onnx.config.json").read_text())
    assert numbers["dense"]["num_attention_heads"] == 2 * numbers["dense"]["num_key_value_heads"]


@pytest.fixture(scope="module")
def stories() -> tuple[onnx.ModelProto, PruneResult, Tokens]:
    if not (STORIES.is_file() and TOKENS.is_file()):
        pytest.skip(f"{STORIES.name} or its tokens are not here: set SNP_ONNX_BENCH_DATA")
    with np.load(TOKENS) as arrays:
        tokens = arrays["tokens"][:11]
    return onnx.load(STORIES), snp_onnx.prune(STORIES, {"input_ids": tokens}, target_macs=0.94, threads=1), tokens


@pytest.mark.shared
def test_stories_go_on_alike(stories: tuple[onnx.ModelProto, PruneResult, Tokens]) -> None:
    """Of the dense model's own next words, most are the pruned one's too."""
    dense, result, tokens = stories
    prompt = tokens[:4, :16]
    told = decode(dense, prompt, 40)
    again = decode(result.model, prompt, 40)
    assert again.shape == told.shape
    assert_causal(result.model, again, 16)
    session = ort.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input_ids": told})
    assert (logits[:, 15:-1].argmax(-1) == told[:, 16:]).mean() > 0.75


@pytest.mark.shared
def test_stories_say_how_many_heads_are_left(stories: tuple[onnx.ModelProto, PruneResult, Tokens]) -> None:
    _, result, _ = stories
    numbers = result.architecture
    assert numbers is not None
    assert numbers["dense"]["num_attention_heads"] == 8
    assert numbers["dense"]["num_key_value_heads"] == 4
    left = np.broadcast_to(numbers["num_key_value_heads"], 5)
    assert left.tolist() == [group.after for group in result.report.groups if group.kind == "heads"]
    assert np.array_equal(np.broadcast_to(numbers["num_attention_heads"], 5), 2 * left)
