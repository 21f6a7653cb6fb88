"""HTML reports: what stands in them, that they need nothing else, and what other targets would leave."""

from __future__ import annotations

import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snp_onnx
from snp_onnx.report.charts import Curve, axis, chart
from snp_onnx.report.page import inspection_page, pruning_page
from tests.command_line import call, classifier, images, small
from tests.graphs import Net

VOID = {"meta", "br"}


class _Reader(HTMLParser):
    """Fails where elements don't close in order; collects text, links, and the attributes of marks."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.fetched: list[str] = []
        self.marks = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.fetched += [str(given[name]) for name in ("src", "href", "data", "action") if name in given]
        self.marks += tag == "circle"
        assert tag != "script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.marks += tag == "circle"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.fetched == []
    assert "http" not in page
    assert "@import" not in page
    assert "url(" not in page
    return reader


def pruned(**options: Any) -> snp_onnx.PruneResult:
    return snp_onnx.prune(small(), images(), target_macs=0.6, threads=1, **options)


def test_a_page_says_what_was_done_and_needs_nothing_else() -> None:
    result = pruned(preset="fast", outlook=True, latency=True)
    page = pruning_page(result)
    reader = read(page)
    text = " ".join(reader.texts)
    report = result.report
    for group in report.groups:
        assert group.id in text
        assert group.producers
        assert group.producers[0] in text
    for figure in (
        f"{report.pruned.macs / report.dense.macs:.3f}",
        f"{report.fidelity[0].held:.4f}",
        f"{report.fidelity[0].cosine:.4f}",
        f"{report.latency[0].undisturbed:.3f}",
        result.plan.digest(),
        result.plan.dense_sha256,
        report.versions["onnxruntime"],
    ):
        assert figure in text, figure
    for stop in report.barriers:
        assert stop.reason in text
    curves = sum(1 for decision in result.plan.decisions if decision.variance)
    charts = 1 + all(entry.fidelity[0].agreement is not None for entry in report.outlook)
    assert reader.marks == curves + charts  # and one in each chart of the outlook
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_a_classifiers_agreement_is_drawn_too() -> None:
    result = snp_onnx.prune(classifier(), images(), target_macs=0.6, preset="fast", outlook=True, threads=1)
    page = pruning_page(result)
    curves = sum(1 for decision in result.plan.decisions if decision.variance)
    assert read(page).marks == curves + 2
    assert "agreement against MACs kept" in page


def test_names_from_the_model_are_text_not_markup() -> None:
    model = small()
    evil = '<script>alert("x")</script>'
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = evil if name == "w1" else name
    for tensor in model.graph.initializer:
        tensor.name = evil if tensor.name == "w1" else tensor.name
    page = pruning_page(snp_onnx.prune(model, images(), target_macs=0.6, preset="fast", outlook=True, threads=1))
    assert evil in "".join(read(page).texts)
    assert "<script" not in page
    assert "<script" not in inspection_page(snp_onnx.inspect(model))


def test_the_outlook_is_what_these_targets_give_without_a_refit() -> None:
    result = pruned(outlook=True)
    outlook = result.report.outlook
    assert [entry.target for entry in outlook] == sorted((entry.target for entry in outlook), reverse=True)
    assert len(outlook) > 3
    for entry in outlook:
        alone = snp_onnx.prune(small(), images(), target_macs=entry.target, refine="none", threads=1).report
        assert entry.cost.macs == alone.pruned.macs
        if alone.warnings:
            continue  # what came back isn't the fold
        assert entry.fidelity[0].cosine == pytest.approx(alone.fidelity[0].cosine, abs=1e-6)
    assert pruned().report.outlook == ()


def test_nothing_measured_no_outlook() -> None:
    plan = pruned(preset="fast").plan
    result = snp_onnx.prune(small(), None, plan=plan, outlook=True)
    assert result.report.outlook == ()
    read(pruning_page(result))


def test_inspection() -> None:
    net = Net()
    x = net.conv_relu(net.image(), 3, 8)
    y = net.op("Softmax", net.conv(x, 8, 6), axis=1)
    net.output(net.conv(y, 6, 4))
    found = snp_onnx.inspect(net.model())
    text = " ".join(read(inspection_page(found)).texts)
    assert found.barriers
    assert all(stop.reason in text for stop in found.barriers)
    assert all(group.id in text for group in found.groups)


def test_blocks_and_their_similarities_are_there() -> None:
    net = Net(seed=1)
    x = net.conv_relu(net.image(), 3, 8)
    for _ in range(3):
        x = net.Relu(net.Add(net.conv(net.conv_relu(x, 8, 8), 8, 8), x))
    net.output(net.conv(x, 8, 4))
    result = snp_onnx.prune(net.model(), images(), target_macs=0.7, units=["blocks"], preset="fast", outlook=True)
    text = " ".join(read(pruning_page(result)).texts)
    assert result.report.removed
    for block in result.report.removed:
        assert block.block in text
        assert block.similarity is not None
        assert f"{block.similarity:.4f}" in text


@pytest.mark.parametrize("values", [[0.0, 1.0], [1, 64], [0.93, 0.9999], [5, 5], [-3.0, 12.0], [1e-9, 2e-9]])
def test_axes_have_a_few_round_figures_inside(values: list[float]) -> None:
    found = axis("x", values)
    assert found.low <= min(values) < max(found.high, max(values) + 1e-12)
    assert found.high >= max(values)
    assert 1 <= len(found.ticks) <= 9
    assert all(found.low - 1e-12 <= tick <= found.high for tick in found.ticks)


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(float(n), float(n % 7)) for n in range(5001)]
    drawn = chart("c", axis("x", [0, 5000]), axis("y", [0, 7]), [Curve(points)])
    (path,) = re.findall(r'points="([^"]*)"', drawn)
    places = path.split()
    assert 100 < len(places) < 450
    assert places[0].startswith("44.0,")
    assert places[-1].startswith("310.0,")


# the command line


def saved(folder: Path) -> tuple[Path, Path]:
    import onnx

    model, data = folder / "model.onnx", folder / "data.npz"
    onnx.save(small(), model)
    np.savez(data, x=images())
    return model, data


def test_a_page_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = saved(tmp_path)
    page = tmp_path / "out.html"
    asked = ("prune", model, tmp_path / "s.onnx", "--calibration", data, "--target-macs", 0.6, "--report", page)
    assert call(capsys, *asked, "--preset", "fast", "--no-latency", "--threads", 1).code == 0
    text = " ".join(read(page.read_text(encoding="utf-8")).texts)
    assert f"{(tmp_path / 's.onnx').stat().st_size / 1e3:.2f} kB" in text
    assert "What another target would cost" in text
    assert "model.onnx → s.onnx" in text
    assert "--target-macs 0.6" in text
    assert call(capsys, "inspect", model, "--html", tmp_path / "in.html", "--quiet").code == 0
    read((tmp_path / "in.html").read_text(encoding="utf-8"))


def test_pages_that_cannot_be_written_are_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = saved(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    asked = ("prune", model, tmp_path / "s.onnx", "--calibration", data, "--target-macs", 0.6, "--report")
    refused = [
        call(capsys, *asked, tmp_path / "out.txt"),
        call(capsys, *asked, tmp_path / "no folder" / "out.html"),
        call(capsys, "inspect", model, "--html", tmp_path / "page.txt"),
        call(capsys, "inspect", model, "--html", model),
    ]
    honest = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else honest(name))
    refused.append(call(capsys, *asked, tmp_path / "out.html"))
    assert "snp-onnx[report]" in refused[-1].err
    for outcome in refused:
        assert (outcome.code, outcome.out, len(outcome.lines)) == (2, "", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
