"""The recipes export under both exporters to what torch computes, and the digits sample is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from models.tiny import TINY, TRANSFORMERS
from tests.exports import export_bytes
from tests.torch_form import torch_outputs

FOLDER = Path(__file__).parents[1] / "models"
MEGABYTE = 1_000_000
# one recipe for each way in which the dynamo exporter writes something differently
DYNAMO_QUICK = (
    "mlp-bn",
    "resnet20-a",
    "preresnet20",
    "shufflenetv2",
    "densenet40",
    "unet-bilinear",
    "se-resnet18-linear",
)
# the same graphs as a shallower recipe, only longer: the slower exporter adds nothing there
DEEPER_ONLY = ("vgg16", "vgg16-bn", "resnet34", "resnet56-a", "resnet56-b", "resnet110-a", "preresnet56")
OTHERS = [name for name in TINY if name not in TRANSFORMERS]  # those have tests of their own
CASES = [
    *(pytest.param(name, "ts", id=f"{name}-ts") for name in OTHERS),
    *(
        pytest.param(name, "dynamo", id=f"{name}-dynamo", marks=[] if name in DYNAMO_QUICK else [pytest.mark.slow])
        for name in OTHERS
        if name not in DEEPER_ONLY
    ),
]


def run(model: onnx.ModelProto, feed: NDArray[Any]) -> NDArray[Any]:
    """The only output of `model` for its only input."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"input": feed})
    return np.asarray(result)


def rows_of(name: str, rows: int) -> NDArray[np.float32]:
    """Standard normal rows in the shape of the tiny form of recipe `name`."""
    from models.recipes import recipe

    shape = recipe(name).input_shape(TINY[name]["in_size"], rows)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def torch_output(name: str, feed: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the torch module of the tiny form of recipe `name` returns."""
    import torch

    from models.recipes import build

    with torch.no_grad():
        return np.asarray(build(name, **TINY[name])(torch.from_numpy(feed)).numpy())


def assert_same(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal up to the rounding of float32 sums, relative to the scale of the whole output."""
    tolerance = 1e3 * float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * float(np.abs(expected).max()))


def count(model: onnx.ModelProto, kind: str) -> int:
    return sum(node.op_type == kind for node in model.graph.node)


@pytest.fixture
def exporters() -> None:
    """Skip, visibly, where torch or what its exporters need is missing."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")


@pytest.mark.usefixtures("exporters")
class TestRecipes:
    """Exports of random weights."""

    def test_every_recipe_has_a_tiny_form(self) -> None:
        from models.recipes import RECIPES

        assert list(TINY) == list(RECIPES)

    @pytest.mark.parametrize(("name", "exporter"), CASES)
    def test_export_computes_what_torch_computes(self, name: str, exporter: str) -> None:
        model = export_bytes(name, exporter=exporter, **TINY[name])
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version <= 13
        feed = rows_of(name, 3)  # exported with one row: the batch axis must be dynamic
        expected = torch_output(name, feed)
        assert 0.1 < expected.std() < 100
        assert_same(run(model, feed), expected)
        assert_same(torch_outputs(model, {"input": feed})[0], expected)  # the form that recovery trains

    @pytest.mark.parametrize("exporter", ["ts", "dynamo"])
    @pytest.mark.parametrize("name", ["shufflenetv2", "se-resnet18-linear"])
    def test_static_batch(self, name: str, exporter: str) -> None:
        model = export_bytes(name, exporter=exporter, batch="static", rows=2, **TINY[name])
        dimensions = model.graph.input[0].type.tensor_type.shape.dim
        assert (dimensions[0].dim_value, dimensions[0].dim_param) == (2, "")
        feed = rows_of(name, 2)
        assert_same(run(model, feed), torch_output(name, feed))

    @pytest.mark.parametrize("exporter", ["ts", "dynamo"])
    @pytest.mark.parametrize(("name", "kept", "folded"), [("resnet20-b", 9, 0), ("preresnet20", 7, 4)])
    def test_keep_bn(self, name: str, exporter: str, kept: int, folded: int) -> None:
        model = export_bytes(name, exporter=exporter, keep_bn=True, **TINY[name])
        onnx.checker.check_model(model, full_check=True)
        assert count(model, "BatchNormalization") == kept
        assert count(export_bytes(name, exporter=exporter, **TINY[name]), "BatchNormalization") == folded
        feed = rows_of(name, 3)
        assert_same(run(model, feed), torch_output(name, feed))

    def test_comparison_notices_a_wrong_weight(self) -> None:
        model = export_bytes("resnet20-b", **TINY["resnet20-b"])
        weight = max(model.graph.initializer, key=lambda i: int(np.prod(i.dims)))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] *= 1.01
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        feed = rows_of("resnet20-b", 3)
        with pytest.raises(AssertionError):
            assert_same(run(model, feed), torch_output("resnet20-b", feed))

    def test_batch_norms_are_not_trivial(self) -> None:
        from models.recipes import build

        statistics = {
            key: value.numpy() for key, value in build("resnet20-b", **TINY["resnet20-b"]).state_dict().items()
        }
        for key in (k for k in statistics if k.endswith("running_var")):
            prefix = key.removesuffix("running_var")
            assert statistics[key].std() > 0
            assert all(statistics[prefix + part].std() > 0 for part in ("running_mean", "weight", "bias"))

    def test_seed_width_and_opset_change_the_model(self) -> None:
        models = [
            export_bytes("mlp", seed=seed, width=width, in_size=12, opset=opset)
            for seed, width, opset in ((0, 0.125, 17), (0, 0.125, 17), (1, 0.125, 17), (0, 0.25, 17), (0, 0.125, 13))
        ]
        written = [model.SerializeToString() for model in models]
        assert written[0] == written[1]
        assert len(set(written)) == 4
        assert models[3].graph.initializer[0].dims[0] == 2 * models[0].graph.initializer[0].dims[0]
        assert models[4].opset_import[0].version == 13

    def test_wrong_requests_are_refused(self) -> None:
        from models.recipes import build

        with pytest.raises(ValueError, match=r"no recipe is called 'resnet19'"):
            build("resnet19")
        with pytest.raises(ValueError, match=r"'mlp' has no option 'depth'"):
            build("mlp", depth=3)
        with pytest.raises(ValueError, match=r"opset 27 is newer"):
            export_bytes("mlp", opset=27)
        with pytest.raises(ValueError, match=r"exporter 'dynmo'"):
            export_bytes("mlp", exporter="dynmo")
        with pytest.raises(ValueError, match=r"in_size 16 is too small"):
            build("vgg16-cifar", in_size=16)

    def test_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from models.build import main

        path = tmp_path / "small.onnx"
        options = ["--width", "0.125", "--in-size", "8", "--classes", "3", "--seed", "4", "--batch", "static"]
        assert main(["mlp-bn", str(path), *options, "--opset", "18", "--keep-bn"]) == 0
        assert "mlp-bn" in capsys.readouterr().out
        expected = export_bytes(
            "mlp-bn", batch="static", width=0.125, in_size=8, classes=3, seed=4, opset=18, keep_bn=True
        )
        assert onnx.load(path) == expected
        with pytest.raises(SystemExit) as stopped:
            main(["resnet19", str(path)])
        assert stopped.value.code == 2


class TestDigits:
    """The committed sample; torch is not needed."""

    def test_files_are_small_and_valid(self) -> None:
        path = FOLDER / "digits.onnx"
        assert path.stat().st_size + (FOLDER / "digits.npz").stat().st_size < MEGABYTE
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert ([i.name for i in model.graph.input], [o.name for o in model.graph.output]) == (["input"], ["logits"])
        assert (count(model, "BatchNormalization"), count(model, "Add")) == (12, 5)

    def test_split_is_disjoint_and_stratified(self) -> None:
        with np.load(FOLDER / "digits.npz") as data:
            arrays = {name: data[name] for name in data.files}
        assert sorted(arrays) == ["images", "labels", "test_images", "test_labels"]
        assert arrays["images"].shape == (1000, 1, 8, 8)
        assert arrays["test_images"].shape == (797, 1, 8, 8)
        assert arrays["images"].dtype == arrays["test_images"].dtype == np.uint8
        assert not {i.tobytes() for i in arrays["images"]} & {i.tobytes() for i in arrays["test_images"]}
        assert np.abs(np.bincount(arrays["labels"]) / 1000 - np.bincount(arrays["test_labels"]) / 797).max() < 0.002

    def test_dense_accuracy(self) -> None:
        with np.load(FOLDER / "digits.npz") as data:
            images, labels = data["test_images"].astype(np.float32) / 16, data["test_labels"]
        model = onnx.load(FOLDER / "digits.onnx")
        assert (run(model, images).argmax(axis=1) == labels).mean() >= 0.98
        assert (run(model, np.zeros_like(images)).argmax(axis=1) == labels).mean() < 0.2
