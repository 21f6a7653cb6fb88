"""Oracles: independent ways to know what a pruned model must be and compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from snp_onnx.cost import mac_terms, param_terms, total
from snp_onnx.passes import EliminateDead, SliceUnits, rewrite
from snp_onnx.tracing import Trace, trace, unknown_shapes
from snp_onnx.tracing.facts import Seen, infer_facts, seen_in
from snp_onnx.tracing.groups import Mask
from snp_onnx.tracing.op import Op

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]


def run(model: onnx.ModelProto, feed: Feed, optimised: bool = False, exact: bool = False) -> list[Array]:
    """The model's outputs by onnxruntime, without its graph optimisations unless asked for.

    `exact` keeps integer products from saturating, as kernels for processors without VNNI let them.
    """
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def cut(model: onnx.ModelProto, trace: Trace, alive: Mask) -> onnx.ModelProto:
    """The sliced model, no folding."""
    return rewrite(model, [SliceUnits(trace, alive), EliminateDead()]).model


def zeroed(model: onnx.ModelProto, trace: Trace, alive: Mask) -> onnx.ModelProto:
    """The dense model with every removed unit multiplied by zero at every consumer's input: what slicing must equal.

    The first operand of a product that sums over removed units is such an input too.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    places = [
        (linear.op, linear.input, linear.input_axis, alive[trace.axes[linear.input][linear.input_axis]])
        for linear in trace.linears
        if linear.mixes
    ]
    for product in (product for product in trace.products if product.is_open):
        tensor, axis = product.contracted[0]
        places.append((product.op, tensor, axis, alive[trace.axes[tensor][axis]]))
    for number, (op, tensor, axis, alive_inputs) in enumerate(places):
        if not alive_inputs.all():
            _mask_input(result, op, tensor, alive_inputs, trace, axis, number)
    return result


def _mask_input(model: onnx.ModelProto, op: Op, tensor: str, kept: Mask, trace: Trace, axis: int, number: int) -> None:
    """Multiply one input of a node by zeros and ones along an axis."""
    rank = len(trace.facts.shapes[tensor])
    shape = [-1 if place == axis else 1 for place in range(rank)]
    kind = onnx.helper.tensor_dtype_to_np_dtype(trace.facts.types[tensor])
    model.graph.initializer.append(onnx.numpy_helper.from_array(kept.astype(kind).reshape(shape), f"mask_{number}"))
    first = next(name for name in op.outputs if name)
    index, node = next((i, node) for i, node in enumerate(model.graph.node) if first in node.output)
    node.input[list(node.input).index(tensor)] = f"masked_{number}"
    model.graph.node.insert(index, onnx.helper.make_node("Mul", [tensor, f"mask_{number}"], [f"masked_{number}"]))


def difference(left: Sequence[Array], right: Sequence[Array]) -> float:
    """Largest absolute difference relative to the largest absolute value, over all outputs.

    Infinite where shapes, types or the places of what isn't finite differ.
    """
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        wide, other = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(wide)
        if not np.array_equal(finite, np.isfinite(other)):
            return float("inf")
        scale = max(float(np.abs(wide[finite]).max(initial=0.0)), 1e-12)
        worst = max(worst, float(np.abs(wide[finite] - other[finite]).max(initial=0.0)) / scale)
    return worst


def tolerance(outputs: Sequence[Array]) -> float:
    """What rounding may change, relative to the largest output: some hundred units of the last place."""
    halves = any(output.dtype == np.float16 for output in outputs)
    return 32 * float(np.finfo(np.float16).eps) if halves else 400 * float(np.finfo(np.float32).eps)


def with_copies(model: onnx.ModelProto, trace: Trace) -> onnx.ModelProto:
    """A prepared model in which the second half of every group repeats the first: half of it can go, and nothing
    changes.
    """
    source = np.arange(trace.label_count)
    for group in trace.groups:
        half = len(group) // 2
        source[group.labels[half : 2 * half]] = group.labels[:half]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        for axis, labels in enumerate(trace.axes.get(tensor.name, ())):
            values = np.take(values, _first_of_each(labels, source[labels]), axis=axis)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return result


def _first_of_each(labels: npt.NDArray[np.int64], sources: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For every position the place that its source has, the n-th for the n-th place of a label."""
    places: dict[int, list[int]] = {}
    for place, label in enumerate(labels.tolist()):
        places.setdefault(label, []).append(place)
    return np.array(
        [
            place if label == source else places[source][places[label].index(place)]
            for place, (label, source) in enumerate(zip(labels.tolist(), sources.tolist(), strict=True))
        ],
        dtype=np.int64,
    )


def half_removed(trace: Trace, seed: int = 0) -> Mask:
    """A legal choice: about half of every group's units go, at least one stays."""
    rng = np.random.default_rng(seed)
    removed = [rng.choice(group.labels, size=len(group) // 2, replace=False) for group in trace.groups]
    return trace.alive(removed)


def random_mask(trace: Trace, rng: np.random.Generator) -> Mask:
    """A legal choice: any number of units of each group goes, at least one stays."""
    removed = [rng.choice(g.labels, size=int(rng.integers(0, len(g))), replace=False) for g in trace.groups]
    return trace.alive(removed)


def one_kept(trace: Trace, seed: int = 0) -> Mask:
    """The extreme choice: a single unit of every group stays."""
    rng = np.random.default_rng(seed)
    return trace.alive([rng.choice(group.labels, size=len(group) - 1, replace=False) for group in trace.groups])


def last_removed(trace: Trace) -> Mask:
    """The smallest choice: one unit of every group of several goes."""
    return trace.alive([group.labels[-1:] if len(group) > 1 else group.labels[:0] for group in trace.groups])


def masks(trace: Trace) -> Iterator[Mask]:
    """The choices every topology is cut by."""
    yield half_removed(trace)
    yield one_kept(trace)
    yield last_removed(trace)
    yield random_mask(trace, np.random.default_rng(3))


def assert_valid(model: onnx.ModelProto, feed: Feed, full_check: bool = True) -> None:
    """Checker (unless it refuses the dense model too), strict inference, sessions, finite and agreeing outputs."""
    if full_check:
        onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    plain, optimised = run(model, feed), run(model, feed, optimised=True)
    assert all(np.isfinite(output.astype(np.float64)).all() for output in plain)
    if all(node.op_type != "QuantizeLinear" for node in model.graph.node):  # fused kernels may round to another code
        assert difference(plain, optimised) <= 4 * tolerance(plain)


def assert_counts(prepared: onnx.ModelProto, trace: Trace, alive: Mask, result: onnx.ModelProto, feed: Feed) -> None:
    """Parameters and MACs of the cut model equal the terms of the prepared one with the extents that stay."""

    def extent(tensor: str, axis: int) -> int:
        return trace.shape_after(tensor, alive)[axis]

    held = {tensor.name: tuple(tensor.dims) for tensor in result.graph.initializer}
    params = total(param_terms(result), lambda tensor, axis: held[tensor][axis])
    assert params == total(param_terms(prepared), extent)
    shapes = traced(result, feed).facts.shapes
    macs = total(mac_terms(result, shapes), lambda tensor, axis: shapes[tensor][axis])
    assert macs == total(mac_terms(prepared, trace.facts.shapes), extent)


def assert_same_surface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """True inputs, outputs, operator sets, documentation and metadata are those of the source model."""
    listed = {tensor.name for tensor in before.graph.initializer}
    assert list(after.graph.input) == [value for value in before.graph.input if value.name not in listed]
    assert list(after.graph.output) == list(before.graph.output)
    assert {(o.domain, o.version) for o in after.opset_import} == {(o.domain, o.version) for o in before.opset_import}
    for name in ("doc_string", "domain", "model_version", "producer_name"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.graph.doc_string == before.graph.doc_string
    assert after.graph.name == before.graph.name
    assert list(after.metadata_props) == list(before.metadata_props)
    assert list(after.graph.metadata_props) == list(before.graph.metadata_props)
    nodes = {node.name: node for node in before.graph.node}
    for node in after.graph.node:
        if node.name in nodes:
            assert node.doc_string == nodes[node.name].doc_string, node.name
            assert list(node.metadata_props) == list(nodes[node.name].metadata_props), node.name


def observed_shapes(model: onnx.ModelProto, feed: Feed) -> dict[str, Seen]:
    """Shapes and types of the tensors that inference can't tell, seen in a run."""
    facts = infer_facts(model, {name: array.shape for name, array in feed.items()})
    names = unknown_shapes(model, facts)
    if not names:
        return {}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return {name: seen_in(array) for name, array in zip(names, run(shown, feed), strict=True)}


def traced(model: onnx.ModelProto, feed: Feed) -> Trace:
    """The trace of a prepared model for the shapes of a feed."""
    return trace(model, {name: array.shape for name, array in feed.items()}, observed_shapes(model, feed))
