"""Values to run a model with where only sizes matter: those of a sample, as they were given, or made up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from snp_onnx.errors import PlanError
from snp_onnx.sources.inputs import Array, InputSpec, is_floating, is_text

Values = Mapping[str, Array]
NO_VALUES: Values = MappingProxyType({})

MADE_UP = (1, 0)
"""What made-up integers and bools are, the first choice first: a length of 0 would leave nothing to run."""


def check_given(specs: Iterable[InputSpec], given: Values) -> None:
    """PlanError for values of something that is no input, or that the input's type can't hold."""
    specs_by_name = {spec.name: spec for spec in specs}
    for name, values in given.items():
        if name not in specs_by_name:
            known = ", ".join(specs_by_name)
            raise PlanError(f"--input-value {name}: the model has no such input; its inputs are {known}")
        wanted = specs_by_name[name].dtype
        if not is_text(wanted) and not _are_numbers(np.asarray(values), wanted):
            raise PlanError(f"--input-value {name}: give numbers that {wanted} can hold")


def _are_numbers(values: Array, wanted: np.dtype[Any]) -> bool:
    """Whether there are numbers, and a type holds them all: whole ones where it is no floating-point type."""
    if values.dtype.kind not in "fiub" or not values.size or not np.isfinite(values.astype(np.float64)).all():
        return False
    with np.errstate(all="ignore"):
        held = values.astype(wanted)
    return is_floating(wanted) or bool((held == values).all())


def made_up(specs: Iterable[InputSpec], known: Values) -> tuple[str, ...]:
    """The inputs whose values may decide sizes and aren't known: those of integers and bools."""
    return tuple(spec.name for spec in specs if spec.name not in known and not is_floating(spec.dtype))


def examples(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], known: Values) -> Iterator[Values]:
    """Feeds of these shapes to try in turn: known values, made-up ones for the other inputs."""
    for number in MADE_UP if made_up(specs, known) else MADE_UP[:1]:
        yield {spec.name: _values(spec, shapes[spec.name], known.get(spec.name), number) for spec in specs}


def _values(spec: InputSpec, shape: tuple[int, ...], known: Array | None, number: int) -> Array:
    """An input's values: floats that are made up are small normal numbers."""
    if known is not None:
        return as_input(known, spec, shape)
    if is_floating(spec.dtype):
        return np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    return np.full(shape, str(number) if is_text(spec.dtype) else number).astype(spec.dtype)


def as_input(values: Array, spec: InputSpec, shape: tuple[int, ...]) -> Array:
    """Known values as an input takes them."""
    return fitted(values.astype(str) if is_text(spec.dtype) else values, shape).astype(spec.dtype)


def fitted(values: Any, shape: tuple[int, ...]) -> Array:
    """Values in another shape: along each axis the first ones, and again from the start where more are wanted.

    Values of another rank are repeated in their order.

    >>> fitted([[1, 2, 3]], (2, 2)).tolist(), fitted(7, (1, 2)).tolist()
    ([[1, 2], [1, 2]], [[7, 7]])
    """
    array = np.asarray(values)
    if array.shape == shape:
        return array
    if array.ndim != len(shape) or not array.size:
        return np.resize(array, shape)
    places = (np.arange(wanted) % extent for wanted, extent in zip(shape, array.shape, strict=True))
    return np.asarray(array[np.ix_(*places)])
