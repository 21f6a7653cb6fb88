"""The torch form computes what the runtime computes, on every topology, operator test and real network."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from snp_onnx import ModelError
from snp_onnx.passes import prepare
from tests.graphs import Net, feed_for
from tests.oracles import cut, half_removed, run, traced
from tests.test_shared_models import FOLDER, SHAPES
from tests.topologies import CATALOGUE
from tests.torch_form import assert_close, tensors, torch_outputs

torch = pytest.importorskip("torch")

UNCOVERED = {
    "pooled-indices": "n5: the places of the maxima of MaxPool",
    "dequantised": "n1: recovery can't train through the operator DequantizeLinear",
    "dequantised-by-output": "n1: recovery can't train through the operator DequantizeLinear",
    "dequantised-by-input": "n1: recovery can't train through the operator DequantizeLinear",
    "fake-quantised": "n1: rounding to integers of QuantizeLinear",
    "if-capture": "n6: recovery can't train through the operator If",
    "if-captures-constant": "n4: recovery can't train through the operator If",
    "if-captures-extent": "n8: recovery can't train through the operator If",
    "loop-capture": "n6: recovery can't train through the operator Loop",
    "pad-channels-reflecting": "n4: can't be computed in torch",  # torch pads sides only
    **{
        name: f"recovery can't train through the operator {operator}"
        for name, operator in {
            "split-to-sequence": "SplitToSequence",
            "tensor-scatter": "TensorScatter",
            "grid-sample": "GridSample",
            "roi-align": "RoiAlign",
            "max-roi-pool": "MaxRoiPool",
            "column-to-image": "Col2Im",
            "deform-conv": "DeformConv",
            "deform-conv-grouped": "DeformConv",
            "offsets-in-groups": "DeformConv",
            "reversed-in-time": "ReverseSequence",
            "cropped-to-the-centre": "CenterCropPad",
            "lstm": "LSTM",
            "gru": "GRU",
            "rnn": "RNN",
        }.items()
    },
}
HALF = 2e-3
"""The torch form computes 16-bit models in float32."""

NOT_ALIKE = {
    "test_attention_causal_boolmask_nan_robustness": "a row that sees nothing is no row of zeros",
    "test_attention_23_boolmask_fullymasked_row_nan_robustness": "a row that sees nothing is no row of zeros",
    "test_resize_downsample_scales_linear_align_corners": "as onnxruntime: by the extent, not by the scale",
    "test_resize_downsample_scales_cubic_align_corners": "as onnxruntime: by the extent, not by the scale",
}


def is_half(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type in (10, 16) for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_topology_computes_what_the_runtime_computes(name: str) -> None:
    topology = CATALOGUE[name]
    model = topology.model(topology.batches[0])
    feed = feed_for(model, 2)
    if name in UNCOVERED:
        with pytest.raises(ModelError, match=UNCOVERED[name]):
            torch_outputs(model, feed)
        return
    assert_close(torch_outputs(model, feed), run(model, feed), HALF if is_half(model) else 1e-4)


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in UNCOVERED])
def test_what_our_passes_leave_is_covered_too(name: str) -> None:
    topology = CATALOGUE[name]
    source = topology.model(topology.batches[0])
    prepared = prepare(source).model
    trace = traced(prepared, feed_for(source, batch=1))
    model = cut(prepared, trace, half_removed(trace))
    feed = feed_for(source, 2)
    assert_close(torch_outputs(model, feed), run(model, feed), HALF if is_half(model) else 1e-4)


def test_the_comparison_notices_a_wrong_weight() -> None:
    model = CATALOGUE["residual-identity"].model()
    feed = feed_for(model, 2)
    expected = run(model, feed)
    values = onnx.numpy_helper.to_array(model.graph.initializer[0]) * 1.01
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, model.graph.initializer[0].name))
    with pytest.raises(AssertionError):
        assert_close(torch_outputs(model, feed), expected)


@pytest.mark.slow
def test_every_covered_operator_passes_onnx_s_own_tests() -> None:
    from onnx.backend.test.case.node import collect_testcases

    from snp_onnx.recovery.operators import OPERATORS

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases: Any = collect_testcases(None)  # type: ignore[no-untyped-call]
    right, wrong = 0, []
    for case in cases:
        inputs, wanted = case.data_sets[0]
        nodes = {(n.domain.removeprefix("ai.onnx"), n.op_type) for n in case.model.graph.node}
        arrays = [*inputs, *wanted]
        if not nodes <= set(OPERATORS) or not all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" for a in arrays):
            continue
        is_narrow = any(a.dtype.itemsize == 2 and a.dtype.kind == "f" for a in arrays)
        feed = dict(zip((value.name for value in case.model.graph.input), inputs, strict=True))
        try:
            assert_close(torch_outputs(case.model, feed), wanted, 2e-2 if is_narrow else 1e-3)
            right += 1
        except ModelError:
            continue  # declined with a reason
        except AssertionError:
            wrong.append(case.name)
    assert sorted(wrong) == sorted(NOT_ALIKE)
    assert right > 900


@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_real_networks_compute_what_the_runtime_computes(name: str) -> None:
    from snp_onnx.recovery.roles import trained_names

    path = FOLDER / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here: set SNP_ONNX_BENCH_DATA")
    model = onnx.load(path)
    shapes = SHAPES[name] or {key: values.shape for key, values in feed_for(model, 2).items()}
    rng = np.random.default_rng(0)
    is_tokens = "input_ids" in shapes
    feed = {
        key: rng.integers(0, 50, shape) if is_tokens else rng.standard_normal(shape).astype(np.float32)
        for key, shape in shapes.items()
    }
    assert_close(torch_outputs(model, feed), run(model, feed))
    statistics = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]}
    floating = {t.name for t in model.graph.initializer if t.data_type == 1 and np.prod(t.dims) > 1}
    tables = {"cos", "sin", "mask"} if is_tokens else set()
    assert floating - trained_names(model) == statistics | tables


@pytest.mark.parametrize(
    "name", ["residual-projection", "conv-bn-relu", "separate", "llama", "multi-head", "dense-net"]
)
def test_gradients_reach_every_weight(name: str) -> None:
    from snp_onnx.recovery.graph import GraphModule

    model = CATALOGUE[name].model()
    module = GraphModule(model)
    assert module.weights
    sum(values.square().sum() for values in module(tensors(feed_for(model, 3))).values()).backward()
    for weight, values in module.weights.items():
        assert values.grad is not None, weight
        assert bool(values.grad.abs().max() > 0), weight


def test_an_operator_without_a_function_is_named_before_anything_runs() -> None:
    from snp_onnx.recovery.graph import GraphModule

    net = Net()
    net.domains["local"] = 1
    net.output(net.op("Special", net.conv(net.image(), 3, 4), domain="local"))
    with pytest.raises(ModelError, match=r"node n2: recovery can't train through the operator local\.Special"):
        GraphModule(net.model())


def test_a_failure_inside_a_node_names_it() -> None:
    from snp_onnx.recovery.graph import GraphModule

    model = CATALOGUE["chain"].model()
    feed = tensors({"x": np.zeros((2, 5, 8, 8), np.float32)})
    with pytest.raises(
        ModelError, match=r"node n1: can't be computed in torch for inputs \(2, 5, 8, 8\), \(8, 3, 3, 3\)"
    ):
        GraphModule(model)(feed)


def test_what_constants_decide_is_computed_once() -> None:
    from snp_onnx.recovery.graph import GraphModule

    script, plain = (GraphModule(CATALOGUE[name].model()) for name in ("option-a-script", "option-a"))
    assert len(script.steps) == len(plain.steps)


def test_tensors_are_dropped_when_nobody_reads_them() -> None:
    from snp_onnx.recovery.graph import GraphModule

    module = GraphModule(CATALOGUE["residual-identity"].model())
    done = [name for step in module.steps for name in step.done]
    assert len(done) == len(set(done))
    assert set(done) >= {name for step in module.steps for name in step.outputs}


def test_a_mask_keeps_what_is_added_to_it_finite() -> None:
    """A row that sees nothing: -inf + -inf would make the whole sample NaN, and its gradient too."""
    from snp_onnx.recovery.operators.attention import HIDDEN, attend

    q = torch.ones(1, 1, 2, 4, requires_grad=True)
    found = attend(q, q, q, 0.5, torch.full((2, 2), 2 * HIDDEN))
    found.sum().backward()
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(q.grad).all())


def test_sparse_weights_are_refused() -> None:
    from snp_onnx.recovery.graph import GraphModule

    model = CATALOGUE["chain"].model()
    values = helper.make_tensor("s", 1, [1], [1.0])
    model.graph.sparse_initializer.add(values=values, indices=helper.make_tensor("i", 7, [1], [0]), dims=[4])
    with pytest.raises(ModelError, match="sparse weights"):
        GraphModule(model)
