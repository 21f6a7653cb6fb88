"""The site builds without a warning, every link leads somewhere, and nothing is fetched when it is read."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

from tests.command_line import ROOT
from tools.docs.command_line import reference

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed: pip install -e .[docs]")
pytest.importorskip("griffe", reason="the documentation's tools are not installed: pip install -e .[docs]")
docstrings, hooks = (importlib.import_module(f"tools.docs.{name}") for name in ("docstrings", "hooks"))


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """`mkdocs build --strict` as `make docs` does it; never with --quiet, which silences what --strict counts."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    variables = os.environ | {"PYTHONPATH": str(root), "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Links(HTMLParser):
    """What a page refers to, what it loads, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(given.get("href", ""))
        elif "src" in given:
            self.loads.append(given["src"])


def broken(site: Path) -> list[str]:
    """Links and loaded files of a site's pages that lead nowhere, or out of the site for what is loaded."""
    pages = {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    wrong = []
    for page, found in pages.items():
        for link in (*found.links, *found.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                wrong += [f"{page.name} loads {link}"] if link in found.loads and parts.scheme != "data" else []
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            ):
                wrong.append(f"{page.relative_to(site)} links to {link}")
    return wrong


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_fetched(site: Path) -> None:
    assert len(list(site.rglob("*.html"))) > 15
    assert broken(site) == []


@pytest.mark.slow
def test_the_pages_hold_what_is_taken_from_the_project(site: Path) -> None:
    texts = {name: re.sub(r"<[^>]+>", "", (site / name).read_text()) for name in
             ("benchmarks.html", "reference/cli.html", "reference/python.html", "contributing.html")}  # fmt: skip
    results = (ROOT / "tools" / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    heading = re.findall(r"^## (.+)$", results, re.MULTILINE)[-1]
    assert heading.replace("`", "") in texts["benchmarks.html"]
    assert "--target-latency" in texts["reference/cli.html"]
    assert "calibration_data_reader" in texts["reference/python.html"]
    assert "Parameters" in texts["reference/python.html"]
    assert "----" not in texts["reference/python.html"]
    assert "Add an operator" in texts["contributing.html"]
    assert (site / "accuracy_resnet56.svg").is_file()


@pytest.mark.slow
def test_search_has_what_it_needs_where_pages_are_opened_as_files(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    script = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert json.loads(script.removeprefix("var __index = ")) == index
    assert any("Quantise" in entry["title"] for entry in index["docs"])
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert 0 < page.index("../assets/files.js") < page.index("assets/javascripts/bundle")


@pytest.mark.slow
def test_a_broken_site_is_found(site: Path, tmp_path: Path) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    page = copy / "tutorial.html"
    text = page.read_text(encoding="utf-8")
    added = (
        '<a href="absent.html">a</a><a href="index.html#absent">b</a><script src="https://example.org/a.js"></script>'
    )
    page.write_text(text.replace("</body>", f"{added}</body>"), encoding="utf-8")
    assert len(broken(copy)) == 3


@pytest.mark.slow
def test_a_link_to_no_page_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](absent.md)\n")
    settings = "site_name: a\nvalidation:\n  links: { not_found: warn }\n"
    (tmp_path / "mkdocs.yml").write_text(settings)
    assert "validation:" in (ROOT / "mkdocs.yml").read_text()
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "absent.md" in done.stdout + done.stderr


@pytest.mark.parametrize("module", [docstrings, hooks])
def test_examples_of_what_builds_the_site(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_reference_has_every_command_and_option() -> None:
    text = reference().replace("{ .option }", "")
    for command in ("prune", "inspect", "compare", "recover"):
        assert f"## snp-onnx {command}\n" in text
    assert "| `--target-macs` *NUMBER* | Keep at most this fraction of the MACs. |" in text
    assert re.search(r"\| `--batch-size` \*N\* \| Rows a run.* \(default `16`\) \|", text)
    assert re.search(r"\| `--latency` / `--no-latency` \| .* \(default `--latency`\) \|", text)
    assert text.count("| `--calibration` *TEXT* |") == 3


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    assert "docs/method.md" in links
    assert [link for link in links if not (ROOT / link).exists()] == []
