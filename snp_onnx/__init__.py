"""snp-onnx: structured pruning of trained ONNX models, without training."""

from importlib import import_module

from snp_onnx._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from snp_onnx.errors import CalibrationError, ModelError, PassError, PlanError, SnpError, TargetError
    from snp_onnx.integrations.folder import prune_folder
    from snp_onnx.integrations.static import prune_static
    from snp_onnx.planning.plan import Plan
    from snp_onnx.verbs.compare import compare
    from snp_onnx.verbs.inspect import inspect
    from snp_onnx.verbs.prune import prune
    from snp_onnx.verbs.recover import recover
    from snp_onnx.verbs.recovered import RecoverResult
    from snp_onnx.verbs.result import PruneResult

__all__ = [
    "CalibrationError",
    "ModelError",
    "PassError",
    "Plan",
    "PlanError",
    "PruneResult",
    "RecoverResult",
    "SnpError",
    "TargetError",
    "__version__",
    "compare",
    "inspect",
    "prune",
    "prune_folder",
    "prune_static",
    "recover",
]

_HOMES = {
    **dict.fromkeys(
        ("CalibrationError", "ModelError", "PassError", "PlanError", "SnpError", "TargetError"), "snp_onnx.errors"
    ),
    "prune_folder": "snp_onnx.integrations.folder",
    "prune_static": "snp_onnx.integrations.static",
    "Plan": "snp_onnx.planning.plan",
    "compare": "snp_onnx.verbs.compare",
    "inspect": "snp_onnx.verbs.inspect",
    "prune": "snp_onnx.verbs.prune",
    "recover": "snp_onnx.verbs.recover",
    "RecoverResult": "snp_onnx.verbs.recovered",
    "PruneResult": "snp_onnx.verbs.result",
}
"""Public names by the module that has them, imported when first asked for: the command line starts without numpy."""


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
