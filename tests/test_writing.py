"""Results of several files: after a failure, an interruption or a kill at any moment all are old or all are new."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from snp_onnx.errors import PlanError
from snp_onnx.model_io import check_destination, load, save
from snp_onnx.writing import Scratch, Transaction, held_signals, moves, settle
from tests.command_line import files
from tests.test_model_io import wide

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes that are killed are forked")

STEPS = ("rename", "replace", "link")
UNDISTURBED, SURVIVED, INTERRUPTED, FAILED = 0, 3, 130, 4


def old_files(folder: Path) -> Path:
    """Files in two folders, and a folder among them."""
    for name in ("a", "gone", "x.0.data", "tree/inner", "tree/older", "other/d"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"old {name}")
    return folder


def replace_all(folder: Path) -> None:
    """A transaction over all of them: replaced, removed and made."""
    with Transaction() as result:
        for name in ("a", "made", "other/d"):
            result.new(folder / name).write_text(f"new {name}")
        tree = result.new(folder / "tree")
        tree.mkdir()
        (tree / "inner").write_text("new tree/inner")
        draft = result.draft(folder)
        draft.write_text("new data")
        result.put(draft, folder / "x.1.data")
        result.remove(folder / "gone")
        result.remove(folder / "never there")
        result.remove_others(folder, r"x\.\d\.data", kept="x.1.data")


@pytest.fixture
def states(tmp_path: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What all of it looks like before and after."""
    old, new = (old_files(tmp_path / name) for name in ("old", "new"))
    replace_all(new)
    assert len(files(new)) == 5
    return files(old), files(new)


def forked(number: int, act: Callable[[], object], work: Callable[[], object]) -> int:
    """How a process ends that does the work, and in it acts before the `number`th step by which a name changes."""
    child = os.fork()
    if child > 0:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count, code = 0, FAILED

    def counted(inner: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                act()
            return inner(*given, **named)

        return step

    try:
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        moves._exchanged = counted(moves._exchanged)
        work()
        code = SURVIVED if count >= number else UNDISTURBED
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        os._exit(code)


def at_every_step(folder: Path, act: Callable[[], object]) -> Iterator[tuple[Path, int]]:
    """The files after a run in which something happened before the first step, the second and so on; how it ended."""
    for number in range(1, 200):
        here = old_files(folder / str(number))
        code = forked(number, act, lambda here=here: replace_all(here))  # type: ignore[misc]
        if code == UNDISTURBED:
            assert number > 12
            return
        yield here, code
    raise AssertionError("too many steps")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def fail() -> None:
    raise OSError(5, "Input/output error")


@pytest.fixture(params=["exchange", "no exchange"])
def can_exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without the step that lets two folders change places."""
    if request.param != "exchange":
        monkeypatch.setattr(moves, "_exchanged", lambda one, other: False)
    return bool(request.param == "exchange")


@pytest.mark.parametrize("first", ["", "other"])
def test_a_kill_at_any_step(tmp_path: Path, states: Any, first: str, can_exchange: bool) -> None:
    old, new = states
    seen = []
    for here, code in at_every_step(tmp_path, kill):
        assert code == -signal.SIGKILL
        at_once = files(here)
        assert not can_exchange or at_once["tree/inner"] in (b"old tree/inner", b"new tree/inner")
        assert at_once["a"] in (b"old a", b"new a")
        for folder in (here / first, here, here / "other"):
            settle(folder)
        assert files(here) in (old, new), here
        assert not list(here.rglob(".snp*"))
        seen.append(files(here) == new)
    assert seen == sorted(seen)
    assert 2 <= len(seen) - sum(seen) < sum(seen)  # records first, then moves


def test_an_interruption_at_any_step(tmp_path: Path, states: Any) -> None:
    old, new = states
    seen = []
    for here, code in at_every_step(tmp_path, interrupt):
        assert code == INTERRUPTED
        assert files(here) in (old, new), here
        seen.append(files(here) == new)
    assert all(seen)  # they wait for the last one


def test_a_failure_at_any_step(tmp_path: Path, states: Any, can_exchange: bool) -> None:
    old, new = states
    codes = []
    for here, code in at_every_step(tmp_path, fail):
        assert files(here) == (new if code == SURVIVED else old), here  # without a link nothing can be put back
        codes.append(code)
    assert codes.count(FAILED) > 3


def test_signals_wait_and_are_delivered() -> None:
    told = []

    def block(error: Exception | None) -> None:
        with held_signals():
            interrupt()
            time.sleep(0.01)
            told.append("went on")
            if error is not None:
                raise error

    for error in (None, OSError()):
        with pytest.raises(KeyboardInterrupt):
            block(error)
    assert len(told) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_record_moves_nothing_to_other_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("../stolen", "..", ".", "", "/etc/x", "a/b"):
        room = tmp_path / "inner" / ".snp_onnx-abcdefgh"
        room.mkdir()
        (room / "snp_onnx.lock").touch()
        (room / "1").write_text("hostile")
        move = {"draft": "1", "name": name, "is_removal": False, "inode": (room / "1").stat().st_ino}
        (room / "moves.json").write_text(json.dumps({"first": "", "others": [], "moves": [move]}))
        settle(tmp_path / "inner")
        assert files(tmp_path) == {}, name


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"first": 1, "others": 2, "moves": 3}', "[" * 9999, "\x00"])
def test_a_damaged_record_is_dropped(tmp_path: Path, text: str) -> None:
    room = tmp_path / ".snp_onnx-abcdefgh"
    room.mkdir()
    (room / "snp_onnx.lock").touch()
    (room / "moves.json").write_text(text)
    settle(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_to_one_output_leave_one_of_both(tmp_path: Path) -> None:
    output = tmp_path / "m.onnx"
    with Transaction() as slow:
        save(wide(0), output, external_data=True, within=slow)
        save(wide(1), output, external_data=True)
        assert load(output).proto.graph == onnx.load(output).graph
    assert len(files(tmp_path)) == 2
    assert load(output).has_external_data
    written = onnx.load(output).graph.initializer[0].raw_data
    assert written == wide(0).graph.initializer[0].raw_data


def test_leftovers_of_dead_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    child = os.fork()
    if child == 0:
        made = Scratch()
        (made.path / "large").touch()
        kill()
    os.waitpid(child, 0)
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "snp_onnx-1.0.0").mkdir()
    (tmp_path / "snp_onnx-abcdefgh").mkdir()  # whose process may be about to lock it
    os.utime(tmp_path / "snp_onnx-abcdefgh")
    alive = Scratch()
    with Scratch() as second:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"snp_onnx-1.0.0", "snp_onnx-abcdefgh", alive.path.name, second.name}
    os.utime(tmp_path / "snp_onnx-abcdefgh", (0, 0))
    alive.close()
    Scratch().close()
    assert [path.name for path in tmp_path.iterdir()] == ["snp_onnx-1.0.0"]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "m.onnx").write_bytes(b"old")
    link = tmp_path / "m.onnx"
    link.symlink_to("real/m.onnx")
    check_destination(link, None, force=False)
    save(wide(), link)
    assert link.is_symlink()
    assert load(tmp_path / "real" / "m.onnx").proto == wide()
    with pytest.raises(PlanError, match="is a link, and data"):
        save(wide(), link, external_data=True)
    for target, word in (("nowhere.onnx", "link to nothing"), ("n.onnx", "link to nothing")):
        (tmp_path / "n.onnx").unlink(missing_ok=True)
        (tmp_path / "n.onnx").symlink_to(target)
        with pytest.raises(PlanError, match=word):
            check_destination(tmp_path / "n.onnx", None, force=False)
        with pytest.raises(PlanError, match=word):
            save(wide(), tmp_path / "n.onnx")
