"""Batches in an executor: the same plan and model as here, bit for bit, and no batch lost or counted twice."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.calibration import workers
from snp_onnx.calibration.cluster import dask_executor
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.calibration.workers import Program, Task, Unknown, answer, answers
from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.verbs.result import PruneResult
from tests import streams
from tests.command_line import Bench, images, small
from tests.graphs import Net, feed_for

Capture = pytest.CaptureFixture[str]
BATCH = 4


def pruned(executor: Executor | None = None, **options: Any) -> PruneResult:
    """A small network cut to 0.6 of its MACs; 44 of its 48 samples decide, in about ten batches."""
    return snp_onnx.prune(small(), {"x": images()}, target_macs=0.6, batch_size=BATCH, executor=executor, **options)


def assert_same(found: PruneResult, expected: PruneResult) -> None:
    assert found.model.SerializeToString(deterministic=True) == expected.model.SerializeToString(deterministic=True)
    assert found.plan == expected.plan


@pytest.fixture(scope="module")
def local() -> PruneResult:
    return pruned()


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes, each with one thread."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1"
    ) as running:
        yield running


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    import distributed

    with distributed.Client(cluster, set_as_default=False) as connected:
        connected.wait_for_workers(2, 60)
        yield connected


class Around(Executor):
    """Another executor, through which each task may be changed and is remembered."""

    def __init__(self, inner: Executor, change: Callable[..., tuple[Any, ...]] = lambda fn, task: (fn, task)) -> None:
        self.inner, self.change = inner, change
        self.tasks: list[Task] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks.append(args[0])
        return self.inner.submit(*self.change(fn, args[0]))


def assert_every_batch(around: Around) -> None:
    """All batches were sent out: eleven, or a few less where small ones are joined."""
    seen = {task.index for task in around.tasks}
    assert seen == set(range(len(seen)))
    assert 8 <= len(seen) <= 11


# the same result


def test_threads(local: PruneResult) -> None:
    with ThreadPoolExecutor(3) as executor:
        around = Around(executor)
        assert_same(pruned(around), local)
    assert_every_batch(around)


def test_processes(local: PruneResult, pool: ProcessPoolExecutor) -> None:
    around = Around(pool)
    assert_same(pruned(around), local)
    assert_every_batch(around)


def test_a_cluster(local: PruneResult, client: Any) -> None:
    assert_same(pruned(client.get_executor()), local)


def transformer() -> onnx.ModelProto:
    net = Net(batch="N")
    streams.pre_norm(net, streams.layer_norm)
    return net.model()


@pytest.mark.parametrize("units", ["stream", "head-dims"])
def test_moments_that_bases_are_turned_by(units: str) -> None:
    model = transformer()
    feeds = {name: np.concatenate([array] * 20) for name, array in feed_for(model, 3, seed=0).items()}
    options: dict[str, Any] = {"target_macs": 0.9, "units": [units], "batch_size": BATCH}
    with ThreadPoolExecutor(2) as executor:
        around = Around(executor)
        found = snp_onnx.prune(model, feeds, executor=around, **options)
    assert_same(found, snp_onnx.prune(model, feeds, **options))
    programs = list(dict.fromkeys(task.program for task in around.tasks))
    assert len(programs) == 4  # the bases, then the consumers' inputs; each around 0, and around the first batch's mean
    assert [sum(task.program == program for task in around.tasks) for program in programs[::2]] == [1, 1]


# a worker is killed


FATAL = 5
"""The batch whose first run waits to be killed."""


def stuck(fn: Callable[..., Any], task: Task, folder: str) -> Any:
    """Run a task; one of them hangs the first time, and leaves the number of its process."""
    if task.index == FATAL:
        mark = Path(folder, f"{len(list(Path(folder).iterdir()))}")
        mark.write_text(f"{os.getpid()}\n")
        if mark.name == "0":
            time.sleep(60)
    return fn(task)


def killed(folder: Path) -> Callable[[str, int, int], None]:
    """A progress that kills the worker in which the task hangs."""

    def progress(stage: str, done: int, _: int) -> None:
        mark = folder / "0"
        while stage == "calibrate" and done == FATAL:
            if mark.exists() and mark.read_text().endswith("\n"):
                return os.kill(int(mark.read_text()), signal.SIGKILL)
            time.sleep(0.01)

    return progress


def test_a_killed_worker_of_a_cluster_changes_nothing(local: PruneResult, client: Any, tmp_path: Path) -> None:
    executor = Around(client.get_executor(), lambda fn, task: (stuck, fn, task, str(tmp_path)))
    assert_same(pruned(executor, progress=killed(tmp_path)), local)
    assert_every_batch(executor)
    first, *others = [int(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert others
    assert first not in others
    assert first not in client.run(os.getpid).values()


def test_a_pool_that_lost_a_worker_says_so(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        around = Around(executor, lambda fn, task: (stuck, fn, task, str(tmp_path)))
        with pytest.raises(CalibrationError, match=r"the executor gave up \(BrokenProcessPool: .*check its workers"):
            pruned(around, progress=killed(tmp_path))
        with pytest.raises(CalibrationError, match="the executor gave up"):
            pruned(executor)
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(CalibrationError, match=r"gave up \(RuntimeError: .*after shutdown"):
        pruned(closed)


def test_a_cluster_without_workers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Executor):
        class _client:  # noqa: N801 - what Dask's executor has
            cores = ({}, {"tcp://late": 1}, {}, {})

            @classmethod
            def ncores(cls) -> dict[str, int]:
                now, *cls.cores = cls.cores  # type: ignore[assignment]
                return now

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return Future()

    monkeypatch.setattr(workers, "PATIENCE", 0.01)
    with pytest.raises(CalibrationError, match="had no workers for a while"):
        pruned(Silent())
    assert len(Silent._client.cores) == 0


# what travels


def program() -> Program:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy")
    graph = onnx.helper.make_graph([node], "g", [x], [y])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    return Program("d", model.SerializeToString())


def test_a_worker_asks_for_a_program_it_does_not_have() -> None:
    whole, feed = program(), {"x": np.ones(2, np.float32)}
    workers.forget()
    tasks = [Task(p, Runtime(threads=1), 0, feed, workers.versions()) for p in (whole.by_name, whole)]
    refused = answer(tasks[0])
    assert isinstance(refused, Unknown)
    assert refused.worker.endswith(f":{os.getpid()}")
    assert not isinstance(answer(tasks[1]), Unknown)
    assert not isinstance(answer(tasks[0]), Unknown)
    workers.forget()
    assert isinstance(answer(tasks[0]), Unknown)


def test_the_program_travels_about_once_to_every_worker(pool: ProcessPoolExecutor) -> None:
    feeds = [{"x": np.full(2, i, np.float32)} for i in range(200)]
    around = Around(pool)
    found = list(answers(program(), feeds, Runtime(threads=1), around))
    assert [float(one["y"][0]) for one in found] == list(range(200))
    sent = [task for task in around.tasks if task.program.payload is not None]
    assert (
        1 <= len(sent) <= 40
    )  # which worker gets a task isn't ours to say, and tasks as short as these are refused often


def test_a_worker_that_forgets_is_sent_the_program_again() -> None:
    class Forgetful(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            workers.forget()
            future: Future[Any] = Future()
            future.set_result(fn(*args))
            return future

    feeds = [{"x": np.full(2, i, np.float32)} for i in range(7)]
    found = list(answers(program(), feeds, Runtime(threads=1), Forgetful()))
    assert [float(one["y"][0]) for one in found] == list(range(7))


def test_another_version_is_refused() -> None:
    task = Task(program(), Runtime(), 0, {"x": np.ones(2, np.float32)}, ("0.0.1", "1.0.0"))
    with pytest.raises(PlanError, match=r"the worker on .* not snp-onnx 0\.0\.1 with onnxruntime 1\.0\.0: install"):
        answer(task)


def test_errors_of_a_batch_come_back_as_they_are(pool: ProcessPoolExecutor) -> None:
    with pytest.raises(CalibrationError, match="the batch lacks the input 'x'"):
        list(answers(program(), [{"z": np.ones(2, np.float32)}], Runtime(threads=1), pool))


def test_few_answers_wait_where_they_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = [{"x": np.zeros(2, np.float32)} for _ in range(40)]

    def most(limit: int) -> int:
        monkeypatch.setattr(workers, "MOST_WAITING", limit)
        with ThreadPoolExecutor(8) as executor:
            around, ahead = Around(executor), 0
            for done, _ in enumerate(answers(program(), feeds, Runtime(threads=1), around)):
                ahead = max(ahead, len({task.index for task in around.tasks}) - done)
        return ahead

    monkeypatch.setattr(workers, "_worker_count", lambda _: 8)
    assert (most(2**31), most(8 * 10), most(1)) == (16, 10, 4)


def test_something_else_than_an_executor_is_refused() -> None:
    with pytest.raises(PlanError, match=r"is a Net: give a concurrent\.futures\.Executor"):
        pruned(Net())  # type: ignore[arg-type]


# the command line


def test_the_command_line_uses_a_cluster(here: Bench, capsys: Capture, cluster: Any) -> None:
    assert here.prune(capsys).code == 0
    expected = here.output.read_bytes()
    here.output.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "open_session", None)  # nothing is measured here
        outcome = here.prune(capsys, "--dask", cluster.scheduler_address, "--preset", "fast")
        assert outcome.code == 0, outcome.err
    outcome = here.prune(capsys, "--dask", cluster.scheduler_address)
    assert outcome.code == 0, outcome.err
    assert here.output.read_bytes() == expected


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp://127.0.0.1:9", r"--dask tcp://127.0.0.1:9: can't be reached \(.*refused\): is the scheduler running"),
        ("127.0.0.1", r"--dask '127.0.0.1': give the address of a scheduler, such as tcp://"),
        ("tcp://host:port", r"--dask 'tcp://host:port': give the address"),
    ],
)
def test_no_scheduler(here: Bench, capsys: Capture, address: str, said: str) -> None:
    pytest.importorskip("distributed")
    outcome = here.prune(capsys, "--dask", address)
    assert outcome.code == 2
    assert len(outcome.lines) == 1
    assert re.search(said, outcome.err)
    assert not here.output.exists()


def test_a_scheduler_without_workers(cluster: Any) -> None:
    import distributed

    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", host="127.0.0.1") as empty,
        pytest.raises(PlanError, match="the scheduler has no worker: start dask worker"),
        dask_executor(empty.scheduler_address, timeout=0.5),
    ):
        pass


def test_dask_is_not_installed(here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    outcome = here.prune(capsys, "--dask", "tcp://127.0.0.1:9")
    assert outcome.code == 2
    assert "pip install snp-onnx[dask]" in outcome.err
