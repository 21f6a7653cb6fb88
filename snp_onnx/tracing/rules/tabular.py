"""Models of tables, `ai.onnx.ml`: rows pass; what is learned stands in attributes, one number for every feature."""

from __future__ import annotations

from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Tracer

PREDICTORS = (
    *("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"),
    *("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
)


def predictor(op: Op, tracer: Tracer) -> None:
    """Linear models, support vectors and trees: (rows, features) become a class and scores for every row."""
    source, reason = op.input(0), f"the numbers of this {op.type} are attributes"
    axes = tracer.axes(source)
    tracer.barrier(op, source, len(axes) - 1, reason)
    for name in filter(None, op.outputs):
        rest = [tracer.whole(op, name, axis, reason) for axis in range(1, len(tracer.shape(name)))]
        tracer.set_axes(name, [axes[0] if len(axes) > 1 else tracer.whole(op, name, 0, reason), *rest])


def by_feature(op: Op, tracer: Tracer) -> None:
    """Imputer and Scaler: one number for all features passes, one for each does not."""
    source = op.input(0)
    if any(len(a.floats) > 1 or len(a.ints) > 1 for a in op.node.attribute):
        tracer.barrier(op, source, len(tracer.shape(source)) - 1, f"the numbers of this {op.type} are attributes")
    tracer.set_axes(op.outputs[0], tracer.axes(source))


def feature_vector(op: Op, tracer: Tracer) -> None:
    """FeatureVectorizer: joins features along the second axis, whose extents are attributes."""
    opaque(op, tracer, f"the numbers of this {op.type} are attributes")
