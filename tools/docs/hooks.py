"""What the site takes from the project when it is built, so that it can't go stale: the command line, the pages of a
folder, and the figures of the benchmarks."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tools.docs.command_line import reference

ROOT = Path(__file__).resolve().parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A `*` among the pages of the navigation stands for those of its folder that aren't named."""
    folder = Path(config.docs_dir)
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    config.nav = spread(config.nav or [], pages)
    return config


def spread(nav: list[Any], pages: list[str]) -> list[Any]:
    """The navigation with patterns replaced by the pages that match them and stand nowhere else.

    >>> spread([{"All": ["a/x.md", "a/*"]}], ["a/w.md", "a/x.md", "b.md"])
    [{'All': ['a/x.md', 'a/w.md']}]
    """
    named = set(_named(nav))
    return _spread(nav, [page for page in pages if page not in named])


def _named(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [name for part in (entry.values() if isinstance(entry, dict) else entry) for name in _named(part)]


def _spread(nav: list[Any], pages: list[str]) -> list[Any]:
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            found.append({k: _spread(v, pages) if isinstance(v, list) else v for k, v in entry.items()})
        elif "*" in entry:
            found += [page for page in pages if fnmatch(page, entry)]
        else:
            found.append(entry)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The reference of the command line, and the figures that the results show."""
    files.append(File.generated(config, "reference/cli.md", content=reference()))
    for figure in sorted((ROOT / "tools" / "bench").glob("*.svg")):
        files.append(File.generated(config, figure.name, abs_src_path=str(figure)))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """The search's index as a script too: pages opened as files may load no other."""
    index = Path(config.site_dir) / "search" / "search_index.json"
    script = f"var __index = {index.read_text(encoding='utf-8')}"
    index.with_suffix(".js").write_text(script, encoding="utf-8")
