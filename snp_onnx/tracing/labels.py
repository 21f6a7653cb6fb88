"""Labels: a vectorised union-find over axis positions, with flags that belong to whole classes."""

from __future__ import annotations

from typing import NewType

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
"""Labels of the positions of one axis, shape (extent,)."""

Flag = NewType("Flag", int)
FIXED = Flag(1)
"""The class must stay whole: a position that can't be removed."""
HEAD = Flag(2)
"""The class counts attention heads: it is a batch axis of a product of two activations."""
SUMMED = Flag(4)
"""The class is written by a sum of different layers' outputs: a residual stream."""
REPEATED = Flag(8)
"""The class counts the copies that an Expand makes of one position."""
INSIDE = Flag(16)
"""The class counts dimensions inside attention heads, which may go in place of whole heads."""
STREAM = Flag(32)
"""The class is a transformer's residual stream, rotated so that its units may be cut one by one."""

STILL = 0
"""The label of every position that nothing could ever remove (batch, spatial, axes of extent one)."""


class DisjointSet:
    """Classes of labels; the root of a class is its smallest label, and flags are united with the classes.

    >>> classes = DisjointSet()
    >>> a, b = classes.fresh(3), classes.fresh(3)
    >>> classes.unite(a, b)
    >>> bool((classes.find(b) == a).all())
    True
    """

    __slots__ = ("_flags", "_parent", "_size")

    def __init__(self) -> None:
        self._parent: Labels = np.zeros(1024, dtype=np.int64)
        self._flags: npt.NDArray[np.uint8] = np.zeros(1024, dtype=np.uint8)
        self._flags[STILL] = FIXED
        self._size = 1

    def __len__(self) -> int:
        return self._size

    def fresh(self, count: int) -> Labels:
        """`count` new classes; an axis of extent one gets none, because it can't shrink."""
        if count == 1:
            return still(1)
        start, self._size = self._size, self._size + count
        if self._size > len(self._parent):
            grown = max(self._size, 2 * len(self._parent))
            self._parent = np.concatenate([self._parent[:start], np.zeros(grown - start, dtype=np.int64)])
            self._flags = np.concatenate([self._flags[:start], np.zeros(grown - start, dtype=np.uint8)])
        new = np.arange(start, self._size, dtype=np.int64)
        self._parent[start : self._size] = new
        return new

    def find(self, labels: Labels) -> Labels:
        """The root of every label, same shape."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[labels] = roots
        return roots

    def unite(self, left: Labels, right: Labels) -> None:
        """Make the classes of `left[i]` and `right[i]` one, for every i; shapes broadcast."""
        a, b = (side.ravel() for side in np.broadcast_arrays(left, right))
        while True:
            a, b = self.find(a), self.find(b)
            apart = a != b
            if not apart.any():
                return
            a, b = a[apart], b[apart]
            low, high = np.minimum(a, b), np.maximum(a, b)
            flags = self._flags[high]
            np.minimum.at(self._parent, high, low)
            np.bitwise_or.at(self._flags, self.find(high), flags)

    def flag(self, labels: Labels, flag: Flag) -> None:
        """Set a flag on the classes of the labels."""
        self._flags[self.find(labels)] |= np.uint8(flag)

    def has(self, labels: Labels, flag: Flag) -> npt.NDArray[np.bool_]:
        """Whether each label's class carries the flag, same shape."""
        carried: npt.NDArray[np.bool_] = np.not_equal(self._flags[self.find(labels)] & np.uint8(flag), 0)
        return carried

    def is_live(self, labels: Labels) -> bool:
        """Whether any position of the axis could still be removed."""
        return not bool(self.has(labels, FIXED).all())


def still(extent: int) -> Labels:
    """Labels of an axis whose positions never move; takes no memory."""
    return np.broadcast_to(np.int64(STILL), (extent,))
