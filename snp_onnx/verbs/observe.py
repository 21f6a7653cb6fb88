"""Observing: shapes that no inference can tell, as a run of the runtime shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from snp_onnx.calibration.segments import Frontier, piece
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.errors import CalibrationError
from snp_onnx.sources.examples import Values
from snp_onnx.sources.inputs import input_specs
from snp_onnx.tracing.facts import Seen, seen_in


@dataclass(frozen=True, slots=True)
class Observed:
    """Shapes and types of tensors, and what the runtime said where it refused every feed."""

    seen: Mapping[str, Seen] = field(default_factory=dict)
    refusal: CalibrationError | None = None


def observe(model: onnx.ModelProto, tensors: Sequence[str], feeds: Sequence[Values], runtime: Runtime) -> Observed:
    """Observe with the feed that leaves the fewest tensors empty; what isn't a tensor, or needs one, is left out.

    Where the runtime takes none of the feeds, only the first half of the tensors is asked for, and so on: what lies in
    front of the node that fails is still observed.
    """
    refusal, graph = None, Frontier(model.graph)
    fed = {spec.name for spec in input_specs(model)}
    if not fed.issuperset(graph.needed(tensors).sources):
        tensors = [name for name in tensors if fed.issuperset(graph.needed([name]).sources)]
    while tensors:
        found, refused = list[Mapping[str, Seen]](), list[CalibrationError]()
        for feed in feeds:
            try:
                found.append(_run(model, tensors, feed, runtime))
            except CalibrationError as error:
                refused.append(error)
            if found and not _empties(found[-1]):
                break
        if found:
            return Observed(min(found, key=_empties), refusal)
        refusal = refusal or refused[0]
        tensors = tensors[: len(tensors) // 2]
    return Observed({}, refusal)


def _empties(seen: Mapping[str, Seen]) -> int:
    return sum(0 in shape for shape, _ in seen.values())


def _run(model: onnx.ModelProto, tensors: Sequence[str], feed: Values, runtime: Runtime) -> dict[str, Seen]:
    stretch = Frontier(model.graph).needed(tensors)
    types = {spec.name: spec.dtype for spec in input_specs(model)}
    nodes = [model.graph.node[index] for index in stretch.nodes]
    part = piece(model, nodes, {name: types[name] for name in stretch.sources})
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    results = run(open_session(part, runtime), feed)
    return {name: seen_in(results[name]) for name in tensors if name in results}
