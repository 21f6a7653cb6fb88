"""Costs: MACs, parameters and bytes, as sums of products of axis extents."""

from snp_onnx.cost.macs import RECURRENT, is_uncounted, mac_terms, multiplies, node_name, node_parts
from snp_onnx.cost.parameters import (
    FLOATS,
    NARROW,
    byte_terms,
    constants_of,
    is_matrix,
    item_bytes,
    param_terms,
    weights,
)
from snp_onnx.cost.terms import Cost, Part, Term, total

__all__ = [
    "FLOATS",
    "NARROW",
    "RECURRENT",
    "Cost",
    "Part",
    "Term",
    "byte_terms",
    "constants_of",
    "is_matrix",
    "is_uncounted",
    "item_bytes",
    "mac_terms",
    "multiplies",
    "node_name",
    "node_parts",
    "param_terms",
    "total",
    "weights",
]
