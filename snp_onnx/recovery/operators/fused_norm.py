"""onnxruntime's normalisations of sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from snp_onnx.recovery.operators.kernel import Factory, Kernel
from snp_onnx.recovery.operators.normalisation import rms
from snp_onnx.tracing.op import Op

Sums = tuple[Tensor | None, ...]


def _skip_norm(op: Op) -> Kernel:
    epsilon = float(op.attr("epsilon", 1e-12))

    def run(x: Tensor, skip: Tensor, gain: Tensor, shift: Tensor | None = None, bias: Tensor | None = None) -> Sums:
        total = x + skip if bias is None else x + skip + bias
        return F.layer_norm(total, gain.shape, gain, shift, epsilon), None, None, total

    return run


def _skip_simplified(op: Op) -> Kernel:
    epsilon = float(op.attr("epsilon", 1e-12))

    def run(x: Tensor, skip: Tensor, gain: Tensor, bias: Tensor | None = None) -> Sums:
        total = x + skip if bias is None else x + skip + bias
        return rms(total, gain, [-1], epsilon), None, None, total

    return run


def _embedding_norm(op: Op) -> Kernel:
    """Words, positions and segments looked up, added and normalised; the second output counts real positions."""
    epsilon = float(op.attr("epsilon", 1e-12))

    def run(
        ids: Tensor, segments: Tensor | None, words: Tensor, positions: Tensor, kinds: Tensor | None,
        gain: Tensor, shift: Tensor, mask: Tensor | None = None, places: Tensor | None = None,
    ) -> Sums:  # fmt: skip
        if places is None:
            places = torch.arange(ids.shape[1], device=ids.device)[None]
        total = F.embedding(ids.long(), words) + F.embedding(places.long(), positions)
        if segments is not None and kinds is not None:
            total = total + F.embedding(segments.long(), kinds)
        counts = torch.zeros(len(ids), dtype=torch.int32, device=ids.device)
        counts = counts if mask is None else mask.sum(1).to(torch.int32)
        return F.layer_norm(total, gain.shape, gain, shift, epsilon), counts, total

    return run


FUSED_NORM: dict[str, Factory] = {
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_simplified,
    "EmbedLayerNormalization": _embedding_norm,
}
