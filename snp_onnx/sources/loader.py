"""`loader.py[:function]`: the user's own Python that yields feeds; its errors are shown with their line."""

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, cast

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import InputSpec

_PATTERN = re.compile(r"(?P<path>.*\.py)(:(?P<function>[A-Za-z_]\w*))?", re.DOTALL)
_MODULE_NAME = "snp_onnx_calibration_loader"


def split_loader(source: str) -> tuple[Path, str] | None:
    """The file and the function named by `loader.py[:function]`, or `None` if the source is no such thing."""
    found = _PATTERN.fullmatch(source)
    return None if found is None else (Path(found["path"]), found["function"] or "load_data")


class Room:
    """Where the user's code runs: in the folder that it has changed to itself, which is never ours."""

    def __init__(self) -> None:
        self._theirs: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A step of the user's code."""
        ours = _here()
        if self._theirs is not None:
            os.chdir(self._theirs)
        try:
            yield
        finally:
            self._theirs = _here()
            if ours is not None:
                os.chdir(ours)


def _here() -> str | None:
    """The working directory; None where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


@contextmanager
def _without_exit() -> Iterator[None]:
    """The user's code can't end the process, as a success say, but its own children can end."""
    leave, process = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != process:
            leave(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = leave


@contextmanager
def loader(path: Path, function: str) -> Iterator[tuple[object, Room]]:
    """What `function()` of the file returns, and the room in which to go on with it.

    Until the block is left, the file's folder can be imported from. Whatever the user's code raises inside the block,
    iteration included, becomes a `CalibrationError` that shows it.
    """
    if not path.is_file():
        raise CalibrationError(f"there is no loader {path}; give the path of a Python file")
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    before, room = sys.modules.get(_MODULE_NAME), Room()
    try:
        with _without_exit():
            with room():
                found = _find(_import(path), path, function)()
            yield found, room
    except CalibrationError:
        raise
    except (Exception, SystemExit) as error:
        where = f"{path}:{_line(error, path)}"
        text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
        raise CalibrationError(f"loader {where} raised {type(error).__name__}: {text}; fix the loader") from error
    finally:
        _forget(before)
        if str(path.parent) in sys.path:
            sys.path.remove(str(path.parent))


def tell_inputs(source: Any, specs: Sequence[InputSpec]) -> None:
    """Set `source.input_metadata` where it is None: polygraphy tells its data loaders so for which inputs they are."""
    if getattr(source, "input_metadata", specs) is not None:
        return
    try:
        from polygraphy.common import TensorMetadata
    except ImportError:
        return
    source.input_metadata = TensorMetadata()
    for spec in specs:
        source.input_metadata.add(spec.name, spec.dtype, spec.shape)


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise CalibrationError(f"{path} cannot be imported as Python; give the path of a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE_NAME] = module  # dataclasses and pickle look the module up
    spec.loader.exec_module(module)
    return module


def _forget(before: ModuleType | None) -> None:
    sys.modules.pop(_MODULE_NAME, None)
    if before is not None:
        sys.modules[_MODULE_NAME] = before


def _find(module: ModuleType, path: Path, function: str) -> Callable[[], object]:
    found = getattr(module, function, None)
    if not callable(found):
        names = sorted(name for name, value in vars(module).items() if callable(value) and not name.startswith("_"))
        has = ", ".join(names) or "none"
        raise CalibrationError(
            f"loader {path} has no function {function!r} (it has: {has}); name one as {path.name}:NAME"
        )
    return cast(Callable[[], object], found)


def _line(error: BaseException, path: Path) -> int:
    """The innermost line of the loader itself; 1 where none is on the stack."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines[-1] or 1) if lines else 1
