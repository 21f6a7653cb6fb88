"""What `inspect` says can go at most is what is gone when every group is cut to one unit; options are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.errors import TargetError
from snp_onnx.report.page import inspection_page
from snp_onnx.report.table import inspection_table
from snp_onnx.verbs.result import Prunable
from tests.command_line import bench, call, images, small
from tests.graphs import Net
from tests.test_report import row, shown
from tests.topologies import CATALOGUE

Capture = pytest.CaptureFixture[str]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("residual-identity", {}),
    "streams": ("residual-identity", {"streams": True}),
    "head-dims": ("separate", {"units": ["channels", "heads", "head-dims"]}),
    "stream": ("llama", {"units": ["channels", "heads", "stream"]}),
    "caches": ("multi-head-cached", {"caches": True}),
}


def feed(model: onnx.ModelProto, samples: int = 40) -> dict[str, Any]:
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((samples, *shape[1:])).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_at_least_is_what_is_left_of_one_unit_a_group(kind: str) -> None:
    name, options = KINDS[kind]
    model = CATALOGUE[name].model("N")
    found = snp_onnx.inspect(model).prunable[kind]
    assert found.groups > 0
    report = snp_onnx.prune(model, feed(model), variance=1e-9, preset="paper", **options).report
    assert report.pruned.macs / report.dense.macs == pytest.approx(found.macs_left_with_default, abs=2e-4)
    assert report.pruned.params / report.dense.params == pytest.approx(found.params_left_with_default, abs=0.02)
    assert (
        found.options
        == {
            "default": "",
            "streams": "--streams",
            "head-dims": "--units channels,head-dims,heads",
            "stream": "--units channels,heads,stream",
            "caches": "--caches",
        }[kind]
    )


def test_kinds_alone_and_a_target_out_of_reach() -> None:
    found = snp_onnx.inspect(small()).prunable
    dense = 64 * 9 * (3 * 8 + 8 * 6 + 6 * 4)
    assert found["channels"] == found["default"]
    assert found["default"].macs_left == pytest.approx(64 * 9 * (3 + 1 + 4) / dense)
    assert (found["default"].groups, found["default"].units) == (2, 14)
    assert found["heads"] == Prunable("", 0, 0, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(TargetError, match=f"keeps {found['default'].macs_left + 5e-4:.3f} of the dense macs"):
        snp_onnx.prune(small(), {"x": images()}, target_macs=0.01)


def test_blocks_leave_one_of_every_stage() -> None:
    inspection = snp_onnx.inspect(CATALOGUE["preactivation"].model("N"))
    able = [block for block in inspection.blocks if not block.reason]
    found = inspection.prunable["blocks"]
    spared = 0 if len(able) < len(inspection.blocks) else 1
    assert found.units == len(able) - spared
    if found.units:
        assert found.macs_left <= 1 - min(block.macs_share for block in able) * found.units + 1e-9


def test_json_and_table_say_so(tmp_path: Path, capsys: Capture) -> None:
    here = bench(tmp_path, CATALOGUE["residual-identity"].model("N"))
    found = json.loads(call(capsys, "inspect", here.model, "--json").out)
    assert set(found["prunable"]) == {
        "default", "channels", "heads", "streams", "caches", "head-dims", "stream", "blocks"
    }  # fmt: skip
    share = 100 * (1 - found["prunable"]["default"]["macs_left"])
    text = call(capsys, "inspect", here.model).out
    assert f"by default at most {share:.3g} % of the MACs" in text.splitlines()[1]
    assert row(text, "streams")[-1] == "--streams"
    assert row(text, "w1:0")[2] == "8 (needs --streams)"
    page = inspection_page(snp_onnx.inspect(here.model))
    assert f"<b>{share:.2f} %</b>" in page
    assert "with --streams" in page
    assert "heads" not in [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]


# options that would let a group in


def test_what_the_options_leave_out_says_what_would_let_it_in(tmp_path: Path, capsys: Capture) -> None:
    here = bench(tmp_path, CATALOGUE["residual-identity"].model("N"))
    outcome = here.prune(capsys, "--include", "nothing")
    assert outcome.code == 3
    assert outcome.err.startswith("error: nothing can be pruned: ")
    assert "1 group needs another --include; " in outcome.err
    assert "1 group needs --streams and another --include; " in outcome.err
    outcome = here.prune(capsys, "--units", "heads")
    assert outcome.code == 3
    assert "1 group needs --units channels,heads; " in outcome.err


def test_other_kinds_of_units_are_named_where_nothing_can_go(tmp_path: Path, capsys: Capture) -> None:
    model = CATALOGUE["multi-head-cached"].model("N")
    here = bench(tmp_path, model, feed(model))
    outcome = here.prune(capsys, "--exclude", ".")
    assert (outcome.code, len(outcome.lines)) == (3, 1)
    assert "1 group needs --streams and another --exclude; " in outcome.err
    assert "; --caches lets in 4 heads of caches" in outcome.err
    assert "lets in" not in here.prune(capsys, "--exclude", ".", "--caches").err


def test_groups_that_could_not_be_measured_say_why(tmp_path: Path, capsys: Capture) -> None:
    net = Net(batch="N")
    wild = net.Mul(net.Relu(net.dense(net.input("x", 5), 5, 7)), net.const(np.full(1, 1e30)))
    net.output(net.dense(net.Mul(wild, net.const(np.full(1, 1e30))), 7, 3))
    here = bench(tmp_path, net.model(), {"x": np.random.default_rng(0).standard_normal((40, 5))})
    outcome = here.prune(capsys)
    assert (outcome.code, len(outcome.lines)) == (3, 1)
    assert "1 group could not be measured (layer " in outcome.err
    assert "not finite" in outcome.err


# names


def test_names_in_brackets_are_shown_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    model = small()
    for node in model.graph.node:
        node.name = f"[red]{node.name}[/red] [/] :smile: [a]"
    here = bench(tmp_path, model)
    text = call(capsys, "inspect", here.model).out
    assert "[red]n1[/red] [/] :smile: [a]" in text
    assert here.prune(capsys, "--preset", "fast").code == 0


def test_many_axes_for_one_reason_are_counted() -> None:
    inspection = snp_onnx.inspect(small())
    (stop,) = inspection.barriers
    many = tuple(type(stop)(f"w{n}", 0, 4, "t", 1, f"n{n}", "graph output") for n in range(30))
    text = shown(inspection_table(replace(inspection, barriers=many)))
    assert row(text, "w0")[-1] == "graph output (n0)"
    assert "and 29 more (all: --json)" in text
    assert "w1 " not in text
    few = shown(inspection_table(replace(inspection, barriers=many[:8])))
    assert "w7" in few
