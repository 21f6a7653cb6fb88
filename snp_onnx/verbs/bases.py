"""Changes of basis: the same function, written so that what matters least comes last and can be cut.

Some kinds of units are no positions that a network was trained with, but directions that moments single out. For every
such kind that is asked for, a step turns the weights of the prepared model; tracing, deciding and cutting then go on
as with any other unit. The matrices are part of the plan's sidecar, so that a plan is carried out on the same bases.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType

from snp_onnx.calibration.sessions import Runtime
from snp_onnx.planning.plan import Bases
from snp_onnx.tracing import Barrier, Kind, Trace
from snp_onnx.verbs.head_dims import turn_heads
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.streams import turn_streams
from snp_onnx.verbs.subject import Subject, retraced
from snp_onnx.verbs.turned import Step, Turned

__all__ = ["STEPS", "Step", "Turned", "change_bases"]


STEPS: Mapping[Kind, Step] = MappingProxyType({Kind.STREAM: turn_streams, Kind.HEAD_DIMS: turn_heads})
"""The kinds that need other bases; carried out in this order."""


def change_bases(
    subject: Subject,
    kinds: Collection[Kind],
    runtime: Runtime,
    calibration: Calibration | None = None,
    given: Bases | None = None,
) -> Subject:
    """The subject in the bases that the kinds need, traced for these kinds; the very same one where none needs any.

    `given` are the bases of an earlier plan for this model; what they lack is taken from the calibration samples.
    """
    stops: dict[tuple[str, int], Barrier] = {}
    for kind in (kind for kind in STEPS if kind in kinds):
        prefix = f"{kind}:"
        own = {name.removeprefix(prefix): a for name, a in (given or {}).items() if name.startswith(prefix)}
        turned = STEPS[kind](subject, calibration, own)
        notes = (*subject.notes, *turned.notes)
        bases = {**subject.bases, **{prefix + name: array for name, array in turned.bases.items()}}
        subject = retraced(subject, runtime, turned.model, notes, kinds=kinds)
        stops.update(turned.stops)
        subject = replace(subject, bases=bases, trace=_explained(subject.trace, stops))
    return subject


def _explained(found: Trace, stops: Mapping[tuple[str, int], Barrier]) -> Trace:
    """The trace with the reasons of what could not be turned in place of the barriers that are left."""
    named = [replace(s, barrier=stops.get((s.weight, s.axis), s.barrier)) for s in found.stops]
    return replace(found, stops=tuple(named))
