"""What verification refuses: each of its checks on a model that only this check objects to, and what it lets pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

import snp_onnx
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.errors import PassError
from snp_onnx.passes import slice_units
from snp_onnx.passes.resize import Resizing
from snp_onnx.verbs import job as job_module
from snp_onnx.verbs.failures import failures
from snp_onnx.verbs.sizes import require_alike
from snp_onnx.verbs.verify import verify
from tests.graphs import Array, Batch, Net, feed_for
from tests.oracles import difference, run, tolerance
from tests.topologies import CATALOGUE

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((6, 4)).astype(np.float32)
IMAGES = RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)


def checked(dense: onnx.ModelProto, pruned: onnx.ModelProto, feed: Array = ROWS) -> tuple[str, ...]:
    return verify(dense, pruned, Runtime(), {"x": feed})


def refused(dense: onnx.ModelProto, pruned: onnx.ModelProto, words: str, feed: Array = ROWS) -> None:
    """The pruned model is refused in these words, and the dense one passes beside itself."""
    assert checked(dense, dense, feed) == ()
    with pytest.raises(PassError, match=words):
        checked(dense, pruned, feed)


def rows(then: Callable[[Net, str], str] | None = None, batch: Batch = "N", opset: int = 17) -> onnx.ModelProto:
    """A layer on rows of four, and what `then` makes of its input and output."""
    net = Net(opset, batch)
    hidden = net.dense(net.input("x", 4), 4, 4)
    net.output(hidden if then is None else then(net, hidden))
    return net.model()


def declared(model: onnx.ModelProto, extent: int, *places: int) -> onnx.ModelProto:
    """Wrong extents are declared for the last axis of the outputs of nodes, which no runtime looks at."""
    for place in places:
        name = model.graph.node[place].output[0]
        kept = [value for value in model.graph.value_info if value.name != name]
        del model.graph.value_info[:]
        model.graph.value_info.extend(kept)
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", extent]))
    return model


def deep() -> onnx.ModelProto:
    return rows(lambda net, h: net.Relu(net.Tanh(net.Relu(net.Tanh(net.Relu(h))))))


# the checker and shape inference


def unknown_operators(model: onnx.ModelProto, *places: int) -> onnx.ModelProto:
    """Nodes that runtimes know and the checker doesn't: LayerNormalization before its opset."""
    model.opset_import[0].version = 12
    for place in places:
        node, size = model.graph.node[place], np.ones(4, dtype=np.float32)
        node.op_type = "LayerNormalization"
        node.input.append(f"{node.name}_gain")
        model.graph.initializer.append(onnx.numpy_helper.from_array(size, f"{node.name}_gain"))
    return model


def test_failures_are_told_node_by_node() -> None:
    found = failures(declared(unknown_operators(deep(), 1), 7, 2, 3))
    assert [(failure.check, failure.node) for failure in found] == [
        ("the ONNX checker", "n2"),
        ("the full ONNX checker", "n3"),
        ("the full ONNX checker", "n5"),
    ]
    assert "No Op registered for LayerNormalization" in found[0].reason
    assert "(4) vs (7)" in found[1].reason
    assert failures(deep()) == ()


def test_types_are_checked() -> None:
    net = Net(opset=13, batch="N")
    net.output(net.Relu(net.op("Cast", net.input("x", 4), to=TensorProto.INT32)))
    model = net.model()
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
    (found,) = failures(model)
    assert found.check == "the full ONNX checker"
    assert "tensor(int32)" in found.reason


def test_what_only_data_propagation_shows_is_found() -> None:
    """A shape computed from a number beside which another is declared."""

    def reshaped(net: Net, hidden: str) -> str:
        return net.Reshape(hidden, net.op("Concat", net.const([-1]), net.const([2]), axis=0))

    model = rows(reshaped)
    assert failures(model) == ()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    (found,) = failures(model)
    assert (found.check, found.node) == ("strict shape inference", model.graph.node[-1].name)


def test_a_failure_that_the_dense_model_has_is_let_pass_and_no_other() -> None:
    dense = declared(unknown_operators(deep(), 1), 7, 2)
    assert checked(dense, declared(unknown_operators(deep(), 1), 7, 2)) == ()
    assert checked(dense, declared(unknown_operators(deep(), 1), 6, 2)) == ()  # another extent, the same failure
    with pytest.raises(PassError, match=r"fails the full ONNX checker: node n5 \(Tanh\): .*\(4\) vs \(7\)"):
        checked(dense, declared(unknown_operators(deep(), 1), 7, 2, 4))
    with pytest.raises(PassError, match=r"fails the ONNX checker: node n3 \(LayerNormalization\)"):
        checked(dense, unknown_operators(deep(), 1, 2))
    with pytest.raises(PassError, match=r"and 1 more"):
        checked(deep(), declared(deep(), 7, 2))


def test_a_node_that_preparing_wrote_may_fail_as_its_operator_does() -> None:
    dense, pruned = unknown_operators(deep(), 1), unknown_operators(deep(), 1)
    pruned.graph.node[1].name = "written"
    assert checked(dense, pruned) == ()


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda model: model.graph.node[0].attribute.add(name="nonsense", type=2, i=1), "the ONNX checker: node n1"),
        (lambda model: declared(model, 7, 1), "the full ONNX checker: node n2"),
    ],
    ids=["checker", "full"],
)
def test_a_model_that_fails_a_check_is_refused(spoil: Callable[[onnx.ModelProto], object], check: str) -> None:
    pruned = deep()
    spoil(pruned)
    refused(deep(), pruned, f"fails {check}")


def test_a_model_that_fails_strict_inference_is_refused() -> None:
    def reshaped(extent: int) -> onnx.ModelProto:
        """Two columns by a shape that is joined of numbers, declared as `extent`; the output is of any shape."""
        model = rows(lambda net, h: net.Relu(net.Reshape(h, net.op("Concat", net.const([-1]), net.const([2]), axis=0))))
        del model.graph.value_info[:]
        for dim in model.graph.output[0].type.tensor_type.shape.dim:
            dim.Clear()
        (name,) = model.graph.node[2].output
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", extent]))
        return model

    refused(reshaped(2), reshaped(3), "fails strict shape inference")


def test_a_model_that_no_session_loads_is_refused() -> None:
    def unknown(net: Net, hidden: str) -> str:
        net.domains["nobody"] = 1
        return net.op("Sum", hidden, domain="nobody")

    pruned, dense = rows(unknown), rows()
    rename_output(pruned, dense)
    assert failures(pruned) == ()
    with pytest.raises(PassError, match=r"can't be run: .*nobody"):
        verify(dense, pruned, Runtime(), None)


# types, shapes and what is finite, at the feed's own size


def test_outputs_keep_their_type() -> None:
    single, feed = np.zeros((2, 3), dtype=np.float32), {"x": ROWS}
    require_alike("y", single, single, feed, is_free=False)
    for changed in (np.float64, np.int32):
        with pytest.raises(PassError, match=r"changed its type from float32 to .* \(for x \(6, 4\)\)"):
            require_alike("y", single, single.astype(changed), feed, is_free=False)


def test_an_output_whose_size_the_data_decide_keeps_its_rank() -> None:
    few, more = np.zeros((2, 3), dtype=np.int64), np.zeros((5, 3), dtype=np.int64)
    require_alike("y", few, more, {"x": ROWS}, is_free=True)
    with pytest.raises(PassError, match="changed its shape"):
        require_alike("y", few, more, {"x": ROWS}, is_free=False)
    with pytest.raises(PassError, match="changed its shape"):
        require_alike("y", few, more[:, 0], {"x": ROWS}, is_free=True)


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda net, h: net.slice(h, 1, 0, 3), r"changed its shape from \(6, 4\) to \(6, 3\)"),
        (lambda net, h: net.Log(net.Mul(h, net.const([0.0], dtype=np.float32))), "not finite"),
    ],
    ids=["shape", "finite"],
)
def test_outputs_keep_their_shape_and_stay_finite(then: Callable[[Net, str], str], words: str) -> None:
    dense, pruned = rows(), rows(then)
    rename_output(pruned, dense)
    refused(dense, pruned, words)


def rename_output(model: onnx.ModelProto, like: onnx.ModelProto) -> None:
    """Give the output the name and declaration of another model's, and no axis of it a number."""
    for one in (model, like):
        for dim in one.graph.output[0].type.tensor_type.shape.dim:
            dim.Clear()
        del one.graph.value_info[:]
    name = like.graph.output[0].name
    for node in model.graph.node:
        if name in node.output:
            node.output[0] = "before"
        node.input[:] = ["before" if read == name else read for read in node.input]
    model.graph.node[-1].output[0] = name
    model.graph.output[0].CopyFrom(like.graph.output[0])


def test_integer_outputs_keep_their_shape() -> None:
    def place(keepdims: int) -> onnx.ModelProto:
        return rows(lambda net, h: net.op("ArgMax", net.slice(h, 1, 0, 4 - keepdims), axis=1))

    def top(count: int) -> onnx.ModelProto:
        net = Net(17, "N")
        _, places = net.ops("TopK", net.dense(net.input("x", 4), 4, 4), net.const([count]), outputs=2)
        net.output(places)
        model = net.model()
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
        model.graph.output[0].type.tensor_type.shape.dim[1].Clear()
        del model.graph.value_info[:]
        return model

    assert checked(place(0), place(1)) == ()  # other places are what pruning does
    refused(top(3), top(2), r"changed its shape from \(6, 3\) to \(6, 2\)")


def test_what_is_not_finite_in_the_dense_model_may_be_so() -> None:
    """Entries may change places, and not grow in number."""

    def roots(shift: float) -> onnx.ModelProto:
        return rows(lambda net, h: net.Sqrt(net.Add(h, net.const([shift], dtype=np.float32))))

    assert not np.isfinite(run(roots(0.0), {"x": ROWS})[0]).all()
    assert checked(roots(0.0), roots(0.0)) == ()
    assert checked(roots(0.0), roots(0.5)) == ()
    with pytest.raises(PassError, match="not finite"):
        checked(roots(0.0), roots(-0.5))


# other numbers of rows


def mixed(net: Net, hidden: str) -> str:
    """The same for one row; of several, each gets their mean."""
    return net.Add(hidden, net.Sub(net.reduce("ReduceMean", hidden, [0]), hidden))


def of_several(net: Net, hidden: str) -> str:
    """Right for two rows and more; a row alone gets another value."""
    rows_ = net.op("Cast", net.extent(hidden, 0), to=TensorProto.FLOAT)
    return net.Mul(
        hidden, net.Min(net.Div(rows_, net.const([2.0], dtype=np.float32)), net.const([1.0], dtype=np.float32))
    )


def test_a_model_that_is_wrong_for_a_single_row_is_refused() -> None:
    dense, pruned = rows(lambda net, h: net.Identity(net.Identity(h))), rows(of_several)
    rename_output(pruned, dense)
    refused(dense, pruned, "depends on the other rows of a batch of 6")


def first_only(net: Net, hidden: str) -> str:
    """Gather with the places of a batch of six."""
    return net.op("Gather", hidden, net.const([0, 1, 2, 3, 4, 5]), axis=0)


def test_a_model_whose_rows_depend_on_each_other_is_refused() -> None:
    pruned = rows(mixed)
    dense = rows(lambda net, h: net.Add(h, net.Sub(h, h)))
    rename_output(pruned, dense)
    one = {"x": ROWS[:1]}
    assert difference(run(dense, one), run(pruned, one)) < 1e-6
    refused(dense, pruned, "depends on the other rows of a batch of 6")
    with pytest.raises(PassError, match="of a batch of 2"):
        checked(dense, pruned, ROWS[:1])
    assert checked(pruned, pruned) == ()  # in the dense model they do too


def test_a_model_that_takes_one_batch_size_only_is_refused() -> None:
    dense, pruned = rows(), rows(first_only)
    rename_output(pruned, dense)
    refused(dense, pruned, r"can't be run: .*\(x \(3, 4\)\)")


def test_a_batch_that_the_dense_model_fixes_is_left_alone() -> None:
    dense, pruned = rows(batch=6), rows(first_only, batch=6)
    rename_output(pruned, dense)
    assert checked(dense, pruned) == ()


# longer and shorter axes


def image(then: Callable[[Net, str], str]) -> onnx.ModelProto:
    """A convolution on images of any size, and what `then` makes of its output."""
    net = Net(17, "N")
    net.output(then(net, net.conv(net.input("x", 3, "H", "W"), 3, 4)))
    model = net.model()
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    del model.graph.value_info[:]
    return model


def averaged(net: Net, hidden: str) -> str:
    return net.GlobalAveragePool(net.Identity(hidden))


def of_first_rows(net: Net, hidden: str) -> str:
    return net.GlobalAveragePool(net.slice(hidden, 2, 0, 8))


def scaled(net: Net, hidden: str) -> str:
    """Right for a height of eight: times 2 - H / 8."""
    height = net.op("Cast", net.extent(hidden, 2), to=TensorProto.FLOAT)
    eight, two = (net.const([number], dtype=np.float32) for number in (8.0, 2.0))
    return net.Mul(hidden, net.Sub(two, net.Div(height, eight)))


def test_a_model_that_is_wrong_for_larger_images_is_refused() -> None:
    dense, pruned = image(averaged), image(of_first_rows)
    rename_output(pruned, dense)
    assert checked(dense, dense, IMAGES) == ()
    feed = {"x": IMAGES}
    with pytest.raises(PassError, match=r"wrong by .* \(for x \(2, 3, 16, 24\)\)"):
        verify(dense, pruned, Runtime(), feed, lambda: dense)


def test_without_the_zero_filled_form_outputs_stay_near() -> None:
    dense, pruned = image(lambda net, h: net.Mul(h, net.const([1.0], dtype=np.float32))), image(scaled)
    rename_output(pruned, dense)
    refused(dense, pruned, r"wrong by .* \(for x \(2, 3, 16, 24\)\)", IMAGES)


def test_a_model_that_keeps_the_size_of_its_samples_is_refused() -> None:
    dense, pruned = image(lambda net, h: net.Relu(h)), image(lambda net, h: net.slice(net.Relu(h), 3, 0, 8))
    rename_output(pruned, dense)
    refused(dense, pruned, r"changed its shape from \(2, 4, 16, 24\) to \(2, 4, 16, 8\)", IMAGES)


def test_sizes_that_the_dense_model_refuses_say_nothing() -> None:
    """Heights and widths are declared free, and what is added has eight pixels to each side."""
    dense = image(lambda net, h: net.Add(h, net.normal(1, 1, 8, 8)))
    (note,) = checked(dense, dense, IMAGES[:1])
    assert note == "not verified with longer or shorter axes: the dense model refuses those that were tried"
    even = image(lambda net, h: net.reshape(h, 0, 0, 2, -1, 16))
    assert checked(even, even, IMAGES) == ()


# the job


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("residual-projection", {"preset": "best"}),
        ("separate", {"preset": "best"}),
        ("separate", {"units": ("heads", "head-dims")}),
        ("unet", {}),
    ],
)
def test_the_zero_filled_form_computes_what_the_pruned_model_does(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the samples' batch and at another; only then can it be compared with."""
    seen: list[onnx.ModelProto] = []

    def look(_: object, pruned: onnx.ModelProto, *rest: Any) -> tuple[str, ...]:
        seen.extend([pruned, rest[-1]()])
        return ("looked at",)

    monkeypatch.setattr(job_module, "verify", look)
    source = CATALOGUE[name].model("N")
    result = snp_onnx.prune(source, feed_for(source, 24), target_macs=0.8, **options)
    assert "looked at" in result.report.notes
    pruned, filled = seen
    for batch in (1, 3):
        feed = feed_for(source, batch, seed=7)
        expected = run(filled, feed)
        assert difference(expected, run(pruned, feed)) <= tolerance(expected)
        assert difference(run(source, feed), expected) > 0.01


def test_a_fault_of_the_cut_at_other_sizes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice to the end becomes one to the length that it has for the samples."""

    def faulty(node: gs.Node, *_: object) -> None:
        node.inputs[2] = gs.Constant(f"{node.name}_end", np.array([4 * 64]))

    net = Net(13, "N")
    x = net.input("x", 3, "H", "W")
    flat = net.slice(net.Flatten(net.conv_relu(x, 3, 8)), 1, 0, 2**31 - 1)
    pooled = net.reduce("ReduceMean", net.reshape(flat, 0, 8, -1), [2], keepdims=0)
    net.output(net.op("MatMul", pooled, net.weight(8, 2, fan_in=8)))
    model = net.model()
    data = np.random.default_rng(1).standard_normal((24, 3, 8, 8)).astype(np.float32)
    data += np.linspace(0, 3, 8, dtype=np.float32)[:, None]
    monkeypatch.setattr(slice_units, "RESIZERS", {**slice_units.RESIZERS, "Slice": faulty})
    monkeypatch.setattr(Resizing, "is_touched", lambda *_: True)
    with pytest.raises(PassError, match=r"can't be run|wrong by|changed its shape"):
        snp_onnx.prune(model, {"x": data}, target_macs=0.55)
