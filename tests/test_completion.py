"""What a shell offers at the Tab key: asked for as bash, zsh and fish ask, and by the shells that are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from snp_onnx.cli import COMPLETE
from tests.command_line import ROOT, Outcome, call

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def offered(capsys: Capture, patch: Patch, line: str) -> list[str]:
    """What is offered in bash behind `snp-onnx LINE`; the last word is the one that is being typed."""
    patch.setenv(COMPLETE, "complete_bash")
    patch.setenv("COMP_WORDS", f"snp-onnx {line}")
    patch.setenv("COMP_CWORD", str(len(line.split(" "))))
    outcome = call(capsys)
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out.split()


def test_commands_and_options_are_offered(capsys: Capture, monkeypatch: Patch) -> None:
    assert offered(capsys, monkeypatch, "") == ["prune", "inspect", "compare", "recover"]
    assert offered(capsys, monkeypatch, "--ver") == ["--version"]
    assert offered(capsys, monkeypatch, "prune a.onnx --target") == [
        "--target-macs", "--target-params", "--target-size", "--target-latency",
    ]  # fmt: skip
    assert "--target-macs" not in offered(capsys, monkeypatch, "compare a.onnx b.onnx --")
    assert offered(capsys, monkeypatch, "--version ") == ["prune", "inspect", "compare", "recover"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--preset ", "best fast paper"),
        ("--order ", "output zca saw magnitude natural random"),
        ("--order ma", "magnitude"),
        ("--fold ", "patch channel none"),
        ("--refine ", "sequential none"),
        ("--ratios ", "budget variance uniform"),
        ("--weigh ", "layers outputs"),
        ("--convention ima", "imagenet imagenet-tf"),
        ("--layout n", "nchw nhwc"),
        ("--provider c", "cpu cuda"),
        ("--similarity d", "debiased-cka"),
        ("--round-to a", "auto"),
        ("--units ", "channels heads head-dims stream blocks"),
        ("--units channels,he", "channels,heads channels,head-dims"),
        ("--preset wrong", ""),
        ("--mean ", ""),
    ],
)
def test_words_of_a_choice_are_offered(capsys: Capture, monkeypatch: Patch, line: str, words: str) -> None:
    assert offered(capsys, monkeypatch, f"prune a.onnx b.onnx {line}") == words.split()


def test_every_choice_that_is_offered_is_taken(capsys: Capture, monkeypatch: Patch, tmp_path: Path) -> None:
    """A word that the command refuses would be refused before it looks for the model."""
    for command, options in (
        ("prune", ("preset", "order", "fold", "refine", "ratios", "weigh", "similarity", "layout", "convention")),
        ("recover", ("optimiser", "augment", "precision")),
    ):
        paths = ["a.onnx", "b.onnx", "c.onnx"][: 3 if command == "recover" else 2]
        for option in options:
            words = offered(capsys, monkeypatch, f"{command} {' '.join(paths)} --{option} ")
            assert words, option
            monkeypatch.delenv(COMPLETE)
            for word in words:
                error = call(capsys, command, *(tmp_path / path for path in paths), f"--{option}", word).err
                assert f"--{option}" not in error, error


def test_zsh_and_fish_ask_in_their_own_ways(capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "snp-onnx prune --preset f")
    monkeypatch.setenv(COMPLETE, "complete_zsh")
    assert call(capsys).out == """_arguments '*: :(("fast"))'\n"""
    monkeypatch.setenv(COMPLETE, "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert call(capsys).out == "fast\n"


def test_fish_is_told_when_to_offer_files_instead(capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setenv(COMPLETE, "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "is-args")
    codes = []
    for line in ("snp-onnx prune --preset ", "snp-onnx prune --calibration "):
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        codes.append(call(capsys).code)
    assert codes == [0, 1]


def test_a_script_of_every_shell_can_be_printed(capsys: Capture, monkeypatch: Patch) -> None:
    for shell, word in (
        ("bash", "complete -o default -F"),
        ("zsh", "#compdef snp-onnx"),
        ("fish", "complete --command"),
    ):
        monkeypatch.setenv(COMPLETE, f"source_{shell}")
        outcome = call(capsys)
        assert (outcome.code, outcome.err) == (0, "")
        assert word in outcome.out
        assert COMPLETE in outcome.out


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_an_unknown_shell_is_a_wrong_environment(
    capsys: Capture, monkeypatch: Patch, tmp_path: Path, option: str
) -> None:
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: None)
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    outcome = call(capsys, option)
    assert outcome.code == 2
    assert outcome.lines[-1].startswith("error: no completion for this shell")
    assert list(tmp_path.iterdir()) == []


def test_nothing_typed_is_answered_with_where_to_look(capsys: Capture) -> None:
    outcome = call(capsys)
    assert (outcome.code, outcome.lines) == (2, ["error: Missing command. snp-onnx --help lists them."])


# the shells themselves

INSTALLED = {
    "bash": ".bash_completions/snp-onnx.sh",
    "zsh": ".zfunc/_snp-onnx",
    "fish": ".config/fish/completions/snp-onnx.fish",
}

ASK = {
    "bash": """
source ~/.bash_completions/snp-onnx.sh
COMP_WORDS=(snp-onnx prune --preset ""); COMP_CWORD=3
_snp_onnx_completion snp-onnx
echo "${COMPREPLY[@]}"
""",
    "zsh": """
compdef() { true }
words=(snp-onnx prune --preset ""); CURRENT=4
_arguments() { echo $1 }
source ~/.zfunc/_snp-onnx
_snp_onnx_completion
""",
    "fish": """
complete -C "snp-onnx prune --preset "
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", ASK)
def test_the_shell_itself_offers_the_words(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    program = tmp_path / "bin" / "snp-onnx"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}' -m snp_onnx.cli \"$@\"\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config"), "PATH": path}

    def ask(text: str) -> Outcome:
        found = subprocess.run(
            [shell, "-c", text], env=environment, text=True, capture_output=True, timeout=60, check=False
        )
        return Outcome(found.returncode, found.stdout, found.stderr)

    installing = ask("snp-onnx --install-completion; true")  # not its last command, which may take the shell's place
    assert f"{shell} completion installed in" in installing.out, installing
    assert (tmp_path / INSTALLED[shell]).is_file()
    outcome = ask(ASK[shell])
    words = outcome.out.replace('"', " ").replace("(", " ").replace(")", " ").split()
    assert {"best", "fast", "paper"} <= set(words), outcome
    assert "--preset" not in words
