"""snp-onnx: structured pruning of trained ONNX models, without training."""

from snp_onnx._version import __version__
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
