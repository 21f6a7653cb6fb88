"""A seeded builder of small ONNX graphs: a topology takes three to eight lines, in any operator set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
Batch = int | str


class Net:
    """A graph under construction. Weights are called w1, w2 …, biases b1, b2 …, other constants c1, c2 …

    `batch` is the first extent of every input: a number, or the name of a dynamic axis.
    """

    def __init__(
        self, opset: int = 17, batch: Batch = 2, dtype: npt.DTypeLike = np.float32, seed: int = 0, ir: int = 0
    ) -> None:
        self.opset, self.batch, self.dtype = opset, batch, np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.domains: dict[str, int] = {}
        self.functions: list[onnx.FunctionProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self.lists_initialisers = False
        self.has_dynamic_sides = False
        self.output_rank = 4
        self._ir = ir
        self._counts: dict[str, int] = {}

    @property
    def element_type(self) -> int:
        """The net's floating-point type, as Cast names it."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def _named(self, kind: str) -> str:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind}{self._counts[kind]}"

    # inputs, constants, outputs

    def input(self, name: str, *shape: Batch, dtype: npt.DTypeLike | None = None, batched: bool = True) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        extents = [self.batch, *shape] if batched else list(shape)
        self.inputs.append(helper.make_tensor_value_info(name, kind, extents))
        return name

    def image(self, channels: int = 3) -> str:
        """The usual input, 8 x 8 positions; of any size where the net has dynamic sides."""
        return self.input("x", channels, *(("h", "w") if self.has_dynamic_sides else (8, 8)))

    def const(self, values: Any, name: str = "", dtype: npt.DTypeLike | None = None) -> str:
        """An initialiser; lists of integers become int64, everything else the net's type."""
        array = np.asarray(values)
        wanted = dtype or (np.int64 if array.dtype.kind in "iu" else array.dtype if array.dtype == bool else self.dtype)
        name = name or self._named("c")
        self.initialisers.append(numpy_helper.from_array(array.astype(wanted), name))
        return name

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0, name: str = "") -> str:
        return self.const(self.rng.standard_normal(shape) * scale + shift, name or self._named("c"))

    def weight(self, *shape: int, fan_in: int) -> str:
        return self.normal(*shape, scale=1.5 / np.sqrt(fan_in), name=self._named("w"))

    def bias(self, extent: int) -> str:
        return self.normal(extent, scale=0.3, name=self._named("b"))

    def output(self, *names: str) -> None:
        self.outputs += names

    # nodes

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Append a node and name its output."""
        return self.ops(kind, *inputs, outputs=outputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> list[str]:
        names = [self._named("t") for _ in range(outputs)]
        node = helper.make_node(kind, inputs, names, self._named("n"), domain=domain, **attributes)
        node.doc_string = f"about {node.name}"
        if self.opset >= 21:
            node.metadata_props.add(key="origin", value=node.name)
        self.nodes.append(node)
        return names

    def __getattr__(self, name: str) -> Callable[..., str]:
        """`net.Relu(x)` is `net.op("Relu", x)`."""
        if not name[0].isupper():
            raise AttributeError(name)
        return lambda *inputs, **attributes: self.op(name, *inputs, **attributes)

    def conv(
        self,
        x: str,
        cin: int,
        cout: int,
        k: int = 3,
        group: int = 1,
        rank: int = 2,
        bias: bool = True,
        **attributes: Any,
    ) -> str:
        kernel = (k,) * rank
        weight = self.weight(cout, cin // group, *kernel, fan_in=cin // group * k**rank)
        inputs = [x, weight, self.bias(cout)] if bias else [x, weight]
        return self.op("Conv", *inputs, group=group, pads=[k // 2] * (2 * rank), **attributes)

    def conv_relu(self, x: str, cin: int, cout: int, k: int = 3, **attributes: Any) -> str:
        return self.op("Relu", self.conv(x, cin, cout, k, **attributes))

    def transposed(self, x: str, cin: int, cout: int, group: int = 1, k: int = 2) -> str:
        weight = self.weight(cin, cout // group, k, k, fan_in=cin // group)
        return self.op("ConvTranspose", x, weight, self.bias(cout), group=group, strides=[k, k])

    def dense(self, x: str, cin: int, cout: int, trans: bool = True, bias: bool = True) -> str:
        """Gemm; with `trans` the weight is (cout, cin), as torch stores it."""
        weight = self.weight(*((cout, cin) if trans else (cin, cout)), fan_in=cin)
        inputs = [x, weight, self.bias(cout)] if bias else [x, weight]
        return self.op("Gemm", *inputs, transB=int(trans))

    def linear(self, x: str, cin: int, cout: int, bias: bool = True) -> str:
        """MatMul and a bias Add, as transformers are exported."""
        product = self.op("MatMul", x, self.weight(cin, cout, fan_in=cin))
        return self.op("Add", self.bias(cout), product) if bias else product

    def bn(self, x: str, channels: int) -> str:
        mean, gain = (self.normal(channels, scale=0.3, shift=shift) for shift in (0.0, 1.0))
        variance = self.const(self.rng.uniform(0.5, 2.0, channels))
        return self.op("BatchNormalization", x, gain, self.normal(channels, scale=0.3), mean, variance)

    # operators whose operands moved from attributes to inputs

    def _operands(self, kind: str, since: int, x: str, operands: dict[str, Sequence[int]], **attributes: Any) -> str:
        if self.opset < since:
            return self.op(kind, x, **{name: list(value) for name, value in operands.items()}, **attributes)
        return self.op(kind, x, *(self.const(list(value)) for value in operands.values()), **attributes)

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        operands = {"starts": [start], "ends": [end], "axes": [axis]} | ({"steps": [step]} if step != 1 else {})
        return self._operands("Slice", 10, x, operands)

    def pad(self, x: str, pads: Sequence[int]) -> str:
        return self._operands("Pad", 11, x, {"pads": pads})

    def squeeze(self, x: str, *axes: int) -> str:
        return self._operands("Squeeze", 13, x, {"axes": axes})

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._operands("Unsqueeze", 13, x, {"axes": axes})

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: int = 1) -> str:
        return self._operands(kind, 13 if kind == "ReduceSum" else 18, x, {"axes": axes}, keepdims=keepdims)

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        if self.opset < 13:
            return self.ops("Split", x, outputs=len(sizes), axis=axis, split=list(sizes))
        return self.ops("Split", x, self.const(list(sizes)), outputs=len(sizes), axis=axis)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.const(list(shape)))

    def upsample(self, x: str, scale: float = 2.0) -> str:
        scales = self.const([1.0, 1.0, scale, scale], dtype=np.float32)
        if self.opset < 10:
            return self.op("Upsample", x, scales)
        region = [] if self.opset == 10 else [""] if self.opset > 12 else [self.const([], dtype=np.float32)]
        return self.op("Resize", x, *region, scales)

    # shapes computed at run time

    def extent(self, x: str, axis: int) -> str:
        """One extent of a tensor, as a vector of one entry."""
        return self.op("Gather", self.op("Shape", x), self.const([axis]), axis=0)

    def computed_shape(self, *entries: str | int) -> str:
        """A shape vector joined from extents and numbers."""
        return self.op("Concat", *(self.const([e]) if isinstance(e, int) else e for e in entries), axis=0)

    def constants_as_nodes(self) -> None:
        """Turn every initialiser so far into a Constant node."""
        named = {tensor.name: tensor for tensor in self.initialisers}
        self.nodes[:0] = [helper.make_node("Constant", [], [name], name, value=t) for name, t in named.items()]
        self.initialisers.clear()

    def model(self) -> onnx.ModelProto:
        """The model with documentation, metadata and inferred shapes, as exporters write them."""
        inputs = list(self.inputs)
        if self.lists_initialisers:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initialisers]
        outputs = [helper.make_tensor_value_info(name, self.element_type, None) for name in self.outputs]
        for value in outputs:
            value.doc_string = f"about {value.name}"
            self._correct_type(value)
        graph = helper.make_graph(self.nodes, "net", inputs, outputs, self.initialisers, "about the graph")
        graph.metadata_props.add(key="graph", value="kept")
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, version) for domain, version in self.domains.items()]
        version = self._ir or max(4, helper.find_min_ir_version_for(opsets[:1]), 8 if self.functions else 0)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, functions=self.functions)
        model.doc_string, model.domain, model.model_version = "about the model", "test", 7
        model.producer_name = "tests"
        helper.set_model_props(model, {"author": "tests"})
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        model.graph.value_info.extend(inferred.graph.value_info)
        for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
            _give_shape(value, found, self.output_rank)
        return model

    def _correct_type(self, value: onnx.ValueInfoProto) -> None:
        """Outputs that aren't of the net's type: sizes, positions, casts and quantised tensors."""
        for tensor in self.initialisers:
            if tensor.name == value.name:
                value.type.tensor_type.elem_type = tensor.data_type
        for node in self.nodes:
            if value.name in node.output and node.op_type in ("ArgMax", "Shape", "NonZero"):
                value.type.tensor_type.elem_type = onnx.TensorProto.INT64
            if value.name in node.output and node.op_type == "Cast":
                value.type.tensor_type.elem_type = node.attribute[0].i


def _give_shape(value: onnx.ValueInfoProto, found: onnx.ValueInfoProto, rank: int) -> None:
    """Outputs must declare a shape; where inference can't tell, `rank` axes of any extent."""
    if found.type.tensor_type.HasField("shape"):
        value.type.tensor_type.shape.CopyFrom(found.type.tensor_type.shape)
    else:
        value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(rank))


def feed_for(
    model: onnx.ModelProto, batch: int, seed: int = 1, sides: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Standard normal data for every true input; dynamic axes get the extent of their name, or of the batch."""
    rng = np.random.default_rng(seed)
    initialised = {tensor.name for tensor in model.graph.initializer}
    feed: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in initialised:
            continue
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_value or (sides or {}).get(dim.dim_param, batch) for dim in tensor.shape.dim)
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floating = np.dtype(kind).kind == "f"
        feed[value.name] = rng.standard_normal(shape).astype(kind) if floating else np.ones(shape, dtype=kind)
    return feed
