"""Rations: how many samples, and how many at a time, a refit takes, so that its time, memory and disk stay bounded."""

from __future__ import annotations

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

WINDOW_BYTES = 256 * 2**20
"""A batch's windows at every position, which a joint step looks at, may fill so much memory."""

JOINT_ROWS_PER_COLUMN = 400
"""Positions for each of a producer's inputs that a joint step wants to see."""


def most_samples(flow: Flow) -> int:
    """How many samples' boundary activations may be kept, the widest place of the graph taken for all."""
    shapes = flow.trace.facts.shapes
    activations = [shape for name, shape in shapes.items() if shape and not flow.weights.knows(name)]
    largest = max((int(np.prod(shape[1:])) for shape in activations), default=1)
    return min(MOST_SAMPLES, max(LEAST_SAMPLES, MOST_BYTES // max(1, 4 * BOUNDARY_TENSORS * largest)))


def most_rows(flow: Flow, chain: Chain) -> int:
    """How large a batch may be for the joint step of a chain."""
    return max(1, WINDOW_BYTES // (4 * _positions(flow, chain) * len(chain.producer.reading.columns)))


def joint_every(flow: Flow, chains: Sequence[Chain], samples: int) -> int:
    """One in so many batches is enough for the joint steps of a layer: 4, fewer where a sample has few positions."""
    wanted = [len(chain.producer.reading.columns) / _positions(flow, chain) for chain in chains]
    enough = JOINT_ROWS_PER_COLUMN * max(wanted, default=0.0)
    return max(1, min(4, int(samples / max(enough, 1))))


def _positions(flow: Flow, chain: Chain) -> int:
    """How many rows of the producer's outputs a sample has."""
    shape, axis = flow.shape(chain.producer.output), chain.producer.linear.output_axis
    return max(1, int(np.prod([extent for place, extent in enumerate(shape) if place not in (0, axis)])))
