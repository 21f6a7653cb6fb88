"""Rations: how many samples, and how many at a time, a refit takes, so that its time, memory and disk stay bounded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from snp_onnx.planning.chains import Chain
from snp_onnx.tracing.flow import Flow

MOST_SAMPLES = 1024
"""Of more, every second or third batch is used: the refit of a large set then costs a few passes over it."""

MOST_BYTES = 8 * 2**30
LEAST_SAMPLES = 64
"""Activations of large images are kept of fewer samples, so that they fit on a disk; never of less than these."""

BOUNDARY_TENSORS = 4
"""Inputs, aims and shortcuts that a segment leaves behind at a time, of both models."""

MAP_BYTES = 128 * 2**20
"""A step over maps that take more than that, of all samples together, uses one in so many batches more."""

MOST_SPARSE, LEAST_OF_LARGE = 4, 48
"""But never fewer than one in four, or so many samples."""

WINDOW_BYTES = 256 * 2**20
"""A batch's windows at every position, which a joint step looks at, may fill so much memory."""

PLENTY = 16
"""Times as many positions as a joint step wants are very many."""

JOINT_ROWS_PER_COLUMN = 400
"""Positions for each of a producer's inputs that a joint step wants to see."""


CACHED = 4 * 2**20
"""Bytes of the largest activation up to which more samples a batch cost nothing, and every node's overhead less."""

MOST_JOINED, LEAST_BATCHES = 64, 8
"""How many samples a batch may be joined to, and how many batches should be left."""


def joined_rows(flow: Flow, batch_size: int, samples: int) -> int:
    """How many samples go into a batch of calibration: as told, or more where all activations are small."""
    return max(batch_size, min(MOST_JOINED, samples // LEAST_BATCHES, CACHED // (4 * _largest(flow))))


def most_samples(flow: Flow) -> int:
    """How many samples' boundary activations may be kept, the widest place of the graph taken for all."""
    return min(MOST_SAMPLES, max(LEAST_SAMPLES, MOST_BYTES // (4 * BOUNDARY_TENSORS * _largest(flow))))


def shares(elements: Sequence[int], samples: int) -> list[int]:
    """For steps over maps of so many elements a sample: in one of how many batches each, ever more of them.

    The large maps, at the beginning of a network, have plenty of positions for few channels.

    >>> shares([100_000, 1_500_000, 400_000, 300_000, 100_000], samples=216)
    [4, 4, 2, 1, 1]
    """
    ahead = list(itertools.accumulate(reversed(elements), max))[::-1]
    found, last = [], MOST_SPARSE
    for size in ahead:
        while last > 1 and (4 * size * samples < last * MAP_BYTES or samples < last * LEAST_OF_LARGE):
            last //= 2
        found.append(last)
    return found


def _largest(flow: Flow) -> int:
    """Elements of one sample's largest activation."""
    shapes = flow.trace.facts.shapes
    activations = [shape for name, shape in shapes.items() if shape and not flow.weights.knows(name)]
    return max([1, *(int(np.prod(shape[1:])) for shape in activations)])


def most_rows(flow: Flow, chain: Chain) -> int:
    """How large a batch may be for the joint step of a chain."""
    return max(1, WINDOW_BYTES // (4 * _positions(flow, chain) * len(chain.producer.reading.columns)))


def joint_every(flow: Flow, chains: Sequence[Chain], samples: int) -> int:
    """One in so many batches is enough for the joint steps of a layer: 4, fewer where a sample has few positions.

    Where it has very many, up to 8, of which there are 32 samples left.
    """
    wanted = [len(chain.producer.reading.columns) / _positions(flow, chain) for chain in chains]
    enough = JOINT_ROWS_PER_COLUMN * max(wanted, default=0.0)
    plenty = min(8, samples // 32, int(samples / max(PLENTY * enough, 1)))
    return max(1, min(4, int(samples / max(enough, 1))), plenty)


def _positions(flow: Flow, chain: Chain) -> int:
    """How many rows of the producer's outputs a sample has."""
    shape, axis = flow.shape(chain.producer.output), chain.producer.linear.output_axis
    return max(1, int(np.prod([extent for place, extent in enumerate(shape) if place not in (0, axis)])))
