"""Whether samples differ: a checksum of every row that is read, and which inputs ever vary."""

from collections.abc import Mapping
from zlib import crc32

import numpy as np

from snp_onnx.sources.inputs import Array, is_floating

_MOST = 65536
"""Samples that are looked at, the first ones: 5 bytes each."""

_SHARE = 0.9
"""The share of different samples below which their repetition is worth a warning."""


class Variety:
    """What was seen of the samples while they were read. Use from one thread."""

    __slots__ = ("_checksums", "_constant", "_firsts", "_is_seen")

    def __init__(self, count: int) -> None:
        self._checksums = np.zeros(min(count, _MOST), np.uint32)
        self._is_seen = np.zeros(len(self._checksums), np.bool_)
        self._firsts: dict[str, int] = {}
        self._constant: dict[str, bool] = {}

    def see(self, samples: Array, feed: Mapping[str, Array], is_whole: bool) -> None:
        """Look at the rows of a feed, those of the `samples` by number; a whole feed is one of them."""
        for place, sample in enumerate(samples.tolist()):
            if sample >= len(self._is_seen) or self._is_seen[sample]:
                continue
            together = 0
            for name, values in feed.items():
                row = values if is_whole else values[place, ...]  # an array, of words of one axis too
                checksum = _checksum(row)
                together = crc32(checksum.to_bytes(4, "little"), together)
                if self._firsts.setdefault(name, checksum) != checksum:
                    self._constant[name] = False
                elif name not in self._constant:
                    self._constant[name] = _is_data(row)
            self._checksums[sample] = together
            self._is_seen[sample] = True

    def warnings(self) -> tuple[str, ...]:
        """One line where samples repeat, and one for every input of data that doesn't vary beside others."""
        seen = self._checksums[self._is_seen]
        count, different = len(seen), len(np.unique(seen))
        if count < 2:
            return ()
        if different == 1:
            nothing = "statistics and fidelity say nothing; give different ones"
            return (f"all {count} samples that were read are the same: {nothing}",)
        lines = []
        if different < _SHARE * count:
            more = "statistics and fidelity say less than it seems; give different ones"
            lines.append(f"samples repeat: only {different} of the {count} that were read are different; {more}")
        lines += [
            f"input {name!r} is the same in all {count} samples that were read: what depends on it is measured at that "
            "value only; give samples in which it varies, if it does in use"
            for name, is_constant in self._constant.items()
            if is_constant
        ]
        return tuple(lines)


def _checksum(row: Array) -> int:
    if row.dtype.hasobject:
        return crc32(repr(row.tolist()).encode())
    return crc32(np.ascontiguousarray(row).reshape(-1).view(np.uint8).data)


def _is_data(row: Array) -> bool:
    """Whether a constant input needs a warning: a single number, integers and ones (masks) don't."""
    return is_floating(row.dtype) and row.size > 1 and not bool((row == 1).all())
