"""Reports: the same facts as a table and as JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

import snp_onnx
from snp_onnx.report.json_report import to_json
from snp_onnx.report.table import comparison_table, inspection_table, pruning_table
from snp_onnx.verbs.fidelity import Fidelity
from snp_onnx.verbs.latency import Latency
from snp_onnx.verbs.result import Comparison, Report
from tests.command_line import images, small


def shown(table: RenderableType, width: int = 140) -> str:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(table)
    return text.getvalue()


def row(text: str, start: str) -> list[str]:
    """The cells of the first row that starts with a word."""
    cells = ([cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines())
    return next(found for found in cells if found and found[0] == start)


@pytest.fixture(scope="module")
def report() -> Report:
    return snp_onnx.prune(small(), {"x": images()}, target_macs=0.6, exclude="n3").report


def test_the_table_shows_the_report(report: Report) -> None:
    text = shown(pruning_table(report))
    kept = report.pruned.macs / report.dense.macs
    assert row(text, "MACs") == ["MACs", "55.30 k", f"{report.pruned.macs / 1000:.2f} k", f"{kept:.3f}"]
    assert row(text, "parameters")[1] == "882"
    after = report.groups[0].after
    assert row(text, "w1:0") == ["w1:0", "channels", "8", str(after), f"{report.groups[0].error:.4f}"]
    assert row(text, "w2:0")[2:4] == ["6", "6 (needs another --exclude)"]
    assert row(text, "w2:0")[4] == "-"
    assert row(text, "w3")[3:] == ["t5 axis 1", "graph output"]
    assert row(text, "t5")[1] == str(report.fidelity[0].samples)


def test_long_reasons_are_folded_not_lost(report: Report) -> None:
    long = replace(report.barriers[0], reason="because " * 30 + "the end")
    text = shown(pruning_table(replace(report, barriers=(long,))), width=80)
    assert "end" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_json_says_the_same(report: Report) -> None:
    found = json.loads(to_json(report))
    assert found["dense"] == {"macs": 55296, "params": 882, "bytes": report.dense.bytes}
    assert found["groups"][0]["after"] == report.groups[0].after
    assert found["groups"][1]["error"] is None
    assert found["barriers"][0]["tensor"] == "t5"
    assert found["target"] == {"kind": "macs", "value": 0.6}
    assert found["options"]["exclude"] == "n3"
    assert found["input_shapes"] == {"x": [1, 3, 8, 8]}
    assert set(found["timings"]) >= {"calibrate", "decide", "fold", "rewrite", "verify"}
    assert to_json(report) == to_json(report)


def test_json_has_no_nan(report: Report) -> None:
    odd = replace(report, timings={"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 0.5})
    assert json.loads(to_json(odd))["timings"] == {"a": None, "b": None, "c": None, "d": 0.5}
    assert "NaN" not in to_json(odd)


def test_inspection_and_nothing_in_the_way() -> None:
    inspection = snp_onnx.inspect(small())
    text = shown(inspection_table(inspection))
    assert "55.30 k MACs, 882 parameters" in text
    assert "inputs x 1x3x8x8" in text
    assert row(text, "w1:0") == ["w1:0", "channels", "8", "n1"]
    free = shown(inspection_table(replace(inspection, barriers=())))
    assert "every axis may be cut" in free
    assert json.loads(to_json(inspection))["nodes"] == 5


def test_comparison_shows_accuracy_and_latency_where_known() -> None:
    comparison = snp_onnx.compare(small(), small(), {"x": images()})
    plain = shown(comparison_table(comparison))
    assert row(plain, "t5")[1:] == ["48", "0.0000", "0.0000", "-", "1.0000", "0.0000"]
    assert "latency" not in plain
    judged = {"error": 0.5, "mean_error": 0.125, "channel": "axis 1, channel 2", "decision": "largest entry"}
    fidelity = Fidelity("t5", 48, 0.5, 0.25, 0.75, 0.9, 0.8, **judged)
    timed = replace(comparison, fidelity=(fidelity,), latency=(Latency(4, 50, 2.0, 1.0, 0.5, 0.45, 0.55, 0.48, 1.9),))
    text = shown(comparison_table(timed), width=180)
    figures = ["0.5000 (axis 1, channel 2)", "0.1250", "75.00 % (largest entry)", "0.5000", "0.2500"]
    assert row(text, "t5") == ["t5", "48", *figures, "90.00 %", "80.00 %"]
    assert row(text, "4") == ["4", "2.000", "1.000", "0.500", "0.450 .. 0.550", "0.480", "50"]
    assert isinstance(comparison, Comparison)
