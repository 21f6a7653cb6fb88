"""Made-up data: good for a smoke test, useless for accuracy. Every sample depends on the seed and its index alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from snp_onnx.sources.arrays import Held, RowArray
from snp_onnx.sources.examples import NO_VALUES, Values, as_input, check_given
from snp_onnx.sources.inputs import Array, InputSpec, is_floating, is_text
from snp_onnx.sources.shapes import resolve_shapes
from snp_onnx.sources.spool import Spool

_INTEGERS_BELOW = 2  # 0 and 1 are valid as masks, flags and segment numbers alike


_PIXELS_BELOW = 256
_IMAGE_RANK = 3  # axes from which on bytes are pixels


@dataclass(frozen=True, slots=True)
class RandomRows:
    """Standard normal floats, integers from 0 to below `below`, or these as text.

    `sample` is the first row's index, or the feed's.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seed: int
    stream: int
    sample: int = 0
    below: int = _INTEGERS_BELOW

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
        return np.asarray(generator.integers(0, self.below, shape)).astype(self.dtype)


def _below(spec: InputSpec) -> int:
    """What random integers stay below: the rows of a table, or what a pixel can be."""
    is_image = spec.dtype == np.uint8 and spec.shape is not None and len(spec.shape) >= _IMAGE_RANK
    return spec.below or (_PIXELS_BELOW if is_image else _INTEGERS_BELOW)


def random_feeds(
    specs: tuple[InputSpec, ...],
    samples: int,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]],
    batched: bool,
    values: Values = NO_VALUES,
) -> Iterator[dict[str, RowArray]]:
    """One feed of all samples; for a model without a batch axis one feed a sample. `values` are the same in each."""
    check_given(specs, values)
    resolved = resolve_shapes(specs, shapes)
    whole = [resolved[spec.name] for spec in specs]
    for sample in (0,) if batched else range(samples):
        feed: dict[str, RowArray] = {}
        for stream, (spec, shape) in enumerate(zip(specs, whole, strict=True)):
            wanted, below = (samples, *shape[1:]) if batched else shape, _below(spec)
            kind = np.dtype(str) if is_text(spec.dtype) else spec.dtype
            feed[spec.name] = RandomRows(wanted, kind, abs(seed), stream, sample, below)
            if spec.name in values:
                fixed = as_input(values[spec.name], spec, shape)
                feed[spec.name] = Held(np.broadcast_to(fixed[:1] if batched else fixed, wanted))
        yield feed
