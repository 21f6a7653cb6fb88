"""The command line.

Exit codes: 0 done; 2 wrong input, data, options or environment; 3 target out of reach or nothing prunable; 130
interrupted; 1 a bug of ours, failed verification included.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

import typer

from snp_onnx.cli.commands import app
from snp_onnx.cli.remarks import remark, shows_own_warnings, silence_libraries
from snp_onnx.errors import TRACEBACK, PassError, SnpError, TargetError, is_debugged

COMPLETE = "_SNP_ONNX_COMPLETE"
"""The variable in which a shell asks for completions."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: every failure is one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that knows no τ shows a question mark, not a traceback
    if not is_debugged():
        silence_libraries()
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    warnings.showwarning = shows_own_warnings()
    try:
        code = app(args=arguments, prog_name="snp-onnx", standalone_mode=False)
        sys.stdout.flush()
        return _exit_code(int(code or 0))
    except TargetError as error:
        return _fail(error, 3)
    except PassError as error:
        return _fail(error, 1)
    except SnpError as error:
        return _fail(error, 2)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except (BrokenPipeError, SystemExit) as stop:
        if isinstance(stop, SystemExit) and os.environ.get(COMPLETE):
            return int(stop.code or 0)  # what a shell asked for; fish takes 1 as: offer files
        _give_up_stdout()  # typer exits where nobody reads stdout any more
        return 0
    except OSError as error:
        try:
            sys.stdout.flush()
        except OSError:
            _give_up_stdout()
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistyped option or argument
            return _fail(error.format_message() + ("" if arguments else " snp-onnx --help lists them."), 2)
        if is_debugged():
            raise
        return _fail(f"{type(error).__name__}: {error}: a bug of snp-onnx; {TRACEBACK}=1 shows where", 1)


def _exit_code(code: int) -> int:
    """What a run of typer that raised nothing means."""
    if code == 130:
        return _interrupted()
    if code:  # only its completion options exit so, having said that they don't know the shell
        return _fail(
            f"no completion for this shell: {COMPLETE}=source_bash snp-onnx prints bash's, and so for others", 2
        )
    return 0


def _give_up_stdout() -> None:
    """What is left in its buffer goes nowhere: Python would flush it at exit, fail again, and exit with 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted() -> int:
    print("interrupted: nothing was written", file=sys.stderr)
    return 130


def _fail(message: object, code: int) -> int:
    remark("error", message)
    return code
