"""Structured pruning of onnxsim: one sparsity for every chain, searched so that the MACs meet the target."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx

from tools.bench.rivals_judge import Bench, Way, least

REQUIRES = (("onnxsim",), "onnxsim==0.8.1")
STEPS = 256
BATCH = 256


def magnitude(bench: Bench, pooled: bool = False) -> Way:
    """L2 norms of filters; `pooled` ranks all chains together and leaves residual streams alone."""
    from onnxsim.pruning import apply_structured_pruning

    def prune(sparsity: float) -> onnx.ModelProto:
        return _pruned(apply_structured_pruning, bench, sparsity, global_sparsity=pooled)

    share = cache(lambda sparsity: bench.share(prune(sparsity)))
    return lambda target: prune(least(share, target, STEPS))


def wanda(bench: Bench) -> Way:
    """L2 norm of a filter times L2 norm of its activation on the calibration images."""
    from onnxsim.pruning import apply_structured_pruning, apply_structured_wanda_pruning

    batches = [{"input": bench.inputs[at : at + BATCH]} for at in range(0, len(bench.inputs), BATCH)]

    @cache
    def share(sparsity: float) -> float:
        """One sparsity gives the same widths whatever the ranking, and needs no calibration here."""
        return bench.share(_pruned(apply_structured_pruning, bench, sparsity))

    def way(target: float) -> onnx.ModelProto:
        sparsity = least(share, target, STEPS)
        return _pruned(apply_structured_wanda_pruning, bench, sparsity, calibration_data=batches)

    return way


def _pruned(prune: Any, bench: Bench, sparsity: float, **options: Any) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(bench.dense)
    pruned: onnx.ModelProto = prune(model, sparsity=sparsity, **options)
    return pruned
