"""From the values of a source to the values of a model input: cast, scale, normalise, check; one batch at a time."""

from dataclasses import dataclass

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array, InputSpec, Layout, image_layout, is_floating, is_text


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How data becomes model input: `(x * scale - mean) / std`.

    `mean` and `std` are empty, one number, or one a channel. It holds for every floating-point input, whatever type
    the data has; `layout` is the layout of 4-D *data*. Of a folder of images, `resize` is the shorter side in pixels
    (or `margin` says how many times that of what is cut out), and `crop` (height, width) is cut out of the middle.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout | None = None
    input_array: str | None = None
    label_array: str | None = None
    resize: int | None = None
    margin: float | None = None
    crop: tuple[int, int] | None = None
    is_bicubic: bool = False
    convention: str | None = None

    @property
    def cuts_images(self) -> bool:
        """Whether images keep their proportions and are cut, in place of being stretched."""
        return self.resize is not None or self.margin is not None or self.crop is not None

    @property
    def has_arithmetic(self) -> bool:
        """Whether values change at all, other than in type."""
        return self.scale != 1.0 or bool(self.mean) or bool(self.std)


def check_options(preprocess: Preprocess, specs: tuple[InputSpec, ...]) -> None:
    """`CalibrationError` if the options can't mean anything for this model."""
    if preprocess.has_arithmetic and not any(is_floating(spec.dtype) for spec in specs):
        raise CalibrationError(
            "--scale, --mean and --std need a floating-point input, and the model has none; drop them"
        )
    if not np.isfinite((preprocess.scale, *preprocess.mean, *preprocess.std)).all() or 0.0 in preprocess.std:
        raise CalibrationError("--scale, --mean and --std must be finite, and --std not zero; give other numbers")
    if min(1 if preprocess.resize is None else preprocess.resize, *(preprocess.crop or (1,))) < 1:
        raise CalibrationError("--resize and --crop are in pixels: give positive numbers")
    if preprocess.layout not in (None, "nchw", "nhwc"):
        raise CalibrationError(f"--layout {preprocess.layout!r} is neither nchw nor nhwc; give the layout of the data")
    if preprocess.input_array is not None and len(specs) != 1:
        names = ", ".join(repr(spec.name) for spec in specs)
        raise CalibrationError(
            f"--input-array needs a model of one input, this one has {names}; name the arrays like them"
        )


def convert(values: Array, spec: InputSpec, name: str, preprocess: Preprocess) -> Array:
    """The values as the model wants them, always a new array; `name` is the array's, for errors.

    Arithmetic is done in float64 and rounded once, to the type of the input.
    """
    if is_text(spec.dtype):
        return (np.char.decode(values) if values.dtype.kind == "S" else values).astype(object)
    with np.errstate(over="ignore", invalid="ignore"):
        if not is_floating(spec.dtype):
            return _to_integral(values, spec, name)
        if preprocess.has_arithmetic:
            work = values.astype(np.float64) * preprocess.scale
            work -= _per_channel(preprocess.mean, 0.0, work.shape, spec, "--mean")
            work /= _per_channel(preprocess.std, 1.0, work.shape, spec, "--std")
            values = work
        return np.array(values, dtype=spec.dtype, order="C")


def _to_integral(values: Array, spec: InputSpec, name: str) -> Array:
    result = np.array(values, dtype=spec.dtype, order="C")
    if not np.array_equal(result, values):
        raise CalibrationError(
            f"array {name!r} has values beyond the type {spec.dtype} of input {spec.name!r}; give values that fit in it"
        )
    return result


def _per_channel(
    numbers: tuple[float, ...], default: float, shape: tuple[int, ...], spec: InputSpec, what: str
) -> Array:
    """The numbers, shaped to broadcast along the channel axis."""
    if len(numbers) <= 1:
        return np.array(numbers[0] if numbers else default)
    is_nhwc = len(shape) == 4 and image_layout(spec)[0] == "nhwc"
    for axis in (-1, 1) if is_nhwc else (1, -1):
        if len(shape) > 1 and shape[axis] == len(numbers):
            broadcast = [1] * len(shape)
            broadcast[axis] = len(numbers)
            return np.array(numbers).reshape(broadcast)
    raise CalibrationError(
        f"{what} has {len(numbers)} numbers, which fit no channel axis of input {spec.name!r} "
        f"(a batch has shape {shape}); "
        "give one number, or one a channel"
    )


def first_not_finite(values: Array) -> int | None:
    """The first row (index on axis 0) with a NaN or an infinity, or `None`."""
    if not is_floating(values.dtype) or values.size == 0:
        return None
    is_good = np.isfinite(values).reshape(len(values) if values.ndim else 1, -1).all(axis=1)
    return None if is_good.all() else int(np.argmin(is_good))
