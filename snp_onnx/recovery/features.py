"""Features: sums at the ends of residual blocks that the dense and the pruned graph both have, by name."""

from __future__ import annotations

from collections import defaultdict

import onnx

from snp_onnx.cost import FLOATS
from snp_onnx.tracing.op import ops_of

_LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "Einsum", "Gather", "Attention"))


def shared_features(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[str, ...]:
    """Residual sums of both graphs that have the same name, in the dense graph's order; outputs are left out.

    Whether they also have the same shape shows when both are run.
    """
    outputs = {value.name for value in dense.graph.output}
    ours = set(residual_sums(pruned))
    return tuple(name for name in residual_sums(dense) if name in ours and name not in outputs)


def residual_sums(model: onnx.ModelProto) -> tuple[str, ...]:
    """Outputs of Adds of two tensors that come from the same input through different layers.

    A sum with a constant is none, nor is a sum of two tensors behind the same layers (rotary positions).
    """
    floating = {tensor.name for tensor in model.graph.initializer if tensor.data_type in FLOATS}
    layers: defaultdict[str, int] = defaultdict(int)
    """The layers before a tensor, one bit each."""
    found = []
    for op in ops_of(model):
        before = 0
        for name in op.reads:
            before |= layers[name]
        if op.type in _LAYERS and any(name in floating for name in op.inputs):
            before |= 1 << op.index
        if op.type == "Constant" and op.is_standard:
            floating.update(op.outputs)
        if op.type == "Add" and op.is_standard:
            first, second = (layers[name] for name in op.inputs)
            if first and second and first != second:
                found.append(op.outputs[0])
        for name in op.outputs:
            layers[name] = before
    return tuple(found)
