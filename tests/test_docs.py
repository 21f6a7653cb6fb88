"""Every command and every program of the documentation runs, and does what stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import ROOT
from tests.pages import SLOW, Block, PageError, blocks, missing, needs, pages, run_page


def _parameters() -> list[object]:
    """Pages that have something to run; those that import something large are slow."""
    found = []
    for page in pages():
        parts = list(blocks(page.read_text(encoding="utf-8")))
        if any(part.is_run for part in parts):
            marks = [pytest.mark.slow] if needs(parts) & SLOW else []
            found.append(pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks))
    return found


@pytest.mark.parametrize("page", _parameters())
def test_a_page_runs(page: Path, tmp_path: Path) -> None:
    absent = missing(list(blocks(page.read_text(encoding="utf-8"))))
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    assert run_page(page, tmp_path) > 0


def _page(folder: Path, *parts: str) -> Path:
    page = folder / "page.md"
    page.write_text("# A page\n\n" + "\n".join(parts))
    return page


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("```bash\nsnp-onnx inspect absent.onnx\n```", "absent.onnx"),
        ("```bash\nfalse | cat\n```", "exit code 1"),
        ("```bash\nsnp-onnx inspect model.onnx --no-such-option\n```", "--no-such-option"),
        ("```python\nimport numpy\nassert numpy.load('digits.npz')['images'].shape == (1,)\n```", "line 5, in"),
        ('=== "Tab"\n\n    ```bash\n    exit 3\n    ```\n', "exit code 3"),
    ],
)
def test_a_broken_page_fails(tmp_path: Path, broken: str, said: str) -> None:
    with pytest.raises(PageError, match=said) as failure:
        run_page(_page(tmp_path, broken), tmp_path)
    assert f"{tmp_path / 'page.md'}:" in str(failure.value)


def test_a_page_finds_its_files_and_this_checkout(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        '```python title="parts/loader.py"\nNUMBER = 3\n```',
        "```text\nfalse\n```",
        "```console\n$ pip install nothing\n```",
        '```yaml title="options.yaml"\nseed: 1\n```',
        f"```bash\ntest -f model.onnx; test -f options.yaml; ls images/*.png | wc -l | grep -x 200\n"
        f"head -2 $(command -v snp-onnx) | grep snp_onnx.cli\ntest $HOME != {Path.home()}\n```",
        "```python\nimport sys; sys.path.insert(0, 'parts')\nimport loader, snp_onnx\nassert loader.NUMBER == 3\n"
        f"assert snp_onnx.__file__.startswith({str(ROOT)!r})\n```",
    )
    assert run_page(page, tmp_path) == 2


def test_blocks_are_found_with_line_language_and_title() -> None:
    text = 'a\n```bash\none\n```\n- b\n\n    ```python title="c.py" linenums="1"\n    if x:\n        y\n    ```\n'
    assert list(blocks(text)) == [
        Block(2, "bash", None, "one\n"),
        Block(7, "python", "c.py", "if x:\n    y\n"),
    ]


def test_what_a_page_needs_is_read_from_its_blocks() -> None:
    text = (
        '```python title="mine.py"\nimport numpy\n```\n```python\nimport os, mine\nfrom torch.onnx import export\n```\n'
        "```bash\npython -m no_such_tool.convert\nsnp-onnx inspect model.onnx --html page.html\n```\n"
    )
    found = list(blocks(text))
    assert needs(found) == {"numpy", "torch", "no_such_tool", "jinja2"}
    assert "no_such_tool" in missing(found)
    assert "numpy" not in missing(found)
