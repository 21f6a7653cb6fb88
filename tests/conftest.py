"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest

from snp_onnx.calibration.kernel_times import FOLDER
from tests.command_line import Bench, bench
from tests.exports import FOLDER as EXPORTS


def pytest_configure() -> None:
    """The folder of exports is made by the first process; those that it starts find it."""
    if EXPORTS not in os.environ:
        os.environ[EXPORTS] = tempfile.mkdtemp(prefix="snp_onnx_exports_")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ.pop(EXPORTS, ""), ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times of kernels are kept where the tests alone see them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(tmp_path_factory.mktemp("cache")))
        yield


class OneThread(onnxruntime.SessionOptions):
    """Options of a session that takes one core, unless it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


@pytest.fixture(scope="session", autouse=True)
def own_core() -> Iterator[None]:
    """Where several processes share the tests, threads of one that wait for work would take the cores of the others."""
    with pytest.MonkeyPatch.context() as patch:
        if "PYTEST_XDIST_WORKER" in os.environ:
            patch.setattr(onnxruntime, "SessionOptions", OneThread)
        yield


@pytest.fixture
def here(tmp_path: Path) -> Bench:
    """A folder with a small model and its data, and where outputs go."""
    return bench(tmp_path)
