"""Independent pieces of linear algebra side by side, each on one BLAS thread.

A BLAS that spreads every small factorisation over all cores waits at barriers: on two cores that other processes share,
the decisions for MobileNetV2 took 6 to 39 s that way and 1.1 s on one thread (see tools/bench/RESULTS.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

ALONE = 6000
"""Pieces of this size and more go one after the other: several matrices of that size would fill the memory."""

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def side_by_side(work: Callable[[Item], Outcome], items: Iterable[Item], size: Callable[[Item], int]) -> list[Outcome]:
    """`[work(item) for item in items]`, in threads, the largest first; the first exception is raised.

    >>> side_by_side(abs, [-1, 2], size=abs)
    [1, 2]
    """
    listed = list(items)
    alone = {place: work(item) for place, item in enumerate(listed) if size(item) >= ALONE}
    order = sorted(set(range(len(listed))) - alone.keys(), key=lambda place: (-size(listed[place]), place))
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        started = {place: pool.submit(work, listed[place]) for place in order}
        return [alone[place] if place in alone else started[place].result() for place in range(len(listed))]
