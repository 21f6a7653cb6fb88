"""One pass over the calibration batches: run the instrumented model and add up what it says."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx.calibration.displacements import gram_of, sum_of
from snp_onnx.calibration.instrument import Instrumented, instrument
from snp_onnx.calibration.moments import MomentRequest, Moments, Squares
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.calibration.workers import answers, forget, program_of, ready
from snp_onnx.errors import CalibrationError

__all__ = ["Runtime", "collect", "open_session", "run"]

Batches = Iterable[Mapping[str, NDArray[Any]]]


def collect(
    model: onnx.ModelProto,
    requests: Sequence[MomentRequest],
    batches: Batches,
    runtime: Runtime,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
    weights_folder: str | Path | None = None,
    keep: Sequence[str] = (),
    kept: Callable[[int, Mapping[str, NDArray[Any]]], None] | None = None,
    as_rows: Container[str] = (),
) -> dict[str, Moments]:
    """The moments of every request by its key, from one pass over `batches`.

    Batches may run in any executor, some at a time; sums are taken in float64 in the order of the batches, so the
    result does not depend on the executor. Memory does not grow with the number of batches. `progress` hears how many
    batches are done, 0 when the session stands. Moments that are not finite are returned as they are. A model above
    1.5 GB goes through a temporary file that all workers must see; `weights_folder` is where the external data of
    `model` lies. The tensors named in `keep` are handed to `kept`, with the number of their batch. Moments whose
    key is in `as_rows` come as rows, which grow with the samples.
    """
    if not requests and not keep:
        return {}
    instrumented = instrument(model, requests, keep, as_rows)
    with TemporaryDirectory(prefix="snp_onnx-", ignore_cleanup_errors=True) as folder:
        program = program_of(instrumented.model, Path(folder), weights_folder)
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            ready(program, runtime)  # before the first batch is read, and once for all threads
        if progress is not None:
            progress(0)
        try:
            apart = {*instrumented.kept, *(sums.gram for sums in instrumented.sums if sums.is_rows and sums.gram)}
            found = _handed_on(instrumented.kept, answers(program, batches, runtime, executor, apart), kept)
            return _added_up(instrumented, found, progress)
        finally:
            forget()


def _handed_on(
    keep: Sequence[str],
    answers: Iterator[dict[str, NDArray[Any]]],
    kept: Callable[[int, Mapping[str, NDArray[Any]]], None] | None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """The sums alone; what is kept goes its own way."""
    for index, found in enumerate(answers):
        tensors = {name: found.pop(name) for name in keep}
        if kept is not None and tensors:
            kept(index, tensors)
        yield found


def _added_up(
    instrumented: Instrumented, answers: Iterator[dict[str, NDArray[Any]]], progress: Callable[[int], None] | None
) -> dict[str, Moments]:
    totals: dict[str, NDArray[Any]] = {}
    rows: dict[str, list[NDArray[Any]]] = {sums.gram: [] for sums in instrumented.sums if sums.is_rows and sums.gram}
    for done, sums in enumerate(answers, 1):
        for name, value in sums.items():
            if name in rows:
                rows[name].append(value)
            elif name in totals and totals[name].shape != value.shape:
                totals[name] = np.full_like(totals[name], np.nan, dtype=np.float64)  # its unit axis varies: no moments
            elif name in totals:
                totals[name] += value
            else:
                totals[name] = value.astype(np.int64 if value.dtype.kind == "i" else np.float64)
        if progress is not None:
            progress(done)
    if not totals and instrumented.requests:
        raise CalibrationError("there is no calibration batch: the source gave none")
    found = {}
    for request, s in zip(instrumented.requests, instrumented.sums, strict=True):
        if s.is_rows and s.gram:
            found[request.key] = _row_moments(rows[s.gram], int(totals[s.count].sum()))
        else:
            gram, total, count, cross = (totals[name] if name else None for name in (s.gram, s.sum, s.count, s.cross))
            if s.is_displaced and gram is not None and total is not None:
                gram, total = gram_of(gram), sum_of(total)
            found[request.key] = _moments(request, gram, total, count, cross)
    return found


def _row_moments(batches: Sequence[NDArray[Any]], count: int) -> Moments:
    """Rows that a mask leaves out are zero: of the rows that are zero, so many are dropped that `count` remain."""
    rows = np.concatenate(batches).astype(np.float64)
    empty = np.flatnonzero(~rows.any(axis=1))
    rows = np.delete(rows, empty[: len(rows) - count], axis=0)
    return Moments(None, rows.sum(axis=0), count, rows=rows)


def _moments(request: MomentRequest, gram: Any, total: Any, count: Any, cross: Any) -> Moments:
    """Columns of patches from window position by window position to unit by unit."""
    taps, size = request.taps, len(total)
    rows = int(count.sum())
    if taps > 1:
        total = total.reshape(taps, -1).T.reshape(size)
        cross = None if cross is None else cross.reshape(taps, size // taps, -1).swapaxes(0, 1).reshape(size, -1)
    if request.cross_window is not None and cross is not None:
        others = int(np.prod(request.cross_window.kernel))
        cross = cross.reshape(size, others, -1).swapaxes(1, 2).reshape(size, -1)
    if request.squares is Squares.GRAM:
        return Moments(_by_unit(gram, taps), total, rows, cross)
    squares = None if gram is None else gram.reshape(taps, -1).T.reshape(size)
    return Moments(None, total, rows, cross, square_sum=squares)


def _by_unit(gram: Any, taps: int) -> Any:
    """A Gram matrix of patches, unit by unit."""
    size = len(gram)
    if taps == 1:
        return gram
    return gram.reshape(taps, -1, taps, size // taps).transpose(1, 0, 3, 2).reshape(size, size)
