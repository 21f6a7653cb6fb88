"""Classifiers of scikit-learn end in ZipMap: their probabilities are a map for each sample, not an array."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.calibration.sessions import Runtime, open_session, run
from tests.command_line import classifier, images


def zipped(values: object = (3, 5, 7, 11)) -> onnx.ModelProto:
    """A classifier of four classes whose probabilities leave as maps, beside the best class as a number."""
    model = classifier()
    logits = model.graph.output[0].name
    keys = {"classlabels_int64s" if isinstance(values[0], int) else "classlabels_strings": values}  # type: ignore[index]
    model.graph.node.append(onnx.helper.make_node("Softmax", [logits], ["probabilities"], axis=1))
    model.graph.node.append(onnx.helper.make_node("ZipMap", ["probabilities"], ["maps"], domain="ai.onnx.ml", **keys))
    kind = onnx.TensorProto.INT64 if isinstance(values[0], int) else onnx.TensorProto.STRING  # type: ignore[index]
    number = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    maps = onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(kind, number))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_value_info("maps", maps))
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
    return model


@pytest.mark.parametrize("labels", [(3, 5, 7, 11), ("a", "b", "c", "d")])
def test_a_classifier_with_maps_is_pruned_and_judged_by_its_classes(labels: tuple[object, ...]) -> None:
    model, data = zipped(labels), {"x": images()}
    result = snp_onnx.prune(model, data, target_macs=0.6)
    assert result.model.graph.output == model.graph.output
    assert result.report.pruned.macs <= 0.6 * result.report.dense.macs
    (fidelity,) = snp_onnx.compare(model, result.model, data).fidelity
    assert fidelity.output == "maps"
    assert fidelity.samples == 48
    assert fidelity.agreement is not None
    broken = onnx.ModelProto.FromString(result.model.SerializeToString())
    last = next(tensor for tensor in broken.graph.initializer if list(tensor.dims)[:1] == [4])
    last.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(last), last.name))
    (other,) = snp_onnx.compare(model, broken, data).fidelity
    assert other.cosine < fidelity.cosine - 0.1


def test_the_maps_are_read_in_the_order_of_the_classes() -> None:
    model = zipped()
    model.graph.output.append(onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["N", 4]))
    outputs = run(open_session(model, Runtime()), {"x": images(3)})
    np.testing.assert_array_equal(outputs["maps"].astype(np.float32), outputs["probabilities"])
