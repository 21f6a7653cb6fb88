"""optimum's folders, with the real thing: exported, pruned as a whole, loaded from the new folder and run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snp_onnx
from snp_onnx.errors import PlanError
from tests.graphs import Array

LAYERS, HEADS, KV_HEADS, EACH, WORDS = 2, 8, 4, 4, 80


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BERT, a LLaMA and a GPT-2 of drawn weights, as optimum exports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USE_TF", "0")
        patch.setenv("USE_FLAX", "0")
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("optimum.onnxruntime")
        import torch
        from optimum.exporters.onnx import onnx_export_from_model
        from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {
            "hidden_size": HEADS * EACH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "vocab_size": WORDS,
        }
        folder = tmp_path_factory.mktemp("exports")
        bert = BertModel(BertConfig(**sizes, intermediate_size=64, max_position_embeddings=32))
        llama = LlamaForCausalLM(
            LlamaConfig(**sizes, num_key_value_heads=KV_HEADS, intermediate_size=64, max_position_embeddings=64)
        )
        gpt2 = GPT2LMHeadModel(
            GPT2Config(n_embd=HEADS * EACH, n_layer=1, n_head=HEADS, vocab_size=WORDS, n_positions=64)
        )
        for name, model, task in (
            ("bert", bert, "feature-extraction"),
            ("llama", llama, "text-generation-with-past"),
            ("gpt2", gpt2, "text-generation-with-past"),
        ):
            onnx_export_from_model(model, folder / name, task=task, opset=18, do_validation=False)
            (folder / name / "tokenizer.json").write_text("{}")
        yield folder


def tokens(rows: int, length: int = 12) -> Array:
    return np.random.default_rng(rows).integers(3, WORDS, (rows, length))


def decoder_data(layers: int = LAYERS, heads: int = KV_HEADS) -> dict[str, Array]:
    """Text without a past, as a first call of a decoder gets it."""
    ids = tokens(64)
    names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    past = {name: np.zeros((64, heads, 0, EACH), dtype=np.float32) for name in names}
    places = np.tile(np.arange(ids.shape[1]), (64, 1))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places, **past}


def test_an_encoder_is_loaded_and_run(exports: Path, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    ids = tokens(64)
    data = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    options: dict[str, Any] = {
        "target_macs": 0.5,
        "preset": "fast",
        "units": ["heads", "channels"],
        "ratios": "uniform",
    }
    result = snp_onnx.prune_folder(exports / "bert", tmp_path / "bert", data, **options)
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    assert result.architecture is not None
    assert config["num_attention_heads"] == result.architecture["num_attention_heads"] < HEADS
    loaded = ORTModelForFeatureExtraction.from_pretrained(tmp_path / "bert")
    dense = ORTModelForFeatureExtraction.from_pretrained(exports / "bert")
    assert loaded.config.num_attention_heads == config["num_attention_heads"]
    given = {name: array[:4] for name, array in data.items()}
    states = loaded(**given).last_hidden_state
    assert states.shape == (4, 12, HEADS * EACH)
    assert np.abs(states - dense(**given).last_hidden_state).max() < 0.1


def generated(folder: Path, **how: Any) -> Array:
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(folder, **how)
    ids = torch.from_numpy(tokens(2, 5))
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0)
    return np.asarray(made.numpy())


@pytest.fixture(scope="module")
def narrow(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LLaMA without some heads of its caches."""
    folder = tmp_path_factory.mktemp("narrow") / "llama"
    options: dict[str, Any] = {"target_macs": 0.85, "preset": "fast", "units": ["heads"], "caches": True}
    result = snp_onnx.prune_folder(exports / "llama", folder, decoder_data(), **options)
    assert result.report.pruned.macs <= 0.85 * result.report.dense.macs
    return folder


def test_a_decoder_generates_with_narrower_caches(exports: Path, narrow: Path) -> None:
    config, old = (json.loads((folder / "config.json").read_text()) for folder in (narrow, exports / "llama"))
    assert 0 < config["num_key_value_heads"] < KV_HEADS
    assert config == {**old, "num_key_value_heads": config["num_key_value_heads"]}
    made = generated(narrow)
    assert made.shape == (2, 11)
    assert np.array_equal(made, without_a_past(narrow, config["num_key_value_heads"]))
    assert np.array_equal(generated(narrow, use_io_binding=True), made)


def without_a_past(folder: Path, heads: int) -> Array:
    """The same, each token from all tokens before it."""
    import onnxruntime as ort

    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    ids = tokens(2, 5)
    for _ in range(6):
        past = {name: np.zeros((2, heads, 0, EACH), np.float32) for name in decoder_data() if name.startswith("past")}
        places = np.tile(np.arange(ids.shape[1]), (2, 1))
        logits = session.run(
            None, {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places, **past}
        )[0]
        ids = np.concatenate([ids, logits[:, -1].argmax(-1)[:, None]], axis=1)
    return ids


def test_with_the_old_config_it_would_not_run(exports: Path, narrow: Path, tmp_path: Path) -> None:
    """What the update is for: optimum makes the first caches by config.json."""
    shutil.copytree(narrow, tmp_path / "llama")
    shutil.copy(exports / "llama" / "config.json", tmp_path / "llama" / "config.json")
    with pytest.raises(Exception, match=r"(?i)dimension"):
        generated(tmp_path / "llama")


def test_layers_keep_as_many_heads_though_the_plan_would_not(exports: Path, narrow: Path) -> None:
    options: dict[str, Any] = {"target_macs": 0.85, "preset": "fast", "units": ["heads"], "caches": True}
    plain = snp_onnx.prune(exports / "llama", decoder_data(), **options)
    assert len({decision.after for decision in plain.plan.decisions}) == 2
    numbers = json.loads((narrow / "model.onnx.config.json").read_text())
    assert numbers["num_key_value_heads"] == min(decision.after for decision in plain.plan.decisions)


def test_what_the_config_could_not_say_is_refused_before_any_work(exports: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="gpt2 has no number of key-value heads"):
        snp_onnx.prune_folder(exports / "gpt2", tmp_path / "gpt2", "nowhere.npz", target_macs=0.8, caches=True)
    assert not (tmp_path / "gpt2").exists()


def test_without_caches_a_decoder_keeps_their_shape(exports: Path, tmp_path: Path) -> None:
    data = decoder_data(1, HEADS)
    snp_onnx.prune_folder(exports / "gpt2", tmp_path / "gpt2", data, target_macs=0.8, preset="fast")
    config, old = (json.loads((folder / "gpt2" / "config.json").read_text()) for folder in (tmp_path, exports))
    assert config["n_head"] == old["n_head"]
    assert config["n_inner"] < 4 * HEADS * EACH
    assert generated(tmp_path / "gpt2").shape == (2, 11)
