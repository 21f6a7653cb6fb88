"""Weights as the nodes read them: an initialiser, or what constant nodes make of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from snp_onnx.cost import NARROW
from snp_onnx.errors import ModelError
from snp_onnx.external import array_of
from snp_onnx.tracing.op import Op, ops_of

Array = npt.NDArray[np.generic]

_REVERSIBLE = frozenset(["Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"])


@dataclass(frozen=True, slots=True)
class WeightPath:
    """The reversible way from an initialiser to the tensor a node reads; `ops` in the order they run."""

    root: str
    ops: tuple[Op, ...]

    def undo(self, values: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        """What the initialiser must hold, with `shape` and `dtype`, for the node to read `values`."""
        for op in reversed(self.ops):
            if op.type == "Transpose":
                order = op.attr("perm", list(range(values.ndim))[::-1])
                values = values.transpose(np.argsort(order))
            elif op.type not in ("Identity", "Cast"):
                values = self._reshaped(values, op, shape)
        return values.reshape(shape).astype(dtype)

    def _reshaped(self, values: Array, op: Op, shape: tuple[int, ...]) -> Array:
        """Before a Reshape stands the initialiser itself, or a Transpose whose result this class can't name."""
        before = self.ops[: self.ops.index(op)]
        if any(earlier.type == "Transpose" for earlier in before):
            raise NotImplementedError("Reshape after Transpose")
        return values.reshape(shape)


_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_QUANTISERS_SINCE = 21
"""The reference takes all of their types from here on; for older graphs they mean the same."""

_IR_VERSION = 8
"""Of the model of one node, old enough for every runtime."""


_RANDOM = frozenset(["RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"])
"""Operators that give something else on every run, whatever they read."""


def _alone(op: Op, feed: Mapping[str, Array], output: str) -> onnx.ModelProto:
    """A model of one node as the standard operator of its name."""
    node = onnx.NodeProto()
    node.CopyFrom(op.node)
    node.domain = ""
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype), None)
        for name, values in feed.items()
    ]
    outputs = [onnx.helper.make_value_info(output, onnx.TypeProto())]
    version = max(op.version, _QUANTISERS_SINCE) if op.type in _QUANTISERS else op.version
    imports = [onnx.helper.make_opsetid("", version)]
    graph = onnx.helper.make_graph([node], "weight", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)


def _by_runtime(op: Op, feed: Mapping[str, Array], output: str) -> Array:
    """The output as onnxruntime computes it, of bfloat16 in float32; ModelError where it can't."""
    narrow = next((values.dtype for values in feed.values() if values.dtype.name == "bfloat16"), None)
    wide = {name: values.astype(np.float32) if values.dtype == narrow else values for name, values in feed.items()}
    try:
        import onnxruntime

        model = _alone(op, wide, output).SerializeToString()
        (found,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, wide)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"node {op.name} ({op.type}) computes a weight from constants and can't be run: {reason}"
        ) from error
    return found.astype(narrow) if narrow is not None and found.dtype == np.float32 else np.asarray(found)


class Weights:
    """Reads constant tensors of a model; big ones are read when asked for, and not kept."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers: dict[str, Op] = {}
        for op in ops_of(model):
            names = [name for name in op.inputs if name]
            known = all(name in self._tensors or name in self._makers for name in names)
            is_random = op.type in _RANDOM or (op.type == "Dropout" and bool(op.input(2)))
            if known and (names or op.type == "Constant") and not op.has_subgraph and op.is_evaluable and not is_random:
                self._makers.update({name: op for name in op.outputs if name})

    def knows(self, tensor: str) -> bool:
        """Whether constants alone decide the tensor."""
        return tensor in self._tensors or tensor in self._makers

    def array(self, tensor: str) -> Array:
        """The value of a constant tensor."""
        if tensor in self._tensors:
            return array_of(self._tensors[tensor])
        op = self._makers[tensor]
        feed = {name: self.array(name) for name in op.inputs if name}
        try:
            outcome = ReferenceEvaluator(_alone(op, feed, tensor)).run(None, feed)
        except Exception:  # the reference lacks some forms: a Pad with negative amounts is one
            return _by_runtime(op, feed, tensor)
        return np.asarray(next(iter(outcome)))

    def chain(self, tensor: str) -> list[Op]:
        """The nodes that compute a constant tensor."""
        found: dict[int, Op] = {}
        waiting = [tensor]
        while waiting:
            maker = self._makers.get(waiting.pop())
            if maker is not None and maker.index not in found:
                found[maker.index] = maker
                waiting.extend(maker.inputs)
        return list(found.values())

    def path(self, tensor: str) -> WeightPath | None:
        """The reversible path from an initialiser to the tensor; None where a node computes or dequantises it."""
        ops: list[Op] = []
        name = tensor
        while name not in self._tensors:
            op = self._makers.get(name)
            if op is None or op.type not in _REVERSIBLE or not op.is_standard:
                return None
            ops.insert(0, op)
            name = op.input(0)
        kinds = [op.type for op in ops]
        reshapes = [kind for kind in kinds if kind not in ("Identity", "Cast", "Transpose")]
        if reshapes and "Transpose" in kinds[: max(kinds.index(kind) for kind in reshapes)]:
            return None
        return WeightPath(name, tuple(ops))

    def root(self, tensor: str) -> str:
        """The initialiser a tensor is made of, for naming; the tensor itself where there are several."""
        name = tensor
        while name in self._makers and name not in self._tensors and self._makers[name].inputs:
            name = self._makers[name].input(0)
        return name if name in self._tensors else tensor

    def is_quantised(self, tensor: str) -> bool:
        """Whether the weight is made of integer codes: its values then can't be rewritten without loss."""
        held = self._tensors.get(tensor)
        if held is not None:
            return held.data_type in NARROW and len(held.dims) > 1
        op = self._makers.get(tensor)
        is_dequantised = op is not None and op.type == "DequantizeLinear"
        return is_dequantised or (op is not None and any(self.is_quantised(name) for name in op.inputs if name))

    def is_computed(self, tensor: str) -> bool:
        """Whether constant nodes compute the tensor in a way that can't be reversed, quantisation apart."""
        is_made = tensor in self._makers and tensor not in self._tensors and bool(self._makers[tensor].inputs)
        return is_made and self.path(tensor) is None and not self.is_quantised(tensor)
