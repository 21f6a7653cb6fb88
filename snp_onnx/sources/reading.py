"""From chunks of feeds to what the model is fed: read, converted and checked, one batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.batching import Chunk
from snp_onnx.sources.inputs import Array, InputSpec
from snp_onnx.sources.preprocess import Preprocess, convert, first_not_finite


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads batches for the inputs of one model."""

    specs: tuple[InputSpec, ...]
    preprocess: Preprocess

    def read(self, batch: Sequence[Chunk]) -> dict[str, Array]:
        """The arrays of a batch, one for each input."""
        return {spec.name: self._read_input(spec, batch) for spec in self.specs}

    def _read_input(self, spec: InputSpec, batch: Sequence[Chunk]) -> Array:
        parts = [self._read_chunk(spec, chunk) for chunk in batch]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read_chunk(self, spec: InputSpec, chunk: Chunk) -> Array:
        place = chunk.feed.places[spec.name]
        raw = place.view.read(place.array, None if chunk.feed.whole else chunk.rows)
        values = convert(raw, spec, place.name, self.preprocess)
        bad = first_not_finite(values)
        if bad is not None:
            sample = chunk.samples[0 if chunk.feed.whole else bad]
            raise CalibrationError(
                f"array {place.name!r} of shape {place.array.shape} has NaN or infinity as {spec.dtype} "
                f"in sample {sample} for input {spec.name!r}; remove or repair that sample"
            )
        return values
