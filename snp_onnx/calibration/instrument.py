"""The statistics are part of the graph: a model whose outputs are moments, so that nothing large leaves the session."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from snp_onnx.calibration.displacements import (
    cross_products,
    is_by_displacement,
    is_by_shifts,
    products,
    shifted_products,
)
from snp_onnx.calibration.emitter import END, PREFIX, Emitter
from snp_onnx.calibration.moments import MomentRequest, Pilot, Squares, Window
from snp_onnx.errors import ModelError
from snp_onnx.tracing.op import read_by

PHASE = f"{PREFIX}phase"
OLDEST_OPSET = 9


@dataclass(frozen=True, slots=True)
class Sums:
    """Names of the graph outputs that answer one request.

    X itself stands for its Gram matrix where `is_rows`; its column energies, or nothing, where no more is wanted.
    Where `is_displaced`, Gram matrix and sum are in the form of `displacements`. `pilot` is what the sums are around,
    its entries in the order of the graph's columns.
    """

    gram: str | None
    sum: str
    count: str
    cross: str | None
    is_rows: bool = False
    is_displaced: bool = False
    pilot: Pilot | None = None


@dataclass(frozen=True, slots=True)
class Instrumented:
    """A model whose only outputs are the moments of `requests`, `sums` in the same order, and the tensors `kept`."""

    model: onnx.ModelProto
    requests: tuple[MomentRequest, ...]
    sums: tuple[Sums, ...]
    kept: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every output once, in the order of the requests; the tensors kept come last."""
        names = [name for sums in self.sums for name in (sums.gram, sums.sum, sums.count, sums.cross) if name]
        return tuple(dict.fromkeys([*names, *self.kept]))


def instrument(
    model: onnx.ModelProto,
    requests: Sequence[MomentRequest],
    keep: Sequence[str] = (),
    as_rows: Container[str] = (),
    pilots: Mapping[str, Pilot] = MappingProxyType({}),
) -> Instrumented:
    """A copy of `model` that computes the moments, the tensors to keep and nothing else; the model is not touched.

    Graph outputs are replaced, nodes and weights that no moment needs are left out. A lattice starts at an offset
    derived from the int64 input `snp_onnx::phase`, shape (1,): while the phase counts up, the offsets of all axes
    together take every value once. Slice has neither run-time starts nor steps before opset 10: there the offset is
    always 0 and the input is absent. Columns of patches come out window position by window position; `runner.collect`
    brings them into the order of `Moments`. Requests whose key is in `as_rows` are answered by their rows. Requests
    with a pilot are summed around it: it is subtracted from the columns, after padding with 0 and before the mask.
    """
    unique = tuple({request.key: request for request in requests}.values())
    _require_tensors(model.graph, unique)
    emitter = Emitter(_opset(model))
    sums = tuple(_sums(emitter, request, request.key in as_rows, pilots.get(request.key)) for request in unique)
    instrumented = Instrumented(onnx.ModelProto(), unique, sums, tuple(keep))
    _assemble(instrumented, model, emitter)
    return instrumented


def _opset(model: onnx.ModelProto) -> int:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            if entry.version < OLDEST_OPSET:
                raise ModelError(f"the model is of opset {entry.version}: convert it to opset {OLDEST_OPSET} or later")
            return int(entry.version)
    raise ModelError("the model imports no opset of the default domain ai.onnx: add it to opset_import")


def _require_tensors(graph: onnx.GraphProto, requests: Iterable[MomentRequest]) -> None:
    known = {value.name for value in [*graph.input, *graph.initializer]}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    known.update(name for node in graph.node for name in node.output)
    if any(name.startswith(PREFIX) for name in known):
        raise ModelError(f"the model already has tensors named {PREFIX}…: instrument the original model")
    for request in requests:
        for name in (request.tensor, request.row_mask, request.cross_with):
            if name is not None and (name not in known or not name):
                raise ModelError(f"the graph has no tensor {name!r}, of which moments were requested: check the name")


def _sums(emitter: Emitter, request: MomentRequest, is_rows: bool, pilot: Pilot | None) -> Sums:
    """The nodes from the requested tensors to their sums; the shortcuts know no pilot of their own rows."""
    has_own = pilot is not None and pilot.own is not None
    if request.is_product and request.cross_with is not None:
        return _product_sums(emitter, request, request.cross_with)
    if is_by_displacement(request, emitter.opset) and not has_own:
        return _displaced_sums(emitter, request, pilot)
    if request.cross_with is not None and request.cross_window is not None and is_by_shifts(request, emitter.opset):
        return _shifted_sums(emitter, request, request.cross_with, request.cross_window)
    offset = _offset(emitter, request)
    mask = _mask(emitter, request, offset)
    own, other = (pilot.own, pilot.other) if pilot is not None else (None, None)
    x = _matrix(emitter, request, _columns(emitter, request, offset), mask, own)
    cross = None
    if request.cross_with is not None:
        if request.cross_window is not None:
            wide = _windows(emitter, request, request.cross_with, request.cross_window, (), None)
        else:
            wide = _positions(emitter, request, request.cross_with, offset)
        cross = emitter.product(x, _matrix(emitter, request, wide, mask, other))
    is_rows = is_rows and request.squares is Squares.GRAM
    is_whole = request.rank > 2 and mask is None and not request.lattice and not request.window and not request.slots
    total, count = (
        _whole_sum(emitter, request)
        if is_whole and not has_own
        else (emitter.sum(x, [0]), _count(emitter, request, x, mask))
    )
    return Sums(_squares(emitter, request, x, is_rows), total, count, cross, is_rows, pilot=pilot)


def _squares(emitter: Emitter, request: MomentRequest, x: str, is_rows: bool) -> str | None:
    """What is wanted of XᵀX, or X itself."""
    if request.squares is Squares.NONE:
        return None
    if request.squares is Squares.ENERGIES:
        return emitter.squares(x)
    return x if is_rows else emitter.product(x, x)


def _displaced_sums(emitter: Emitter, request: MomentRequest, pilot: Pilot | None) -> Sums:
    """Every position of a plain window: what is alike in many blocks of the Gram matrix is computed once."""
    layout = [*request.row_axes, request.axis]
    maps = emitter.transpose(_float(emitter, request.tensor), layout)
    whole, count = _whole_sum(emitter, request)
    gram, total = products(emitter, maps, whole)
    cross = None
    if request.cross_with is not None:
        others = emitter.transpose(_float(emitter, request.cross_with), layout)
        cross = cross_products(emitter, maps, _less(emitter, others, None if pilot is None else pilot.other))
    return Sums(gram, total, count, cross, is_displaced=True, pilot=pilot)


def _shifted_sums(emitter: Emitter, request: MomentRequest, other: str, window: Window) -> Sums:
    """XᵀY with the windows of another map, tap by tap."""
    layout = [*request.row_axes, request.axis]
    maps, others = (emitter.transpose(_float(emitter, name), layout) for name in (request.tensor, other))
    total, count = _whole_sum(emitter, request)
    return Sums(None, total, count, shifted_products(emitter, maps, others, window))


def _whole_sum(emitter: Emitter, request: MomentRequest) -> tuple[str, str]:
    """The sum of every position, and how many there are: in the order the runtime has them, in which it adds fast."""
    x = _float(emitter, request.tensor)
    extents = emitter.emit("Gather", emitter.emit("Shape", x), emitter.ints(request.row_axes), axis=0)
    return emitter.sum(x, request.row_axes), emitter.emit("ReduceProd", extents, keepdims=1)


def _product_sums(emitter: Emitter, request: MomentRequest, other: str) -> Sums:
    """XᵀY sample by sample, then summed: nothing is laid out anew but the last two axes of the narrower tensor."""
    flat = emitter.ints([0, 0, -1])
    x, y = (emitter.emit("Reshape", _float(emitter, tensor), flat) for tensor in (request.tensor, other))
    each = emitter.emit("MatMul", x, emitter.emit("Transpose", y, perm=[0, 2, 1]))
    extents = emitter.emit("Gather", emitter.emit("Shape", x), emitter.ints([0, 2]), axis=0)
    count = emitter.emit("ReduceProd", extents, keepdims=1)
    return Sums(None, emitter.sum(x, [0, 2]), count, emitter.sum(each, [0]))


def _count(emitter: Emitter, request: MomentRequest, x: str, mask: str | None) -> str:
    """How many rows count: int64, one number."""
    if mask is None:
        return emitter.emit("Gather", emitter.emit("Shape", x), emitter.ints([0]), axis=0)
    counted = emitter.sum(emitter.emit("Cast", mask, to=TensorProto.INT64), range(request.rank - 1))
    return emitter.emit("Mul", counted, emitter.ints([len(request.slots) if request.slots else 1]))


def _extents(emitter: Emitter, request: MomentRequest) -> str:
    """How many row positions each lattice axis has: int64 vector."""
    shape = emitter.emit("Shape", request.tensor)
    extents = emitter.emit("Gather", shape, emitter.ints(request.lattice_axes), axis=0)
    window = request.window
    if window is None:
        return extents
    rank = len(window.kernel)
    slack = [
        window.pads[i] + window.pads[i + rank] - window.dilations[i] * (window.kernel[i] - 1) - 1 for i in range(rank)
    ]
    moves = emitter.emit("Div", emitter.emit("Add", extents, emitter.ints(slack)), emitter.ints(window.strides))
    return emitter.emit("Add", moves, emitter.ints([1] * rank))


def _offset(emitter: Emitter, request: MomentRequest) -> str | None:
    """Where the lattice starts: the phase in mixed radix, one digit an axis, so that no two axes move together."""
    if not request.lattice or emitter.opset < 10:
        return None
    radix = np.cumprod([1, *request.lattice[:-1]])
    shifted = emitter.emit("Div", PHASE, emitter.ints(radix.tolist()))
    digits = emitter.emit("Mod", shifted, emitter.ints(request.lattice))
    # an axis shorter than its stride must still be read
    return emitter.emit("Mod", digits, _extents(emitter, request))


def _sampled(
    emitter: Emitter, request: MomentRequest, x: str, axes: Sequence[int], rank: int, offset: str | None
) -> str:
    """The lattice positions of a tensor, whose lattice axes are these."""
    steps = request.lattice or (1,) * len(axes)
    return emitter.every(x, rank, axes, offset or [0] * len(axes), [END] * len(axes), steps)


def _positions(emitter: Emitter, request: MomentRequest, tensor: str, offset: str | None) -> str:
    """The lattice positions of a tensor as rows, float32; what is left out isn't moved."""
    if emitter.opset >= 10:
        few = _float(emitter, _sampled(emitter, request, tensor, request.lattice_axes, request.rank, offset))
    else:
        few = _sampled(emitter, request, _float(emitter, tensor), request.lattice_axes, request.rank, offset)
    return emitter.transpose(few, [*request.row_axes, request.axis])


def _columns(emitter: Emitter, request: MomentRequest, offset: str | None) -> str:
    """The lattice positions with all their columns, float32."""
    if request.window is not None:
        return _windows(emitter, request, request.tensor, request.window, request.lattice, offset)
    return _positions(emitter, request, request.tensor, offset)


def _float(emitter: Emitter, x: str) -> str:
    return emitter.emit("Cast", x, to=TensorProto.FLOAT)


def _windows(
    emitter: Emitter, request: MomentRequest, tensor: str, window: Window, lattice: Sequence[int], offset: str | None
) -> str:
    """Shifted slices of the padded input, one for each window position, side by side on the last axis.

    Where they are fewer numbers than the input, they are laid out as rows after that, else before.
    """
    rank = len(window.kernel)
    layout = [*request.row_axes, request.axis]
    is_sparse = prod(lattice) >= prod(window.kernel)
    x = _float(emitter, tensor)
    source = x if is_sparse else emitter.transpose(x, layout)
    first = 2 if is_sparse else 1
    margins = [0] * (rank + 2)
    before, after = margins.copy(), margins.copy()
    before[first : first + rank], after[first : first + rank] = window.pads[:rank], window.pads[rank:]
    padded = emitter.pad(source, [*before, *after])
    steps = [stride * step for stride, step in zip(window.strides, lattice or (1,) * rank, strict=True)]
    origin = None if offset is None else emitter.emit("Mul", offset, emitter.ints(window.strides))
    taps = []
    for tap in product(*(range(size) for size in window.kernel)):
        shift = [k * dilation for k, dilation in zip(tap, window.dilations, strict=True)]
        # an end counted from the back leaves room for the rest of the window: every tap gets the same positions
        room = [d * (size - 1 - k) for d, size, k in zip(window.dilations, window.kernel, tap, strict=True)]
        starts = shift if origin is None else emitter.emit("Add", origin, emitter.ints(shift))
        ends = [-r if r else END for r in room]
        taps.append(emitter.every(padded, rank + 2, range(first, first + rank), starts, ends, steps))
    wide = emitter.emit("Concat", *taps, axis=1 if is_sparse else rank + 1) if len(taps) > 1 else taps[0]
    return emitter.transpose(wide, layout) if is_sparse else wide


def _mask(emitter: Emitter, request: MomentRequest, offset: str | None) -> str | None:
    """Which lattice positions count: bool, the shape of the row axes."""
    if request.row_mask is None:
        return None
    whole = _extents(emitter, request)
    if 0 in request.row_axes:
        batch = emitter.emit("Gather", emitter.emit("Shape", request.tensor), emitter.ints([0]), axis=0)
        whole = emitter.emit("Concat", batch, whole, axis=0)
    mask = emitter.emit("Cast", request.row_mask, to=TensorProto.BOOL)
    mask = emitter.emit("Cast", mask, to=TensorProto.FLOAT)  # the type that every runtime can expand and slice
    if request.rank == 2:
        mask = emitter.emit("Reshape", mask, emitter.ints([-1]))
    axes = [request.row_axes.index(axis) for axis in request.lattice_axes]
    mask = _sampled(emitter, request, emitter.emit("Expand", mask, whole), axes, request.rank - 1, offset)
    return emitter.emit("Cast", mask, to=TensorProto.BOOL)


def _less(emitter: Emitter, columns: str, pilot: NDArray[np.float64] | None) -> str:
    """Columns, on the last axis, without their pilot."""
    return columns if pilot is None else emitter.emit("Sub", columns, emitter.constant(pilot.astype(np.float32)))


def _matrix(
    emitter: Emitter, request: MomentRequest, columns: str, mask: str | None, pilot: NDArray[np.float64] | None
) -> str:
    """(n, C): slots become rows, the pilot is subtracted, masked rows become zero, whatever they held."""
    rank = request.rank
    if request.slots is not None:
        columns = emitter.emit("Gather", columns, emitter.constant(np.asarray(request.slots, np.int64)), axis=rank - 1)
        rank += 1
    columns = _less(emitter, columns, pilot)
    if mask is not None:
        wide = emitter.unsqueeze(mask, range(request.rank - 1, rank))
        columns = emitter.emit("Where", wide, columns, emitter.constant(np.zeros((), np.float32)))
    return emitter.emit("Flatten", columns, axis=rank - 1)


def _assemble(instrumented: Instrumented, model: onnx.ModelProto, emitter: Emitter) -> None:
    """Fill the empty model: what the moments need of the old graph, then their own nodes."""
    result, graph = instrumented.model, model.graph
    read = [name for node in emitter.nodes for name in node.input]
    needed, nodes = _reached(graph, [*read, *instrumented.kept])
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = f"{PREFIX}moments"
    result.graph.node.extend([*nodes, *emitter.nodes])
    result.graph.input.extend(value for value in graph.input if value.name in needed)
    result.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    result.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in needed)
    result.graph.value_info.extend(_of_any_shape(value) for value in graph.value_info if value.name in needed)
    if PHASE in needed:
        result.graph.input.append(helper.make_tensor_value_info(PHASE, TensorProto.INT64, [1]))
    counts = {sums.count for sums in instrumented.sums}
    vectors = {sums.sum for sums in instrumented.sums}
    for request, sums in zip(instrumented.requests, instrumented.sums, strict=True):
        if request.squares is Squares.ENERGIES and sums.gram is not None:
            vectors.add(sums.gram)
        if sums.is_displaced:
            vectors.discard(sums.sum)
    for name in instrumented.outputs:
        if name in instrumented.kept:
            result.graph.output.append(onnx.ValueInfoProto(name=name))
            continue
        kind = TensorProto.INT64 if name in counts else TensorProto.FLOAT
        shape = [None] if name in counts | vectors else [None, None]
        result.graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def _of_any_shape(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """A declared tensor without its shape: where that is wrong, the runtime would count rows by it."""
    kind = value.type
    is_tensor = kind.HasField("tensor_type")
    return helper.make_tensor_value_info(value.name, kind.tensor_type.elem_type, None) if is_tensor else value


def _reached(graph: onnx.GraphProto, names: Iterable[str]) -> tuple[set[str], list[onnx.NodeProto]]:
    """Every tensor these are computed from, themselves included, and the nodes in between in graph order."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needed, waiting, nodes = set[str](), list(names), set[int]()
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        index = producer.get(name)
        if index is not None and index not in nodes:
            nodes.add(index)
            waiting.extend(read_by(graph.node[index]))
    return needed, [node for i, node in enumerate(graph.node) if i in nodes]
