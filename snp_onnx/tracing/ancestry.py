"""Ancestry: which activations an activation is computed from. Sizes and constants are none, whoever reads them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.op import Op


class Ancestry:
    """The activations of a graph in graph order, each with the set of those it depends on, as the bits of a number."""

    def __init__(self, model: onnx.ModelProto, flow: Flow) -> None:
        known = flow.trace.facts.values
        constants = {tensor.name for tensor in model.graph.initializer}
        constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
        self._names = [value.name for value in model.graph.input if value.name not in constants]
        self._bits = {name: 1 << place for place, name in enumerate(self._names)}
        self._above = dict(self._bits)
        self._ops: list[tuple[Op, list[str]]] = []
        for op in flow.trace.ops:
            before = 0
            for name in op.reads if not (op.is_standard and op.type in ("Shape", "Size")) else ():
                before |= self._above.get(name, 0)
            given = [name for name in op.outputs if name and name not in known] if before else []
            for name in given:
                self._bits[name] = 1 << len(self._names)
                self._above[name] = before | self._bits[name]
                self._names.append(name)
            if given:
                self._ops.append((op, given))

    def knows(self, tensor: str) -> bool:
        """Whether the tensor is an activation."""
        return tensor in self._above

    def descends(self, tensor: str, ancestor: str) -> bool:
        """Whether a tensor is computed from another one."""
        return tensor != ancestor and bool(self._above.get(tensor, 0) & self._bits.get(ancestor, 0))

    def between(self, source: str, target: str) -> Iterator[Op]:
        """The nodes on the ways from one activation to another, without the source's own, in graph order."""
        for op, given in self._ops:
            if any(self.descends(name, source) and self._leads(name, target) for name in given):
                yield op

    def newest_common(self, first: str, second: str) -> str | None:
        """The last activation in graph order that both come from, or are."""
        common = self._above.get(first, 0) & self._above.get(second, 0)
        return self._names[common.bit_length() - 1] if common else None

    def _leads(self, tensor: str, target: str) -> bool:
        return tensor == target or self.descends(target, tensor)
