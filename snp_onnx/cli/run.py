"""One run of the command line: every failure is one line on stderr and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import NoReturn

import typer

from snp_onnx.cli import COMPLETE
from snp_onnx.cli.commands import app
from snp_onnx.cli.interruption import SIGNALS, Interruption, catch_interruptions
from snp_onnx.cli.remarks import remark, shows_own_warnings
from snp_onnx.cli.streams import prepare_streams, release_stdout, silence_libraries
from snp_onnx.errors import TRACEBACK, PassError, SnpError, TargetError, is_debugged


def run_and_exit(arguments: list[str]) -> NoReturn:
    """Run, and end the process with the exit code."""
    told = Interruption()
    try:
        catch_interruptions(told)
        told.has_stdout = prepare_streams()
        if not is_debugged():
            silence_libraries()
        code = run(arguments, told)
    except KeyboardInterrupt:  # between two statements of the above
        code = _interrupted(told)
    for number in SIGNALS:  # what is left is Python's own end, which has nothing to say
        signal.signal(number, lambda *_: os._exit(code))
    release_stdout()
    sys.exit(code)


def run(arguments: list[str], told: Interruption | None = None) -> int:
    """Run; the exit code."""
    told = told or Interruption()
    warnings.showwarning = shows_own_warnings()
    try:
        code = app(args=arguments, prog_name="snp-onnx", standalone_mode=False, obj=told)
        sys.stdout.flush()
        told.stop_if_interrupted()
        return _exit_code(int(code or 0), told)
    except BaseException as error:
        if told.number or isinstance(error, KeyboardInterrupt | typer.Abort):
            return _interrupted(told)  # whatever a library made of it
        return _failure(error, bool(arguments))


def _failure(error: BaseException, has_arguments: bool) -> int:
    """What went wrong in one line, and the exit code for it."""
    if isinstance(error, SnpError):
        return _fail(error, 3 if isinstance(error, TargetError) else 1 if isinstance(error, PassError) else 2)
    if isinstance(error, SystemExit) and os.environ.get(COMPLETE):
        return int(error.code or 0)  # what a shell asked for; fish takes 1 as: offer files
    if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
        _give_up_stdout()  # nobody reads it any more; typer exits then
        return 0
    if isinstance(error, SystemExit):
        return _fail(f"code that the run called has ended it with exit({error.code})", 2)
    if isinstance(error, OSError):
        try:
            sys.stdout.flush()
        except OSError:
            _give_up_stdout()
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    if isinstance(error, MemoryError) or "can't start new thread" in str(error):
        said = " ".join(str(error).split()) or "an allocation failed"
        return _fail(f"not enough memory: {said}: give fewer --samples or a smaller --batch-size, or more memory", 2)
    if hasattr(error, "format_message"):  # a mistyped option or argument
        return _fail(error.format_message() + ("" if has_arguments else " snp-onnx --help lists them."), 2)
    if is_debugged():
        raise error
    return _fail(f"{type(error).__name__}: {error}: a bug of snp-onnx; {TRACEBACK}=1 shows where", 1)


def _exit_code(code: int, told: Interruption) -> int:
    """What a run of typer that raised nothing means."""
    if code == 130:
        return _interrupted(told)
    if code:  # only its completion options exit so, having said that they don't know the shell
        return _fail(
            f"no completion for this shell: {COMPLETE}=source_bash snp-onnx prints bash's, and so for others", 2
        )
    return 0


def _give_up_stdout() -> None:
    """What is left in its buffer goes nowhere: Python would flush it at exit, fail again, and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(told: Interruption) -> int:
    if not told.is_told:
        told.is_told = True
        print(told.said, file=sys.stderr)
    return told.code


def _fail(message: object, code: int) -> int:
    remark("error", message)
    return code
