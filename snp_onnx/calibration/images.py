"""A directory of images as one array `(N, H, W, C)` of uint8 that decodes the rows it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from snp_onnx.calibration.inputs import Array, InputSpec, expected_shape, image_layout
from snp_onnx.calibration.spool import Spool
from snp_onnx.errors import CalibrationError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True, slots=True)
class Images:
    """Image files of one size; `resize` says that they are resized (bilinear) to it instead."""

    paths: tuple[Path, ...]
    height: int
    width: int
    channels: int
    resize: bool

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
                image = file.convert(_MODES[self.channels])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CalibrationError(f"cannot read image {path}: {error}; repair or remove it") from error
        if self.resize and image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self.height, self.width, self.channels)


def open_images(paths: Sequence[Path], specs: tuple[InputSpec, ...]) -> Images:
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
    if height is not None and width is not None:
        return Images(tuple(paths), height, width, channels, resize=True)
    return Images(tuple(paths), *_common_size(paths), channels, resize=False)


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
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"cannot read image {path}: {error}; repair or remove it") from error
