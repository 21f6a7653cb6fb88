"""The errors a caller may see. Everything expected derives from `SnpError`; anything else is a bug of ours."""

import os

TRACEBACK = "SNP_ONNX_TRACEBACK"
"""The variable that shows where a bug happened and what libraries log, and has every pass run twice."""


def is_debugged() -> bool:
    """Whether failures are shown in full, and passes held to their contracts."""
    return os.environ.get(TRACEBACK) == "1"


class SnpError(Exception):
    """Base of every expected error; its message is one sentence saying what is wrong, where, and what to do."""


class ModelError(SnpError, ValueError):
    """The model file or graph is unusable: unreadable, invalid, or not loadable by the runtime."""


class CalibrationError(SnpError, ValueError):
    """The calibration source, its arrays or its loader are unusable."""


class PlanError(SnpError, ValueError):
    """Options or a plan do not fit the model, or the environment cannot carry them out."""


class TargetError(SnpError, ValueError):
    """The target cannot be reached, or nothing may be pruned; nothing was written."""


class PassError(SnpError):
    """A rewrite broke its contract: a bug of ours, found before anything was written."""


class SnpWarning(RuntimeWarning):
    """What a user should know of a run that goes on. The command line shows these, and no library's own warnings."""
