"""Kinship: which groups are decided together, because a layer reads units of several of them.

What one group can lose depends on what is left of the others: of two copies of a feature one may go for nothing, not
both. Errors of groups that share no layer add, and so do those of groups whose units are uncorrelated given what stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from snp_onnx.planning.statistics import Statistics
from snp_onnx.planning.systems import together
from snp_onnx.subspace import FewRows
from snp_onnx.tracing import Group, Linear

MOST_BYTES = 2**30
"""Bytes that the inverses of one joint elimination may take, for all of them are there at once."""

Cluster = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Shared:
    """A layer, or the first one of a sum, and the columns that each unit has of the groups that it reads."""

    linear: Linear
    columns: Mapping[int, int]


def clusters(groups: Sequence[Group], statistics: Statistics, most_bytes: int = MOST_BYTES) -> list[Cluster]:
    """The numbers of the groups that are decided together, every group in one cluster.

    Where the inverses of all related groups would take more than `most_bytes`, the most correlated are joined first. A
    group whose units are summed over in a product of activations stays alone: no layer takes over what goes with it.
    """
    shared = _shared(groups, statistics)
    pairs = list(dict.fromkeys(pair for layer in shared for pair in combinations(sorted(layer.columns), 2)))
    sizes = [len(group) for group in groups]
    found = _joined(sizes, shared, pairs, None)
    if any(_bytes(sizes, shared, cluster) > most_bytes for cluster in found if len(cluster) > 1):
        strengths = {pair: max(_correlations(groups, shared, pair, statistics)) for pair in pairs}
        pairs.sort(key=lambda pair: -strengths[pair])
        found = _joined(sizes, shared, pairs, most_bytes)
    return found


def _shared(groups: Sequence[Group], statistics: Statistics) -> list[_Shared]:
    """The measured layers, those that are solved together once, with the groups that may be decided together."""
    read = [linear for group in groups for linear in group.consumers if statistics.is_measured(linear)]
    most = max((int(group.labels.max()) for group in groups), default=0)
    owner = np.full(most + 1, -1, dtype=np.int64)
    for number, group in enumerate(groups):
        owner[group.labels] = -1 if group.products else number
    found = []
    for linear, *_ in together(read, statistics.readings):
        labels = statistics.readings[linear].columns
        owners, counts = np.unique(owner[labels[labels <= most]], return_counts=True)
        known = zip(owners.tolist(), counts.tolist(), strict=True)
        found.append(_Shared(linear, {n: count // len(groups[n]) for n, count in known if n >= 0}))
    return found


def _joined(
    sizes: Sequence[int], shared: Sequence[_Shared], pairs: Iterable[tuple[int, int]], most_bytes: int | None
) -> list[Cluster]:
    """Clusters after joining these pairs in turn, where the bytes of both together allow it."""
    cluster: dict[int, Cluster] = {number: (number,) for number in range(len(sizes))}
    for first, second in pairs:
        if second in cluster[first]:
            continue
        both = tuple(sorted(cluster[first] + cluster[second]))
        if most_bytes is None or _bytes(sizes, shared, both) <= most_bytes:
            cluster.update(dict.fromkeys(both, both))
    return sorted(set(cluster.values()))


def _bytes(sizes: Sequence[int], shared: Sequence[_Shared], cluster: Cluster) -> int:
    """Of the inverses of every layer that reads the cluster: as many columns a unit as the one with the most has."""
    total = 0
    for layer in shared:
        own = [number for number in cluster if number in layer.columns]
        if own:
            total += (sum(sizes[number] for number in own) * max(layer.columns[number] for number in own)) ** 2
    return 8 * total


def _correlations(
    groups: Sequence[Group], shared: Iterable[_Shared], pair: tuple[int, int], statistics: Statistics
) -> Iterable[float]:
    """‖S_ab‖² / (‖S_aa‖ ‖S_bb‖) of the columns of two groups at every layer that reads both: 0 to 1, 1 for copies."""
    for layer in shared:
        if not all(number in layer.columns for number in pair):
            continue
        labels = statistics.readings[layer.linear].columns
        inputs = statistics.inputs([layer.linear])
        covariance = (inputs.dense() if isinstance(inputs, FewRows) else inputs).covariance
        own = [np.flatnonzero(np.isin(labels, groups[number].labels)) for number in pair]
        cross, *squares = (covariance[np.ix_(own[i], own[j])] for i, j in ((0, 1), (0, 0), (1, 1)))
        scale = float(np.prod([np.linalg.norm(square) for square in squares]))
        yield float(np.square(cross).sum()) / scale if scale > 0.0 else 0.0
