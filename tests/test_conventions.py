"""Folders of images: conventions, the cut, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

import snp_onnx
from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.sources.conventions import CONVENTIONS
from snp_onnx.sources.inputs import input_specs
from snp_onnx.sources.samples import Part, open_samples
from snp_onnx.verbs.settings import data_from
from tests.command_line import call, files
from tests.graphs import Net

Array = npt.NDArray[Any]


def network(side: int | str = 8) -> onnx.ModelProto:
    net = Net(batch="N")
    x = net.conv_relu(net.input("x", 3, side, side), 3, 8)  # type: ignore[arg-type]
    net.output(net.conv(net.conv_relu(x, 8, 6), 6, 4))
    return net.model()


def drawn(folder: Path, *sizes: tuple[int, int], count: int = 1) -> list[Image.Image]:
    """Images of (width, height), as PNG: nothing is lost."""
    rng = np.random.default_rng(0)
    made = []
    for number, (width, height) in enumerate(sizes * count):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"{number:03d}.png")
        made.append(image)
    return made


def read(folder: Path, model: onnx.ModelProto, **options: Any) -> tuple[Array, list[str]]:
    """All samples as the model gets them, and the notes."""
    data = data_from(folder, options)
    with open_samples(folder, input_specs(model), data.preprocess) as samples:
        batches = [batch["x"] for batch in samples.batches(4, Part.ALL)]
        return np.concatenate(batches), list(samples.notes)


def middle(image: Image.Image, shorter: int, side: int, sampling: Image.Resampling) -> Array:
    """By the book: the shorter side to length, then the middle."""
    scale = shorter / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), sampling)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)), np.float64)


@pytest.mark.parametrize("name", ["imagenet", "imagenet-tf", "clip"])
def test_conventions_do_what_their_owners_do(name: str, tmp_path: Path) -> None:
    images = drawn(tmp_path, (40, 20), (16, 31), (12, 12))
    found, notes = read(tmp_path, network(8), convention=name)
    known = CONVENTIONS[name]
    assert known.margin is not None
    sampling = Image.Resampling.BICUBIC if name == "clip" else Image.Resampling.BILINEAR
    for image, values in zip(images, found, strict=True):
        wanted = middle(image, round(8 * known.margin), 8, sampling) * known.scale
        wanted = (wanted - np.array(known.mean or (0.0,))) / np.array(known.std or (1.0,))
        np.testing.assert_allclose(values, wanted.transpose(2, 0, 1), atol=1e-5)
    assert any(f"convention {name}" in note and "8x8" in note for note in notes)


def test_the_figures_of_the_conventions() -> None:
    white, black = 255.0, 0.0
    values = {
        name: [
            (level * known.scale - np.array(known.mean or (0.0,))) / np.array(known.std or (1.0,))
            for level in (black, white)
        ]
        for name, known in CONVENTIONS.items()
    }
    np.testing.assert_allclose(values["imagenet"], [[-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.64]], atol=1e-4)
    np.testing.assert_allclose(values["imagenet-tf"], [[-1.0], [1.0]])
    np.testing.assert_allclose(values["clip"], [[-1.7923, -1.7521, -1.4802], [1.9303, 2.0749, 2.1459]], atol=1e-4)
    assert CONVENTIONS["none"] == type(CONVENTIONS["none"])()


def test_one_part_of_a_convention_may_be_said_otherwise(tmp_path: Path) -> None:
    (image,) = drawn(tmp_path, (30, 20))
    found, _ = read(tmp_path, network(8), convention="imagenet", resize=10, mean=(0.5,), std=0.25)
    wanted = (middle(image, 10, 8, Image.Resampling.BILINEAR) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found[0], wanted.transpose(2, 0, 1), atol=1e-5)


def test_images_of_the_models_own_size_are_neither_blurred_nor_cut(tmp_path: Path) -> None:
    """Prepared before; but not where one of them is larger, or where a resize is asked for."""
    image, _ = drawn(tmp_path, (8, 8), (8, 8))
    whole = (np.asarray(image, np.float64) / 255 - 0.5) / 0.25
    asked = {"convention": "imagenet", "mean": (0.5,), "std": 0.25}
    found, notes = read(tmp_path, network(8), **asked)
    np.testing.assert_allclose(found[0], whole.transpose(2, 0, 1), atol=1e-5)
    assert any("8x8 as they are" in note for note in notes)
    cut = (middle(image, 9, 8, Image.Resampling.BILINEAR) / 255 - 0.5) / 0.25
    assert np.abs(cut - whole).max() > 0.1
    for more in ({"resize": 9}, {}):
        if not more:
            drawn(tmp_path, (8, 8), (8, 8), (9, 9))
        found, notes = read(tmp_path, network(8), **asked, **more)
        np.testing.assert_allclose(found[0], cut.transpose(2, 0, 1), atol=1e-5)
        assert any("8x8 cut out" in note for note in notes)


def test_arrays_follow_a_convention_too_and_that_is_said(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=pixels)
    data = data_from(tmp_path / "data.npz", {"convention": "imagenet-tf"})
    with open_samples(tmp_path / "data.npz", input_specs(network(8)), data.preprocess) as samples:
        (batch,) = samples.batches(3, Part.ALL)
        assert "input 'x': uint8 data cast to float32, then scaled by the convention imagenet-tf" in samples.notes
    np.testing.assert_allclose(batch["x"], pixels.transpose(0, 3, 1, 2) / 127.5 - 1.0, atol=1e-5)


def test_without_a_word_images_are_stretched_and_that_is_said(tmp_path: Path) -> None:
    (image,) = drawn(tmp_path, (30, 20))
    found, notes = read(tmp_path, network(8))
    wanted = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR), np.float64)
    np.testing.assert_array_equal(found[0], wanted.transpose(2, 0, 1))
    assert any("stretched to 8x8" in note and "--convention" in note for note in notes)


def test_a_model_of_any_size_is_told_what_to_cut(tmp_path: Path) -> None:
    images = drawn(tmp_path, (30, 20), (20, 24))
    found, _ = read(tmp_path, network("S"), crop=(16, 12))
    for image, values in zip(images, found, strict=True):
        left, top = (image.width - 12) // 2, (image.height - 16) // 2
        wanted = np.asarray(image.crop((left, top, left + 12, top + 16)), np.float64)
        np.testing.assert_array_equal(values, wanted.transpose(2, 0, 1))
    with pytest.raises(CalibrationError, match="--crop 224,224"):
        read(tmp_path, network("S"), convention="imagenet")


@pytest.mark.parametrize("convention", ["imagenet", "none", None])
def test_floats_that_a_convention_scales_are_said(convention: str | None, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3, 8, 8), np.float32))
    _, notes = read(tmp_path / "x.npy", network(8), convention=convention)
    assert any("float32 data taken as values 0 to 255" in note for note in notes) == (convention == "imagenet")


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"convention": "torch"}, PlanError, "imagenet-tf"),
        ({"crop": 9}, CalibrationError, "the model wants 8"),
        ({"crop": (1, 2, 3)}, PlanError, "--crop"),
        ({"crop": 7.5}, PlanError, "--crop"),
        ({"resize": 6}, CalibrationError, "larger --resize"),
        ({"resize": 0}, CalibrationError, "positive"),
        ({"crop": -8}, CalibrationError, "positive"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], kind: type[Exception], said: str, tmp_path: Path
) -> None:
    drawn(tmp_path, (30, 20))
    with pytest.raises(kind, match=said):
        read(tmp_path, network(8), **options)


def test_arrays_are_not_cut() -> None:
    data = {"x": np.zeros((4, 3, 8, 8), np.float32)}
    with pytest.raises(CalibrationError, match="folders of images"):
        snp_onnx.prune(network(8), data, target_macs=0.5, resize=8)
    result = snp_onnx.prune(
        network(8), {"x": np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8))}, target_macs=0.7,
        convention="imagenet", preset="fast", threads=1,
    )  # fmt: skip
    assert result.report.pruned.macs <= 0.7 * result.report.dense.macs


def test_the_command_line_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    drawn(folder, (30, 20), (16, 40), count=12)
    model, output = tmp_path / "model.onnx", tmp_path / "small.onnx"
    onnx.save(network(8), model)
    asked = ("prune", model, output, "--calibration", folder, "--target-macs", 0.7, "--preset", "fast", "--threads", 1)
    outcome = call(capsys, *asked, "--no-latency", "--convention", "imagenet", "--resize", 10, "--crop", 8)
    assert outcome.code == 0, outcome.err
    assert "note: images: shorter side to 10, the middle 8x8 cut out" in outcome.err
    before = files(tmp_path)
    outcome = call(capsys, *asked, "--convention", "torch")
    assert (outcome.code, len(outcome.lines)) == (2, 1)
    assert files(tmp_path) == before
