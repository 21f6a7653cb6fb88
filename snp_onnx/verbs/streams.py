"""Residual streams turned to their principal axes, so that the entries that say least can be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.moments import MomentRequest, Moments, row_strides
from snp_onnx.calibration.runner import collect
from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.passes import Note, rotate_streams
from snp_onnx.planning.plan import Bases
from snp_onnx.sources.samples import Part
from snp_onnx.subspace import principal_axes, sensitivity
from snp_onnx.tracing import Barrier, Linear
from snp_onnx.tracing.norms import Norm
from snp_onnx.tracing.streams import Stream, Unrotated, find_streams
from snp_onnx.verbs.measure import Calibration
from snp_onnx.verbs.subject import Subject
from snp_onnx.verbs.turned import Turned

Matrix = npt.NDArray[np.float64]
ERROR_POWER = 0.5
"""Errors of different readers are compared relative to the square root of their output's energy, as in the budget."""
TINY = float(np.finfo(np.float64).tiny)
ORTHOGONAL = 1e-6
"""How far QᵀQ of a saved basis may be from one, in its largest entry."""


def turn_streams(subject: Subject, calibration: Calibration | None, given: Bases) -> Turned:
    """Every residual stream that can be rotated, in the basis given for it or on its principal axes.

    A step of `verbs.bases`. PlanError where a stream has neither a basis nor samples to measure one.
    """
    found = find_streams(subject.flow)
    streams = [stream for stream in found if isinstance(stream, Stream)]
    stops = {key: stop for one in found if isinstance(one, Unrotated) for key, stop in _stops(subject, one).items()}
    notes = tuple(
        Note(f"residual stream {one.id}", f"not rotated: {one.barrier.node}: {one.barrier.reason}")
        for one in found
        if isinstance(one, Unrotated)
    )
    if not streams:
        nothing = () if notes else (Note("model", "no residual stream with a norm over it was found"),)
        return Turned(subject.prepared, {}, (*notes, *nothing), stops)
    bases = {stream.id: _checked(stream, given[stream.id]) for stream in streams if stream.id in given}
    rest = [stream for stream in streams if stream.id not in bases]
    if rest:
        bases |= _measured(subject, rest, calibration)
    turned = rotate_streams(subject.prepared, subject.flow, streams, bases, subject.dense.store)
    return Turned(turned.model, bases, (*notes, *turned.notes), stops)


def _stops(subject: Subject, unrotated: Unrotated) -> Mapping[tuple[str, int], Barrier]:
    """The reason, for every weight that writes to the stream."""
    trace = subject.trace
    return {
        (stop.weight, stop.axis): unrotated.barrier
        for stop in trace.stops
        if np.array_equal(trace.axes[stop.weight][stop.axis], unrotated.labels)
    }


def _checked(stream: Stream, basis: npt.NDArray[np.generic]) -> Matrix:
    matrix = np.asarray(basis, dtype=np.float64)
    is_square = matrix.shape == (stream.width, stream.width)
    if not is_square or np.abs(matrix.T @ matrix - np.eye(stream.width)).max() > ORTHOGONAL:
        raise PlanError(f"the plan's basis of residual stream {stream.id} is not orthogonal ({stream.width} entries)")
    return matrix


def _measured(subject: Subject, streams: Sequence[Stream], calibration: Calibration | None) -> dict[str, Matrix]:
    """Principal axes from the moments of every norm's output, mean and gain taken out."""
    if calibration is None:
        raise PlanError(
            f"residual stream {streams[0].id}: give calibration samples, or the plan's sidecar, to rotate it"
        )
    plain = rotate_streams(subject.prepared, subject.flow, streams, {}, subject.dense.store).model
    requests = {norm.output: _request(subject, norm, calibration.count) for stream in streams for norm in stream.norms}
    batches = calibration.batches(Part.CALIBRATION)
    with calibration.clock("calibrate"):
        moments = collect(plain, list(requests.values()), batches, calibration.runtime, calibration.executor)
    return {
        stream.id: _axes(subject, stream, {norm.output: moments[requests[norm.output].key] for norm in stream.norms})
        for stream in streams
    }


def _request(subject: Subject, norm: Norm, samples: int) -> MomentRequest:
    shape = subject.flow.shape(norm.output)
    axis = len(shape) - 1
    lattice = row_strides(shape, axis, samples, shape[axis])
    mask = subject.trace.row_mask(norm.output, axis)
    return MomentRequest(norm.output, axis, len(shape), lattice=lattice, row_mask=mask)


def _axes(subject: Subject, stream: Stream, moments: Mapping[str, Moments]) -> Matrix:
    """The axes of all norms' outputs together, each of unit energy, weighed by what reads them."""
    grams = {name: found.gram for name, found in moments.items() if found.is_finite}
    if not grams:
        raise CalibrationError(f"residual stream {stream.id} is not finite on the calibration samples")
    joint = np.sum([gram / max(float(np.trace(gram)), TINY) for gram in grams.values()], axis=0)
    readers = (
        (grams[reader.source.norm.output], _matrix(subject, reader.linear) * reader.source.gain[:, None])
        for reader in stream.readers
        if reader.source is not None and reader.source.norm.output in grams
    )
    return principal_axes(joint, sensitivity(readers, ERROR_POWER))


def _matrix(subject: Subject, linear: Linear) -> Matrix:
    """A reader's weight as (d, rest)."""
    weight = np.asarray(subject.flow.weights.array(linear.weight), dtype=np.float64)
    return np.moveaxis(weight, linear.in_axis, 0).reshape(weight.shape[linear.in_axis], -1)
