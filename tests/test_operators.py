"""Every standard operator has a rule, or is named here with the reason that its nodes are barred with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from snp_onnx.passes import prepare
from snp_onnx.tracing import trace
from snp_onnx.tracing.facts import infer_facts
from snp_onnx.tracing.rules import RULES
from tests.graphs import Net
from tests.oracles import cut, difference, one_kept, tolerance, zeroed

STANDARD = ("", "ai.onnx.ml")

WITHOUT: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("Loop", "Scan", "SequenceMap"), "its bodies are read apart, and what they read is barred")
)
"""Standard operators without a rule, and why."""


def operators() -> set[tuple[str, str]]:
    """All that onnx knows of the standard domains, in whatever version."""
    found = {(schema.domain, schema.name) for schema in onnx.defs.get_all_schemas_with_history()}
    return {(domain, name) for domain, name in found if domain in STANDARD}


def test_every_standard_operator_has_a_rule_or_a_reason() -> None:
    known = operators()
    assert len(known) >= 222
    assert {name for domain, name in known if (domain, name) not in RULES} - WITHOUT.keys() == set()
    assert {name for name in WITHOUT if ("", name) not in known} == set()


# operators that are newer than the runtime: judged by onnx's reference


def gated(net: Net) -> None:
    x = net.input("x", 5, 6)
    net.output(net.linear(net.SwiGLU(net.linear(x, 6, 8), net.linear(x, 6, 8), alpha=1.5), 8, 4))


def causal(net: Net) -> None:
    """Channels stand before steps, as in the operator; a state comes from an input and isn't given on."""
    x = net.Transpose(net.linear(net.input("x", 5, 6), 6, 8), perm=[0, 2, 1])
    y, _ = net.ops("CausalConvWithState", x, net.weight(8, 1, 3, fan_in=3), net.bias(8), outputs=2, activation="silu")
    net.output(net.linear(net.Transpose(y, perm=[0, 2, 1]), 8, 4))


@pytest.mark.parametrize(("draw", "opset"), [(gated, 28), (causal, 27)])
def test_an_operator_newer_than_the_runtime_is_cut_rightly(draw: Callable[[Net], None], opset: int) -> None:
    net = Net(opset, batch=2)
    draw(net)
    model = prepare(net.model()).model
    feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)}
    found = trace(model, {"x": (2, 5, 6)})
    assert [len(group) for group in found.groups] == [8]
    mask = one_kept(found)
    silent, smaller = (
        ReferenceEvaluator(m).run(None, feed) for m in (zeroed(model, found, mask), cut(model, found, mask))
    )
    assert difference(silent, smaller) <= tolerance(silent)


def test_weights_that_are_drawn_in_every_run_are_not_written_down() -> None:
    """Noise on a weight, as some networks have it in training."""
    net = Net(batch=2)
    noisy = net.Add(net.weight(6, 3, 1, 1, fan_in=3), net.RandomNormalLike(net.normal(6, 3, 1, 1)))
    net.output(net.conv(net.Relu(net.Conv(net.image(), noisy)), 6, 4))
    model = prepare(net.model()).model
    assert "RandomNormalLike" in {node.op_type for node in model.graph.node}


def test_a_spectrum_has_the_frequencies_that_the_operator_gives_by_default() -> None:
    """onnx's inference takes the default of `onesided` for 0."""
    net = Net(batch=2)
    y = net.STFT(net.input("x", 32, 1), net.const(8), "", net.const(16))
    net.output(y)
    model = net.model()
    del model.graph.value_info[:], model.graph.output[0].type.tensor_type.shape.dim[:]
    assert infer_facts(model, {"x": (2, 32, 1)}).shapes[y] == (2, 3, 9, 2)
