"""Preparing a model for tracing: the same function, written so that every weight can be cut on its own."""

from __future__ import annotations

import onnx
import onnx.inliner

from snp_onnx.external import Store
from snp_onnx.passes.base import Note, Pass
from snp_onnx.passes.einsum_to_matmul import EinsumToMatMul
from snp_onnx.passes.eliminate_dead import EliminateDead
from snp_onnx.passes.fold_batch_norm import FoldBatchNorm
from snp_onnx.passes.fold_constants import FoldConstants, computed_weights
from snp_onnx.passes.lift_constants import LiftConstants
from snp_onnx.passes.name_sums import NameSums
from snp_onnx.passes.pipeline import Rewritten, rewrite
from snp_onnx.passes.raise_opset import raise_opset
from snp_onnx.passes.separate_shared import SeparateShared
from snp_onnx.passes.split_fused import SplitFused
from snp_onnx.passes.unpack_sequences import UnpackSequences


def prepare(model: onnx.ModelProto, store: Store | None = None) -> Rewritten:
    """Raise the opset, inline functions, split fused layers, unpack sequences, separate vectors, fold BatchNorms.

    The model given isn't changed.
    """
    model, said = raise_opset(model)
    notes: list[Note] = [*said]
    if model.functions:
        notes.append(Note("model", f"{len(model.functions)} model-local functions inlined"))
        model = onnx.inliner.inline_local_functions(model)
    names = {tensor.name for tensor in model.graph.initializer}
    listed = sum(value.name in names for value in model.graph.input)
    if listed:
        plain = "they are plain initialisers now, which by itself makes runtimes faster"
        notes.append(Note("model", f"{listed} initialisers were listed as graph inputs: {plain}"))
    passes: list[Pass] = [
        SplitFused(),
        LiftConstants(),
        UnpackSequences(),
        FoldConstants(computed_weights(model)),
        EinsumToMatMul(),
    ]
    passes += [SeparateShared(), FoldBatchNorm(), EliminateDead(), NameSums()]
    rewritten = rewrite(model, passes, store)
    return Rewritten(rewritten.model, (*notes, *rewritten.notes))
