"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snp_onnx.calibration.kernel_times import FOLDER
from tests.command_line import Bench, bench


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times of kernels are kept where the tests alone see them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def here(tmp_path: Path) -> Bench:
    """A folder with a small model and its data, and where outputs go."""
    return bench(tmp_path)
