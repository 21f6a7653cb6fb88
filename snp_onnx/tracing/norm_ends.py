"""Where normalisations end: the tensor with gain and shift applied, whichever way the norm is written."""

from __future__ import annotations

from dataclasses import dataclass

from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.norms import Norm, find_norms
from snp_onnx.tracing.op import Op

_FUSED = {"SkipLayerNormalization": True, "SkipSimplifiedLayerNormalization": False}
"""Nodes of com.microsoft that normalise a sum, their fourth output: whether they take the mean away."""


@dataclass(frozen=True, slots=True)
class NormEnd:
    """A normalisation of `input`; two of the same `kind` differ in gain and shift alone."""

    input: str
    output: str
    kind: tuple[bool, float, int]
    """Whether it takes the mean away, its epsilon, and the width it normalises over."""
    members: frozenset[int]
    """Indexes of its nodes, up to where gain and shift begin."""


def norm_ends(flow: Flow) -> dict[str, NormEnd]:
    """All normalisations over the last axis, of a known width, by the tensor they end in, in graph order."""
    known = flow.trace.facts.shapes
    found = [_end(flow, norm) for norm in find_norms(flow) if norm.input in known]
    found += [end for op in flow.trace.ops if (end := _fused(flow, op)) is not None]
    order = {name: op.index for op in flow.trace.ops for name in op.outputs}
    return {end.output: end for end in sorted(found, key=lambda end: order[end.output])}


def _end(flow: Flow, norm: Norm) -> NormEnd:
    width = flow.shape(norm.input)[-1]
    kind = (norm.is_centred, _rounded(norm.epsilon), width)
    return NormEnd(norm.input, _scaled(flow, norm.output, width), kind, norm.members)


def _scaled(flow: Flow, tensor: str, width: int) -> str:
    """Behind a gain and a shift, and casts before, between and after them."""
    while True:
        reader = flow.only_reader(tensor)
        if reader is None or not reader.is_standard or not (reader.type == "Cast" or _is_vector(flow, reader, width)):
            return tensor
        tensor = reader.outputs[0]


def _is_vector(flow: Flow, op: Op, width: int) -> bool:
    """Whether the node multiplies by, or adds, one constant for each position of the last axis."""
    constants = [name for name in op.inputs if flow.weights.knows(name)]
    if op.type not in ("Mul", "Add") or len(constants) != 1:
        return False
    shape = flow.trace.facts.shapes.get(constants[0], ())
    return bool(shape) and shape[-1] == width and all(extent == 1 for extent in shape[:-1])


def _fused(flow: Flow, op: Op) -> NormEnd | None:
    if (
        op.domain != "com.microsoft"
        or op.type not in _FUSED
        or not any(op.outputs[3:])
        or not flow.are_alike(op.input(0))
    ):
        return None
    width = flow.shape(op.input(0))[-1]
    kind = (_FUSED[op.type], _rounded(op.attr("epsilon", 1e-5)), width)
    return NormEnd(op.outputs[3], op.outputs[0], kind, frozenset({op.index}))


def _rounded(epsilon: float) -> float:
    """As written: attributes are in single precision, constants of a chain in either."""
    return float(f"{epsilon:.5g}")
