"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Bench, bench


@pytest.fixture
def here(tmp_path: Path) -> Bench:
    """A folder with a small model and its data, and where outputs go."""
    return bench(tmp_path)
