"""Subspaces of activations: order the units, measure what each one adds, fold the pruned into the kept. Pure numpy."""

from snp_onnx.subspace.centred import CentredGram, Factor, NormalMatrix
from snp_onnx.subspace.conjugate import conjugate_gradients
from snp_onnx.subspace.elimination import Consumer, Elimination, eliminate
from snp_onnx.subspace.few_rows import FewRows, FewRowsMap, few_rows
from snp_onnx.subspace.folding import affine_fold, fold_error, fold_map
from snp_onnx.subspace.ldl import cumulative_variance, ldl
from snp_onnx.subspace.ordering import Order, magnitude, natural, order_by_importance, random, saw, zca_importance
from snp_onnx.subspace.refit import refit, refit_error
from snp_onnx.subspace.ridge import ridge_diagonal
from snp_onnx.subspace.rotation import balanced_bases, principal_basis
from snp_onnx.subspace.shrinkage import shrink
from snp_onnx.subspace.similarity import Similarity, similarity
from snp_onnx.subspace.stream_axes import centring, principal_axes, sensitivity, turned
from snp_onnx.subspace.turns import Rule, Turns

__all__ = [
    "CentredGram",
    "Consumer",
    "Elimination",
    "Factor",
    "FewRows",
    "FewRowsMap",
    "NormalMatrix",
    "Order",
    "Rule",
    "Similarity",
    "Turns",
    "affine_fold",
    "balanced_bases",
    "centring",
    "conjugate_gradients",
    "cumulative_variance",
    "eliminate",
    "few_rows",
    "fold_error",
    "fold_map",
    "ldl",
    "magnitude",
    "natural",
    "order_by_importance",
    "principal_axes",
    "principal_basis",
    "random",
    "refit",
    "refit_error",
    "ridge_diagonal",
    "saw",
    "sensitivity",
    "shrink",
    "similarity",
    "turned",
    "zca_importance",
]
