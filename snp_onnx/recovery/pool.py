"""The samples that train: read once, then drawn in any order, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from snp_onnx.errors import CalibrationError
from snp_onnx.writing import Scratch

Array = npt.NDArray[Any]

IN_MEMORY = 2 * 2**30
"""Bytes of samples that stay in memory; more go to files that are mapped."""

_LEAST_SHARE = 4
"""A last batch with less than this part of a full one is left out of its epoch."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One batch: the arrays by input, and the labels of its rows if there are any."""

    feed: Mapping[str, Array]
    labels: Array | None


class Pool:
    """Samples in buckets of equal shapes; a context manager that removes its files.

    `whole` says that a sample is a feed of its own (the model has no batch axis), `fixed` is the batch that the model
    insists on; then a step is several runs.
    """

    def __init__(
        self,
        batches: Iterable[Mapping[str, Array]],
        labels: Array | None,
        fixed: int | None = None,
        whole: bool = False,
        in_memory: int = IN_MEMORY,
    ) -> None:
        self._fixed, self._whole = fixed, whole
        self._folder = Scratch()
        self._left = in_memory
        self.labels = labels
        parts: dict[tuple[Any, ...], list[tuple[int, Mapping[str, Array]]]] = {}
        self.count = 0
        for batch in batches:
            kept = {name: self._keep(values, name) for name, values in batch.items()}
            shapes = tuple((name, values.shape[0 if whole else 1 :]) for name, values in kept.items())
            parts.setdefault(shapes, []).append((self.count, kept))
            self.count += 1 if whole else len(next(iter(kept.values())))
        if not self.count:
            raise CalibrationError("there are no samples to train on")
        self._buckets = [_Bucket(found, whole) for found in parts.values()]

    def _keep(self, values: Array, name: str) -> Array:
        if values.nbytes <= self._left:
            self._left -= values.nbytes
            return values
        path = self._folder.path / f"{self.count:09d}-{name.replace('/', '_')}.npy"
        try:
            np.save(path, values)
        except OSError as error:
            raise CalibrationError(f"cannot keep samples in {self._folder.path}: {error}; set TMPDIR") from error
        return np.asarray(np.load(path, mmap_mode="r"))

    def epoch(self, batch_size: int, seed: int, number: int) -> list[list[tuple[int, Array]]]:
        """The steps of an epoch in an order drawn from seed and number; each has runs (bucket, rows)."""
        rng = np.random.default_rng((seed, number))
        size = 1 if self._whole else self._fixed or batch_size
        runs = []
        for bucket, content in enumerate(self._buckets):
            order = rng.permutation(content.count)
            cut = [order[start : start + size] for start in range(0, len(order), size)]
            if len(cut) > 1 and len(cut[-1]) * _LEAST_SHARE < size:
                cut.pop()
            runs += [(bucket, rows) for rows in cut if self._fixed is None or len(rows) == self._fixed]
        order = rng.permutation(len(runs))
        shuffled = [runs[place] for place in order]
        together = max(1, batch_size // size)
        return [shuffled[start : start + together] for start in range(0, len(shuffled), together)]

    def rows(self, bucket: int, rows: Array) -> Rows:
        """The samples of one run."""
        content = self._buckets[bucket]
        labels = None if self.labels is None else self.labels[content.numbers(rows)]
        return Rows(content.feed(rows), labels)

    def close(self) -> None:
        self._buckets.clear()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Bucket:
    """Samples of equal shapes, in the batches that they were read in."""

    def __init__(self, parts: list[tuple[int, Mapping[str, Array]]], whole: bool) -> None:
        self._whole = whole
        self._parts = [part for _, part in parts]
        sizes = [1 if whole else len(next(iter(part.values()))) for part in self._parts]
        self._part = np.repeat(np.arange(len(parts)), sizes)
        self._row = np.concatenate([np.arange(size) for size in sizes])
        self._number = np.concatenate([start + np.arange(n) for (start, _), n in zip(parts, sizes, strict=True)])
        self.count = len(self._part)

    def numbers(self, rows: Array) -> Array:
        """The samples' places in the order they were read in."""
        return np.asarray(self._number[rows])

    def feed(self, rows: Array) -> dict[str, Array]:
        if self._whole:
            return dict(self._parts[int(self._part[rows[0]])])
        names = self._parts[0]
        return {name: np.stack([self._parts[self._part[r]][name][self._row[r]] for r in rows]) for name in names}
