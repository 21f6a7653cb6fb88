"""Heads: the bases that the moments of an attention single out, and what its logits lose with their dimensions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from snp_onnx.planning.head_statistics import HeadStatistics, own_heads
from snp_onnx.planning.scales import Scales
from snp_onnx.planning.statistics import Statistics, unit_columns
from snp_onnx.subspace import balanced_bases, principal_basis
from snp_onnx.tracing import Group
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.heads import Context, Logits
from snp_onnx.tracing.tracer import Product

Matrix = npt.NDArray[np.float64]


def logits_bases(logits: Logits, found: HeadStatistics, rho: float) -> tuple[Matrix, Matrix]:
    """A and B of `balanced_bases` for every family of heads, (F, d, d) each."""
    pairs = []
    for family in logits.families:
        queries = found.gram(logits.queries.operand, own_heads(logits.queries.operand, family), around_mean=False)
        keys = found.gram(logits.keys.operand, own_heads(logits.keys.operand, family), around_mean=True)
        pairs.append(balanced_bases(queries, keys, rho)[:2])
    return np.stack([left for left, _ in pairs]), np.stack([right for _, right in pairs])


def context_bases(flow: Flow, context: Context, found: HeadStatistics, rho: float) -> tuple[Matrix, Matrix]:
    """T and its inverse of `principal_basis` for every family of heads, (F, d, d) each."""
    reader = context.reader
    weight = np.moveaxis(np.asarray(flow.weights.array(reader.weight), dtype=np.float64), reader.in_axis, 0)
    has_bias = flow.bias(reader)[0] is not None
    pairs = []
    for family in context.families:
        gram = found.gram(context.output, own_heads(context.output, family), around_mean=has_bias)
        read = np.concatenate([weight[context.rows[head]] for head in family], axis=1)
        pairs.append(principal_basis(gram, read, rho)[:2])
    return np.stack([basis for basis, _ in pairs]), np.stack([inverse for _, inverse in pairs])


def logits_energy(logits: Logits, found: HeadStatistics) -> Matrix:
    """M (d, d): without the dimensions R the logits of all heads lose the energy Σ_{i, j in R} M_ij.

    M = Σ_h G_q ∘ G_k, the moments of queries and keys taken as independent, those of the keys around their mean, which
    Softmax ignores. In balanced bases it is diagonal.
    """
    total: Matrix | None = None
    for head in range(max(logits.queries.operand.heads, logits.keys.operand.heads)):
        queries = found.gram(logits.queries.operand, own_heads(logits.queries.operand, [head]), around_mean=False)
        keys = found.gram(logits.keys.operand, own_heads(logits.keys.operand, [head]), around_mean=True)
        total = queries * keys if total is None else total + queries * keys
    assert total is not None
    return total


def logits_loss(flow: Flow, group: Group, product: Product, statistics: Statistics, scales: Scales) -> Matrix | None:
    """M (U, U) of a group's units on the scale of the other groups' errors; None where something wasn't measured.

    Softmax takes an error δ of its logits to an error p (δ - Σ p δ) of the attention weights p, to first order: so δ of
    variance ε² moves the attention's output about as much as ε² of that output's own variance. With the scale s of the
    logits that is s² M / H · V_o / V, less the discount of `Scales`: the mean over H heads, the variance V_o of the
    output projection that they serve, the variance V of the sum that it goes into.
    """
    attention = flow.trace.attention
    found = [part for part in (attention.logits if attention else ()) if part.product.op.index == product.op.index]
    if not found or not all(map(statistics.heads.is_measured, (found[0].queries.operand, found[0].keys.operand))):
        return None
    output = statistics.output_variance(found[0].output)
    if output is None:
        return None
    total = statistics.spread(found[0].output) or output
    energy = logits_energy(found[0], statistics.heads)
    heads = max(found[0].queries.operand.heads, found[0].keys.operand.heads)
    share = scales.discount(found[0].output.op) / total if total > 0.0 else 0.0
    scale = found[0].scale ** 2 / heads * output * share
    tensor, axis = product.contracted[0]
    places = unit_columns(flow.trace.axes[tensor][axis], group.labels)
    return scale * np.asarray(np.sum([energy[np.ix_(row, row)] for row in places], axis=0), dtype=np.float64)
