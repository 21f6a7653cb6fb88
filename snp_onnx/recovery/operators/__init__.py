"""Operators of the torch form: one table, `{(domain, operator): factory}`. One that isn't here ends in a ModelError."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from snp_onnx.errors import ModelError
from snp_onnx.recovery.operators.attention import ATTENTION, FUSED_ATTENTION
from snp_onnx.recovery.operators.elementwise import ELEMENTWISE, FUSED_ELEMENTWISE
from snp_onnx.recovery.operators.fused_norm import FUSED_NORM
from snp_onnx.recovery.operators.kernel import Factory, Kernel
from snp_onnx.recovery.operators.layout import LAYOUT
from snp_onnx.recovery.operators.normalisation import NORMALISATION
from snp_onnx.recovery.operators.products import PRODUCTS, fused_matmul
from snp_onnx.recovery.operators.spatial import SPATIAL
from snp_onnx.tracing.op import Op

MICROSOFT = "com.microsoft"

OPERATORS: Mapping[tuple[str, str], Factory] = MappingProxyType(
    {
        **{("", name): factory for name, factory in ELEMENTWISE.items()},
        **{("", name): factory for name, factory in LAYOUT.items()},
        **{("", name): factory for name, factory in NORMALISATION.items()},
        **{("", name): factory for name, factory in PRODUCTS.items()},
        **{("", name): factory for name, factory in SPATIAL.items()},
        **{(MICROSOFT, name): factory for name, factory in FUSED_ELEMENTWISE.items()},
        **{("", name): factory for name, factory in ATTENTION.items()},
        **{(MICROSOFT, name): factory for name, factory in {**FUSED_ATTENTION, **FUSED_NORM}.items()},
        (MICROSOFT, "FusedMatMul"): fused_matmul,
        (MICROSOFT, "Trilu"): LAYOUT["Trilu"],
    }
)

READS_SHAPES = frozenset(
    (
        *("Reshape", "Expand", "Slice", "Pad", "Tile", "Resize", "Upsample", "Squeeze", "Unsqueeze", "Split", "Range"),
        *("ConstantOfShape", "TopK", "OneHot", "CumSum", "Trilu"),
        *(name for name in NORMALISATION if name.startswith("Reduce")),
    )
)
"""Operators whose second and later inputs are sizes and places, which are read on the host."""


def kernel_of(op: Op) -> Kernel:
    """The function of a node; ModelError names a node and its operator where there is none."""
    factory = OPERATORS.get((op.domain, op.type))
    if factory is None:
        domain = f"{op.domain}." if op.domain else ""
        raise ModelError(
            f"node {op.name}: recovery can't train through the operator {domain}{op.type}: "
            "leave this model as prune made it, or export it without that operator"
        )
    return factory(op)
