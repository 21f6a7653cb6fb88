"""Standard error holds `error:`, `warning:` and `note:` lines only: nothing of the runtime's, numpy's or torch's."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from snp_onnx.calibration.sessions import Runtime, open_session
from snp_onnx.cli.remarks import shows_own_warnings
from snp_onnx.errors import ModelError, SnpWarning
from snp_onnx.report.remarks import counted
from tests.command_line import ROOT, Bench, bench, call, images, small
from tests.graphs import Net

Capture = pytest.CaptureFixture[str]
Arrays = dict[str, npt.NDArray[Any]]


# failures of the runtime


def rows(count: int) -> Arrays:
    return {"x": np.random.default_rng(0).standard_normal((40, count)).astype(np.float32)}


def behind(net: Net, tensor: str, width: int) -> onnx.ModelProto:
    """A hidden layer and an output layer behind a tensor."""
    net.output(net.MatMul(net.Relu(net.MatMul(tensor, net.normal(width, 8))), net.normal(8, 3)))
    return net.model()


def sum_of_unlike() -> tuple[onnx.ModelProto, Arrays]:
    net = Net(batch="N")
    summed = net.Add(net.MatMul(net.input("x", "T", 5), net.normal(5, 6)), net.normal(7, 6))
    return behind(net, summed, 6), {"x": rows(20)["x"].reshape(40, 4, 5)}


def index_too_large() -> tuple[onnx.ModelProto, Arrays]:
    net = Net(batch="N")
    ids = net.input("x", 3, dtype=np.int64)
    return behind(net, net.Gather(net.normal(4, 5), ids), 5), {"x": np.full((40, 3), 9)}


def shape_that_does_not_fit() -> tuple[onnx.ModelProto, Arrays]:
    net = Net(batch="N")
    return behind(net, net.Reshape(net.input("x", "T"), net.const(np.array([-1, 7]))), 7), rows(5)


def channels_that_do_not_fit() -> tuple[onnx.ModelProto, Arrays]:
    net = Net(batch="N")
    net.output(net.conv(net.conv_relu(net.input("x", "C", "H", "W"), 3, 8), 8, 4))
    return net.model(), {"x": images(channels=4)}


FAILURES: dict[str, tuple[Callable[[], tuple[onnx.ModelProto, Arrays]], str, str]] = {
    "unlike": (sum_of_unlike, "node n2 (Add)", "x (1, 4, 5)"),
    "index": (index_too_large, "node n1 (Gather)", "x ("),
    "reshape": (shape_that_does_not_fit, "node n1 (Reshape)", "x (1, 5)"),
    "channels": (channels_that_do_not_fit, "node n1 (Conv)", "x (1, 4, 8, 8)"),
}


@pytest.mark.parametrize("verb", ["prune", "compare", "recover"])
@pytest.mark.parametrize("case", FAILURES)
def test_a_batch_that_cannot_be_run_is_one_line(
    case: str, verb: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, node, fed = FAILURES[case]
    model, arrays = make()
    here = bench(tmp_path, model, arrays)
    data = ("--calibration", here.data)
    asked: dict[str, tuple[object, ...]] = {
        "prune": ("prune", here.model, here.output, *data, "--target-macs", 0.6),
        "compare": ("compare", here.model, here.model, *data),
        "recover": ("recover", here.model, here.model, here.output, *data, "--epochs", 1),
    }
    if verb == "recover":
        pytest.importorskip("torch")
    outcome = call(capfd, *asked[verb])
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome.err
    assert outcome.err.startswith("error: ")
    assert "node " in outcome.err
    if verb != "recover":  # torch runs it there
        assert node in outcome.err
        assert fed in outcome.err
    assert "\x1b" not in outcome.err
    assert "ONNXRuntimeError" not in outcome.err


def test_a_node_without_a_name_is_found_by_what_it_makes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, arrays = channels_that_do_not_fit()
    for node in model.graph.node:
        node.name = ""
    here = bench(tmp_path, model, arrays)
    outcome = call(capfd, "inspect", here.model, "--input-shape", "x:1,4,8,8")
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome.err
    assert f"node Conv({model.graph.node[0].output[0]}) (Conv)" in outcome.err


def test_a_model_that_cannot_be_loaded_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    node = helper.make_node("Unheard", ["x"], ["y"], name="odd")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    with pytest.raises(ModelError, match="Unheard") as caught:
        open_session(model, Runtime())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


# what libraries write

LOADER = """
import logging, os, sys, threading, warnings
import numpy as np

def load_data():
    os.write(2, b"\\x1b[1;31m[E:onnxruntime] written by native code\\x1b[m\\n")
    logging.getLogger("library").error("logged")
    np.float32(3e38) * np.float32(3e38)
    threading.Thread(target=lambda: 1 / 0).start()
    warnings.warn_explicit("of a library", RuntimeWarning, np.__file__, 1)
    return [{"x": row[None]} for row in np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype("f")]
"""


def as_process(here: Bench, **variables: str) -> subprocess.CompletedProcess[str]:
    loader = here.folder / "feeds.py"
    loader.write_text(LOADER)
    asked = ["prune", here.model, here.output, "--calibration", loader, "--target-macs", "0.6", "--preset", "fast"]
    return subprocess.run(
        [sys.executable, "-m", "snp_onnx.cli", *map(str, asked)],
        cwd=ROOT, env=os.environ | variables, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip


def test_nothing_else_reaches_the_user(tmp_path: Path) -> None:
    found = as_process(bench(tmp_path), FORCE_COLOR="1")
    assert found.returncode == 0, found.stderr
    assert [line for line in found.stderr.splitlines() if not line.startswith(("warning: ", "note: "))] == []
    assert "warning: feeds.py:8: overflow encountered in scalar multiply" in found.stderr.splitlines()
    assert "\x1b" not in found.stderr
    assert "of a library" not in found.stderr


def test_everything_is_shown_on_demand(tmp_path: Path) -> None:
    found = as_process(bench(tmp_path), SNP_ONNX_TRACEBACK="1")
    assert found.returncode == 0
    assert "written by native code" in found.stderr
    assert "ZeroDivisionError" in found.stderr


def test_warnings_are_ours_and_once_each(capsys: Capture) -> None:
    show = shows_own_warnings()
    for _ in range(2):
        show(SnpWarning("running on the CPU"), SnpWarning, np.__file__, 7)
        show(RuntimeWarning("invalid value"), RuntimeWarning, np.__file__, 7)
        show(RuntimeWarning("invalid value"), RuntimeWarning, str(ROOT / "snp_onnx" / "errors.py"), 1)
        show(np.exceptions.ComplexWarning("casting"), np.exceptions.ComplexWarning, "<string>", 1)
        show(UserWarning("of a loader"), UserWarning, __file__, 3)
    expected = ["warning: running on the CPU", "warning: test_remarks.py:3: of a loader"]
    assert capsys.readouterr().err.splitlines() == expected


def test_the_command_takes_warnings_over(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    here = bench(tmp_path, small())
    assert call(capsys, "inspect", here.model, "--quiet").code == 0
    assert warnings.showwarning.__module__ == "snp_onnx.cli.remarks"


# many of a kind


def test_what_is_said_of_many_layers_is_counted() -> None:
    lines = [f"layer /block{n}/MatMul: {n} calibration positions for 40 units: give more samples" for n in range(12)]
    assert counted(["another", *lines, "another"]) == (
        "another",
        f"{lines[0]} (and 11 more layers: /block1/MatMul, /block2/MatMul, /block3/MatMul, ...)",
    )


@pytest.mark.parametrize(
    "lines",
    [
        ("layer a: 3 rows", "layer b: not finite"),
        ("batch 1: slower", "batch 8: slower"),
        ("layer a: 3 rows", "node a: 3 rows"),
        ("1.2 times the time", "1.3 times the time"),
    ],
)
def test_what_differs_is_not_counted_as_one(lines: tuple[str, ...]) -> None:
    assert counted(lines) == lines


def test_many_warnings_are_one_line(tmp_path: Path, capsys: Capture) -> None:
    net = Net(batch="N")
    x = net.dense(net.input("x", 5), 5, 40)
    for _ in range(5):
        x = net.dense(net.Relu(x), 40, 40)
    net.output(net.dense(net.Relu(x), 40, 3))
    here = bench(tmp_path, net.model(), {"x": np.random.default_rng(0).standard_normal((20, 5))})
    outcome = here.prune(capsys, "--quiet", "--preset", "fast", "--no-latency")
    assert outcome.code == 0
    (line,) = [line for line in outcome.lines if "calibration positions" in line]
    assert "(and 5 more layers: " in line


# names as users have them


def test_names_are_no_markup_and_steer_no_terminal(tmp_path: Path, capsys: Capture) -> None:
    proto = small()
    names = {tensor.name: f"{tensor.name}[/x][a]:smile:\x1b]0;owned\x07\x9b2J" for tensor in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        tensor.name = names[tensor.name]
    for node in proto.graph.node:
        node.name = f"[bold]{node.name}\x1b[31m[/]"
        node.input[:] = [names.get(name, name) for name in node.input]
    here = bench(tmp_path, proto)
    for outcome in (here.prune(capsys, "--no-latency"), call(capsys, "inspect", here.model)):
        assert outcome.code == 0, outcome.err
        assert "w1[/x][a]:smile:\\x1b]0;" in outcome.out.replace("\n", "")
        assert not {"\x1b", "\x07", "\x9b"} & set(outcome.out + outcome.err)
    here.model.unlink()
    refused = call(capsys, "inspect", tmp_path / "no\x1b[31m.onnx")
    assert "\x1b" not in refused.err
