"""What a step of a change of basis takes and gives; see `verbs.bases`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx

from snp_onnx.passes import Note
from snp_onnx.planning.plan import Bases
from snp_onnx.tracing import Barrier
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.subject import Subject


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """A model in other bases, the matrices by name, and what was done or left alone."""

    model: onnx.ModelProto
    bases: Bases
    notes: tuple[Note, ...]
    stops: Mapping[tuple[str, int], Barrier] = field(default_factory=dict)
    """Why the output axes of producers (weight, axis) could not be turned."""


Step = Callable[[Subject, Calibration | None, Bases], Turned]
"""Turn a subject by the bases given (names without the kind), or where there are none by the calibration's moments.

PlanError where neither is there but something would be turned.
"""
