"""Writing: temporary folders that no killed run leaves behind, and results whose files appear together."""

from snp_onnx.writing.places import followed, is_mount
from snp_onnx.writing.scratch import Scratch, is_hidden_scratch
from snp_onnx.writing.transaction import Transaction, held_signals, joined, settle, written_whole

__all__ = [
    "Scratch",
    "Transaction",
    "followed",
    "held_signals",
    "is_hidden_scratch",
    "is_mount",
    "joined",
    "settle",
    "written_whole",
]
