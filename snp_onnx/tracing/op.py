"""One node as the rules see it: inputs, outputs, attributes and the operator-set version they are written for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

STANDARD_DOMAINS = ("", "ai.onnx")
_TWINS = frozenset((("com.microsoft", "QuantizeLinear"), ("com.microsoft", "DequantizeLinear")))
"""Operators of onnxruntime that differ from the standard ones of their name in nothing but the types they take."""

RANDOM = (*("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),)
"""Standard operators that draw other numbers in every run."""
_UNEVALUABLE = frozenset((*RANDOM, "LSTM"))  # the reference of an LSTM runs its reverse direction forwards


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """A node of the main graph; `version` is the opset its domain is imported with."""

    node: onnx.NodeProto
    index: int
    version: int

    @property
    def type(self) -> str:
        return self.node.op_type

    @property
    def domain(self) -> str:
        return "" if self.node.domain in STANDARD_DOMAINS else self.node.domain

    @property
    def is_standard(self) -> bool:
        return self.domain == ""

    @property
    def inputs(self) -> list[str]:
        return list(self.node.input)

    @property
    def outputs(self) -> list[str]:
        return list(self.node.output)

    @property
    def reads(self) -> list[str]:
        """Every tensor the node needs, captured ones of its subgraphs included."""
        return read_by(self.node)

    @property
    def name(self) -> str:
        """The node's name, or its operator and first output where it has none."""
        return self.node.name or f"{self.type}({next((o for o in self.outputs if o), '')})"

    @property
    def has_subgraph(self) -> bool:
        return any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in self.node.attribute)

    @property
    def is_evaluable(self) -> bool:
        """Whether the node computes, every time, what onnx's reference of the standard operator of its name does."""
        return (self.is_standard and self.type not in _UNEVALUABLE) or (self.domain, self.type) in _TWINS

    def input(self, place: int) -> str:
        """The name of an input, empty where it is left out."""
        return self.node.input[place] if place < len(self.node.input) else ""

    def attr(self, name: str, default: Any) -> Any:
        """An attribute's value (strings decoded), or the default."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def constant_value(self) -> npt.NDArray[np.generic] | None:
        """What a Constant node holds, whichever attribute it uses; None for sparse tensors and strings."""
        for attribute in self.node.attribute:
            if attribute.name == "value":
                return onnx.numpy_helper.to_array(attribute.t)
            if attribute.name in ("value_int", "value_ints"):
                return np.asarray(onnx.helper.get_attribute_value(attribute), dtype=np.int64)
            if attribute.name in ("value_float", "value_floats"):
                return np.asarray(onnx.helper.get_attribute_value(attribute), dtype=np.float32)
        return None


def read_by(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node and of everything in its subgraphs, captured or not."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else []:
            names.extend(name for inner in body.node for name in read_by(inner))
            names.extend(value.name for value in body.output)
    return names


def ops_of(model: onnx.ModelProto, graph: onnx.GraphProto | None = None) -> Iterator[Op]:
    """The nodes of the main graph, or of a body, in their order, which ONNX requires to be topological."""
    versions = {("" if o.domain in STANDARD_DOMAINS else o.domain): o.version for o in model.opset_import}
    for index, node in enumerate((model.graph if graph is None else graph).node):
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        yield Op(node, index, versions.get(domain, 1))
