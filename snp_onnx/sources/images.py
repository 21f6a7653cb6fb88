"""A directory of images as one array `(N, H, W, C)` of uint8 that decodes the rows it is asked for."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array, InputSpec, expected_shape, image_layout
from snp_onnx.sources.preprocess import Preprocess
from snp_onnx.sources.spool import Spool

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PLAIN = Preprocess()
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = frozenset({5, 6, 7, 8})
"""Orientations in which height and width change places."""
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True, slots=True)
class Images:
    """Image files of one size; `resize` says that they are stretched to it instead.

    With a `shorter` side they are resized to that, in their own proportions, and the middle is cut out.
    """

    paths: tuple[Path, ...]
    height: int
    width: int
    channels: int
    resize: bool
    shorter: int | None = None
    is_cut: bool = False
    filter: Image.Resampling = Image.Resampling.BILINEAR

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.paths), self.height, self.width, self.channels)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def read(self, rows: Array | None) -> Array:
        chosen = self.paths if rows is None else [self.paths[row] for row in rows]
        return np.stack([self._decode(path) for path in chosen])

    def keep(self, spool: Spool, rows: int | None) -> "Images":
        return self

    def _decode(self, path: Path) -> Array:
        try:
            with Image.open(path) as file:
                turn = _TURNS.get(_orientation(file))
                image = _in_8_bits(file).convert(_MODES[self.channels])
        except _UNREADABLE as error:
            raise CalibrationError(f"cannot read image {path}: {error}; repair or remove it") from error
        if turn is not None:
            image = image.transpose(turn)
        if self.is_cut:
            image = self._cut(image, path)
        elif self.resize and image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), self.filter)
        return np.asarray(image).reshape(self.height, self.width, self.channels)

    def _cut(self, image: Image.Image, path: Path) -> Image.Image:
        """The middle of an image, after its shorter side was brought to length."""
        if self.shorter is not None:
            scale = self.shorter / min(image.size)
            size = max(self.shorter, round(image.width * scale)), max(self.shorter, round(image.height * scale))
            image = image if image.size == size else image.resize(size, self.filter)
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        if min(left, top) < 0:
            raise CalibrationError(
                f"image {path} has {image.height}x{image.width} pixels before {self.height}x{self.width} are cut out; "
                "give a larger --resize"
            )
        return image.crop((left, top, left + self.width, top + self.height))

    @property
    def geometry(self) -> str:
        """What is done to the images' sizes, in words."""
        size = f"{self.height}x{self.width}"
        if not self.is_cut:
            return f"stretched to {size}" if self.resize else f"{size} as they are"
        before = "" if self.shorter is None else f"shorter side to {self.shorter}, "
        return f"{before}the middle {size} cut out"


def open_images(paths: Sequence[Path], specs: tuple[InputSpec, ...], preprocess: Preprocess = _PLAIN) -> Images:
    """The images as the model's only input wants them: its channels, and its height and width where these are fixed."""
    if len(specs) != 1 or (specs[0].shape is not None and len(specs[0].shape) != 4):
        wanted = ", ".join(f"{spec.name!r} {expected_shape(spec, batched=False)}" for spec in specs)
        raise CalibrationError(f"images need a model of one 4-D input, this one has {wanted}; give an .npz file")
    shape = specs[0].shape or (None,) * 4
    is_nchw = image_layout(specs[0])[0] == "nchw"
    channels, height, width = (shape[1], shape[2], shape[3]) if is_nchw else (shape[3], shape[1], shape[2])
    channels = channels or 3
    if channels not in _MODES:
        raise CalibrationError(
            f"input {specs[0].name!r} of shape {expected_shape(specs[0], batched=False)} has {channels} channels, "
            "and images have 1, 3 or 4; give an .npz file"
        )
    if preprocess.cuts_images:
        height, width = _cut_size(height, width, preprocess.crop)
        if preprocess.resize is None and all(_size(path) == (height, width) for path in paths):
            # Prepared before: a convention's margin would only blur them and cut their edges off.
            return Images(tuple(paths), height, width, channels, False)
        shorter = preprocess.resize
        if shorter is None and preprocess.margin is not None:
            shorter = round(preprocess.margin * max(height, width))
        sampling = Image.Resampling.BICUBIC if preprocess.is_bicubic else Image.Resampling.BILINEAR
        return Images(tuple(paths), height, width, channels, False, shorter, True, sampling)
    if height is not None and width is not None:
        return Images(tuple(paths), height, width, channels, resize=True)
    return Images(tuple(paths), *_common_size(paths), channels, resize=False)


def _cut_size(height: int | None, width: int | None, crop: tuple[int, int] | None) -> tuple[int, int]:
    """The model's own size, or what was asked for where it has none."""
    for name, own, asked in zip(("height", "width"), (height, width), crop or (None, None), strict=True):
        if own is not None and asked is not None and own != asked:
            raise CalibrationError(f"--crop has {name} {asked}, the model wants {own}; drop --crop")
    found = [own or asked for own, asked in zip((height, width), crop or (None, None), strict=True)]
    if found[0] is None or found[1] is None:
        raise CalibrationError("the model fixes no height and width; say what to cut out, such as --crop 224,224")
    return found[0], found[1]


def _common_size(paths: Sequence[Path]) -> tuple[int, int]:
    first = _size(paths[0])
    for path in paths[1:]:
        if _size(path) != first:
            raise CalibrationError(
                f"image {path} has height and width {_size(path)}, but {paths[0]} has {first}; "
                "the model fixes neither, so resize the images to one size"
            )
    return first


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            height, width = image.height, image.width
            return (width, height) if _orientation(image) in _SWAPPING else (height, width)
    except _UNREADABLE as error:
        raise CalibrationError(f"cannot read image {path}: {error}; repair or remove it") from error


def _orientation(image: Image.Image) -> int:
    """How the camera was held, by the EXIF data at the start of the file; 1 is upright."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # to look behind the pixels would decode them
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data, which most programs pass over
        return 1


def _is_deep(image: Image.Image) -> bool:
    """Whether values go up to 65535; other 32-bit ones may have any range."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A form that Pillow converts as one expects: it saturates values of 16 bits at 255."""
    if _is_deep(image):
        return Image.fromarray(np.rint(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its values have 32 bits and no known range: write it with 8 or 16 bits, or give an .npz file")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image


def remarks_on(paths: Sequence[Path]) -> tuple[str, ...]:
    """What the user should know about the files: those that can't be read are reported when they are decoded."""
    deep = turned = 0
    for path in paths:
        with suppress(*_UNREADABLE), Image.open(path) as image:
            deep += _is_deep(image)
            turned += _orientation(image) in _TURNS
    notes = []
    if deep:
        notes.append(f"{deep} of {len(paths)} images have 16 bits a value: 0 to 65535 scaled to 0 to 255")
    if turned:
        notes.append(f"{turned} of {len(paths)} images turned upright as their EXIF data say")
    return tuple(notes)
