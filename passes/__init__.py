"""Passes: model-to-model rewrites, one a file, and the pipeline that composes them."""

from snp_onnx.passes.base import Note, Outcome, Pass, summarise
from snp_onnx.passes.dequantise import Dequantise
from snp_onnx.passes.eliminate_dead import EliminateDead
from snp_onnx.passes.fold_batch_norm import FoldBatchNorm
from snp_onnx.passes.fold_constants import FoldConstants
from snp_onnx.passes.fold_weights import FoldWeights
from snp_onnx.passes.freeze_numbers import FreezeNumbers
from snp_onnx.passes.lift_constants import LiftConstants
from snp_onnx.passes.pipeline import Rewritten, rewrite
from snp_onnx.passes.prepare import prepare
from snp_onnx.passes.remove_blocks import DropIdentities, RemoveBlocks
from snp_onnx.passes.requantise import Requantise, narrow_weights
from snp_onnx.passes.rotate_stream import rotate_streams
from snp_onnx.passes.separate_shared import SeparateShared
from snp_onnx.passes.slice_units import SliceUnits
from snp_onnx.passes.split_fused import SplitFused
from snp_onnx.passes.turn_heads import Turn, TurnHeads
from snp_onnx.passes.unpack_sequences import UnpackSequences

__all__ = [
    "Dequantise",
    "DropIdentities",
    "EliminateDead",
    "FoldBatchNorm",
    "FoldConstants",
    "FoldWeights",
    "FreezeNumbers",
    "LiftConstants",
    "Note",
    "Outcome",
    "Pass",
    "RemoveBlocks",
    "Requantise",
    "Rewritten",
    "SeparateShared",
    "SliceUnits",
    "SplitFused",
    "Turn",
    "TurnHeads",
    "UnpackSequences",
    "narrow_weights",
    "prepare",
    "rewrite",
    "rotate_streams",
    "summarise",
]
