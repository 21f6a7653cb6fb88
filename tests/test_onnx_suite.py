"""onnx's own tests: every graph is inspected, operators are cut between layers, networks are pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from types import MappingProxyType

import onnx
import pytest

import snp_onnx
from snp_onnx import ModelError, SnpError
from snp_onnx.passes import prepare
from snp_onnx.tracing.rules import elementwise
from tests.between_layers import Place, between_layers, is_run, judged, places
from tests.graphs import feed_for
from tests.onnx_cases import Case, network_cases, operator_cases, with_weights
from tests.oracles import Feed, difference, run, tolerance, traced, zeroed
from tests.test_topologies import with_rules

PARTS = 8
"""Tests that the graphs are shared among."""

REFUSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "is not a registered function/op": (
            *("test_flexattention_*_mod", "test_flexattention_causal_mask", "test_flexattention_soft_cap"),
            *("test_flexattention_relative_positional", "test_gradient_*"),
        ),
        "Opset 27 is under development": (
            *("test_linear_attention_*_expanded", "test_range_*_expanded", "test_range_*float*_positive_delta"),
        ),
        "Unsupported model IR version: 14": (
            *(
                "test_reduce_log_sum_*_expanded",
                "test_unique_*",
                "test_onehot_with_axis",
                "test_onehot_with_negative_axis",
            ),
        ),
        "has no form of opset 9": ("test_scan_sum",),
    }
)
"""What `inspect` refuses beside other operator sets: a part of the sentence, and the names of the tests."""

OLDEST = 7
"""The oldest operator set that is read; graphs of those before are refused, as are graphs that name none."""

PLACES = 1
"""Axes of inputs that are cut of one test of each operator."""

ONCE_WRONG = (
    *("test_batchnorm_example_training_mode", "test_rotary_embedding", "test_rotary_embedding_3d_input", "test_stft"),
    *("test_center_crop_pad_crop_expanded", "test_center_crop_pad_pad_expanded", "test_attention_3d_expanded"),
)
"""Tests whose cuts computed something else, or broke, before their rules were mended."""

NARROW: Mapping[str, int] = MappingProxyType({"light_shufflenet": 1})
"""By how much networks are narrowed; all others by eight. This one's shapes name widths beside sides."""
NETWORKS = tuple(
    f"light_{name}"
    for name in (
        *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet"),
        *("vgg19", "zfnet512"),
    )
)


def refusal(case: Case) -> str:
    """The sentence by which a graph is refused; empty where it is inspected."""
    try:
        snp_onnx.inspect(case.model)
    except SnpError as error:
        return str(error)
    return ""


def pinned(case: Case) -> str:
    """A part of the sentence that is expected: by the operator set, or by the name."""
    opset = next((entry.version for entry in case.model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None or opset < OLDEST:
        return "imports no opset of the default domain" if opset is None else "convert it to opset 9 or later"
    named = (reason for reason, names in REFUSED.items() if any(fnmatch(case.name, each) for each in names))
    return next(named, "")


@pytest.mark.parametrize("part", range(PARTS))
def test_every_graph_is_inspected_or_refused_with_a_reason(part: int) -> None:
    cases = (*operator_cases(), *network_cases())[part::PARTS]
    assert len(cases) > 240
    said = {case.name: (pinned(case), refusal(case)) for case in cases}
    assert {name: both for name, both in said.items() if bool(both[0]) != bool(both[1])} == {}
    assert {name: both for name, both in said.items() if both[0] not in both[1] or "\n" in both[1]} == {}


def graphs(case: Case) -> Iterator[tuple[onnx.ModelProto, Feed]]:
    """A test between layers, at its first axes, where the runtime computes it and no form is too old."""
    for place in [*places(case)][:PLACES]:
        model, feed = between_layers(case, place)
        if is_run(model, feed):
            try:
                prepare(model)
            except ModelError:
                return
            yield model, feed


@pytest.mark.parametrize("part", range(PARTS // 2))
def test_operators_between_layers_are_cut_rightly(part: int) -> None:
    """One test of every operator that has any."""
    found: dict[tuple[str, str], int] = {}
    for case in operator_cases()[part :: PARTS // 2]:
        (node, *more) = case.model.graph.node
        key = node.domain, node.op_type
        if more or key in found:
            continue
        units = [judged(*graph).units for graph in graphs(case)]
        if units:
            found[key] = max(units)
    assert len(found) > 50
    assert sum(count > 0 for count in found.values()) > 30


def test_what_was_wrong_once_stays_right() -> None:
    cases = {case.name: case for case in operator_cases()}
    for name in ONCE_WRONG:
        for place in places(cases[name]):
            judged(*between_layers(cases[name], place))


def test_a_rule_that_takes_a_norm_for_a_function_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rules(monkeypatch, Softmax=elementwise.unary)
    case = next(case for case in operator_cases() if case.name == "test_softmax_axis_1")
    with pytest.raises(AssertionError):
        judged(*between_layers(case, Place(0, 1, True)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_pruned_and_computes_what_it_must(name: str) -> None:
    """By `prune` without a fold, and oracle (a) for its choice."""
    case = next(case for case in network_cases() if case.name == name)
    model = with_weights(case.model, NARROW.get(name, 8))
    options = {"preset": "fast", "fold": "none", "samples": 8, "seed": 1, "threads": 1}
    result = snp_onnx.prune(model, "random", target_macs=0.9, **options)
    prepared, feed = prepare(model).model, feed_for(model, 1)
    trace = traced(prepared, feed)
    kept = {decision.group: decision.kept for decision in result.plan.decisions}
    removed = [g.labels[[i for i in range(len(g)) if i not in kept[g.id]]] for g in trace.groups if g.id in kept]
    expected = run(zeroed(prepared, trace, trace.alive(removed)), feed)
    assert 0.7 < result.report.pruned.macs / result.report.dense.macs <= 0.9
    assert difference(expected, run(result.model, feed)) <= 4 * tolerance(expected)


def test_all_networks_are_pruned() -> None:
    named = {case.name for case in network_cases() if case.name.startswith("light_")}
    assert named == set(NETWORKS)
