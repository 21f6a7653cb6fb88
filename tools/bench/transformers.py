"""Transformers: a sentence encoder judged by its embeddings, and a small language model by its perplexity.

The encoder is all-MiniLM-L6-v2 (`make_minilm.py` beside the benchmark models builds it; the package that holds its
weights must be installed), calibrated on half of the STS-B dev sentences and judged on the other half: every other pair
of the whole file, or every other sentence of its first part, picture captions. The language model is stories260k,
calibrated on the first 11 rows and on text it generates itself, judged on the other 11.

    python -m tools.bench.transformers [--only minilm|stories] [--exports ts,dynamo] [--preset best]
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

import snp_onnx
from tools.bench import material

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]

CAPTIONS = 625
"""Pairs at the start of the file that are picture captions; forums and news follow."""

FFN_SHARE = 6 * 2 * 384 * 1536
"""Parameters of MiniLM's six feed-forward layers."""

GENERATED = 64
"""Texts that the language model generates for its own calibration."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("minilm", "stories"))
    parser.add_argument("--exports", default="ts,dynamo")
    parser.add_argument("--preset", default="best")
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}; {material.machine()}; preset {given.preset}\n")
    if given.only != "stories":
        _minilm(given.exports.split(","), given.preset)
    if given.only != "minilm":
        _stories(given.preset)


def _minilm(exports: Sequence[str], preset: str) -> None:
    halves = {"whole file": _whole_file(), "captions": _captions()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, export in enumerate(exports):
            path = _encoder(Path(folder), export)
            total = snp_onnx.inspect(path, input_shapes=_shapes(16)).dense.params
            judged = halves if number == 0 else {"captions": halves["captions"]}  # the other export gives the same
            for name, (calibration, test) in judged.items():
                dense = _embedded(onnx.load(path), test)
                for label, options in _encoder_targets(total).items():
                    result = snp_onnx.prune(path, calibration, preset=preset, **options)
                    cosine = float(np.mean(np.sum(dense * _embedded(result.model, test), axis=1)))
                    macs = result.report.pruned.macs / result.report.dense.macs
                    rows.append((export, name, label, f"{macs:.4f}", f"{cosine:.4f}", _widths(result)))
                    print(*rows[-1], file=sys.stderr, flush=True)
    print(material.table(("export", "sentences", "target", "MACs kept", "mean cosine", "heads / hidden units"), rows))


def _encoder_targets(params: int) -> dict[str, dict[str, Any]]:
    """Feed-forward units alone, by parameters; heads too, by MACs."""
    hidden = {f"{share} of the hidden units": 1 - (1 - share) * FFN_SHARE / params for share in (0.75, 0.5)}
    alone = {name: {"target_params": kept, "units": ["channels"]} for name, kept in hidden.items()}
    return {**alone, **{f"{kept} of the MACs": {"target_macs": kept} for kept in (0.7, 0.5)}}


def _widths(result: snp_onnx.PruneResult) -> str:
    kinds = ("heads", "channels")
    return " / ".join(" ".join(str(g.after) for g in result.report.groups if g.kind == kind) for kind in kinds)


def _shapes(length: int) -> dict[str, tuple[int, ...]]:
    return {"input_ids": (1, length), "attention_mask": (1, length)}


def _encoder(folder: Path, export: str) -> Path:
    path = folder / f"minilm_{export}.onnx"
    options = ["--dynamo"] if export == "dynamo" else []
    script = material.folder() / "models" / "make_minilm.py"
    subprocess.run([sys.executable, str(script), *options, str(path)], check=True, capture_output=True)
    return path


def _pairs() -> list[list[str]]:
    with material.data("stsb_dev.csv").open(newline="") as stream:
        return [row[:2] for row in csv.reader(stream)]


def _whole_file() -> tuple[Feed, Feed]:
    pairs = _pairs()
    first, second = ([text for pair in pairs[start::2] for text in pair] for start in (0, 1))
    return _tokens(list(dict.fromkeys(first))), _tokens(second)


def _captions() -> tuple[Feed, Feed]:
    texts = list(dict.fromkeys(text for pair in _pairs()[:CAPTIONS] for text in pair))
    return _tokens(texts[::2]), _tokens(texts[1::2])


def _tokens(texts: Sequence[str]) -> Feed:
    """Padded to the longest, with the mask that says so."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(material.data("minilm_tokenizer.json")))
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    found = tokenizer.encode_batch(list(texts))
    columns = {"input_ids": [f.ids for f in found], "attention_mask": [f.attention_mask for f in found]}
    return {name: np.array(values, np.int64) for name, values in columns.items()}


def _embedded(model: onnx.ModelProto, feed: Feed, batch: int = 50) -> Array:
    """(n, 384), every row of length one."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    count = len(feed["input_ids"])
    parts = [session.run(None, {k: v[i : i + batch] for k, v in feed.items()})[0] for i in range(0, count, batch)]
    found = np.concatenate(parts).astype(np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def _stories(preset: str) -> None:
    path = material.model("stories260k_llama_ts.onnx")
    dense = onnx.load(path)
    with np.load(material.data("stories_tokens.npz")) as arrays:
        tokens = arrays["tokens"].astype(np.int64)
    calibration = {"input_ids": np.concatenate([tokens[:11], _generated(dense, tokens.shape[1])])}
    rows = [("dense", "1", f"{_perplexity(dense, tokens[11:]):.3f}", "")]
    for units in (["channels", "heads"], ["channels"]):
        for target in (0.94, 0.84):
            result = snp_onnx.prune(path, calibration, target_macs=target, units=units, preset=preset)
            macs = result.report.pruned.macs / result.report.dense.macs
            found = _perplexity(result.model, tokens[11:])
            rows.append((f"{target}, {' and '.join(units)}", f"{macs:.4f}", f"{found:.3f}", _widths(result)))
    print("\n" + material.table(("target, units", "MACs kept", "perplexity", "key-value heads / hidden units"), rows))


def _generated(model: onnx.ModelProto, length: int) -> Array:
    """Texts drawn from the model's own distribution."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    texts = np.ones((GENERATED, 1), np.int64)
    while texts.shape[1] < length:
        logits = session.run(None, {"input_ids": texts})[0][:, -1].astype(np.float64)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        drawn = [[rng.choice(share.shape[1], p=row)] for row in share]
        texts = np.concatenate([texts, np.array(drawn, np.int64)], axis=1)
    return texts


def _perplexity(model: onnx.ModelProto, tokens: Array) -> float:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"input_ids": tokens})[0][:, :-1].astype(np.float64)
    top = logits.max(axis=-1, keepdims=True)
    known = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return float(np.exp(-np.take_along_axis(known, tokens[:, 1:, None], axis=-1).mean()))


if __name__ == "__main__":
    main()
