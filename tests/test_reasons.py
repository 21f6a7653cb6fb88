"""Every reason that the tracer can give is given for some small graph, and every graph for one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from snp_onnx.passes import prepare
from snp_onnx.tracing import PLAIN_KINDS, Kind, find_blocks, trace
from snp_onnx.tracing.attention import find_attention
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.streams import Unrotated, find_streams
from tests.graphs import feed_for
from tests.oracles import observed_shapes
from tests.reason_graphs import GRAPHS, Drawing
from tests.reasons import GAP, reasons
from tests.topologies import CATALOGUE


def told(model: onnx.ModelProto) -> Iterator[str]:
    """What is said of a model's axes, streams, heads and blocks."""
    prepared, feed = prepare(model).model, feed_for(model, 1)
    observed = {}
    with suppress(Fail):  # operators that no runtime knows
        observed = observed_shapes(prepared, feed)
    shapes = {name: array.shape for name, array in feed.items()}
    for kinds in (PLAIN_KINDS, frozenset(Kind)):
        found = trace(prepared, shapes, observed, kinds)
        flow = Flow(prepared, found)
        yield from (barrier.reason for barrier in found.barriers)
        yield from (stop.barrier.reason for stop in found.stops)
        yield from (stream.barrier.reason for stream in find_streams(flow) if isinstance(stream, Unrotated))
        yield from find_attention(flow).reasons.values()
        yield from (block.reason for block in find_blocks(prepared, flow))


def model_for(reason: str) -> onnx.ModelProto:
    graph = GRAPHS[reason]
    if isinstance(graph, str):
        return CATALOGUE[graph].model(CATALOGUE[graph].batches[0])
    return (graph if isinstance(graph, Drawing) else Drawing(graph)).model()


@pytest.mark.parametrize("reason", GRAPHS)
def test_a_reason_is_given(reason: str) -> None:
    pattern = ".+".join(map(re.escape, reason.split(GAP))) + r"( \(.+\))?"
    assert any(re.fullmatch(pattern, text, re.DOTALL) for text in told(model_for(reason)))


def test_every_reason_has_a_graph() -> None:
    """A reason that no graph leads to is dead: add the graph to `tests/reason_graphs.py`, or drop the reason."""
    given = reasons()
    assert {reason: where for reason, where in given.items() if reason not in GRAPHS} == {}
    assert sorted(GRAPHS.keys() - given.keys()) == []
