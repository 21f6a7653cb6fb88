"""What every verb may be told: data, shapes and runtime; checked once, here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.sessions import Runtime
from snp_onnx.errors import PlanError
from snp_onnx.planning.options import Target, TargetKind
from snp_onnx.sources.conventions import convention_of
from snp_onnx.sources.examples import Values
from snp_onnx.sources.samples import Preprocess

Feed = Mapping[str, npt.NDArray[Any]]

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is (0: unknown)."""

DEFAULT_BATCH = 16
"""Small enough that taps on large activations stay in memory already touched: 32 costs MobileNetV2 a quarter more."""


@dataclass(frozen=True, slots=True)
class Data:
    """A calibration source and how to read it; see `snp_onnx.sources.samples`."""

    source: Any = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    samples: int | None = None
    batch_size: int = DEFAULT_BATCH
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    input_values: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise PlanError(f"--batch-size {self.batch_size}: give a positive number")
        if self.samples is not None and self.samples < 1:
            raise PlanError(f"--samples {self.samples}: give a positive number")
        if self.seed < 0:
            raise PlanError(f"--seed {self.seed}: give 0 or a positive number")


def data_from(calibration: Any, options: Mapping[str, Any]) -> Data:
    """Data from the flat keyword arguments that the verbs share."""
    known = convention_of(options.get("convention"))
    crop = options.get("crop")
    preprocess = Preprocess(
        scale=_given(options, "scale", known.scale),
        mean=_numbers(options.get("mean")) or known.mean,
        std=_numbers(options.get("std")) or known.std,
        layout=options.get("layout"),
        input_array=options.get("input_array"),
        label_array=options.get("label_array"),
        resize=options.get("resize"),
        margin=known.margin,
        crop=None if crop is None else _size(crop),
        is_bicubic=known.is_bicubic,
        convention=options.get("convention"),
    )
    shapes = {name: tuple(shape) for name, shape in (options.get("input_shapes") or {}).items()}
    return Data(
        calibration,
        preprocess,
        options.get("samples"),
        _given(options, "batch_size", DEFAULT_BATCH),
        shapes,
        _given(options, "seed", 0),
        values_from(options.get("input_values"), calibration),
    )


def values_from(given: Mapping[str, Any] | None, calibration: Any = None) -> Values:
    """Values of inputs by name as arrays; PlanError where samples have others."""
    if given and calibration is not None and not (isinstance(calibration, str) and calibration == "random"):
        raise PlanError(f"--input-value {next(iter(given))}: the samples have the values of all inputs: drop it")
    return {name: np.asarray(values) for name, values in (given or {}).items()}


def _given(options: Mapping[str, Any], name: str, default: Any) -> Any:
    """An option's value; None stands for its default, 0 doesn't."""
    value = options.get(name)
    return default if value is None else value


def _size(value: Any) -> tuple[int, int]:
    """One number of pixels for both sides, or height and width."""
    numbers = [float(number) for number in np.atleast_1d(value)]
    if len(numbers) not in (1, 2) or not all(number.is_integer() for number in numbers):
        raise PlanError(f"--crop {value}: give one whole number of pixels, or height,width")
    return int(numbers[0]), int(numbers[-1])


def _numbers(value: Any) -> tuple[float, ...]:
    """One number or several, as a tuple; none for None."""
    return () if value is None else tuple(float(number) for number in np.atleast_1d(value))


def runtime_from(options: Mapping[str, Any]) -> Runtime:
    """The runtime from the flat keyword arguments that the verbs share."""
    threads = options.get("threads")
    if threads is not None and threads < 1:
        raise PlanError(f"--threads {threads}: give a positive number")
    return Runtime(_given(options, "provider", "cpu"), threads, tuple(options.get("custom_ops") or ()))


def target_from(given: Mapping[str, float | None]) -> Target:
    """The one target that was given; PlanError for none or several."""
    chosen = [(kind, value) for kind, value in given.items() if value is not None]
    names = ", ".join(f"--{kind.option}" for kind in TargetKind)
    if len(chosen) != 1:
        problem = "no target" if not chosen else f"{len(chosen)} targets"
        raise PlanError(f"{problem} given: give exactly one of {names}")
    kind, value = chosen[0]
    return Target(TargetKind(kind), float(value))


DATA_OPTIONS = [
    "input_array",
    "label_array",
    "mean",
    "std",
    "scale",
    "convention",
    "resize",
    "crop",
    "layout",
    "samples",
    "batch_size",
    "input_shapes",
    "input_values",
    "seed",
    "provider",
    "threads",
    "custom_ops",
]


def check_options(options: Mapping[str, Any], known: list[str]) -> None:
    """Refuse misspelt keyword arguments, as Python does for named ones."""
    for name in options:
        if name not in known:
            raise TypeError(f"unexpected keyword argument {name!r}; known are {', '.join(sorted(known))}")
