"""Made-up data: good for a smoke test, useless for accuracy. Every sample depends on the seed and its index alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array, InputSpec, expected_shape, is_floating
from snp_onnx.sources.spool import Spool

_INTEGERS_BELOW = 2  # 0 and 1 are valid as token, mask and segment ids alike


@dataclass(frozen=True, slots=True)
class RandomRows:
    """Standard normal floats, 0 and 1 for integers; `sample` is the index of the first row, or of the whole."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seed: int
    stream: int
    sample: int = 0

    def read(self, rows: Array | None) -> Array:
        if rows is None:
            return self._draw(self.sample, self.shape)
        return np.stack([self._draw(self.sample + int(row), self.shape[1:]) for row in rows])

    def keep(self, spool: Spool, rows: int | None) -> "RandomRows":
        return self

    def _draw(self, sample: int, shape: tuple[int, ...]) -> Array:
        generator = np.random.default_rng([self.seed, self.stream, sample])
        if is_floating(self.dtype):
            return np.asarray(generator.standard_normal(shape, dtype=np.float32))
        return np.asarray(generator.integers(0, _INTEGERS_BELOW, shape)).astype(self.dtype)


def random_feeds(
    specs: tuple[InputSpec, ...], samples: int, seed: int, shapes: Mapping[str, tuple[int, ...]], batched: bool
) -> Iterator[dict[str, RandomRows]]:
    """One feed of all samples; for a model without a batch axis one feed a sample."""
    unknown = sorted(set(shapes) - {spec.name for spec in specs})
    if unknown:
        raise CalibrationError(f"--input-shape names {unknown[0]!r}, which is no input of the model; correct the name")
    whole = [_shape(spec, shapes.get(spec.name), batched) for spec in specs]
    for sample in (0,) if batched else range(samples):
        yield {
            spec.name: RandomRows((samples, *shape[1:]) if batched else shape, spec.dtype, abs(seed), stream, sample)
            for stream, (spec, shape) in enumerate(zip(specs, whole, strict=True))
        }


def _shape(spec: InputSpec, given: tuple[int, ...] | None, batched: bool) -> tuple[int, ...]:
    """The shape to draw: the fixed dimensions, and the given ones where the model leaves them open."""
    wanted = expected_shape(spec, batched)
    if given is None:
        dims = (1, *spec.shape[1:]) if batched and spec.shape else spec.shape
        if dims is None or None in dims:
            raise CalibrationError(
                f"input {spec.name!r} of shape {wanted} has dynamic dimensions; "
                f"give --input-shape {spec.name}:1,3,224,224 (with your numbers) for random data"
            )
        return tuple(dim for dim in dims if dim is not None)
    first = 1 if batched else 0
    fits = spec.shape is None or (
        len(given) == len(spec.shape)
        and all(dim in (None, got) for got, dim in zip(given[first:], spec.shape[first:], strict=True))
    )
    if not fits or any(dim < 1 for dim in given):
        raise CalibrationError(f"--input-shape {given} does not fit input {spec.name!r} of shape {wanted}; correct it")
    return tuple(given)
