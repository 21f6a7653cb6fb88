"""The command line.

Exit codes: 0 done; 2 wrong input, data, options or environment; 3 target out of reach or nothing prunable; 130
interrupted (143 by SIGTERM, 129 by SIGHUP); 1 a bug of ours, failed verification included.
"""

import os
import signal
import sys

COMPLETE = "_SNP_ONNX_COMPLETE"
"""The variable in which a shell asks for completions."""


LEAST_MEMORY = 2**29
"""Bytes of address space; the libraries take three quarters of it."""


def main(arguments: "list[str] | None" = None) -> None:
    """The entry point: every failure is one line on stderr and an exit code.

    Nothing is imported before interruptions are caught: while libraries are loaded, which takes most of a second, an
    exception would leave some of them half loaded, so the process ends at once.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end_at_once)
    for descriptor in (0, 1, 2):  # a closed one would be given to the next file that is opened
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    _require_memory()
    try:
        from snp_onnx.cli.run import run_and_exit
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        os.write(2, f"error: the libraries that this needs can't be loaded: {said}\n".encode(errors="replace"))
        sys.exit(2)

    run_and_exit(list(sys.argv[1:] if arguments is None else arguments))


def _require_memory() -> None:
    """Refuse a limit under which the linear algebra that numpy brings loops for ever, or ends without a word."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_MEMORY:
        os.write(
            2, f"error: only {limit >> 20} MB may be used (ulimit -v): {LEAST_MEMORY >> 20} are the least\n".encode()
        )
        sys.exit(2)


def _end_at_once(number: int, _: object) -> None:
    os.write(2, b"interrupted: nothing was written\n")
    os._exit(128 + number)
