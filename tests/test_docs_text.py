"""What the pages say of options, reasons and messages is what the sources say."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

import snp_onnx
from snp_onnx.cli.commands import app
from snp_onnx.cli.interruption import SIGNALS, Interruption
from snp_onnx.report.json_report import to_json
from snp_onnx.verbs.recovered import RecoverReport
from tests.command_line import DIGITS, DIGITS_DATA, ROOT, call
from tests.pages import DOCS, blocks, pages
from tests.reasons import GAP, messages, reasons, tables, template
from tools.docs.figures import FOLDER, NUMBERS, draw, widths

WHY = DOCS / "why-not-pruned.md"
TROUBLE = DOCS / "troubleshooting.md"


def options() -> dict[str, set[str]]:
    """The options of every command."""
    commands: Any = get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {flag for option in one.params for flag in (*option.opts, *option.secondary_opts)} | {"--help"}
        for name, one in commands.items()
    }


def unknown_options(text: str) -> list[str]:
    """Options that a page gives to a command that has none of that name, or names in backticks and no command has.

    What a page's blocks give to other programs it may also name.
    """
    known = options()
    everywhere = {"--version", "--install-completion", "--show-completion"}.union(*known.values())
    wrong = []
    for line in text.replace("\\\n", " ").splitlines():
        for command, rest in re.findall(r"(?<![\w./-])snp-onnx ([a-z]+)\b([^|&;#`]*)", line):
            if command in known:
                wrong += [flag for flag in _flags(rest) if flag not in known[command]]
        if "snp-onnx" not in line:
            everywhere |= set(_flags(re.sub(r"`[^`]*`", "", line)))
    prose = re.sub(r"^ *(```+).*?^ *\1", "", text, flags=re.MULTILINE | re.DOTALL)
    named = [quoted for quoted in re.findall(r"`([^`]+)`", prose) if quoted.startswith("--")]
    return wrong + [flag for quoted in named for flag in _flags(quoted) if flag not in everywhere]


def _flags(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", text)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_options_that_a_page_names_exist(page: Path) -> None:
    assert unknown_options(page.read_text(encoding="utf-8")) == []


def test_an_option_that_does_not_exist_is_found() -> None:
    text = (
        "```bash\nsnp-onnx prune a.onnx b.onnx \\\n  --target-mac 0.5 && other --anything\n"
        "snp-onnx inspect a.onnx --preset fast\nother --anything\n```\n"
        "Use `--no-such` or `--preset fast`, and other's `--anything`.\n"
    )
    assert unknown_options(text) == ["--target-mac", "--preset", "--no-such"]


def test_every_reason_has_an_entry_and_every_entry_is_a_reason() -> None:
    explained, given = tables(WHY), reasons()
    assert len(given) > 90
    assert {reason: where for reason, where in given.items() if reason not in explained} == {}
    assert sorted(set(explained) - set(given)) == []
    assert len(explained) == len(set(explained))


def test_reasons_are_found_in_calls_returns_and_tables() -> None:
    given = reasons()
    for reason in (
        "no rule for operator …",  # an argument with gaps
        "contracted between two activations",  # a constant
        "its shortcut is pooled",  # a table
        "all positions are one unit",  # a return value
        "rounded to whole numbers",  # an exception that ends in a reason
    ):
        assert reason in given
    filled = ast.parse("f'{a}{b} and {c!r}: {WHY}'", mode="eval").body
    assert template(filled, {"WHY": "so it is"}) == f"{GAP} and {GAP}: so it is"


def quoted_messages() -> list[str]:
    """The headings of the page that are messages."""
    return re.findall(r"^### `(.+)`$", TROUBLE.read_text(encoding="utf-8"), re.MULTILINE)


def test_quoted_messages_are_messages_of_the_sources() -> None:
    known = messages()
    quoted = quoted_messages()
    assert len(quoted) >= 20
    assert [one for one in quoted if not any(one.strip(f"{GAP} ") in text for text in known)] == []
    assert all(len(one) > 20 for one in quoted)
    assert not any("there is no such sentence anywhere" in text for text in known)


def test_every_field_of_the_json_reports_is_described() -> None:
    page = (DOCS / "reference" / "report.md").read_text(encoding="utf-8")
    images = {"input": np.load(DIGITS_DATA)["images"][:64] / 16.0}
    result = snp_onnx.prune(DIGITS, images, target_macs=0.5, preset="fast", latency=True, outlook=True)
    comparison = snp_onnx.compare(DIGITS, result.model, images, latency=True)
    texts = [to_json(one) for one in (result.report, snp_onnx.inspect(DIGITS), comparison)]
    fields = {field.name for field in fields_of(RecoverReport)}.union(*(names(json.loads(text)) for text in texts))
    assert len(fields) > 40
    assert sorted(field for field in fields if f"`{field}`" not in page) == []


FREE = {"options", "timings", "versions", "input_shapes", "target"}
"""Fields whose own keys are names of options, stages, packages and inputs."""


def names(value: Any) -> set[str]:
    """The names of fields, at every depth."""
    if isinstance(value, list):
        return set().union(*map(names, value))
    if isinstance(value, dict):
        return set(value).union(*(names(v) for k, v in value.items() if k not in FREE))
    return set()


def test_exit_codes_are_those_of_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = (DOCS / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    source = (ROOT / "snp_onnx" / "cli" / "run.py").read_text(encoding="utf-8")
    failures = re.findall(r"_fail\(.+, (?:(\d) if .+ else (\d) if .+ else )?(\d)\)", source)
    codes = {int(code) for found in failures for code in found if code}
    assert documented == {0} | codes | {Interruption(number).code for number in SIGNALS}
    assert call(capsys, "inspect", tmp_path / "absent.onnx").code == 2


def test_pages_have_the_blocks_that_they_seem_to_have() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(list(blocks(text))), page


def test_the_figures_show_what_was_measured_and_what_is_measured_now() -> None:
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8"))
    drawn = draw(numbers)
    assert {name: (FOLDER / name).read_text(encoding="utf-8") for name in drawn} == drawn
    found = [(group["group"], group["before"], group["after"]) for group in widths()]
    assert found == [(group["group"], group["before"], group["after"]) for group in numbers["groups"]]
    shown = re.findall(r">(\d+) of (\d+)<", drawn["widths.svg"])
    assert [(int(after), int(before)) for after, before in shown] == [(after, before) for _, before, after in found]
