"""Statistics: the moments as groups and consumers see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from snp_onnx.calibration.moments import MomentRequest, Moments
from snp_onnx.planning.head_statistics import HeadStatistics
from snp_onnx.planning.readings import Reading
from snp_onnx.planning.scarcity import SCARCITY, Scarcity
from snp_onnx.subspace import CentredGram, FewRows
from snp_onnx.subspace.ridge import UNDERFLOW
from snp_onnx.tracing import Group, Linear, Trace
from snp_onnx.tracing.labels import Labels

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Readings and the moments that answer them; a reading with non-finite moments counts as not measured."""

    readings: Mapping[Linear, Reading]
    moments: Mapping[str, Moments]
    totals: Mapping[Linear, MomentRequest] = field(default_factory=dict)
    outputs: Mapping[Linear, MomentRequest] = field(default_factory=dict)
    heads: HeadStatistics = field(default_factory=HeadStatistics)
    scarcity: Scarcity = SCARCITY

    def spread(self, linear: Linear) -> float | None:
        """The variance, summed over channels, of what a layer is part of; None where it was not measured."""
        return self._variance(self.totals.get(linear))

    def output_variance(self, linear: Linear) -> float | None:
        """The variance, summed over channels, of a layer's own output; None where it was not measured."""
        return self._variance(self.outputs.get(linear))

    def _variance(self, request: MomentRequest | None) -> float | None:
        found = self.moments.get(request.key) if request is not None else None
        if found is None or not found.is_finite:
            return None
        return float(found.variance.sum())

    def is_measured(self, linear: Linear) -> bool:
        """Whether rows were counted of what a layer reads, all of them finite."""
        reading = self.readings.get(linear)
        found = None if reading is None else self.moments.get(reading.key)
        return found is not None and found.count > 0 and found.is_finite

    def fault(self, linears: Iterable[Linear]) -> str | None:
        """Why layers can't be folded; None where all were measured."""
        for linear in linears:
            found = self.moments.get(self.readings[linear].key) if linear in self.readings else None
            if found is not None and found.count == 0:
                return "no calibration sample comes to it"
            if not self.is_measured(linear):
                return "its input is not finite on the calibration samples"
        return None

    def inputs(self, linears: Iterable[Linear]) -> CentredGram | FewRows:
        """The covariance and the mean of the inputs of consumers that share one weight or are one sum, C columns."""
        return self.scarcity.settled(self._together(linears))

    def caution(self, linears: Iterable[Linear]) -> float:
        """By how much the ridge grows where rows are few for the columns: weights would learn their noise."""
        growths = [1.0]
        for linear in linears:
            reading = self.readings.get(linear)
            found = self.moments.get(reading.key) if reading is not None else None
            if reading is not None and found is not None and found.count:
                growths.append(self.scarcity.caution(reading.rows_wanted, len(reading.columns), found.count))
        return max(growths)

    def _together(self, linears: Iterable[Linear]) -> Moments:
        read = [self.readings[linear] for linear in linears]
        first, *others = [self.moments[reading.key] for reading in (read[:1] if read[0].members else read)]
        return sum(others, start=first)

    def group_gram(self, group: Group) -> Matrix | None:
        """The joint Gram of a group's units over all its consumers, (U, U); None if none was measured.

        The samples of all consumer inputs are stacked, each input scaled to unit energy, so that a residual stream's
        units answer for every layer that reads them and no layer counts for more because its activations are larger:
        G = Σ_c G_c / tr G_c. A unit that holds several positions of an axis contributes each as further samples.
        """
        joint: Matrix | None = None
        done: set[str] = set()
        for linear in group.consumers:
            if not self.is_measured(linear) or self.readings[linear].key in done:
                continue
            reading = self.readings[linear]
            done.add(reading.key)
            gram = _written_out(self.scarcity.settled(self.moments[reading.key])).gram()
            slots = unit_columns(reading.columns, group.labels)
            part: Matrix = np.sum([gram[np.ix_(columns, columns)] for columns in slots], axis=0)
            energy = float(np.trace(part))
            if energy > UNDERFLOW * len(part):
                part = part / energy
            joint = part if joint is None else joint + part
        return joint

    def warnings(self, trace: Trace, groups: Iterable[Group]) -> tuple[str, ...]:
        """What to say of samples that hardly vary."""
        most: dict[str, int] = {}
        for group in groups:
            before = sum(_columns(trace, producer) for producer in group.producers)
            for key in {self.readings[linear].key for linear in filter(self.is_measured, group.consumers)}:
                most[key] = most.get(key, 0) + before
        return self.scarcity.warnings([(self.moments[key], count) for key, count in most.items()])

    def unmeasured(self, group: Group) -> list[Linear]:
        """Consumers whose input was not finite: without moments they can't be folded."""
        return [linear for linear in group.consumers if not self.is_measured(linear)]


def _columns(trace: Trace, producer: Linear) -> int:
    """How many inputs each output of a layer reads."""
    shape = trace.facts.shapes[producer.weight]
    return int(np.prod(shape)) // shape[producer.out_axis]


def _written_out(inputs: CentredGram | FewRows) -> CentredGram:
    return inputs.dense() if isinstance(inputs, FewRows) else inputs


def unit_columns(columns: Labels, units: Labels) -> npt.NDArray[np.int64]:
    """For units that each own S columns: (S, U) column numbers, in the order of `units`.

    >>> unit_columns(np.array([7, 7, 5, 5]), np.array([5, 7])).tolist()
    [[2, 0], [3, 1]]
    """
    order = np.argsort(units, kind="stable")
    sought = np.minimum(np.searchsorted(units[order], columns), len(units) - 1)
    owner = order[sought]
    mine = np.flatnonzero(units[owner] == columns)
    by_unit = mine[np.argsort(owner[mine], kind="stable")]
    return by_unit.reshape(len(units), -1).T
