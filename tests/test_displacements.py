"""Gram matrices of patches from products at displacements, against patches written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from snp_onnx.calibration.displacements import WINDOW, is_by_displacement, is_by_shifts
from snp_onnx.calibration.instrument import instrument
from snp_onnx.calibration.moments import MomentRequest, Squares, View, Window
from snp_onnx.calibration.runner import Runtime, collect

Array = npt.NDArray[Any]
REQUEST = MomentRequest("h", 1, 4, view=View.PATCHES, window=WINDOW, cross_with="y")


def model(opset: int) -> onnx.ModelProto:
    """h = Relu(x), y = Sigmoid of the first two channels."""
    two = helper.make_tensor("two", TensorProto.INT64, [2], [0, 1])
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Gather", ["x", "two"], ["some"], axis=1),
        helper.make_node("Sigmoid", ["some"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, None, None])]
    graph = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [two])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def patches(maps: Array) -> Array:
    """(n, C · 9) rows, channel by channel, written out position by position."""
    count, channels, height, width = maps.shape
    wide = np.zeros((count, channels, height + 2, width + 2))
    wide[:, :, 1:-1, 1:-1] = maps
    rows = [wide[n, :, y : y + 3, x : x + 3].ravel() for n in range(count) for y in range(height) for x in range(width)]
    return np.array(rows)


@pytest.mark.parametrize("opset", [10, 13, 18])
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 2), (3, 2), (4, 5), (7, 7)])
def test_moments_are_those_of_patches(size: tuple[int, int], opset: int) -> None:
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((rows, 3, *size)).astype(np.float32)} for rows in (4, 2)]
    found = collect(model(opset), [REQUEST], batches, Runtime(threads=1))[REQUEST.key]
    x = np.concatenate([batch["x"] for batch in batches]).astype(np.float64)
    rows = patches(np.maximum(x, 0.0))
    y = (1 / (1 + np.exp(-x[:, :2]))).transpose(0, 2, 3, 1).reshape(-1, 2)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.gram, rows.T @ rows / len(rows), atol=1e-5)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.cross, rows.T @ y / len(rows), atol=1e-5)


def test_a_product_stands_for_many_blocks() -> None:
    made = instrument(model(17), [REQUEST])
    assert sum(node.op_type == "Gemm" for node in made.model.graph.node) == 13 + 4 * 3 + 4 + 9


@pytest.mark.parametrize(
    "change",
    [
        {"lattice": (2, 1)},
        {"window": Window((3, 3), (2, 1), (1, 1), (1, 1, 1, 1))},
        {"window": Window((3, 3), (1, 1), (1, 1), (0, 1, 1, 1))},
        {"window": Window((3, 3), (1, 1), (2, 2), (1, 1, 1, 1))},
        {"window": Window((1, 3), (1, 1), (1, 1), (0, 1, 0, 1))},
        {"squares": Squares.ENERGIES},
        {"row_mask": "m"},
    ],
)
def test_other_windows_are_written_out(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"view": View.PATCHES, "window": WINDOW} | change
    assert not is_by_displacement(MomentRequest("h", 1, 4, **given), 17)
    assert is_by_displacement(REQUEST, 17)
    assert not is_by_displacement(REQUEST, 9)


def windows_of(maps: Array, window: Window) -> Array:
    """(positions, C · taps) of the windows of maps (N, C, ...), channel by channel."""
    rank = len(window.kernel)
    pads = list(zip(window.pads[:rank], window.pads[rank:], strict=True))
    wide = np.pad(maps, [(0, 0), (0, 0), *pads])
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    outs = [(extent - r - 1) // s + 1 for extent, r, s in zip(wide.shape[2:], reach, window.strides, strict=True)]
    rows = []
    for image in wide:
        for place in np.ndindex(*outs):
            taps = [
                slice(at * s, at * s + r + 1, d)
                for at, s, r, d in zip(place, window.strides, reach, window.dilations, strict=True)
            ]
            rows.append(image[(slice(None), *taps)].ravel())
    return np.array(rows)


@pytest.mark.parametrize("opset", [10, 13, 18])
@pytest.mark.parametrize(
    ("window", "size"),
    [
        (Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), (5, 4)),
        (Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), (1, 2)),
        (Window((3, 3), (1, 1), (1, 1), (0, 0, 0, 0)), (5, 4)),
        (Window((3, 2), (1, 1), (1, 1), (2, 0, 3, 2)), (4, 4)),  # more padding than the window reaches
        (Window((3, 3), (1, 1), (2, 3), (2, 0, 1, 3)), (6, 7)),
        (Window((1, 5), (1, 1), (1, 1), (0, 2, 0, 2)), (3, 4)),
        (Window((4,), (1,), (1,), (1, 2)), (6,)),
        (Window((2, 1, 3), (1, 1, 1), (1, 1, 1), (0, 0, 1, 1, 0, 1)), (3, 2, 4)),
        (Window((3, 3), (2, 1), (1, 1), (1, 1, 1, 1)), (5, 4)),  # strides: windows are written out
    ],
)
def test_products_with_the_windows_of_another_map(window: Window, size: tuple[int, ...], opset: int) -> None:
    """The rows of X are a convolution's outputs, those of Y the windows that they came from."""
    rng = np.random.default_rng(1)
    rank = len(size)
    weight = rng.standard_normal((2, 3, *window.kernel)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **convolution(window))],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    conv = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    request = MomentRequest("y", 1, 2 + rank, cross_with="x", cross_window=window, squares=Squares.NONE)
    assert is_by_shifts(request, opset) == (set(window.strides) == {1})
    batches = [{"x": rng.standard_normal((rows, 3, *size)).astype(np.float32)} for rows in (3, 2)]
    found = collect(conv, [request], batches, Runtime(threads=1))[request.key]
    rows = windows_of(np.concatenate([batch["x"] for batch in batches]).astype(np.float64), window)
    y = rows @ weight.reshape(2, -1).T.astype(np.float64)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, y.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.cross, y.T @ rows / len(rows), atol=1e-5)


def convolution(window: Window) -> dict[str, tuple[int, ...]]:
    return {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": window.pads,
    }
