"""Made-up data: good for a smoke test, useless for accuracy. Every sample depends on the seed and its index alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snp_onnx.sources.inputs import Array, InputSpec, is_floating
from snp_onnx.sources.shapes import resolve_shapes
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
    resolved = resolve_shapes(specs, shapes)
    whole = [resolved[spec.name] for spec in specs]
    for sample in (0,) if batched else range(samples):
        yield {
            spec.name: RandomRows((samples, *shape[1:]) if batched else shape, spec.dtype, abs(seed), stream, sample)
            for stream, (spec, shape) in enumerate(zip(specs, whole, strict=True))
        }
