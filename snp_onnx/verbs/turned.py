"""What a change of basis gives, and what a step that makes one looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from snp_onnx.passes import Note
from snp_onnx.planning.plan import Bases
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.subject import Subject


@dataclass(frozen=True, slots=True, eq=False)
class Turned:
    """A model in other bases, the matrices by name, and what was done or left alone."""

    model: onnx.ModelProto
    bases: Bases
    notes: tuple[Note, ...]


Step = Callable[[Subject, Calibration | None, Bases], Turned]
"""Turn a subject by the bases given (names without the kind), or where there are none by the calibration's moments.

PlanError where neither is there but something would be turned.
"""
