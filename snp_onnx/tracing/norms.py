"""Normalisations over the last axis, as operators and as the chains that exporters write them in.

y = c / sqrt(mean(c²) + eps), where c is x (RMSNorm) or x - mean(x) (LayerNorm). Gain and shift of a chain are ordinary
Mul and Add nodes behind it and not part of the match.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.op import Op

OPEN_NORMS = "snp_onnx.open_norms"
"""Model metadata: the means of squares (tensors) whose axis may be cut, because the rewrite corrects for the width."""

_OPERATORS = {"LayerNormalization": True, "RMSNormalization": False, "SimplifiedLayerNormalization": False}
"""Operator: whether it takes the mean away."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation of `input` over its last axis; `gain` and `shift` are operands of the operator form."""

    input: str
    output: str
    epsilon: float
    is_centred: bool
    last: Op
    """The node that gives `output`."""
    members: frozenset[int]
    """Indexes of all its nodes."""
    gain: str = ""
    shift: str = ""


def find_norms(flow: Flow) -> tuple[Norm, ...]:
    """Every normalisation over the last axis whose inner tensors nothing else reads, in graph order."""
    found = (_operator(flow, op) if op.type in _OPERATORS else _chain(flow, op) for op in flow.trace.ops)
    return tuple(norm for norm in found if norm is not None)


def open_norms(model: onnx.ModelProto) -> frozenset[str]:
    """The means of squares that the model's metadata declares open and that still stand in the chain we write."""
    entry = next((entry.value for entry in model.metadata_props if entry.key == OPEN_NORMS), None)
    if entry is None:
        return frozenset()
    try:
        names = frozenset(str(name) for name in json.loads(entry))
    except (ValueError, TypeError):
        return frozenset()
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in model.graph.initializer}
    return frozenset(name for name in names if _is_ours(name, readers, constants))


CHAIN = ("Add", "Sqrt", "Div", "Mul")
"""What follows the mean of squares in the chain we write: + epsilon, root, x over it, times a gain."""


def _is_ours(mean: str, readers: dict[str, list[onnx.NodeProto]], constants: set[str]) -> bool:
    name = mean
    for wanted in CHAIN:
        following = readers.get(name, [])
        if len(following) != 1 or following[0].op_type != wanted:
            return False
        node = following[0]
        if wanted in ("Add", "Mul") and (node.input[0] != name or node.input[1] not in constants):
            return False
        if wanted == "Div" and node.input[1] != name:
            return False
        name = node.output[0]
    return True


def _operator(flow: Flow, op: Op) -> Norm | None:
    rank = len(flow.shape(op.input(0))) if op.input(0) in flow.trace.facts.shapes else 0
    if not rank or int(op.attr("axis", -1)) % rank != rank - 1 or any(op.outputs[1:]):
        return None
    centred = _OPERATORS[op.type]
    shift = op.input(2) if centred else ""
    epsilon = float(op.attr("epsilon", 1e-5))
    return Norm(op.input(0), op.outputs[0], epsilon, centred, op, frozenset({op.index}), op.input(1), shift)


def _chain(flow: Flow, mean: Op) -> Norm | None:
    """The chain around a mean of squares."""
    square = flow.maker(mean.input(0))
    if not _is_last_mean(flow, mean) or square is None or not flow.is_sole(mean.input(0)):
        return None
    inner = _squared(flow, square)
    plus = flow.only_reader(mean.outputs[0])
    epsilon = _scalar_beside(flow, plus, mean.outputs[0]) if plus is not None and plus.type == "Add" else None
    if not inner or plus is None or epsilon is None:
        return None
    tail = _quotient(flow, inner, plus.outputs[0])
    if tail is None:
        return None
    members = [square, mean, plus, *tail]
    centring = _centring(flow, inner, {square.index, tail[-1].index})
    source = centring[0].input(0) if centring else inner
    indexes = frozenset(op.index for op in (*members, *centring))
    return Norm(source, tail[-1].outputs[0], epsilon, bool(centring), tail[-1], indexes)


def _is_last_mean(flow: Flow, op: Op) -> bool:
    if op.type != "ReduceMean" or not op.is_standard or not op.attr("keepdims", 1):
        return False
    rank = len(flow.trace.facts.shapes.get(op.input(0), ()))
    given: Sequence[int] | None = op.attr("axes", None)
    if op.input(1):
        value = flow.trace.facts.values.get(op.input(1))
        given = None if value is None else [int(axis) for axis in value.reshape(-1)]
    return rank > 0 and given is not None and [axis % rank for axis in given] == [rank - 1]


def _squared(flow: Flow, op: Op) -> str:
    """What the node squares; empty where it doesn't."""
    if op.type == "Mul" and op.input(0) == op.input(1):
        return op.input(0)
    return op.input(0) if op.type == "Pow" and _scalar(flow, op.input(1)) == 2.0 else ""


def _quotient(flow: Flow, inner: str, total: str) -> list[Op] | None:
    """The nodes from mean + epsilon to inner / sqrt(mean + epsilon), last the one that gives it."""
    root = flow.only_reader(total)
    power = _scalar(flow, root.input(1)) if root is not None and root.type == "Pow" else None
    if root is None or not (root.type == "Sqrt" or power in (0.5, -0.5)):
        return None
    over = flow.only_reader(root.outputs[0])
    if over is None:
        return None
    if power == -0.5:
        return [root, over] if _multiplies(over, inner) else None
    if over.type == "Div" and [over.input(0), over.input(1)] == [inner, root.outputs[0]]:
        return [root, over]
    inverse = over.type == "Reciprocal" or (over.type == "Div" and _scalar(flow, over.input(0)) == 1.0)
    times = flow.only_reader(over.outputs[0]) if inverse else None
    return [root, over, times] if times is not None and _multiplies(times, inner) else None


def _multiplies(op: Op, inner: str) -> bool:
    return op.type == "Mul" and inner in op.inputs and op.input(0) != op.input(1)


def _centring(flow: Flow, inner: str, readers: set[int]) -> list[Op]:
    """Sub and ReduceMean where `inner` is x - mean(x) and only the norm reads it; the Sub comes first."""
    minus = flow.maker(inner)
    mean = flow.maker(minus.input(1)) if minus is not None and minus.type == "Sub" else None
    if minus is None or mean is None or not _is_last_mean(flow, mean) or mean.input(0) != minus.input(0):
        return []
    only = {op.index for op in flow.readers[inner]} <= readers and not flow.is_output(inner)
    return [minus, mean] if only and flow.is_sole(mean.outputs[0]) else []


def _scalar_beside(flow: Flow, op: Op, tensor: str) -> float | None:
    return _scalar(flow, next((name for name in op.inputs if name != tensor), ""))


def _scalar(flow: Flow, tensor: str) -> float | None:
    """The value of a constant of one element."""
    value = flow.trace.facts.values.get(tensor) if tensor else None
    return float(np.asarray(value, dtype=np.float64).reshape(())) if value is not None and value.size == 1 else None
