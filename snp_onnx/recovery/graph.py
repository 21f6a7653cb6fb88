"""The torch form of an ONNX graph: a module that runs it node by node.

No converter that is kept up to date covers the graphs that our passes leave, so this is a small interpreter: a table of
operator functions (`operators/`), and the graph's own names for everything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import onnx
import torch
from onnx import inliner
from torch import Tensor, nn

from snp_onnx.errors import ModelError
from snp_onnx.external import array_of
from snp_onnx.recovery.operators import READS_SHAPES, kernel_of
from snp_onnx.recovery.operators.kernel import Kernel
from snp_onnx.recovery.operators.layout import as_tensor
from snp_onnx.recovery.roles import trained_names
from snp_onnx.tracing.op import Op, ops_of


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node: what it computes from which tensors, and which nobody needs after it."""

    op: Op
    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...] = ()

    @property
    def reads_shapes(self) -> bool:
        return self.op.is_standard and self.op.type in READS_SHAPES


class GraphModule(nn.Module):
    """An ONNX graph in torch, float32 where the graph has 16-bit floats.

    Parameters are the weights by role (`roles.trained_names`): of convolutions, products, norms' gains and shifts,
    embeddings, biases. All else stays as it is: running statistics of BatchNormalization, scales, epsilons, masks,
    rotary tables. `weights` maps the names of initialisers and Constant nodes to their parameters.

    Raises ModelError for a node whose operator isn't covered, when it is made.
    """

    def __init__(self, model: onnx.ModelProto, trains: bool = True) -> None:
        super().__init__()
        model = inliner.inline_local_functions(model) if model.functions else model
        if model.graph.sparse_initializer:
            raise ModelError("the model has sparse weights: recovery needs dense ones")
        self._constants: dict[str, Tensor] = {}
        self._names: dict[str, str] = {}
        trained = trained_names(model) if trains else frozenset()
        for tensor in model.graph.initializer:
            self._take(tensor.name, as_tensor(array_of(tensor)), tensor.name in trained)
        self.inputs = tuple(v.name for v in model.graph.input if v.name not in self)
        self.outputs = tuple(value.name for value in model.graph.output)
        self.steps = self._plan(model, trained)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters by the names they have in the graph."""
        return {name: self.get_parameter(key) for name, key in self._names.items() if key.startswith("weight_")}

    def __contains__(self, name: str) -> bool:
        return name in self._names or name in self._constants

    def _take(self, name: str, value: Tensor, is_trained: bool) -> None:
        """Keep a constant as a parameter, as a buffer that moves with the module, or, integers, on the host."""
        if is_trained:
            self._names[name] = f"weight_{len(self._names)}"
            self.register_parameter(self._names[name], nn.Parameter(value))
        elif value.is_floating_point() and value.numel() > 1:
            self._names[name] = f"constant_{len(self._names)}"
            self.register_buffer(self._names[name], value, persistent=False)
        else:
            self._constants[name] = value

    def _plan(self, model: onnx.ModelProto, trained: Collection[str]) -> tuple[Step, ...]:
        """All nodes but those that constants alone decide: these are computed now."""
        steps: list[Step] = []
        for op in ops_of(model):
            kernel, inputs = kernel_of(op), tuple(op.inputs)
            given = [self._constant(name) for name in inputs]
            if all(value is not None or not name for value, name in zip(given, inputs, strict=True)):
                with torch.no_grad():
                    values = _tuple(kernel(*given))
                for name, value in zip(op.outputs, values, strict=False):
                    if name and value is not None:
                        self._take(name, value.clone(), op.type == "Constant" and name in trained)
                continue
            steps.append(Step(op, kernel, inputs, tuple(op.outputs)))
        return _with_ends(steps)

    def _constant(self, name: str) -> Tensor | None:
        key = self._names.get(name, "")
        if key.startswith("constant_"):
            return self.get_buffer(key)
        return self._constants.get(name)

    def placed(self, device: torch.device) -> Self:
        """The module itself on a device, images' weights with the channels last, which is faster."""
        self.to(device)
        for values in (*self.parameters(), *self.buffers()):
            if values.ndim == 4:
                values.data = values.data.contiguous(memory_format=torch.channels_last)
        return self

    def forward(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs for inputs by name."""
        return self.tensors(feed)

    def tensors(
        self,
        feed: Mapping[str, Tensor],
        wanted: Iterable[str] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors called `wanted`, by default the outputs, for inputs by name; with other weights if given."""
        names = tuple(self.outputs if wanted is None else wanted)
        values: dict[str, Tensor] = {name: _wide(feed[name]) for name in self.inputs}
        on_host = next(iter(values.values())).device.type == "cpu" if values else True
        values.update((name, getattr(self, key)) for name, key in self._names.items())
        values.update(self._constants)
        values.update(weights or {})
        kept = frozenset(names)
        for step in self.steps:
            given = [values[name] if name else None for name in step.inputs]
            if not on_host:
                given = _together(given, step.reads_shapes)
            try:
                results = step.kernel(*given)
            except ModelError:
                raise
            except Exception as error:
                shapes = ", ".join("-" if g is None else str(tuple(g.shape)) for g in given)
                raise ModelError(
                    f"node {step.op.name}: can't be computed in torch for inputs {shapes}: {error}"
                ) from error
            for name, value in zip(step.outputs, _tuple(results), strict=False):
                if value is not None:
                    values[name] = value
            for name in step.done:
                if name not in kept:
                    values.pop(name, None)
        return {name: values[name] for name in names}


def _tuple(results: Tensor | Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    return (results,) if isinstance(results, Tensor) else results


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _together(values: Sequence[Tensor | None], reads_shapes: bool) -> list[Tensor | None]:
    """All on the accelerator if one is; sizes and places, read on the host, stay where they are."""
    device = next((v.device for v in values if v is not None and v.device.type != "cpu"), None)
    if device is None or (reads_shapes and values[0] is not None and values[0].device == device):
        return list(values)
    return [v if v is None or v.device == device else v.to(device) for v in values]


def _with_ends(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, each with the tensors that are read for the last time in it or never."""
    seen: set[str] = set()
    ended = []
    for step in reversed(steps):
        done = tuple(dict.fromkeys(n for n in (*step.inputs, *step.outputs) if n and n not in seen))
        seen.update(done)
        ended.append(replace(step, done=done))
    return tuple(reversed(ended))
