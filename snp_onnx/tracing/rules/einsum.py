"""Einsum: an index is one axis of every operand that has it, as in a MatMul; what sums otherwise is a barrier."""

from __future__ import annotations

from snp_onnx.tracing.labels import HEAD, Labels, still
from snp_onnx.tracing.op import Op
from snp_onnx.tracing.rules.joining import opaque
from snp_onnx.tracing.tracer import Linear, Tracer


def einsum(op: Op, tracer: Tracer) -> None:
    """Operands united index by index: with a weight a layer (bij,jk->bik), of activations attention (bhqd,bhkd->bhqk).

    An index that only one operand has and the output lacks is summed; one that both have is contracted.
    """
    terms, result = parse(op.attr("equation", ""))
    labels = _by_index(op, tracer, terms) if len(terms) == len(op.inputs) <= 2 else None
    if labels is None or any(len(set(term)) < len(term) for term in (*terms, result)):
        opaque(op, tracer, f"no rule for this equation of an Einsum: {op.attr('equation', '')}")
        return
    is_layer = _is_layer(op, tracer, terms, result)
    for name, term in zip(op.inputs, terms, strict=True):
        for axis, index in enumerate(term):
            shared = all(index in other for other in terms) and len(terms) > 1
            if index not in result and not shared:
                tracer.barrier(op, name, axis, "an Einsum sums over this axis")
            elif index not in result and not is_layer:
                tracer.barrier(op, name, axis, "contracted between two activations")
            elif index in result and shared and not is_layer and len(labels[index]) > 1:
                tracer.classes.flag(labels[index], HEAD)
    extents = tracer.shape(op.outputs[0])
    tracer.set_axes(op.outputs[0], [labels.get(i, still(n)) for i, n in zip(result, extents, strict=True)])
    if is_layer:
        tracer.linears.append(_layer(op, tracer, terms, result))


def parse(equation: str) -> tuple[list[str], str]:
    """Indices of the operands and of the output; left out, the output has what occurs once, in alphabetical order.

    >>> parse("bij, jk")
    (['bij', 'jk'], 'bik')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    once = [index for index in sorted(set(left) - {","}) if left.count(index) == 1]
    return left.split(","), right if arrow else "".join(once)


def _by_index(op: Op, tracer: Tracer, terms: list[str]) -> dict[str, Labels] | None:
    """The labels of every index, those of several operands united; None where extents differ or an index is a run."""
    labels: dict[str, Labels] = {}
    for name, term in zip(op.inputs, terms, strict=True):
        if "." in term or len(term) != len(tracer.shape(name)):
            return None
        for index, part in zip(term, tracer.axes(name), strict=True):
            if len(labels.setdefault(index, part)) != len(part):
                return None
            tracer.classes.unite(labels[index], part)
    return labels


def _is_layer(op: Op, tracer: Tracer, terms: list[str], result: str) -> bool:
    """Whether a constant matrix is contracted over one index and gives one other to the output."""
    constant = [tracer.is_constant(name) for name in op.inputs]
    if sum(constant) != 1 or len(terms) != 2:
        return False
    weight, source = terms[constant.index(True)], terms[constant.index(False)]
    inner = [index for index in weight if index in source and index not in result]
    outer = [index for index in weight if index not in source and index in result]
    rest = [index for index in source if index not in inner]
    return len(weight) == 2 and len(inner) == len(outer) == 1 and all(index in result for index in rest)


def _layer(op: Op, tracer: Tracer, terms: list[str], result: str) -> Linear:
    place = int(tracer.is_constant(op.input(1)))
    weight, source = terms[place], terms[1 - place]
    inner = next(index for index in weight if index in source)
    outer = next(index for index in weight if index != inner)
    return Linear(
        op,
        op.input(1 - place),
        source.index(inner),
        op.input(place),
        weight.index(inner),
        weight.index(outer),
        op.outputs[0],
        result.index(outer),
    )
