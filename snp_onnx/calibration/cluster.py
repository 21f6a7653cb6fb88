"""A Dask cluster as the executor that batches run in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from snp_onnx.calibration.workers import forget
from snp_onnx.errors import PlanError

TIMEOUT = 10.0
"""Seconds for the scheduler to answer, and as many for it to have a worker."""

LARGE_TASK = "2GB"
"""Dask warns of tasks above 10 MB; ours carry a model, once for each worker."""


@contextmanager
def dask_executor(address: str, timeout: float = TIMEOUT) -> Iterator[Executor]:
    """The executor of the cluster whose scheduler is at `tcp://host:port`; PlanError where it can't be used.

    The scheduler runs the tasks of lost workers again. When done, workers are told to forget the models they keep.
    """
    try:
        import dask
        import distributed
    except ImportError:
        raise PlanError("--dask needs dask's distributed, which is not installed: pip install snp-onnx[dask]") from None
    _reach(address, timeout)
    connect: Any = distributed.Client
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": LARGE_TASK}):
        try:
            client = connect(address, timeout=timeout, set_as_default=False)
        except Exception as error:
            raise PlanError(f"--dask {address}: no Dask scheduler answers there ({_said(error)})") from error
        with closing(client):
            _await_worker(client, address, timeout)
            try:
                yield client.get_executor()
            finally:
                with suppress(Exception):  # a cluster that is gone has forgotten
                    client.run(forget)


def _reach(address: str, timeout: float) -> None:
    """Dask takes its time to say that an address is wrong or nobody listens."""
    try:
        parts = urlsplit(address)
        place = parts.hostname, parts.port
    except ValueError:
        place = None, None
    host, port = place
    if "://" not in address or not host or not port:
        raise PlanError(f"--dask {address!r}: give the address of a scheduler, such as tcp://10.0.0.1:8786")
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError as error:
        raise PlanError(f"--dask {address}: can't be reached ({_said(error)}): is the scheduler running?") from error


def _await_worker(client: Any, address: str, timeout: float) -> None:
    try:
        client.wait_for_workers(1, timeout)
    except Exception as error:
        raise PlanError(f"--dask {address}: the scheduler has no worker: start dask worker {address}") from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
