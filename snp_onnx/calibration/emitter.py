"""Writing ONNX nodes that are valid at a given opset; equal nodes are written once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from snp_onnx.errors import ModelError

PREFIX = "snp_onnx::"
END = np.iinfo(np.int64).max


class Emitter:
    """Collects nodes of the default domain. Constants are nodes too: IR 3 wants initialisers among the inputs."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self._written: dict[object, str] = {}

    def emit(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The output name of this node, written now or before."""
        return self._once((op, inputs, repr(sorted(attributes.items()))), op, inputs, attributes)

    def constant(self, value: NDArray[Any]) -> str:
        """The name of a constant tensor."""
        key = ("Constant", value.dtype.str, value.shape, value.tobytes())
        return self._once(key, "Constant", (), {"value": numpy_helper.from_array(value)})

    def ints(self, values: Sequence[int]) -> str:
        """The name of a constant int64 vector."""
        return self.constant(np.asarray(values, dtype=np.int64).reshape(-1))

    def transpose(self, x: str, permutation: Sequence[int]) -> str:
        """Transpose, or nothing where the order is already right."""
        return x if list(permutation) == sorted(permutation) else self.emit("Transpose", x, perm=list(permutation))

    def sum(self, x: str, axes: Sequence[int]) -> str:
        """ReduceSum without the summed axes."""
        if self.opset < 13:
            return self.emit("ReduceSum", x, axes=list(axes), keepdims=0)
        return self.emit("ReduceSum", x, self.ints(axes), keepdims=0)

    def squares(self, x: str) -> str:
        """Sums of squares down the columns of a matrix."""
        if self.opset < 18:
            return self.emit("ReduceSumSquare", x, axes=[0], keepdims=0)
        return self.emit("ReduceSumSquare", x, self.ints([0]), keepdims=0)

    def unsqueeze(self, x: str, axes: Sequence[int]) -> str:
        """Unsqueeze at these positions of the result."""
        return self._with_axes("Unsqueeze", x, axes)

    def pad(self, x: str, pads: Sequence[int]) -> str:
        """Pad with zeros, or nothing where no pad is above 0."""
        if not any(pads):
            return x
        return self.emit("Pad", x, pads=list(pads)) if self.opset < 11 else self.emit("Pad", x, self.ints(pads))

    def product(self, x: str, y: str) -> str:
        """XᵀY of two matrices with the same rows."""
        bias = () if self.opset >= 11 else (self.constant(np.zeros(1, np.float32)),)
        return self.emit("Gemm", x, y, *bias, transA=1)

    def every(
        self,
        x: str,
        rank: int,
        axes: Sequence[int],
        starts: str | Sequence[int],
        ends: Sequence[int],
        steps: Sequence[int],
    ) -> str:
        """Every `steps`-th position of `axes` between `starts` and `ends`; before opset 10 `starts` must be numbers."""
        if not isinstance(starts, str) and not any(starts) and set(ends) <= {END} and set(steps) <= {1}:
            return x
        if self.opset >= 10:
            first = starts if isinstance(starts, str) else self._starts(x, starts)
            return self.emit("Slice", x, first, self.ints(ends), self.ints(axes), self.ints(steps))
        if isinstance(starts, str):
            raise ModelError(f"Slice of opset {self.opset} takes no run-time start: convert the model to opset 10")
        if any(starts) or set(ends) != {END}:
            x = self.emit("Slice", x, axes=list(axes), starts=list(starts), ends=list(ends))
        return x if set(steps) == {1} else self._every_by_pooling(x, rank, axes, steps)

    def _starts(self, x: str, starts: Sequence[int]) -> str:
        """Where a Slice of `x` starts; in opset 10 as a sum with 0 that isn't known before the run.

        The inference of that Slice gives an axis of unknown extent the same extent behind it, and the runtime plans
        its memory by that.
        """
        first = self.ints(starts)
        if self.opset != 10:
            return first
        extent = self.emit("Gather", self.emit("Shape", x), self.ints([0]), axis=0)
        return self.emit("Add", first, self.emit("Sub", extent, extent))

    def _every_by_pooling(self, x: str, rank: int, axes: Sequence[int], steps: Sequence[int]) -> str:
        """Slice has no steps before opset 10: a MaxPool of kernel 1 keeps the same positions, of a float tensor."""
        others = [a for a in range(rank) if a not in axes]
        fresh = 2 - len(others)
        if fresh < 0 or len(axes) > 3:
            raise ModelError(f"opset {self.opset} cannot stride over {len(axes)} axes: convert the model to opset 10")
        if fresh:
            x = self.unsqueeze(x, range(fresh))
        order = [*range(fresh), *(fresh + a for a in others), *(fresh + a for a in axes)]
        pooled = self.emit("MaxPool", self.transpose(x, order), kernel_shape=[1] * len(axes), strides=list(steps))
        back = self.transpose(pooled, np.argsort(order).tolist())
        return self._with_axes("Squeeze", back, range(fresh)) if fresh else back

    def _with_axes(self, op: str, x: str, axes: Sequence[int]) -> str:
        if self.opset < 13:
            return self.emit(op, x, axes=list(axes))
        return self.emit(op, x, self.ints(axes))

    def _once(self, key: object, op: str, inputs: Sequence[str], attributes: dict[str, Any]) -> str:
        if key not in self._written:
            name = f"{PREFIX}{len(self.nodes)}"
            self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
            self._written[key] = name
        return self._written[key]
