"""What the checker and shape inference object to in a model, failure by failure.

Fused operators fail the checker though runtimes load them; so do models whose exporter declared a wrong shape. A pruned
model may have the failures of the dense one and no other, so each is listed. The checker stops at the first: the node
that it names is left out, and the rest is checked again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import onnx

from snp_onnx.external import LEAST, byte_count, copy_fields, is_external
from snp_onnx.tracing.op import STANDARD_DOMAINS, Op, ops_of

ASIDE = "snp_onnx.aside"
"""The domain of nodes that are left out."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What `check` objects to in a node, or in the model where `node` is empty."""

    check: str
    node: str
    operator: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its numbers: extents differ between a model and its pruned form."""
        return re.sub(r"\d+", "", self.reason)

    def __str__(self) -> str:
        place = f"node {self.node} ({self.operator}): " if self.node else ""
        return f"{self.check}: {place}{self.reason}"


def new_failures(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> tuple[Failure, ...]:
    """The failures of the pruned model that the dense one doesn't have.

    A node that only the pruned model has, as preparing writes some, may fail as one of its operator does in the other.
    """
    found = failures(pruned)
    if not found:
        return ()
    known, present = failures(dense), {op.name for op in ops_of(dense)}
    places = {(failure.node, failure.kind) for failure in known}
    operators = {(failure.operator, failure.kind) for failure in known}
    return tuple(
        failure
        for failure in found
        if (failure.node, failure.kind) not in places
        and (failure.node in present or (failure.operator, failure.kind) not in operators)
    )


def failures(model: onnx.ModelProto) -> tuple[Failure, ...]:
    """Every failure of the full checker (which is the plain one and inference of types) and of strict inference."""
    found, slim, ops = list[Failure](), _without_weights(model), list(ops_of(model))
    for place, node in enumerate(slim.graph.node):
        node.name = f"#{place}#"
    slim.opset_import.add(domain=ASIDE, version=1)
    left_out = set[int]()
    for name, check in _CHECKS.items():
        while True:
            told = list(_told(name, check(slim, left_out), ops))
            found += [failure for _, failure in told]
            new = {place for place, _ in told if place is not None} - left_out
            if not new:
                break
            left_out |= new
    return tuple(found)


def _structure(model: onnx.ModelProto, left_out: Set[int]) -> str:
    """What the plain checker says, with nodes left out as those of a domain that nobody knows."""
    for place in left_out:
        node = model.graph.node[place]
        node.domain = ASIDE
        del node.input[:]
        del node.attribute[:]
    return _words(lambda: onnx.checker.check_model(model))


def _types(model: onnx.ModelProto, left_out: Set[int]) -> str:
    known = _known(model, left_out)
    return _words(lambda: onnx.shape_inference.infer_shapes(known, check_type=True, strict_mode=True))


def _values(model: onnx.ModelProto, left_out: Set[int]) -> str:
    known = _known(model, left_out)
    return _words(lambda: onnx.shape_inference.infer_shapes(known, strict_mode=True, data_prop=True))


_CHECKS: Mapping[str, Callable[[onnx.ModelProto, Set[int]], str]] = {
    "the ONNX checker": _structure,
    "the full ONNX checker": _types,
    "strict shape inference": _values,
}


def _words(check: Callable[[], object]) -> str:
    """What a check objects to; empty where it doesn't."""
    try:
        check()
    except Exception as error:
        return str(error).strip() or type(error).__name__
    return ""


def _known(model: onnx.ModelProto, left_out: Set[int]) -> onnx.ModelProto:
    """The nodes that inference knows, with inputs of known types; what others give is an input where it is declared.

    Behind an unknown node inference says nothing of any other.
    """
    known = onnx.ModelProto()
    known.CopyFrom(model)
    del known.graph.node[:]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    functions = {(function.domain, function.name) for function in model.functions}
    declared = {value.name: value for value in model.graph.value_info}
    typed = {"", *(value.name for value in model.graph.input), *(tensor.name for tensor in model.graph.initializer)}
    typed |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    for place, node in enumerate(model.graph.node):
        has_rule = (node.domain, node.op_type) in functions or _has_schema(node, versions)
        if has_rule and place not in left_out and typed.issuperset(node.input):
            known.graph.node.append(node)
            typed.update(node.output)
            continue
        for name in declared.keys() & set(node.output):
            known.graph.input.append(declared[name])
            typed.add(name)
    return known


def _has_schema(node: onnx.NodeProto, versions: Mapping[str, int]) -> bool:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    version = max((versions.get(name, 0) for name in (STANDARD_DOMAINS if domain == "" else (domain,))), default=0)
    try:
        onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return False
    return True


_NODE = re.compile(r"#(\d+)#")
_LEFT_OUT = re.compile(r"\[\w+Error\] |Inference error\(s\): |\(op_type:[^)]*\): ")
_BY_OPERATOR = ("No Op registered", "No opset import")
"""Failures that all nodes of an operator have."""


def _told(check: str, words: str, ops: Sequence[Op]) -> Iterator[tuple[int | None, Failure]]:
    """The places of the nodes that an error is about, each with its failure; None for the model."""
    lines = [line for line in words.splitlines() if line.startswith(("(op_type", "[ShapeInferenceError] Inf"))]
    for line in lines or ([words] if words else []):
        found, reason = _NODE.findall(line), _reason(line)
        if not found:
            yield None, Failure(check, "", "", reason)
            continue
        first = ops[int(found[0] if lines else found[-1])]
        alike = [op for op in ops if (op.type, op.domain) == (first.type, first.domain)]
        for op in alike if reason.startswith(_BY_OPERATOR) else [first]:
            yield op.index, Failure(check, op.name, op.type, reason)


def _reason(words: str) -> str:
    """An error's first line without the names of nodes and of the error."""
    (first, *_) = [line for line in words.splitlines() if line.strip()] or [words]
    return " ".join(_LEFT_OUT.sub("", _NODE.sub("", first)).split())


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large weights are declared as inputs: no check reads their values."""
    slim = onnx.ModelProto()
    copy_fields(model, slim, "graph")
    copy_fields(model.graph, slim.graph, "initializer")
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not is_external(tensor) and byte_count(tensor) < LEAST:
            slim.graph.initializer.append(tensor)
        elif tensor.name not in listed:
            declared = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            slim.graph.input.append(declared)
    return slim
