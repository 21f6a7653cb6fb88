"""Concrete input shapes: one number for every symbol, and one question for all that is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from snp_onnx.errors import PlanError
from snp_onnx.sources.inputs import InputSpec, input_specs
from snp_onnx.sources.shapes import resolve_shapes
from tests.command_line import bench, call
from tests.graphs import Net

Axes = tuple[int | str, ...] | None


def inputs(**axes: Axes) -> list[InputSpec]:
    """Inputs whose axes are numbers, symbols, or "" where they are dynamic without a name; None: no rank."""
    return [
        InputSpec(name, np.dtype(np.float32), None)
        if shape is None
        else InputSpec(
            name,
            np.dtype(np.float32),
            tuple(axis if isinstance(axis, int) else None for axis in shape),
            tuple("" if isinstance(axis, int) else axis for axis in shape),
        )
        for name, shape in axes.items()
    ]


TEXT = inputs(ids=("batch", "seq"), mask=("batch", "seq"), positions=("batch", 1, "seq"))


def question(specs: list[InputSpec], **given: tuple[int, ...]) -> str:
    with pytest.raises(PlanError) as caught:
        resolve_shapes(specs, given)
    return str(caught.value)


def test_symbols_are_read_from_the_model() -> None:
    net = Net(batch="N")
    net.output(net.dense(net.input("x", "time", 5), 5, 3))
    (spec,) = input_specs(net.model())
    assert (spec.shape, spec.symbols) == ((None, None, 5), ("N", "time", ""))


def test_one_number_binds_all_axes_of_its_symbol() -> None:
    found = resolve_shapes(TEXT, {"mask": (1, 7)})
    assert found == {"ids": (1, 7), "mask": (1, 7), "positions": (1, 1, 7)}
    assert resolve_shapes(TEXT, {"ids": (4, 7)})["positions"] == (4, 1, 7)


def test_everything_missing_is_asked_for_at_once() -> None:
    assert question(TEXT) == (
        "the inputs have dynamic axes: give --input-shape ids:1,seq --input-shape mask:1,seq "
        "--input-shape positions:1,1,seq with numbers for seq"
    )
    assert question(inputs(x=("N", 3, "H", "W"))) == (
        "input x has dynamic axes: give --input-shape x:1,3,H,W with numbers for H and W"
    )


def test_what_is_known_is_not_asked_for() -> None:
    specs = inputs(a=("N", "T"), b=("N", "U"), c=("N", 4))
    assert question(specs, a=(1, 5)) == "input b has dynamic axes: give --input-shape b:1,U with numbers for U"


@pytest.mark.parametrize(
    ("axes", "asked"),
    [
        (("N", 3, "", ""), "--input-shape x:1,3,?,? with numbers for every ?"),
        (("N", "floor(H / 2)"), "--input-shape x:1,? with numbers for every ?"),
        (("N", "T", ""), "--input-shape x:1,T,? with numbers for T and every ?"),
        (None, "--input-shape x:?,... with numbers for every ?"),
    ],
)
def test_axes_without_a_name_and_unknown_ranks(axes: Axes, asked: str) -> None:
    assert question(inputs(x=axes)).endswith(asked)


def test_of_many_inputs_those_that_tell_every_symbol_are_named() -> None:
    specs = inputs(ids=("N", "seq"), **{f"past{n}": ("N", 4, "past", 8) for n in range(20)})
    assert question(specs) == (
        "the inputs have dynamic axes: give --input-shape ids:1,seq --input-shape past0:1,4,past,8 "
        "with numbers for seq and past (19 more inputs have the same)"
    )
    found = resolve_shapes(specs, {"ids": (1, 3), "past0": (1, 4, 9, 8)})
    assert found["past19"] == (1, 4, 9, 8)


def test_two_numbers_for_one_symbol_are_refused_with_both() -> None:
    with pytest.raises(PlanError, match=r"ids:1,5 and .*mask:1,6: seq is 5 there and 6 here"):
        resolve_shapes(TEXT, {"ids": (1, 5), "mask": (1, 6)})
    with pytest.raises(PlanError, match="V is 3 there and 4 here"):
        resolve_shapes(inputs(a=("V", "V")), {"a": (3, 4)})
    assert resolve_shapes(inputs(a=("", "")), {"a": (3, 4)}) == {"a": (3, 4)}


def test_a_batch_is_one_row_and_an_adjacency_has_no_batch() -> None:
    assert resolve_shapes(inputs(x=("N", 5), past=(2, "N", 4)), {}) == {"x": (1, 5), "past": (2, 1, 4)}
    assert resolve_shapes(inputs(x=("", 5)), {}) == {"x": (1, 5)}
    graph = inputs(nodes=("V", 16), links=("V", "V"))
    assert "--input-shape nodes:V,16 --input-shape links:V,V with numbers for V" in question(graph)
    assert resolve_shapes(graph, {"nodes": (9, 16)})["links"] == (9, 9)


def test_samples_fill_in_and_what_is_given_wins() -> None:
    seen = {"ids": (1, 5), "mask": (1, 5)}
    assert resolve_shapes(TEXT, {}, seen) == {"ids": (1, 5), "mask": (1, 5), "positions": (1, 1, 5)}
    assert resolve_shapes(TEXT, {"ids": (1, 9)}, seen) == {"ids": (1, 9), "mask": (1, 9), "positions": (1, 1, 9)}
    assert resolve_shapes(inputs(x=(8, "T")), {}, {"x": (1, 3)}) == {"x": (8, 3)}
    assert resolve_shapes(inputs(x=None), {}, {"x": (1, 3)}) == {"x": (1, 3)}


def test_a_question_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net(batch="N")
    first, second = net.input("a", 3, "H", "W"), net.input("b:0", 3, "H", "W")
    net.output(net.conv(net.Relu(net.Add(net.conv(first, 3, 8), net.conv(second, 3, 8))), 8, 3))
    here = bench(tmp_path, net.model())
    asked = "--input-shape a:1,3,H,W --input-shape b:0:1,3,H,W"
    for verb in ((), ("--calibration", "random", "--target-macs", 0.5, "--dry-run")):
        outcome = call(capsys, "prune" if verb else "inspect", here.model, *verb)
        assert (outcome.code, outcome.lines) == (
            2,
            [f"error: the inputs have dynamic axes: give {asked} with numbers for H and W"],
        )
    typed = asked.replace("H,W", "8,6").split()
    assert call(capsys, "inspect", here.model, *typed).code == 0
    assert call(capsys, "inspect", here.model, *typed[2:]).code == 0
