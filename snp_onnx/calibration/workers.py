"""Where batches run: in this process, or in the workers of an executor.

A task is one batch. What it carries of the model is its digest: a worker keeps the session of the model it had last,
and one that doesn't know the model says so and gets it with the task sent again. So a model travels about once to every
worker, one that is started in place of another included, and no executor needs to know of it.

Samples are read where `prune` runs and sent out. Libraries of custom operators, and models above 1.5 GB by way of the
folder for temporary files (TMPDIR), must be at the same paths for every worker. What a batch says doesn't depend on who
runs it, bit for bit, as long as processors are of one kind; the versions of this package and of onnxruntime are
compared. Workers on one machine share its cores: let each have so many threads (`Runtime.threads`). Moments are as
large for a small batch as for a large one, so over a network batches should be large.
"""

import hashlib
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from pickle import PicklingError
from threading import Lock
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from snp_onnx._version import __version__
from snp_onnx.calibration.binding import device_of, summed_on_device
from snp_onnx.calibration.instrument import PHASE
from snp_onnx.calibration.sessions import Runtime, open_session, run, runtime_version
from snp_onnx.calibration.spill import is_large, spill
from snp_onnx.errors import CalibrationError, PlanError, SnpError
from snp_onnx.external import ROOT, has_external

FEWEST = 4
"""Tasks under way, whatever the executor; more where it is known to have more workers."""

MOST_WAITING = 2**31
"""Bytes of answers that may wait for their turn."""

PATIENCE = 20.0
"""Seconds between two looks at whether a silent cluster has any workers."""

# a prime step moves all axes from one batch to the next, and still every offset comes once before any comes again
PHASE_STEP = 2_147_483_629

Batches = Iterable[Mapping[str, NDArray[Any]]]
Answer = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Program:
    """An instrumented model on its way to a session, equal by content.

    `payload` is the model serialised, or a path where it is too large; None stands for one that the reader must know.
    """

    digest: str
    payload: bytes | str | None = field(compare=False, repr=False)
    weights_folder: str | None = None

    @property
    def by_name(self) -> "Program":
        """Its digest alone; a path is short and stays."""
        return replace(self, payload=None) if isinstance(self.payload, bytes) else self


@dataclass(frozen=True, slots=True)
class Task:
    """One batch to run, picklable; `versions` are of the package and the runtime that the answer must come from."""

    program: Program
    runtime: Runtime
    index: int
    feed: Mapping[str, NDArray[Any]]
    versions: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Unknown:
    """The answer of a worker process, here by name, that doesn't have the program."""

    worker: str


def program_of(model: onnx.ModelProto, folder: Path, weights_folder: str | Path | None) -> Program:
    """A model to be sent; one that is too large for that is written into the folder, which all workers must see."""
    folder_of_weights = ROOT if weights_folder is None and has_external(model) else weights_folder
    where = None if folder_of_weights is None else str(folder_of_weights)
    if is_large(model):
        path = str(spill(model, folder))
        return Program(path, path, where)
    payload = model.SerializeToString()
    return Program(hashlib.sha256(payload).hexdigest(), payload, where)


def answer(task: Task) -> Answer | Unknown:
    """Run one batch in this process."""
    if task.versions != versions():
        names = [f"snp-onnx {own} with onnxruntime {runtime}" for own, runtime in (versions(), task.versions)]
        raise PlanError(f"the worker on {socket.gethostname()} has {names[0]}, not {names[1]}: install the same")
    try:
        session = ready(task.program, task.runtime)
    except _NotHereError:
        return Unknown(f"{socket.gethostname()}:{os.getpid()}")
    return run(session, _whole_feed(task))


def _whole_feed(task: Task) -> dict[str, NDArray[Any]]:
    """The batch, and where its lattices start."""
    return {**task.feed, PHASE: np.array([task.index * PHASE_STEP], dtype=np.int64)}


class _NotHereError(Exception):
    """A session was asked for by digest, and there is none."""


_OPENING = Lock()
"""Of several threads one opens the session; the others wait for it."""


def ready(program: Program, runtime: Runtime) -> Any:
    """The session of this process for a program; it stays until another one is asked for."""
    with _OPENING:
        return _session(program, runtime)


@lru_cache(maxsize=1)
def _session(program: Program, runtime: Runtime) -> Any:
    if program.payload is None:
        raise _NotHereError
    return open_session(program.payload, runtime, program.weights_folder, for_one_pass=True)


def forget() -> None:
    """Close the session that this process keeps."""
    _session.cache_clear()


@lru_cache(maxsize=1)
def versions() -> tuple[str, str]:
    """Of this package and of the runtime, as they are here."""
    return __version__, runtime_version()


def is_summed_there(program: Program, runtime: Runtime) -> bool:
    """Whether this process adds batches up on a device of its own, where their answers are."""
    return device_of(ready(program, runtime)) != "cpu"


def answers(
    program: Program,
    batches: Batches,
    runtime: Runtime,
    executor: Executor | None,
    apart: Collection[str] = (),
    start: int = 0,
) -> Iterator[Answer]:
    """What each batch says, in the order of the batches, the first of which has the number `start`.

    Without an executor and on a device of its own (CUDA) what isn't `apart` is summed there, and comes with the last.

    Twice as many batches as there are workers are under way, as far as their answers fit into `MOST_WAITING`. A task
    that an executor runs again, because a worker was lost, gives the same answer, and each is handed on once.
    CalibrationError where the executor can't run tasks any more.
    """
    tasks = (Task(program, runtime, index, feed, versions()) for index, feed in enumerate(batches, start))
    if executor is None:
        if is_summed_there(program, runtime):
            session = ready(program, runtime)
            yield from summed_on_device(session, map(_whole_feed, tasks), apart, runtime)
            return
        for task in tasks:
            found = answer(task)
            assert not isinstance(found, Unknown)  # the task has the program with it
            yield found
        return
    sent = _Sent(executor, start)
    try:
        for task in tasks:
            sent.send(task)
            if sent.is_full:
                yield sent.next()
        while sent.waiting:
            yield sent.next()
    finally:
        for sending in sent.waiting:
            sending.future.cancel()


@dataclass(slots=True)
class _Sending:
    """A task under way; `again` after a worker refused it."""

    task: Task
    future: Future[Answer | Unknown]
    again: bool = False

    @property
    def refusal(self) -> Unknown | None:
        """The refusal, if it has come."""
        future = self.future
        if not future.done() or future.cancelled() or future.exception() is not None:
            return None
        found = future.result()
        return found if isinstance(found, Unknown) else None


@dataclass(slots=True)
class _Sent:
    """The tasks under way in an executor, oldest first, and the workers that were sent the program."""

    executor: Executor
    start: int = 0
    waiting: deque[_Sending] = field(default_factory=deque)
    served: set[str] = field(default_factory=set)
    limit: int = FEWEST

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= self.limit

    def send(self, task: Task) -> None:
        """The first task takes the program along, the others its name."""
        self.waiting.append(_Sending(task, self._submit(task, whole=task.index == self.start)))

    def next(self) -> Answer:
        """The oldest task's answer."""
        oldest = self.waiting[0]
        while isinstance(found := self._result(oldest), Unknown):
            for sending in self.waiting:  # not only the oldest: what others refused by now needn't wait for its turn
                if (refusal := sending.refusal) is not None:
                    self._send_again(sending, refusal)
        self.waiting.popleft()
        if oldest.task.index == self.start:
            size = sum(array.nbytes for array in found.values())
            self.limit = max(FEWEST, min(2 * _worker_count(self.executor), MOST_WAITING // max(size, 1)))
        return found

    def _send_again(self, sending: _Sending, refusal: Unknown) -> None:
        """The program goes along for a worker that wasn't sent it before, and with a task that was refused twice."""
        whole = sending.again or refusal.worker not in self.served
        self.served.add(refusal.worker)
        sending.future, sending.again = self._submit(sending.task, whole), True

    def _submit(self, task: Task, whole: bool) -> Future[Answer | Unknown]:
        with _failures_named():
            return self.executor.submit(answer, task if whole else replace(task, program=task.program.by_name))

    def _result(self, sending: _Sending) -> Answer | Unknown:
        with _failures_named():
            return _patiently(sending.future, lambda: _worker_count(self.executor) > 0)


def _patiently(future: Future[Answer | Unknown], has_workers: Callable[[], bool]) -> Answer | Unknown:
    """A future's result, waited for as long as there are workers."""
    is_alone = False
    while True:
        try:
            return future.result(PATIENCE)
        except TimeoutError:
            if future.done():
                return future.result()
        if has_workers():
            is_alone = False
        elif is_alone:
            raise CalibrationError("the cluster has had no workers for a while: start workers and run again")
        else:
            is_alone = True


def _worker_count(executor: Executor) -> int:
    """How many tasks an executor runs at a time, as far as it tells: a pool of Python's, or Dask's."""
    client: Any = getattr(executor, "_client", None)
    if client is not None and hasattr(client, "ncores"):
        return sum(client.ncores().values())
    return int(getattr(executor, "_max_workers", FEWEST // 2))


@contextmanager
def _failures_named() -> Iterator[None]:
    """What an executor says when it can't go on, in one sentence; errors of the task itself pass."""
    try:
        yield
    except SnpError:
        raise
    except ImportError as error:
        raise CalibrationError(f"the executor's workers lack a module ({error}): install snp-onnx for them") from error
    except (BrokenExecutor, CancelledError, OSError, PicklingError) as error:
        raise CalibrationError(_lost(error)) from error
    except Exception as error:
        is_ours = type(error).__module__.partition(".")[0] in ("dask", "distributed")
        if is_ours or "after shutdown" in str(error):
            raise CalibrationError(_lost(error)) from error
        raise


def _lost(error: BaseException) -> str:
    said = " ".join(str(error).split()) or "no reason given"
    return f"the executor gave up ({type(error).__name__}: {said[:200]}): check its workers, their memory first"
