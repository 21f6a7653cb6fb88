"""Features: sums at the ends of residual blocks that the dense and the pruned graph both have, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx
from torch import Tensor

from snp_onnx.cost import FLOATS
from snp_onnx.recovery.losses import relative_error
from snp_onnx.tracing.op import ops_of

_LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "Einsum", "Gather", "Attention"))

CLEARLY = 0.5
"""Another feature is taken only if the error to it is less than so much of the error to the own one."""


def features_of(dense: onnx.ModelProto) -> tuple[str, ...]:
    """Residual sums of the dense graph, in its order; outputs are left out."""
    outputs = {value.name for value in dense.graph.output}
    return tuple(name for name in residual_sums(dense) if name not in outputs)


def shared_features(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[str, ...]:
    """Those that the pruned graph has too, by name; whether of the same shape shows when both are run."""
    ours = set(residual_sums(pruned))
    return tuple(name for name in features_of(dense) if name in ours)


def nearest(
    shared: Sequence[str],
    every: Sequence[str],
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    real: Tensor | None,
) -> dict[str, str]:
    """The dense feature for each shared one: itself, or a later one that the pruned model's is clearly nearer to.

    Before a block that is gone the stream was solved to be what it is behind it. `every` are the dense features in
    graph order, `found` the pruned model's tensors, `wanted` the dense one's; shared ones of other shapes are left out.
    """
    pairs = {}
    for name in shared:
        mine, shape = found[name], wanted[name].shape
        if mine.shape == shape:
            later = [other for other in every[every.index(name) :] if wanted[other].shape == shape]
            errors = {other: float(relative_error(mine, wanted[other], real)) for other in later}
            best = min(errors, key=lambda other: errors[other])
            pairs[name] = best if errors[best] < CLEARLY * errors[name] else name
    return pairs


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
