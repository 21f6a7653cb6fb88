"""`--config FILE.yaml`: every option by name, what is typed wins, and nonsense is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import Bench, bench, call, files


@pytest.fixture
def here(tmp_path: Path) -> Bench:
    return bench(tmp_path)


def written(here: Bench, text: str) -> Path:
    path = here.folder / "options.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_options_from_a_file_are_those_typed(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report, other = here.folder / "a.json", here.folder / "b.json"
    config = written(
        here,
        f"""
calibration: {here.data}
target-macs: 0.6
preset: fast
round_to: 2            # an underscore will do
units: [channels, heads]
min-units: 2
mean: [0.1, 0.2, 0.3]
std: 0.5
latency: false
threads: 1
input-shape: ["x:1,3,8,8"]
report: {report}
""",
    )
    assert call(capsys, "prune", here.model, here.output, "--config", config).code == 0
    typed = ("--calibration", here.data, "--target-macs", 0.6, "--preset", "fast", "--round-to", 2, "--min-units", 2)
    typed = (*typed, "--units", "channels,heads", "--mean", "0.1,0.2,0.3", "--std", 0.5, "--no-latency", "--threads", 1)
    second = here.folder / "second.onnx"
    assert call(capsys, "prune", here.model, second, *typed, "--input-shape", "x:1,3,8,8", "--report", other).code == 0
    assert here.output.read_bytes() == second.read_bytes()
    a, b = (json.loads(path.read_text()) for path in (report, other))
    assert a["options"] == b["options"]
    assert str(a["options"]["round_to"]) == "2"


def test_what_is_typed_wins(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    report = here.folder / "report.json"
    config = written(here, f"calibration: {here.data}\ntarget-macs: 0.9\npreset: best\nlatency: false\n")
    asked = ("prune", here.model, here.output, "--target-macs", 0.6, "--preset", "fast", "--config", config)
    assert call(capsys, *asked, "--report", report).code == 0
    found = json.loads(report.read_text())
    assert found["target"] == {"kind": "macs", "value": 0.6}
    assert found["pruned"]["macs"] <= 0.6 * found["dense"]["macs"]


def test_other_commands_take_one_too(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "inspect", here.model, "--config", written(here, "json: true\n"))
    assert outcome.code == 0
    assert json.loads(outcome.out)["groups"]
    config = written(here, f"calibration: {here.data}\njson: true\nthreads: 1\n")
    outcome = call(capsys, "compare", here.model, here.model, "--config", config)
    assert json.loads(outcome.out)["fidelity"][0]["cosine"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("target-mac: 0.5\n", "did you mean target-macs?"),
        ("config: other.yaml\n", "no option"),
        ("model: m.onnx\n", "no option"),
        ("- a\n- b\n", "options by name"),
        ("target-macs: {a: 1}\n", "target-macs"),
        ("target-macs: 0.5\ntarget_macs: 0.6\n", "twice"),
        ("target-macs: half\n", "--target-macs"),
        ("a: [1\n", "not YAML"),
        ("\x00", "not YAML"),
        (None, "No such file"),
    ],
)
def test_nonsense_is_one_line(text: str | None, said: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    config = here.folder / "none.yaml" if text is None else written(here, text)
    before = files(here.folder)
    outcome = call(capsys, "prune", here.model, here.output, "--calibration", here.data, "--config", config)
    assert (outcome.code, outcome.out, len(outcome.lines)) == (2, "", 1)
    assert said in outcome.err
    assert files(here.folder) == before


def test_an_empty_file_says_nothing(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(here, "# nothing yet\n")
    assert here.prune(capsys, "--config", config, "--preset", "fast", "--no-latency").code == 0
