"""onnx's own tests of its operators, each put between two layers, so that units run through it.

A layer makes one axis of one input, and one layer reads all positions of every output. The other inputs are constants
or inputs, as the test has them. Then every oracle of a cut holds for the operator too.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from snp_onnx.passes import prepare
from tests.onnx_cases import Case
from tests.oracles import Feed, cut, difference, one_kept, random_mask, run, tolerance, traced, zeroed

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
NEWEST = 26
"""The newest operator set that onnxruntime loads; what is older than its test's set is tested there."""


@dataclass(frozen=True, slots=True)
class Place:
    """The axis of an input that a layer makes, and whether the other inputs are constants."""

    input: int
    axis: int
    is_rest_constant: bool


def places(case: Case) -> Iterator[Place]:
    """Every axis of more than one position of every floating-point input; none where something is no tensor."""
    if not all(_element_type(value) for value in (*case.model.graph.input, *case.model.graph.output)):
        return
    for number, (value, array) in enumerate(zip(case.model.graph.input, case.inputs, strict=False)):
        if _element_type(value) in FLOATS and np.size(array):
            for axis, extent in enumerate(np.shape(array)):
                if extent > 1:
                    yield from (Place(number, axis, constant) for constant in (True, False))


def between_layers(case: Case, place: Place) -> tuple[onnx.ModelProto, Feed]:
    """The graph of a test between two layers, and its inputs."""
    rng = np.random.default_rng(0)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    nodes, values, outputs = list(graph.node), list(graph.input), list(graph.output)
    for field in ("node", "input", "output", "value_info"):
        graph.ClearField(field)
    feed: dict[str, Any] = {}
    for number, (value, array) in enumerate(zip(values, case.inputs, strict=True)):
        if number == place.input:
            feed["layer_in"] = np.asarray(array)
            _make(graph, value, np.asarray(array), place.axis, rng)
        elif place.is_rest_constant and _element_type(value) and isinstance(array, np.ndarray | np.generic):
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
        else:
            graph.input.append(value)
            feed[value.name] = np.asarray(array) if isinstance(array, np.generic) else array
    for number, node in enumerate(nodes):
        node.name = node.name or f"node_{number}"
        graph.node.append(node)
    for value, array in zip(outputs, case.outputs, strict=True):
        _read(graph, value, array, rng)
    _lower(model)
    return model, feed


def _element_type(value: onnx.ValueInfoProto) -> int:
    """The type of a tensor's elements; 0 for what is no tensor."""
    return value.type.tensor_type.elem_type if value.type.HasField("tensor_type") else 0


def _make(
    graph: onnx.GraphProto, value: onnx.ValueInfoProto, array: npt.NDArray[Any], axis: int, rng: np.random.Generator
) -> None:
    """The input by a layer along one axis, close to what the test gives: some operators take few values."""
    extent, order = array.shape[axis], [k for k in range(array.ndim) if k != axis] + [axis]
    weight = np.eye(extent) + 0.01 * rng.standard_normal((extent, extent))
    graph.initializer.append(numpy_helper.from_array(weight.astype(array.dtype), "layer_w"))
    graph.input.append(helper.make_tensor_value_info("layer_in", _element_type(value), array.shape))
    back = [int(k) for k in np.argsort(order)]
    graph.node.append(helper.make_node("Transpose", ["layer_in"], ["turned"], "turn", perm=order))
    graph.node.append(helper.make_node("MatMul", ["turned", "layer_w"], ["made"], "layer"))
    graph.node.append(helper.make_node("Transpose", ["made"], [value.name], "turn_back", perm=back))


def _read(graph: onnx.GraphProto, value: onnx.ValueInfoProto, array: Any, rng: np.random.Generator) -> None:
    """A layer over all positions of an output; what is no numbers leaves as it is."""
    if not _element_type(value) or np.asarray(array).dtype.kind not in "fiub" or np.size(array) < 2:
        graph.output.append(value)
        return
    name, kind = value.name, _element_type(value)
    if kind not in FLOATS:
        kind = onnx.TensorProto.FLOAT
        graph.node.append(helper.make_node("Cast", [name], [f"{name}_float"], f"{name}_cast", to=kind))
        name = f"{name}_float"
    weight = rng.standard_normal((np.size(array), 3)) / np.sqrt(np.size(array))
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), f"{name}_shape"))
    graph.initializer.append(numpy_helper.from_array(weight.astype(dtype), f"{name}_w"))
    graph.node.append(helper.make_node("Reshape", [name, f"{name}_shape"], [f"{name}_row"], f"{name}_flatten"))
    graph.node.append(helper.make_node("MatMul", [f"{name}_row", f"{name}_w"], [f"{name}_read"], f"{name}_layer"))
    graph.output.append(helper.make_tensor_value_info(f"{name}_read", kind, [1, 3]))


def _lower(model: onnx.ModelProto) -> None:
    """Take the newest version that the runtime knows of the layers' operator set."""
    model.ir_version = min(model.ir_version, 13)
    if all(entry.domain not in ("", "ai.onnx") for entry in model.opset_import):
        model.opset_import.add(version=NEWEST)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = min(entry.version, NEWEST)


def _run(model: onnx.ModelProto, feed: Feed) -> list[Any]:
    """The outputs; the runtime writes the statistics of a batch over the arrays that it is given."""
    return run(model, deepcopy(dict(feed)))


def is_run(model: onnx.ModelProto, feed: Feed) -> bool:
    """Whether the runtime computes the model: it has no kernel for some operators and types."""
    try:
        _run(model, feed)
    except Exception:  # whatever the runtime says: there is nothing to judge
        return False
    return True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a graph: an empty fault, the units that were found, and why others stay."""

    units: int = 0
    reasons: tuple[str, ...] = ()


def judged(model: onnx.ModelProto, feed: Feed, seed: int = 0) -> Verdict:
    """Oracle (a) for two choices of units; raises AssertionError where a cut computes something else."""
    dense = _run(model, feed)
    prepared = prepare(model).model
    trace = traced(prepared, feed)
    close = 8 * tolerance(dense)
    assert difference(dense, _run(prepared, feed)) <= close
    for mask in (random_mask(trace, np.random.default_rng(seed)), one_kept(trace)):
        if not mask.all():
            expected = _run(zeroed(prepared, trace, mask), feed)
            assert difference(expected, _run(cut(prepared, trace, mask), feed)) <= close
    return Verdict(sum(map(len, trace.groups)), tuple(sorted({barrier.reason for barrier in trace.barriers})))
