"""Tracing: from a graph to units, groups and barriers."""

from snp_onnx.tracing.blocks import Block, BlockKind, find_blocks
from snp_onnx.tracing.driver import declared_shapes, trace, unknown_shapes
from snp_onnx.tracing.groups import PLAIN_KINDS, Group, Kind, Stop, Trace
from snp_onnx.tracing.tracer import Barrier, Linear

__all__ = [
    "PLAIN_KINDS",
    "Barrier",
    "Block",
    "BlockKind",
    "Group",
    "Kind",
    "Linear",
    "Stop",
    "Trace",
    "declared_shapes",
    "find_blocks",
    "trace",
    "unknown_shapes",
]
