"""Tangents: what a small change of a producer's weights does at the consumer's output, and the way back, as nodes.

With z = W x + b, activations and per-channel layers in between, and y = V h: a change D of W moves y by J D, the
product of every slope along the chain. Jᵀ u takes the same product backwards, from y to z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from snp_onnx.calibration.moments import Window
from snp_onnx.subspace.ridge import FLOOR
from snp_onnx.tracing.op import Op

STEP = 2.0**-5
"""Half the distance over which the slope of an activation is taken, in standard deviations of what enters it."""

RESOLVED = 1e-7
"""Share of the squared mean that counts as variance: a step must be far above the rounding of float32."""

AXES_ARE_INPUTS = 18
"""The opset from which ReduceMean takes its axes as an input."""

EQUAL_OF_FLOATS = 11
"""The opset that can compare floating-point numbers for equality."""

GEMM_WITHOUT_BIAS = 11
"""The opset that can leave out the third input of a Gemm."""

SLICE_AT_RUN_TIME = 10
"""The opset from which Slice takes its bounds and steps as inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Elementwise nodes, in graph order, that make `output` of `source`; what else they read counts as given."""

    ops: tuple[Op, ...]
    source: str
    output: str

    @property
    def type(self) -> str:
        return "+".join(op.type for op in self.ops)


_ONE = helper.make_tensor("", onnx.TensorProto.INT64, [1], [1])

Link = Op | Region
"""What lies between a producer and its consumer: a per-channel convolution, or an activation."""


class Tangent:
    """The nodes and constants of one chain, to be added to its model; names start with `name`.

    `links` and `consumer` are the nodes of the model as it is now; `windows` gives the window of every convolution
    among them by its output, pads resolved; `row_axes` are all axes of the tensors between but that of the units.
    `row_mask` names the input that is 0 at rows which are padding: these don't count as something that varies.
    """

    def __init__(
        self,
        name: str,
        links: Sequence[Link],
        consumer: Op,
        windows: Mapping[str, Window],
        row_axes: Sequence[int],
        row_mask: str | None = None,
    ) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._links, self._consumer, self._windows, self._row_axes = links, consumer, windows, row_axes
        self._real = None if row_mask is None else self._rows(row_mask)
        self._slopes = {link.output: self._slope(link) for link in links if isinstance(link, Region)}

    @property
    def weight(self) -> str:
        """The initialiser that holds a change of the producer's weight."""
        return f"{self.name}::weight"

    @property
    def bias(self) -> str:
        """The initialiser that holds a change of its bias."""
        return f"{self.name}::bias"

    def forward(self, producer: Op) -> str:
        """J D at the consumer's output, D as the initialisers `weight` and `bias` hold it."""
        source = producer.input(0)
        if producer.type == "MatMul":
            moved = self._emit("Add", self._emit("MatMul", source, self.weight), self.bias)
        else:
            moved = self._emit(producer.type, source, self.weight, self.bias, like=producer)
        for link in self._links:
            moved = self._scaled(moved, link) if isinstance(link, Region) else self._linear(link, moved)
        return self._linear(self._consumer, moved)

    def back(self, tensor: str) -> str:
        """Jᵀ of a tensor at the consumer's output, as one at the producer's."""
        found = self._transposed(self._consumer, tensor)
        for link in reversed(self._links):
            found = self._scaled(found, link) if isinstance(link, Region) else self._transposed(link, found)
        return found

    def less(self, a: str, b: str) -> str:
        """a - b."""
        return self._emit("Sub", a, b)

    def plus(self, a: str, b: str) -> str:
        """a + b."""
        return self._emit("Add", a, b)

    def _scaled(self, moved: str, region: Region) -> str:
        return self._emit("Mul", moved, self._slopes[region.output])

    def _slope(self, region: Region) -> str:
        """df/dz by central differences, or the steps of a Relu or a Clip themselves."""
        z = region.source
        if region.type == "Relu":
            return self._emit("Cast", self._emit("Greater", z, self._constant(0.0)), to=onnx.TensorProto.FLOAT)
        if region.type == "Clip" and region.ops[0].version >= EQUAL_OF_FLOATS:
            return self._emit("Cast", self._emit("Equal", z, region.output), to=onnx.TensorProto.FLOAT)
        step = self._step(z)
        above, below = (self._emit(way, z, step) for way in ("Add", "Sub"))
        rise = self._emit("Sub", self._copied(region, above), self._copied(region, below))
        return self._emit("Div", rise, self._emit("Sub", above, below))

    def _step(self, z: str) -> str:
        """h_c = STEP √(v_c + FLOOR mean v), v_c the variance of channel c in the batch and RESOLVED of its mean²."""
        mean = self._mean(z)
        apart = self._emit("Sub", z, mean)
        variance = self._mean(self._emit("Mul", apart, apart))
        resolved = self._emit("Mul", self._emit("Mul", mean, mean), self._constant(RESOLVED))
        variance = self._emit("Add", variance, resolved)
        floor = self._emit("Mul", self._emit("ReduceMean", variance, keepdims=1), self._constant(FLOOR))
        least = self._emit("Add", floor, self._constant(float(np.finfo(np.float32).tiny)))
        return self._emit("Mul", self._emit("Sqrt", self._emit("Add", variance, least)), self._constant(STEP))

    def _rows(self, row_mask: str) -> str:
        """The mask (B, S) as booleans that broadcast over the units: (B, S, 1), (B, 1, S) or (B * S, 1)."""
        extents = [1] * (1 + len(self._row_axes))
        extents[self._row_axes[0]], extents[self._row_axes[-1]] = 0, -1
        return self._emit("Reshape", self._emit("Cast", row_mask, to=onnx.TensorProto.BOOL), self._ints(extents))

    def _mean(self, x: str) -> str:
        """The mean over the rows that count, whose axes stay with extent 1."""
        if self._real is None:
            return self._over_rows(x)
        real = self._emit("Cast", self._real, to=onnx.TensorProto.FLOAT)
        share = self._emit("Max", self._over_rows(real), self._constant(float(np.finfo(np.float32).tiny)))
        return self._emit("Div", self._over_rows(self._emit("Where", self._real, x, self._constant(0.0))), share)

    def _over_rows(self, x: str) -> str:
        """The mean over all rows, whose axes stay with extent 1."""
        if self._consumer.version < AXES_ARE_INPUTS:
            return self._emit("ReduceMean", x, axes=list(self._row_axes), keepdims=1)
        return self._emit("ReduceMean", x, self._ints(self._row_axes), keepdims=1)

    def _copied(self, region: Region, source: str) -> str:
        """What the region makes of another tensor."""
        renamed = {region.source: source}
        for op in region.ops:
            inputs = [renamed.get(name, name) for name in op.inputs]
            renamed[op.outputs[0]] = self._emit(op.type, *inputs, like=op)
        return renamed[region.output]

    def _linear(self, op: Op, moved: str) -> str:
        return self._emit(op.type, moved, op.input(1), *self._no_bias(op), like=op)

    def _no_bias(self, op: Op) -> tuple[str, ...]:
        """What a layer without a bias must have in its place."""
        is_wanted = op.type == "Gemm" and op.version < GEMM_WITHOUT_BIAS
        return (self._kept(np.zeros(1, dtype=np.float32)),) if is_wanted else ()

    def _transposed(self, op: Op, tensor: str) -> str:
        if op.type == "Gemm":
            return self._emit("Gemm", tensor, op.input(1), *self._no_bias(op), transB=1 - op.attr("transB", 0))
        if op.type == "MatMul":
            return self._emit("MatMul", tensor, self._emit("Transpose", op.input(1), perm=[1, 0]))
        window = self._windows[op.outputs[0]]
        if max(window.strides) == 1 and op.version >= SLICE_AT_RUN_TIME:
            return self._turned(op, tensor, window)
        wide = self._emit(
            "ConvTranspose", tensor, op.input(1),
            group=op.attr("group", 1), strides=window.strides, dilations=window.dilations, pads=window.pads,
            kernel_shape=window.kernel, output_padding=[stride - 1 for stride in window.strides],
        )  # fmt: skip
        if max(window.strides) == 1:
            return wide
        return self._as_long_as(wide, op, range(2, 2 + len(window.kernel)))

    def _as_long_as(self, wide: str, op: Op, axes: Sequence[int]) -> str:
        """The first positions of some axes, as many as the node's input has."""
        shape = self._emit("Shape", op.input(0))
        if op.version >= SLICE_AT_RUN_TIME:
            places = self._ints(axes)
            ends = self._emit("Gather", shape, places, axis=0)
            return self._emit("Slice", wide, self._ints([0] * len(axes)), ends, places)
        for axis in axes:
            ones = self._emit("ConstantOfShape", self._emit("Gather", shape, self._ints([axis]), axis=0), value=_ONE)
            places = self._emit("Reshape", self._emit("NonZero", ones), self._ints([-1]))
            wide = self._emit("Gather", wide, places, axis=axis)
        return wide

    def _turned(self, op: Op, tensor: str, window: Window) -> str:
        """The way back over a convolution without strides is one with its kernel turned round: the runtime's are fast.

        It is of one group, or depthwise: then its weight keeps its axes.
        """
        rank, group = len(window.kernel), op.attr("group", 1)
        axes = self._ints(range(2, 2 + rank))
        ends = self._ints([np.iinfo(np.int64).min] * rank)
        minus = self._ints([-1] * rank)
        kernel = self._emit("Slice", op.input(1), minus, ends, axes, minus)
        if group == 1:
            kernel = self._emit("Transpose", kernel, perm=[1, 0, *range(2, 2 + rank)])
        reach = [(size - 1) * dilation for size, dilation in zip(window.kernel, window.dilations, strict=True)] * 2
        pads = [most - pad for most, pad in zip(reach, window.pads, strict=True)]
        if min(pads) < 0:  # more padding than the window reaches: those rows are cut off again
            before, after = pads[:rank], pads[rank:]
            spans = [-min(0, pad) for pad in before], [min(0, pad) or np.iinfo(np.int64).max for pad in after]
            tensor = self._emit("Slice", tensor, self._ints(spans[0]), self._ints(spans[1]), axes)
        return self._emit(
            "Conv", tensor, kernel,
            group=group, dilations=window.dilations, pads=[max(0, pad) for pad in pads], kernel_shape=window.kernel,
        )  # fmt: skip

    def _constant(self, value: float) -> str:
        return self._kept(np.array(value, dtype=np.float32))

    def _ints(self, values: Any) -> str:
        return self._kept(np.array(list(values), dtype=np.int64))

    def _kept(self, values: np.ndarray[Any, Any]) -> str:
        name = f"{self.name}::{len(self.constants)}c"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def _emit(self, kind: str, *inputs: str, like: Op | None = None, **attributes: Any) -> str:
        output = f"{self.name}::{len(self.nodes)}"
        node = helper.make_node(kind, list(inputs), [output], domain=like.node.domain if like else "", **attributes)
        if like is not None:
            node.attribute.extend(like.node.attribute)
        self.nodes.append(node)
        return output
