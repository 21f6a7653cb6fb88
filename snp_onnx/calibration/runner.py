"""One pass over the calibration batches: run the instrumented model and add up what it says."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx.calibration.displacements import gram_of, sum_of
from snp_onnx.calibration.instrument import Instrumented, Sums, instrument
from snp_onnx.calibration.moments import MomentRequest, Moments, Pilot, Squares, is_far
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.calibration.workers import answers, forget, is_summed_there, program_of, ready
from snp_onnx.errors import CalibrationError
from snp_onnx.writing import Scratch

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

    Where the first batch shows a mean far above the spread, its mean is the pilot that sums are taken around, and it is
    run once more.
    """
    if not requests and not keep:
        return {}
    instrumented = instrument(model, requests, keep, as_rows)
    with Scratch() as folder:
        running = _Running(folder, weights_folder, runtime, executor)
        try:
            running.load(instrumented)
            if progress is not None:
                progress(0)
            feeds = iter(batches)
            head = list(islice(feeds, 1))
            tried = list(running.answers(head))
            pilots = pilots_of(instrumented, tried[0]) if tried else {}
            found: Iterator[dict[str, NDArray[Any]]]
            if pilots:
                instrumented = instrument(model, requests, keep, as_rows, pilots)
                running.load(instrumented)
            if pilots or running.is_summed_there:  # sums there have no first term from elsewhere
                found = running.answers(chain(head, feeds))
            else:
                found = chain(tried, running.answers(feeds, start=len(head)))
            return _added_up(instrumented, _handed_on(instrumented.kept, found, kept), progress)
        finally:
            forget()


class _Running:
    """An instrumented model where it runs."""

    def __init__(
        self, folder: Path, weights_folder: str | Path | None, runtime: Runtime, executor: Executor | None
    ) -> None:
        self._folder, self._weights_folder, self._runtime, self._executor = folder, weights_folder, runtime, executor

    def load(self, instrumented: Instrumented) -> None:
        """Take another model; before the first batch is read, and once for all threads."""
        grams = (sums.gram for sums in instrumented.sums if sums.is_rows and sums.gram)
        self._apart = {*instrumented.kept, *grams}
        self._program = program_of(instrumented.model, self._folder, self._weights_folder)
        if self._executor is None or isinstance(self._executor, ThreadPoolExecutor):
            ready(self._program, self._runtime)

    @property
    def is_summed_there(self) -> bool:
        """Whether batches are added up on a device of their own."""
        return self._executor is None and is_summed_there(self._program, self._runtime)

    def answers(self, feeds: Batches, start: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
        """What batches say, of which the first has the number `start`."""
        return answers(self._program, feeds, self._runtime, self._executor, self._apart, start)


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
                totals[name] = _wide(value)
        if progress is not None:
            progress(done)
    if not totals and instrumented.requests:
        raise CalibrationError("there is no calibration batch: the source gave none")
    found = {}
    for request, s in zip(instrumented.requests, instrumented.sums, strict=True):
        if s.is_rows and s.gram:
            found[request.key] = _row_moments(rows[s.gram], int(totals[s.count].sum()))
        else:
            found[request.key] = _moments(request, s, totals)
    return found


def _wide(value: NDArray[Any]) -> NDArray[Any]:
    """In the type of its total."""
    return value.astype(np.int64 if value.dtype.kind == "i" else np.float64)


def pilots_of(instrumented: Instrumented, first: Mapping[str, NDArray[Any]]) -> dict[str, Pilot]:
    """The means of the first batch of those requests that want a pilot, by key, entries in the order of the graph.

    Y of a cross product gets one where another request asks for the energies of the same rows of it. A tensor of rank 1
    gets none: without an axis of samples, its extent may be another in the next batch (Squeeze without axes).
    """
    own: dict[str, NDArray[np.float64]] = {}
    for request, sums in zip(instrumented.requests, instrumented.sums, strict=True):
        if sums.gram is None or sums.is_rows or request.rank == 1 or not int(first[sums.count].sum()):
            continue
        mean, variance = _first_look(sums, first)
        if np.isfinite(mean).all() and is_far(mean, variance):
            pilot = mean.astype(np.float32).astype(np.float64)
            own[request.key] = np.tile(pilot, request.taps) if sums.is_displaced else pilot
    pilots = {}
    for request in instrumented.requests:
        other = own.get(request.other.key) if request.other is not None else None
        if request.key in own or other is not None:
            pilots[request.key] = Pilot(own.get(request.key), other)
    return pilots


def _first_look(sums: Sums, first: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of the columns in one batch; of the channels where patches are summed by displacements."""
    assert sums.gram is not None
    squares, total = first[sums.gram], first[sums.sum]
    if sums.is_displaced:
        squares, total = squares[: squares.shape[1]], total[0]
    if squares.ndim == 2:
        squares = np.diag(squares)
    count = int(first[sums.count].sum())
    mean = total.astype(np.float64) / count
    return mean, np.maximum(squares.astype(np.float64) / count - np.square(mean), 0.0)


def _row_moments(batches: Sequence[NDArray[Any]], count: int) -> Moments:
    """Rows that a mask leaves out are zero: of the rows that are zero, so many are dropped that `count` remain."""
    rows = np.concatenate(batches).astype(np.float64)
    empty = np.flatnonzero(~rows.any(axis=1))
    rows = np.delete(rows, empty[: len(rows) - count], axis=0)
    return Moments(None, rows.sum(axis=0), count, rows=rows)


def _moments(request: MomentRequest, sums: Sums, totals: Mapping[str, NDArray[Any]]) -> Moments:
    """Columns of patches from window position by window position to unit by unit; `totals` may lack a cross product."""
    gram, total, count, cross = (
        totals.get(name) if name else None for name in (sums.gram, sums.sum, sums.count, sums.cross)
    )
    assert total is not None
    assert count is not None
    if sums.is_displaced and gram is not None:
        gram, total = gram_of(gram), sum_of(total)
    taps, size, rows, pilot = request.taps, len(total), int(count.sum()), sums.pilot
    if taps > 1:
        total = total.reshape(taps, -1).T.reshape(size)
        cross = None if cross is None else cross.reshape(taps, size // taps, -1).swapaxes(0, 1).reshape(size, -1)
        if pilot is not None and pilot.own is not None:
            pilot = Pilot(pilot.own.reshape(taps, -1).T.reshape(size), pilot.other)
    if request.cross_window is not None and cross is not None:
        others = int(np.prod(request.cross_window.kernel))
        cross = cross.reshape(size, others, -1).swapaxes(1, 2).reshape(size, -1)
    if request.squares is Squares.GRAM:
        return Moments(_by_unit(gram, taps), total, rows, cross, pilot=pilot)
    squares = None if gram is None else gram.reshape(taps, -1).T.reshape(size)
    return Moments(None, total, rows, cross, square_sum=squares, pilot=pilot)


def _by_unit(gram: Any, taps: int) -> Any:
    """A Gram matrix of patches, unit by unit."""
    size = len(gram)
    if taps == 1:
        return gram
    return gram.reshape(taps, -1, taps, size // taps).transpose(1, 0, 3, 2).reshape(size, size)
