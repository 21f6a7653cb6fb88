"""The numbers beside a pruned transformer: what generation code has to know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import snp_onnx
from snp_onnx import PlanError
from snp_onnx.passes import prepare
from snp_onnx.planning.architecture import architecture
from snp_onnx.tracing import Kind
from snp_onnx.tracing import trace as snp_trace
from tests.graphs import feed_for
from tests.oracles import traced
from tests.topologies import CATALOGUE


def numbers(name: str, *, units: int) -> dict[str, object] | None:
    """With the first `units` units of every group gone."""
    model = prepare(CATALOGUE[name].model()).model
    trace = traced(model, feed_for(model, 1))
    return architecture(trace, trace.alive([group.labels[:units] for group in trace.groups]))


@pytest.mark.parametrize(
    ("name", "queries", "shared"),
    [
        ("multi-head", 3, 3),
        ("llama", 4, 2),
        ("group-query", 4, 2),
        ("group-query-packed", 4, 2),
        ("einsum-heads", 3, 3),
    ],
)
def test_heads_are_counted_in_every_layout(name: str, queries: int, shared: int) -> None:
    found = numbers(name, units=1)
    assert found is not None
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (queries, shared)


def test_query_heads_of_one_key_value_head_go_alone() -> None:
    found = numbers("group-query-single", units=1)
    assert found is not None
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (3, 1)


def test_hidden_units_and_the_dense_numbers() -> None:
    found = numbers("llama", units=2)
    assert found is not None
    dense = {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 10}
    assert found == {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8, "dense": dense}


def test_nothing_is_said_where_nothing_changed_or_there_is_no_attention() -> None:
    assert numbers("llama", units=0) is None
    assert numbers("chain", units=1) is None
    assert numbers("flatten-gemm", units=1) is None


def test_the_numbers_go_to_a_file_beside_the_model(tmp_path: Path) -> None:
    model = CATALOGUE["llama"].model()
    result = snp_onnx.prune(model, feed_for(model, 40), target_macs=0.6, preset="fast")
    result.save(tmp_path / "small.onnx")
    written = json.loads((tmp_path / "small.onnx.config.json").read_text())
    assert written.pop("snp_onnx")
    assert written == result.architecture
    widths = {group.kind: group.after for group in result.report.groups}
    assert np.max(written["num_key_value_heads"]) == widths["heads"]
    assert np.max(written["intermediate_size"]) == widths["channels"]
    result.save(tmp_path / "small.onnx")  # our own file may be replaced


def test_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    model = CATALOGUE["llama"].model()
    result = snp_onnx.prune(model, feed_for(model, 40), target_macs=0.6, preset="fast")
    (tmp_path / "small.onnx.config.json").write_text("[1, 2]")
    with pytest.raises(PlanError, match=r"small\.onnx\.config\.json: head counts go to this file"):
        result.save(tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx").exists()


def test_what_the_file_said_of_an_earlier_model_goes(tmp_path: Path) -> None:
    model = CATALOGUE["llama"].model()
    output = tmp_path / "small.onnx"
    snp_onnx.prune(model, feed_for(model, 40), target_macs=0.6, preset="fast").save(output)
    assert (tmp_path / "small.onnx.config.json").exists()
    plain = CATALOGUE["chain"].model()
    snp_onnx.prune(plain, feed_for(plain, 40), target_macs=0.6, preset="fast").save(output)
    assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]


def test_dimensions_of_keys_and_of_values_are_told_apart() -> None:
    model = prepare(CATALOGUE["llama"].model()).model
    feed = feed_for(model, 2)
    shapes = {name: tuple(values.shape) for name, values in feed.items()}
    trace = snp_trace(model, shapes, kinds=[Kind.CHANNELS, Kind.HEAD_DIMS])
    found = architecture(trace, trace.alive([group.labels[:1] for group in trace.groups]))
    assert found is not None
    assert found["v_head_dim"] == found["dense"]["v_head_dim"] - 1
    assert "head_dim" not in found  # rotary embedding keeps queries and keys whole
