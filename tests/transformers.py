"""Tiny transformers as the exporters write them: the cases, their feeds, and what must be removable in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from models.tiny import TRANSFORMERS
from snp_onnx.passes import prepare
from snp_onnx.tracing import Trace
from snp_onnx.tracing.groups import Mask
from tests.exports import export_bytes
from tests.oracles import cut, masks, traced

Array = npt.NDArray[Any]
ROWS = 2
WIDTH, EACH, LAYERS = 32, 8, 2
"""d_model, width of a head, and number of layers of every tiny transformer."""


@dataclass(frozen=True, slots=True)
class Units:
    """What one layer must offer, and how many parameters each unit takes with it."""

    heads: int = 4
    hidden: int = 128
    per_head: int = 4 * EACH * WIDTH + 3 * EACH
    per_hidden: int = 2 * WIDTH + 1
    queries: int = 1
    """Query heads of one key-value head."""
    others: Mapping[int, int] = field(default_factory=dict)
    """Widths of further groups, and a unit's parameters."""


_LLAMA = Units(heads=2, hidden=40, per_head=6 * EACH * WIDTH, per_hidden=3 * WIDTH, queries=2)
UNITS: Mapping[str, Units] = {
    "deit-tiny": Units(),
    "bert": Units(),
    "gpt2": Units(),
    "opt": Units(),
    "opt-alibi": Units(),
    "opt-relative": Units(),
    "llama": _LLAMA,
    "llama-fused": _LLAMA,
    "llama-interleaved": _LLAMA,
    "whisper-encoder": Units(per_head=4 * EACH * WIDTH + 2 * EACH, others={WIDTH: 80 * 3 + 1 + 3 * WIDTH}),
}


@dataclass(frozen=True)
class Case:
    """One export of one recipe."""

    name: str
    exporter: str
    batch: str
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        return "-".join([self.name, self.exporter, self.batch, *(f"{key}={value}" for key, value in self.options)])

    def feed(self, rows: int = ROWS, size: int | None = None, seed: int = 1) -> dict[str, Array]:
        """An example of every input; `size` is the sequence's length, and can't differ for images and frames."""
        from models.recipes import recipe

        own: int = TRANSFORMERS[self.name]["in_size"]
        samples = recipe(self.name).samples(own if size is None else size, rows, seed)
        return {key: value.numpy() for key, value in samples.items()}

    @property
    def other_feed(self) -> dict[str, Array]:
        """Another batch and, of tokens, another sequence length, where the model allows it."""
        if self.batch == "static":
            return self.feed(seed=5)
        return self.feed(rows=3, size=13 if self.reads_tokens else None, seed=5)

    @property
    def is_optimised(self) -> bool:
        return ("optimise", True) in self.options

    def complete(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Checkable: onnxruntime's optimiser doesn't import the operator set that it uses."""
        result = onnx.ModelProto.FromString(model.SerializeToString())
        if self.is_optimised:
            result.opset_import.add(domain="com.microsoft", version=1)
        return result

    @property
    def reads_tokens(self) -> bool:
        return self.name not in ("deit-tiny", "whisper-encoder")


@dataclass(frozen=True, eq=False)
class Subject:
    """A case, prepared and traced, and its cut forms."""

    case: Case
    source: onnx.ModelProto
    source_bytes: bytes
    prepared: onnx.ModelProto
    trace: Trace
    cuts: tuple[tuple[Mask, onnx.ModelProto], ...]


@cache
def exported(case: Case) -> bytes:
    model = export_bytes(
        case.name, case.exporter, case.batch, rows=ROWS, **{**TRANSFORMERS[case.name], **dict(case.options)}
    )
    return model.SerializeToString()


def subject_of(case: Case, source: onnx.ModelProto, count: int = 4) -> Subject:
    """Prepared, traced, and cut by `count` masks."""
    before = source.SerializeToString()
    prepared = prepare(source).model
    trace = traced(prepared, case.feed())
    chosen = [mask for mask in masks(trace) if not mask.all()][:count]
    return Subject(case, source, before, prepared, trace, tuple((mask, cut(prepared, trace, mask)) for mask in chosen))


@cache
def subject(case: Case) -> Subject:
    is_plain = case.exporter == "ts" and case.batch == "dynamic" and not case.options
    return subject_of(case, onnx.ModelProto.FromString(exported(case)), 4 if is_plain else 2)


def floats(model: onnx.ModelProto) -> int:
    """Floating-point elements of all initialisers."""
    return sum(
        int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    )
