"""`--config FILE.yaml`: every option by name, what is typed wins, and nonsense is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from snp_onnx.cli.commands import app
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
        ("units: " + "[" * 9999 + "]" * 9999, "nested too deeply"),
        ("units: &a [channels]\nmean: &b [*a, *a]\nstd: &c [*b, *b]\n", "options of its own"),
        ("seed: 2001-99-99\n", "not YAML"),
        ("seed: " + "9" * 9999 + "\n", "not YAML"),
        ("#" * 2**20 + "#\n", "no file of options"),
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


def test_the_options_of_a_run_can_be_kept(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    kept, again = here.folder / "run.yaml", here.folder / "again.onnx"
    options = ("--preset", "fast", "--no-latency", "--mean", "0.1,0.2,0.3", "--input-shape", "x:1,3,8,8", "--seed", 3)
    assert here.prune(capsys, *options, "--save-config", kept).code == 0
    said = kept.read_text(encoding="utf-8")
    assert "target-macs: 0.6" in said
    assert "batch-size: 16" in said  # a default is part of the run
    assert "save-config" not in said
    assert call(capsys, "prune", here.model, again, "--config", kept).code == 0
    assert again.read_bytes() == here.output.read_bytes()
    for wrong in (here.folder / "run.json", here.output, here.data):
        before = files(here.folder)
        assert here.prune(capsys, "--save-config", wrong).code == 2
        assert files(here.folder) == before


def test_an_empty_file_says_nothing(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(here, "# nothing yet\n")
    assert here.prune(capsys, "--config", config, "--preset", "fast", "--no-latency").code == 0


# every option of every command

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
ARGUMENTS = {"prune": 2, "inspect": 1, "compare": 2, "recover": 3}
VALUES: dict[Any, Any] = {int: 7, float: 0.25, str: "some.text", Path: "folder/file.json"}
LISTS = ("mean", "std", "crop", "units", "augment")
"""Options whose text is a list."""


def options() -> list[tuple[str, str]]:
    return [
        (name, option.name)
        for name, command in COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option" and option.name not in ("config", "help")
    ]


def held(option: Any) -> list[tuple[Any, list[str]]]:
    """Values of the option for the file, and what would be typed in their place."""
    flag = f"--{option.name.replace('_', '-')}"
    if option.is_flag:
        return [(True, [flag]), *((False, [no]) for no in option.secondary_opts)]
    if option.multiple:
        return [(["a:1,2", "b:3"], [flag, "a:1,2", flag, "b:3"]), ("a:1", [flag, "a:1"])]
    value = VALUES[option.type_descriptor.annotation]
    lists = [([1, 2.5, "x"], [flag, "1,2.5,x"]), (0.5, [flag, "0.5"])] if option.name in LISTS else []
    return [(value, [flag, str(value)]), *lists]


def parsed(name: str, arguments: list[str]) -> dict[str, Any]:
    """What the command would be called with."""
    files = [f"{place}.onnx" for place in range(ARGUMENTS[name])]
    found = dict(COMMANDS[name].make_context(name, [*files, *arguments]).params)
    found.pop("config")
    return found


def test_the_walk_finds_the_options() -> None:
    found = options()
    assert set(ARGUMENTS) == set(COMMANDS)
    assert {("prune", "latency"), ("prune", "units"), ("compare", "mean"), ("recover", "whiten")} <= set(found)
    assert len(found) > 80


@pytest.mark.parametrize(("name", "option"), options())
def test_every_option_can_be_held(name: str, option: str, tmp_path: Path) -> None:
    (param,) = [param for param in COMMANDS[name].params if param.name == option]
    config, plain = tmp_path / "options.yaml", parsed(name, [])
    changed = []
    for value, typed in held(param):
        config.write_text(json.dumps({option.replace("_", "-"): value}), encoding="utf-8")
        found = parsed(name, ["--config", str(config)])
        assert found == parsed(name, typed)
        changed.append(found != plain)
    assert any(changed)
