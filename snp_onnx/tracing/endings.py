"""Endings: what a graph does last, in front of its outputs, as far as the comparison of two models must know it.

Behind a Softmax or Sigmoid that saturates, errors can't be seen; in front of it they can. Detectors join heads of
different meaning in one output; in front of the Concat they lie apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import onnx

from snp_onnx.tracing.op import STANDARD_DOMAINS

KNOWN_DOMAINS = (*STANDARD_DOMAINS, "com.microsoft", "ai.onnx.ml")

SOFTMAX_LAST = 13
"""The opset from which on the default axis of Softmax is the last; before it is axis 1."""

SATURATING = frozenset(("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Hardmax", "ArgMax", "TopK"))
"""Operators behind which different values look alike."""

SELECTING = {"NonMaxSuppression": (0, 1), "Compress": (0, 1), "NonZero": (0,), "Unique": (0,)}
"""Operators that decide by some of their inputs."""

MOVING = frozenset(
    ("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Gather")
)
"""Operators that move values and don't change them; the values are their first input."""

PICKING = frozenset(("NonMaxSuppression", "NonZero", "Unique", "Compress"))
"""Operators that pick entries: equal sizes don't make equal places."""

DATA_SIZED = frozenset((*PICKING, "Loop", "If", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"))
"""Operators whose output may have as many entries as the data decide; those of unknown domains may be such."""

SIZES = {
    "CenterCropPad": (1,),
    "Col2Im": (1,),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}
"""Operators whose output has as many entries as the values of these inputs say."""

SCATTERING = frozenset(("ScatterND", "ScatterElements", "Scatter"))
"""Operators whose output has the size of their first input, whatever they write into it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """One graph output: the extents its declaration fixes, the axis of its classes, and where its values arise.

    `shape` has None where an extent is dynamic, and is None where the rank isn't declared. `classes` is the axis of a
    Softmax that the output comes from, from 0 on or, below 0, from the end; None without one. `sources` are the tensors
    that hold the output's values before they are joined, moved and saturated; the output itself where nothing is.
    `is_data_sized` says that the number of entries may depend on the data: two models can be compared by place only
    where it is the same. `is_picked` says that the data decide which entries there are: those have no common places.
    """

    name: str
    shape: tuple[int | None, ...] | None
    classes: int | None
    sources: tuple[str, ...]
    is_data_sized: bool = False
    is_picked: bool = False


@dataclass(frozen=True, slots=True)
class _Graph:
    """The maker of every tensor, the constants, the tensors that weights have a part in, and the operator set."""

    makers: Mapping[str, onnx.NodeProto]
    constants: frozenset[str]
    weighted: frozenset[str]
    version: int


def endings(model: onnx.ModelProto) -> tuple[Ending, ...]:
    """The ending of every output, in the model's order."""
    makers = {name: node for node in model.graph.node for name in node.output if name}
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for name, node in makers.items() if node.op_type == "Constant"}
    version = next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 1)
    graph = _Graph(makers, frozenset(constants), _weighted(model.graph), version)
    return tuple(_ending(value, graph) for value in model.graph.output)


def _weighted(graph: onnx.GraphProto) -> frozenset[str]:
    """The tensors whose values, or whose sizes, depend on weights: they differ between a model and its pruned form.

    Sizes alone don't, but for those that the data decide. Constants of one axis or none are no weights here: their
    values stay, and they hold sizes and bounds.
    """
    found = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    sized = set[str]()
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in attributes and len(attributes["value"].t.dims) > 1:
            found.update(node.output)
        is_opaque = node.domain not in KNOWN_DOMAINS or any(entry.HasField("g") for entry in node.attribute)
        read = sized if node.op_type in ("Shape", "Size") else found
        if is_opaque or read.intersection(node.input):
            found.update(node.output)
        if not sized.isdisjoint(node.input) or _decides_size(node, found):
            sized.update(node.output)
    return frozenset(found)


def _decides_size(node: onnx.NodeProto, weighted: AbstractSet[str]) -> bool:
    """Whether weights have a part in how many entries this node gives."""
    if node.op_type not in SIZES and (node.op_type in DATA_SIZED or node.domain not in KNOWN_DOMAINS):
        return not weighted.isdisjoint((*node.input, *node.output))
    places = SIZES.get(node.op_type, ())
    return any(node.input[place] in weighted for place in places if place < len(node.input))


def _ending(value: onnx.ValueInfoProto, graph: _Graph) -> Ending:
    kind = value.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)
    sources = tuple(dict.fromkeys(_sources(value.name, graph)))
    deciding = tuple(_deciding(value.name, graph))
    is_picked = any(node.op_type in PICKING or node.op_type in SIZES for node in deciding)
    return Ending(value.name, shape, _class_axis(value.name, graph), sources, bool(deciding), is_picked)


def _deciding(name: str, graph: _Graph) -> Iterator[onnx.NodeProto]:
    """The nodes behind an output that may give as many entries as the data and the weights decide."""
    seen, waiting = set[int](), [name]
    while waiting:
        node = graph.makers.get(waiting.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if _decides_size(node, graph.weighted):
            yield node
        waiting.extend(node.input[:1] if node.op_type in SCATTERING else node.input)


def _sources(name: str, graph: _Graph) -> Iterator[str]:
    """Where the values of a tensor arise, behind joining, moving and saturating nodes."""
    node = graph.makers.get(name)
    parts = _passed_on(node) if node is not None else ()
    computed = [part for part in parts if part in graph.makers and part not in graph.constants]
    if not computed:
        yield name
    for part in computed:
        yield from _sources(part, graph)


def _passed_on(node: onnx.NodeProto) -> tuple[str, ...]:
    """The inputs whose values a node passes on, whatever it does to their places; none where it computes new ones."""
    if node.domain not in STANDARD_DOMAINS or not node.input:
        return ()
    if node.op_type == "Concat":
        return tuple(node.input)
    if node.op_type in SELECTING:
        return tuple(node.input[place] for place in SELECTING[node.op_type])
    return (node.input[0],) if node.op_type in SATURATING or node.op_type in MOVING else ()


def _class_axis(name: str, graph: _Graph) -> int | None:
    """The axis of a Softmax right before an output."""
    node = graph.makers.get(name)
    while node is not None and node.op_type in ("Identity", "Cast"):
        node = graph.makers.get(node.input[0])
    if node is None or node.op_type not in ("Softmax", "LogSoftmax"):
        return None
    default = -1 if graph.version >= SOFTMAX_LAST else 1
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), default)


def read_outs(known: Sequence[Ending], models: Sequence[onnx.ModelProto]) -> tuple[str, ...]:
    """The tensors behind these outputs that all models have; the output itself where one of them lacks some."""
    present = set.intersection(*(_tensors(model) for model in models))
    found: dict[str, None] = {}
    for ending in known:
        is_known = bool(ending.sources) and present.issuperset(ending.sources)
        found |= dict.fromkeys(ending.sources if is_known else (ending.name,))
    return tuple(found)


def _tensors(model: onnx.ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output if name}


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A model that gives these tensors too; itself where it does so already."""
    missing = [name for name in names if name not in {value.name for value in model.graph.output}]
    if not missing:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    return copy
