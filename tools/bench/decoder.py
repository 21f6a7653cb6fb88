"""A decoder with the shape of OPT and random weights, written straight into an external data file.

No more than one weight is in memory at a time, so that a model larger than the machine can be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ALIGNMENT = 4096
SPREAD = 0.02
"""Standard deviation of the weights, as OPT starts with."""

ELEMENTS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder; the sequence is fixed, the batch isn't."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int = 50272
    sequence: int = 32
    elements: str = "float32"


SHAPES = {
    "125m": Shape(768, 12, 12, 3072),
    "350m": Shape(1024, 24, 16, 4096),
    "1.3b": Shape(2048, 24, 32, 8192),
}


@dataclass(slots=True)
class _Writing:
    """The graph as far as it is written, and the file of its weights."""

    shape: Shape
    stream: BinaryIO
    data: str
    rng: np.random.Generator
    graph: onnx.GraphProto = field(default_factory=onnx.GraphProto)

    def weight(self, name: str, *extents: int) -> str:
        """Random values in the data file."""
        kind = ELEMENTS[self.shape.elements]
        self.stream.write(b"\0" * (-self.stream.tell() % ALIGNMENT))
        start = self.stream.tell()
        values = self.rng.standard_normal(extents, dtype=np.float32)
        values *= SPREAD
        self.stream.write(np.ascontiguousarray(values.astype(kind, copy=False)).view(np.uint8).data)
        tensor = self.graph.initializer.add(
            name=name, data_type=helper.np_dtype_to_tensor_dtype(kind), dims=extents, data_location=TensorProto.EXTERNAL
        )
        places = {"location": self.data, "offset": str(start), "length": str(self.stream.tell() - start)}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=value)
        return name

    def constant(self, name: str, values: Any, kind: Any = None) -> str:
        """A small initialiser within the graph."""
        array = np.asarray(values, dtype=kind or ELEMENTS[self.shape.elements])
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.graph.node.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def norm(self, x: str, name: str) -> str:
        width = self.shape.width
        gain, shift = self.constant(f"{name}.gain", np.ones(width)), self.constant(f"{name}.shift", np.zeros(width))
        return self.node("LayerNormalization", [x, gain, shift], name, axis=-1)

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        product = self.node("MatMul", [x, self.weight(f"{name}.weight", inputs, outputs)], f"{name}.product")
        bias = self.constant(f"{name}.bias", SPREAD * self.rng.standard_normal(outputs))
        return self.node("Add", [product, bias], name)

    def attention(self, x: str, name: str) -> str:
        width = self.shape.width
        query, key, value = (self.linear(x, f"{name}.{part}", width, width) for part in "qkv")
        split = {part: self.node("Reshape", [part, "to_heads"], f"{part}.split") for part in (query, key, value)}
        query = self.node("Transpose", [split[query]], f"{query}.heads", perm=[0, 2, 1, 3])
        key = self.node("Transpose", [split[key]], f"{key}.heads", perm=[0, 2, 3, 1])
        value = self.node("Transpose", [split[value]], f"{value}.heads", perm=[0, 2, 1, 3])
        scaled = self.node("Mul", [query, "scale"], f"{name}.scaled")
        logits = self.node("Add", [self.node("MatMul", [scaled, key], f"{name}.logits"), "causal"], f"{name}.masked")
        shares = self.node("Softmax", [logits], f"{name}.shares", axis=-1)
        context = self.node("MatMul", [shares, value], f"{name}.context")
        joined = self.node("Transpose", [context], f"{name}.rows", perm=[0, 2, 1, 3])
        rows = self.node("Reshape", [joined, "from_heads"], f"{name}.joined")
        return self.linear(rows, f"{name}.out", width, width)

    def block(self, x: str, name: str) -> str:
        shape = self.shape
        x = self.node("Add", [x, self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attention")], f"{name}.middle")
        inner = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.fc1", shape.width, shape.hidden)
        outer = self.linear(self.node("Relu", [inner], f"{name}.relu"), f"{name}.fc2", shape.hidden, shape.width)
        return self.node("Add", [x, outer], f"{name}.sum")

    def decoder(self) -> None:
        shape, graph = self.shape, self.graph
        graph.name = "decoder"
        graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", shape.sequence]))
        kind = helper.np_dtype_to_tensor_dtype(ELEMENTS[shape.elements])
        graph.output.append(helper.make_tensor_value_info("logits", kind, ["batch", shape.sequence, shape.vocabulary]))
        table = self.weight("tokens.weight", shape.vocabulary, shape.width)
        self.constant("to_heads", [0, 0, shape.heads, -1], np.int64)
        self.constant("from_heads", [0, 0, -1], np.int64)
        self.constant("scale", (shape.width // shape.heads) ** -0.5)
        self.constant("causal", np.triu(np.full((shape.sequence,) * 2, -1e4), 1))
        x = self.node("Gather", [table, "ids"], "tokens")
        x = self.node("Add", [x, self.weight("places.weight", shape.sequence, shape.width)], "embedded")
        for number in range(shape.layers):
            x = self.block(x, f"layers.{number}")
        head = self.node("Transpose", [table], "tokens.transposed", perm=[1, 0])
        self.node("MatMul", [self.norm(x, "norm"), head], "logits")


def write_decoder(path: Path, shape: Shape, seed: int = 0) -> int:
    """Write the model and its data file `<name>.data` beside it; returns their bytes."""
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as stream:
        writing = _Writing(shape, stream, data.name, np.random.default_rng(seed))
        writing.decoder()
    model = helper.make_model(writing.graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path.stat().st_size + data.stat().st_size
