"""Image files of every kind that Pillow opens: 8-bit values the right way up."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array, InputSpec
from snp_onnx.sources.samples import Part, Preprocess, open_samples

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def read(
    folder: Path, channels: int = 3, size: tuple[int | None, int | None] = (None, None)
) -> tuple[Array, list[str]]:
    """The values of a folder as (images, height, width, channels), and the notes."""
    spec = InputSpec("x", np.dtype(np.uint8), (None, *size, channels))
    with open_samples(folder, [spec]) as samples:
        return np.concatenate([feed["x"] for feed in samples.batches(8, Part.ALL)]), samples.notes


@pytest.mark.parametrize("form", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_scaled_to_8_and_that_is_said(form: str, channels: int, tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp * 257).save(tmp_path / f"a.{form}")
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / f"b.{form}")
    got, notes = read(tmp_path, channels)
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0, ..., 0], ramp)
    assert "1 of 2 images have 16 bits a value: 0 to 65535 scaled to 0 to 255" in notes


def test_values_of_32_bits_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(CalibrationError, match=r"a\.tiff: its values have 32 bits .* give an \.npz file"):
        read(tmp_path)


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / f"a.{form}", exif=exif)
    with Image.open(tmp_path / f"a.{form}") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    got, notes = read(tmp_path)
    np.testing.assert_array_equal(got[0], wanted)
    assert ("1 of 1 images turned upright as their EXIF data say" in notes) == (orientation > 1 and form != "tif")


def test_turned_images_of_the_models_own_size_are_not_cut(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    spec = InputSpec("x", np.dtype(np.float32), (None, 4, 6, 3))
    with open_samples(tmp_path, [spec], Preprocess(margin=1.5)) as samples:
        (feed,) = samples.batches(1, Part.ALL)
    np.testing.assert_array_equal(feed["x"][0], np.rot90(PIXELS, -1))


def test_damaged_exif_data_are_passed_over(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=b"Exif\0\0no such header")
    got, notes = read(tmp_path)
    np.testing.assert_array_equal(got[0], PIXELS)
    assert not any("EXIF" in note for note in notes)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_what_the_input_wants(mode: str, channels: int, tmp_path: Path) -> None:
    grey = np.repeat(np.where(PIXELS[..., :1] > 127, 255, 0).astype(np.uint8), 3, axis=2)
    form = {"CMYK": "tif", "YCbCr": "jpg"}.get(mode, "png")
    image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / f"a.{form}", **({"quality": 100, "subsampling": 0} if form == "jpg" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, _ = read(tmp_path, channels)
    np.testing.assert_allclose(got[0, ..., 0].astype(int), grey[..., 0], atol=2)


def test_a_palette_with_alpha_is_converted_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got, _ = read(tmp_path)
    np.testing.assert_array_equal(got[0], np.asarray(image.convert("RGB")))
