"""Moments out of the graph against numpy on the activations, over ranks, views, opsets, types and executors."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from snp_onnx.calibration.instrument import PHASE, instrument
from snp_onnx.calibration.moments import ALMOST, MomentRequest, Moments, Squares, View, Window, row_strides
from snp_onnx.calibration.runner import Runtime, collect, open_session, run
from snp_onnx.calibration.spill import is_large, spill
from snp_onnx.calibration.workers import Program, Task, answer, versions
from snp_onnx.errors import CalibrationError, ModelError, PlanError

Array = NDArray[Any]
CPU = Runtime(threads=1)
OPSETS = [9, 11, 13, 17, 21]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    outputs: Sequence[str],
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    weights: dict[str, Array] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(n, TensorProto.INT64 if n == "mask" else kind, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def relu_model(rank: int, opset: int = 17, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """x → Relu → h → Neg → y, with a mask input that nothing reads."""
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]
    return model_of(nodes, {"x": [None] * rank, "mask": [None, None]}, ["y"], opset, kind)


def feeds(*shape: int, count: int = 3, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def relu_rows(batches: Sequence[dict[str, Array]], axis: int) -> Array:
    """(n, C) rows of Relu(x), units last."""
    parts = [np.moveaxis(np.maximum(batch["x"].astype(np.float64), 0.0), axis, -1) for batch in batches]
    return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


def assert_moments(moments: Moments, rows: Array, other: Array | None = None) -> None:
    assert moments.count == len(rows)
    scale = np.square(rows).sum(axis=0).max()
    np.testing.assert_allclose(moments.gram_sum, rows.T @ rows, rtol=1e-5, atol=1e-6 * scale)
    np.testing.assert_allclose(moments.gram, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6 * scale / len(rows))
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-5)
    assert (moments.cross is None) == (other is None)
    if other is not None:
        np.testing.assert_allclose(moments.cross, rows.T @ other / len(rows), rtol=1e-5, atol=1e-6 * scale)


def collect_one(
    model: onnx.ModelProto, request: MomentRequest, batches: Sequence[dict[str, Array]], **more: Any
) -> Moments:
    return collect(model, [request], batches, CPU, **more)[request.key]


# --- the sums themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("shape", "axis"), [((6, 5), 1), ((6, 5, 4), 1), ((6, 5, 4), 2), ((2, 4, 3, 5), 1)])
def test_moments_equal_numpy_at_every_opset(opset: int, shape: tuple[int, ...], axis: int) -> None:
    batches = feeds(*shape)
    moments = collect_one(relu_model(len(shape), opset), MomentRequest("h", axis, len(shape)), batches)
    assert_moments(moments, relu_rows(batches, axis))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(("shape", "axis"), [((6, 5), 1), ((6, 5, 4), 2), ((2, 4, 3, 5), 1)])
@pytest.mark.parametrize("squares", [Squares.ENERGIES, Squares.NONE])
def test_less_than_the_gram_matrix(opset: int, shape: tuple[int, ...], axis: int, squares: Squares) -> None:
    batches = feeds(*shape)
    request = MomentRequest("h", axis, len(shape), cross_with="y", squares=squares)
    assert request.key not in {MomentRequest("h", axis, len(shape), cross_with="y").key}
    found = collect_one(relu_model(len(shape), opset), request, batches)
    rows = relu_rows(batches, axis)
    assert found.gram_sum is None
    assert found.is_finite
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.cross, -rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
    if squares is Squares.ENERGIES:
        np.testing.assert_allclose(found.energies, np.square(rows).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose((found + found).energies, found.energies, rtol=1e-12)


def test_energies_of_patches_are_the_diagonal() -> None:
    batches = feeds(2, 3, 6, 5)
    window = Window((3, 2), (1, 2), (1, 1), (1, 0, 1, 1))
    whole = MomentRequest("h", 1, 4, view=View.PATCHES, window=window, lattice=(2, 1))
    part = MomentRequest("h", 1, 4, view=View.PATCHES, window=window, lattice=(2, 1), squares=Squares.ENERGIES)
    found = collect(relu_model(4), [whole, part], batches, CPU)
    np.testing.assert_allclose(found[part.key].energies, found[whole.key].energies, rtol=1e-5)
    np.testing.assert_allclose(found[part.key].mean, found[whole.key].mean, rtol=1e-6)


@pytest.mark.parametrize(("rank", "axis"), [(rank, axis) for rank in (2, 3, 4, 5) for axis in {0, 1, rank - 1}])
def test_moments_equal_numpy_at_every_rank(rank: int, axis: int) -> None:
    shape = (3, 4, 2, 5, 3)[:rank]
    batches = feeds(*shape)
    moments = collect_one(relu_model(rank), MomentRequest("h", axis, rank), batches)
    assert_moments(moments, relu_rows(batches, axis))
    with pytest.raises(AssertionError):
        assert_moments(moments, relu_rows(batches, axis) * 1.001)


def test_input_output_and_both() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = model_of(nodes, {"x": [None, 4]}, ["y", "x"])
    batches = feeds(5, 4)
    x, y = MomentRequest("x", 1, 2), MomentRequest("y", 1, 2)
    moments = collect(model, [x, y], batches, CPU)
    assert_moments(moments[y.key], relu_rows(batches, 1))
    assert_moments(moments[x.key], np.concatenate([batch["x"] for batch in batches]).astype(np.float64))


@pytest.mark.parametrize("opset", [9, 17])
def test_slots_are_rows(opset: int) -> None:
    batches = feeds(6, 12)
    slots = tuple(tuple(unit * 4 + position for unit in range(3)) for position in range(4))  # channels first, flattened
    moments = collect_one(relu_model(2, opset), MomentRequest("h", 1, 2, slots=slots), batches)
    channels = [{"x": batch["x"].reshape(6, 3, 4)} for batch in batches]
    assert_moments(moments, relu_rows(channels, 1))
    wrong = [{"x": batch["x"].reshape(6, 4, 3)} for batch in batches]
    assert not np.allclose(moments.gram_sum, relu_rows(wrong, 2).T @ relu_rows(wrong, 2), rtol=1e-3)


@pytest.mark.parametrize("opset", [9, 11, 17])
@pytest.mark.parametrize("mask_shape", [(4, 6), (1, 6)])
def test_masked_rows_do_not_count_whatever_they_hold(opset: int, mask_shape: tuple[int, int]) -> None:
    batches, rng = feeds(4, 6, 5), np.random.default_rng(1)
    for batch in batches:
        batch["mask"] = rng.integers(0, 3, mask_shape)
    clean = np.concatenate([(b["x"] * 1.0)[np.broadcast_to(b["mask"], (4, 6)) != 0] for b in batches])
    for batch in batches:
        batch["x"][np.broadcast_to(batch["mask"], (4, 6)) == 0] = np.nan
    moments = collect_one(relu_model(3, opset), MomentRequest("h", 2, 3, row_mask="mask"), batches)
    assert moments.is_finite
    assert_moments(moments, np.maximum(clean.astype(np.float64), 0.0))
    assert not collect_one(relu_model(3, opset), MomentRequest("h", 2, 3), batches).is_finite


def test_mask_with_slots_and_lattice() -> None:
    batches = feeds(2, 6, 4, count=2)
    for batch in batches:
        batch["mask"] = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]])
    request = MomentRequest("h", 2, 3, slots=((0, 1), (2, 3)), row_mask="mask", lattice=(2,))
    moments = collect_one(relu_model(3), request, batches)
    rows = []
    for batch, offset in zip(batches, (0, 1), strict=True):
        h = np.maximum(batch["x"].astype(np.float64), 0.0)[:, offset::2]
        rows.append(h[batch["mask"][:, offset::2] != 0].reshape(-1, 2))
    assert_moments(moments, np.concatenate(rows))


def test_cross_moments() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Conv", ["h", "w"], ["y"])]
    weight = np.random.default_rng(2).standard_normal((6, 4, 1, 1)).astype(np.float32)
    model = model_of(nodes, {"x": [None, 4, 5, 5]}, ["y"], weights={"w": weight})
    batches = feeds(2, 4, 5, 5)
    moments = collect_one(model, MomentRequest("h", 1, 4, cross_with="y"), batches)
    rows = relu_rows(batches, 1)
    assert_moments(moments, rows, rows @ weight[:, :, 0, 0].T.astype(np.float64))


# --- patches -------------------------------------------------------------------------------------------------------

WINDOWS = [
    Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    Window((3, 2), (2, 1), (1, 2), (0, 2, 1, 1)),
    Window((3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),
    Window((1, 1), (2, 2), (1, 1), (0, 0, 0, 0)),
    Window((5, 5), (3, 3), (1, 1), (2, 2, 2, 2)),
]


def im2col(x: Array, window: Window) -> Array:
    """(N, *output, C · taps), by a sliding window view of the padded array."""
    rank = len(window.kernel)
    pads = [(0, 0), (0, 0), *zip(window.pads[:rank], window.pads[rank:], strict=True)]
    span = tuple(d * (k - 1) + 1 for k, d in zip(window.kernel, window.dilations, strict=True))
    view = sliding_window_view(np.pad(x, pads), span, axis=tuple(range(2, 2 + rank)))
    view = view[:, :, *(slice(None, None, step) for step in (*window.strides, *window.dilations))]
    return np.moveaxis(view, 1, 1 + rank).reshape(len(x), *view.shape[2 : 2 + rank], -1)


def patch_rows(batches: Sequence[dict[str, Array]], window: Window) -> Array:
    parts = [im2col(np.maximum(batch["x"].astype(np.float64), 0.0), window) for batch in batches]
    return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("window", WINDOWS)
def test_patches_equal_im2col(window: Window, opset: int) -> None:
    batches = feeds(2, 3, 9, 8)
    moments = collect_one(relu_model(4, opset), MomentRequest("h", 1, 4, view=View.PATCHES, window=window), batches)
    assert_moments(moments, patch_rows(batches, window))


@pytest.mark.parametrize("rank", [3, 5])
def test_patches_of_one_and_three_dimensions(rank: int) -> None:
    n = rank - 2
    window = Window((3,) * n, (2,) * n, (1,) * n, (1,) * (2 * n))
    batches = feeds(2, 3, *(7, 6, 5)[:n])
    request = MomentRequest("h", 1, rank, view=View.PATCHES, window=window)
    assert_moments(collect_one(relu_model(rank), request, batches), patch_rows(batches, window))


def test_patch_columns_are_ordered_like_the_weight() -> None:
    """W G Wᵀ is then the energy of the convolution's output."""
    weight = np.random.default_rng(3).standard_normal((5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Conv", ["h", "w"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    model = model_of(nodes, {"x": [None, 3, 8, 8]}, ["y"], weights={"w": weight})
    window = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
    patches = MomentRequest("h", 1, 4, view=View.PATCHES, window=window, cross_with="y")
    output = MomentRequest("y", 1, 4)
    moments = collect(model, [patches, output], feeds(4, 3, 8, 8), CPU)
    matrix = weight.reshape(5, -1).astype(np.float64)
    gram, expected = moments[patches.key].gram, moments[output.key].gram
    np.testing.assert_allclose(matrix @ gram @ matrix.T, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moments[patches.key].cross, gram @ matrix.T, rtol=1e-4, atol=1e-4)
    taps_first = weight.transpose(0, 2, 3, 1).reshape(5, -1)
    assert not np.allclose(taps_first @ gram @ taps_first.T, expected, rtol=0.1)


# --- lattice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lattice", [(2, 3), (2, 2), (4, 2)])
@pytest.mark.parametrize("window", [None, WINDOWS[1], WINDOWS[2]])
def test_the_offsets_of_a_lattice_visit_every_position_once(window: Window | None, lattice: tuple[int, int]) -> None:
    batch = feeds(2, 3, 11, 10, count=1)
    view = View.CHANNELS if window is None else View.PATCHES
    request = MomentRequest("h", 1, 4, view=view, window=window, lattice=lattice)
    model = relu_model(4)
    whole = patch_rows(batch, window) if window is not None else relu_rows(batch, 1)
    assert_moments(collect_one(model, request, batch * (lattice[0] * lattice[1])), whole)
    first, two = collect_one(model, request, batch), collect_one(model, request, batch * 2)
    assert 0 < first.count < len(whole)
    second = two.gram_sum - first.gram_sum
    assert not np.allclose(second, first.gram_sum, rtol=1e-2), "the second batch must read other rows"


@pytest.mark.parametrize("window", [None, WINDOWS[0], WINDOWS[1]])
def test_before_opset_10_the_offset_is_zero(window: Window | None) -> None:
    batches = feeds(2, 3, 9, 8, count=2)
    view = View.CHANNELS if window is None else View.PATCHES
    request = MomentRequest("h", 1, 4, view=view, window=window, lattice=(2, 3))
    assert PHASE not in {value.name for value in instrument(relu_model(4, 9), [request]).model.graph.input}
    rows = []
    for batch in batches:
        h = np.maximum(batch["x"].astype(np.float64), 0.0)
        positions = np.moveaxis(h, 1, -1) if window is None else im2col(h, window)
        rows.append(positions[:, ::2, ::3].reshape(-1, positions.shape[-1]))
    assert_moments(collect_one(relu_model(4, 9), request, batches), np.concatenate(rows))


def test_an_axis_shorter_than_its_stride_is_still_read() -> None:
    request = MomentRequest("h", 1, 3, lattice=(64,))
    for count in (1, 2, 5):
        assert collect_one(relu_model(3), request, feeds(2, 3, 4, count=count)).count == 2 * count


def test_row_strides_read_enough_and_no_more() -> None:
    assert row_strides((1, 16, 32, 32), axis=1, samples=512, units=16) == (8, 8)
    assert row_strides((1, 16, 32, 32), axis=1, samples=512, units=512) == (4, 4)
    assert row_strides((1, 16, 32, 32), axis=1, samples=512, units=16, at_least=100) == (3, 3)
    assert row_strides((1, 128, 64), axis=2, samples=64, units=64) == (2,)
    assert row_strides((1, 64, 4, 4), axis=1, samples=512, units=64) == ()
    assert row_strides((1, 64), axis=1, samples=512, units=64) == ()
    assert row_strides((1, 8, 100, 2), axis=1, samples=512, units=8) == (6, 2)
    for strides in [row_strides((1, 4, 37, 50), 1, 256, 400, per_unit=per_unit) for per_unit in (1, 16, 64)]:
        assert (37 // strides[0]) * (50 // strides[1]) >= ALMOST * 16


# --- the instrumented graph ----------------------------------------------------------------------------------------


def two_branches(opset: int = 17) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["b"]),
        helper.make_node("MatMul", ["extra", "w3"], ["c"]),
    ]
    weights = {name: np.eye(4, dtype=np.float32) for name in ("w1", "w2", "w3")}
    return model_of(nodes, {"x": [None, 4], "extra": [None, 4]}, ["b", "c"], opset, weights=weights)


def test_only_what_the_moments_need_is_left() -> None:
    model = two_branches()
    before = model.SerializeToString()
    instrumented = instrument(model, [MomentRequest("a", 1, 2)])
    graph = instrumented.model.graph
    assert {tensor.name for tensor in graph.initializer} == {"w1"}
    assert [value.name for value in graph.input] == ["x"]
    assert [node.output[0] for node in graph.node if not node.name.startswith("snp_onnx::")] == ["a"]
    assert [value.name for value in graph.output] == list(instrumented.outputs)
    assert model.SerializeToString() == before
    assert_moments(collect_one(model, MomentRequest("a", 1, 2), feeds(5, 4)), stacked(feeds(5, 4)))


def stacked(batches: Sequence[dict[str, Array]]) -> Array:
    return np.concatenate([batch["x"] for batch in batches]).astype(np.float64)


def test_the_number_of_outputs_depends_on_the_requests_alone() -> None:
    request = MomentRequest("h", 1, 4)
    patches = MomentRequest("h", 1, 4, view=View.PATCHES, window=WINDOWS[0], lattice=(2, 2))
    model = relu_model(4)
    assert len(instrument(model, [request]).outputs) == 3
    assert len(instrument(model, [request, request]).outputs) == 3
    assert len(instrument(model, [request, patches]).outputs) == 6
    assert len(instrument(model, [request, MomentRequest("h", 1, 4, cross_with="x")]).outputs) == 4


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 18, 21, 24, 26])
def test_the_instrumented_model_is_valid(opset: int) -> None:
    requests = [
        MomentRequest("h", 1, 4, lattice=(2, 2)),
        MomentRequest("h", 1, 4, view=View.PATCHES, window=WINDOWS[1], lattice=(2, 2), cross_with=None),
        MomentRequest("h", 3, 4, slots=((0, 1), (2, 3)), row_mask="mask"),
    ]
    model = relu_model(4, opset)
    model.ir_version = 13 if opset > 21 else 8
    instrumented = instrument(model, requests).model
    onnx.checker.check_model(instrumented, full_check=True)
    assert instrumented.opset_import[0].version == opset
    assert open_session(instrumented, CPU) is not None


def test_captures_of_subgraphs_are_kept() -> None:
    branch = helper.make_graph(
        [helper.make_node("Mul", ["captured", "captured"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["captured"]),
        helper.make_node("If", ["condition"], ["h"], then_branch=branch, else_branch=branch),
        helper.make_node("Neg", ["h"], ["y"]),
    ]
    model = model_of(nodes, {"x": [None, 4]}, ["y"], weights={"condition": np.array(True)})
    moments = collect_one(model, MomentRequest("h", 1, 2), feeds(5, 4))
    assert_moments(moments, np.square(stacked(feeds(5, 4))))


def test_initialisers_listed_as_inputs_stay_listed() -> None:
    model = two_branches(9)
    model.ir_version = 3
    for name in ("w1", "w2", "w3"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]))
    instrumented = instrument(model, [MomentRequest("a", 1, 2)]).model
    onnx.checker.check_model(instrumented)
    assert {value.name for value in instrumented.graph.input} == {"x", "w1"}


@pytest.mark.parametrize(
    "request_", [MomentRequest("nowhere", 1, 2), MomentRequest("a", 1, 2, row_mask="nowhere"), MomentRequest("", 1, 2)]
)
def test_an_unknown_tensor_is_named(request_: MomentRequest) -> None:
    with pytest.raises(ModelError, match=r"no tensor ('nowhere'|'')"):
        collect(two_branches(), [request_], feeds(5, 4), CPU)


def test_models_without_a_usable_opset_are_refused() -> None:
    model = two_branches()
    del model.opset_import[:]
    with pytest.raises(ModelError, match="no opset of the default domain"):
        instrument(model, [MomentRequest("a", 1, 2)])
    with pytest.raises(ModelError, match="opset 8: convert"):
        instrument(two_branches(8), [MomentRequest("a", 1, 2)])
    once = instrument(two_branches(), [MomentRequest("a", 1, 2)]).model
    with pytest.raises(ModelError, match="instrument the original"):
        instrument(once, [MomentRequest("a", 1, 2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": 4}, "axis 4 is outside"),
        ({"lattice": (2,)}, "lattice"),
        ({"lattice": (0, 1)}, "lattice"),
        ({"view": View.PATCHES}, "needs a window"),
        ({"window": WINDOWS[0]}, "no other view"),
        ({"view": View.PATCHES, "window": Window((3,), (1,), (1,), (1, 1))}, "over the other 2 axes"),
        ({"slots": ((0, 1), (2,))}, "rectangle"),
        ({"slots": ((0, 1),), "cross_with": "y"}, "no rows in common"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=f"'h'.*{message}"):
        MomentRequest(**{"tensor": "h", "axis": 1, "rank": 4, **arguments})


def test_keys_tell_requests_apart() -> None:
    different = [
        MomentRequest("h", 1, 4),
        MomentRequest("g", 1, 4),
        MomentRequest("h", 2, 4),
        MomentRequest("h", 1, 3),
        MomentRequest("h", 1, 4, lattice=(1, 2)),
        MomentRequest("h", 1, 4, lattice=(2, 1)),
        MomentRequest("h", 1, 4, slots=((0, 1),)),
        MomentRequest("h", 1, 4, slots=((1, 0),)),
        MomentRequest("h", 1, 4, row_mask="m"),
        MomentRequest("h", 1, 4, cross_with="m"),
        *(MomentRequest("h", 1, 4, view=View.PATCHES, window=window) for window in WINDOWS),
    ]
    assert len({request.key for request in different}) == len(different)
    assert MomentRequest("h", 1, 4).key == MomentRequest("h", 1, 4).key


# --- moments -------------------------------------------------------------------------------------------------------


def test_moments_add_up_and_refuse_to_divide_by_nothing() -> None:
    one = Moments(np.eye(2), np.ones(2), 2, np.ones((2, 3)))
    both = one + Moments(3 * np.eye(2), np.zeros(2), 2, np.zeros((2, 3)))
    np.testing.assert_array_equal(both.gram, np.eye(2))
    np.testing.assert_array_equal(both.mean, [0.25, 0.25])
    np.testing.assert_array_equal(both.cross, np.full((2, 3), 0.25))
    with pytest.raises(PlanError, match="cross"):
        one + Moments(np.eye(2), np.ones(2), 2)
    with pytest.raises(CalibrationError, match="no row was counted"):
        _ = Moments(np.eye(2), np.ones(2), 0).gram


def test_sums_that_overflow_are_returned_and_say_so() -> None:
    batches = feeds(3, 4)
    batches[1]["x"][0, 2] = 1e30
    moments = collect_one(relu_model(2), MomentRequest("h", 1, 2), batches)
    assert not moments.is_finite
    assert np.isfinite(moments.gram_sum[:2, :2]).all()


# --- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("window", [None, WINDOWS[0]])
def test_other_float_types(kind: int, window: Window | None) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["h"], perm=[0, 1, 2, 3])]
    model = model_of(nodes, {"x": [None, 3, 6, 6]}, ["h"], kind=kind)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    batches = [{"x": np.abs(batch["x"]).astype(dtype)} for batch in feeds(2, 3, 6, 6)]
    view = View.CHANNELS if window is None else View.PATCHES
    moments = collect_one(model, MomentRequest("h", 1, 4, view=view, window=window), batches)
    assert moments.gram_sum.dtype == np.float64
    assert_moments(moments, relu_rows(batches, 1) if window is None else patch_rows(batches, window))


# --- the runner ----------------------------------------------------------------------------------------------------

SEVERAL = [
    MomentRequest("h", 1, 4),
    MomentRequest("h", 1, 4, view=View.PATCHES, window=WINDOWS[0], lattice=(2, 3)),
    MomentRequest("h", 1, 4, lattice=(2, 2), cross_with="x"),
]


def assert_identical(one: dict[str, Moments], other: dict[str, Moments]) -> None:
    assert list(one) == list(other)
    for key in one:
        assert one[key].count == other[key].count
        for name in ("gram_sum", "sum", "cross_sum"):
            np.testing.assert_array_equal(getattr(one[key], name), getattr(other[key], name))


def feeds_whose_order_matters() -> list[dict[str, Array]]:
    """Energies so far apart that a float64 sum in another order has other last bits."""
    scales = np.float32(10.0) ** np.array([5, -4, 3, -3, 4, 0, -5, 5, 2, -2, 1], np.float32)
    return [{"x": batch["x"] * scale} for batch, scale in zip(feeds(3, 4, 9, 8, count=11), scales, strict=True)]


def test_threads_give_the_same_bits() -> None:
    model, batches = relu_model(4), feeds_whose_order_matters()
    serial = collect(model, SEVERAL, batches, CPU)
    with ThreadPoolExecutor(3) as executor:
        assert_identical(serial, collect(model, SEVERAL, iter(batches), CPU, executor=executor))
    whole = SEVERAL[:1]
    with pytest.raises(AssertionError):
        assert_identical(collect(model, whole, batches, CPU), collect(model, whole, batches[::-1], CPU))


class Pickling(Executor):
    """Runs each task at once, through a pickle, and hands results out late, as another process would."""

    def __init__(self) -> None:
        self.unread = 0
        self.most = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        fn, args = pickle.loads(pickle.dumps((fn, args)))
        self.unread += 1
        self.most = max(self.most, self.unread)
        outer = self

        class Reading(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                outer.unread -= 1
                return super().result(timeout)

        future = Reading()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        return future


def test_tasks_travel_and_few_are_in_flight() -> None:
    model, batches, executor = relu_model(4), feeds_whose_order_matters(), Pickling()
    assert_identical(collect(model, SEVERAL, batches, CPU), collect(model, SEVERAL, batches, CPU, executor=executor))
    assert 1 < executor.most <= 4
    with pytest.raises(CalibrationError, match="lacks the input 'x'"):
        collect(model, SEVERAL, [{"z": np.zeros(3)}], CPU, executor=Pickling())


def test_batches_are_read_as_they_are_needed() -> None:
    seen: list[tuple[str, int]] = []

    def source() -> Iterator[dict[str, Array]]:
        for index, batch in enumerate(feeds(2, 3, count=3)):
            seen.append(("read", index + 1))
            yield batch

    collect(relu_model(2), [MomentRequest("h", 1, 2)], source(), CPU, progress=lambda done: seen.append(("done", done)))
    assert seen == [("done", 0), *((what, index) for index in (1, 2, 3) for what in ("read", "done"))]


def test_no_batch_and_no_request() -> None:
    with pytest.raises(CalibrationError, match="no calibration batch"):
        collect(relu_model(2), [MomentRequest("h", 1, 2)], [], CPU)
    assert collect(relu_model(2), [], feeds(2, 3), CPU) == {}


def test_a_task_answers_in_any_process() -> None:
    instrumented = instrument(relu_model(2), [MomentRequest("h", 1, 2)])
    task = Task(Program("a digest", instrumented.model.SerializeToString()), CPU, 0, feeds(2, 3)[0], versions())
    assert set(answer(pickle.loads(pickle.dumps(task)))) == set(instrumented.outputs)


def test_run_names_what_is_wrong_with_a_batch() -> None:
    session = open_session(two_branches(), CPU)
    good = {"x": np.ones((2, 4), np.float32), "extra": np.ones((2, 4), np.float32), "unused": np.zeros(1)}
    assert set(run(session, good)) == {"b", "c"}
    with pytest.raises(CalibrationError, match="lacks the input 'extra'"):
        run(session, {"x": good["x"]})
    with pytest.raises(CalibrationError, match=r"cannot run the batch \(x \(2, 3\)"):
        run(session, {**good, "x": np.ones((2, 3), np.float32)})


def test_providers() -> None:
    model = two_branches()
    assert open_session(model, Runtime("CPUExecutionProvider")).get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(PlanError, match=r"no provider 'tpu': choose from .*CPUExecutionProvider"):
        open_session(model, Runtime("tpu"))


def test_absent_cuda_is_said_and_the_cpu_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.warns(RuntimeWarning, match="on the CPU, not on CUDA"):
        session = open_session(two_branches(), Runtime("cuda"))
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_an_absent_runtime_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(PlanError, match=r"pip install snp-onnx\[cpu\]"):
        open_session(two_branches(), CPU)


def test_load_failures_say_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model file"):
        open_session(tmp_path / "absent.onnx", CPU)
    with pytest.raises(ModelError, match=r"no custom operator library 'absent\.so'"):
        open_session(two_branches(), Runtime(custom_ops=("absent.so",)))
    (tmp_path / "broken.so").write_bytes(b"no library")
    with pytest.raises(ModelError, match=r"custom operator library .*broken\.so"):
        open_session(two_branches(), Runtime(custom_ops=(str(tmp_path / "broken.so"),)))
    unknown = model_of([helper.make_node("Frobnicate", ["x"], ["y"])], {"x": [4]}, ["y"])
    with pytest.raises(ModelError, match="Frobnicate"):
        open_session(unknown, CPU)
    future = two_branches()
    future.ir_version = 99
    with pytest.raises(ModelError, match=r"onnxruntime \d.*IR version 99 and opset ai.onnx 17"):
        open_session(future, CPU)
    onnx.save(future, tmp_path / "future.onnx")
    with pytest.raises(ModelError, match=r"IR version 99 and opset ai.onnx 17"):
        open_session(tmp_path / "future.onnx", CPU)


def test_spilled_models_compute_the_same(tmp_path: Path) -> None:
    weight = np.random.default_rng(5).standard_normal((64, 64)).astype(np.float32)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [None, 64]}, ["y"], weights={"w": weight})
    before = model.SerializeToString()
    feed = {"x": np.ones((2, 64), np.float32)}
    path = spill(model, tmp_path)
    np.testing.assert_array_equal(run(open_session(path, CPU), feed)["y"], run(open_session(model, CPU), feed)["y"])
    assert (tmp_path / "weights.bin").stat().st_size == weight.nbytes
    assert path.stat().st_size < weight.nbytes / 4
    assert model.SerializeToString() == before
    assert is_large(model, limit=1000)
    assert not is_large(model)


def test_large_models_go_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = two_branches(), feeds(5, 4)
    small = collect(model, [MomentRequest("a", 1, 2)], batches, CPU)
    for module in ("workers", "sessions"):
        monkeypatch.setattr(f"snp_onnx.calibration.{module}.is_large", lambda model: True)
    assert_identical(small, collect(model, [MomentRequest("a", 1, 2)], batches, CPU))
    assert open_session(model, CPU) is not None


def test_weights_beside_a_model_in_memory(tmp_path: Path) -> None:
    weight = np.random.default_rng(6).standard_normal((64, 4)).astype(np.float32)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [None, 64]}, ["y"], weights={"w": weight})
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    lazy = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    batches = feeds(5, 64)
    moments = collect_one(lazy, MomentRequest("y", 1, 2), batches, weights_folder=tmp_path)
    assert_moments(moments, stacked(batches) @ weight.astype(np.float64))
