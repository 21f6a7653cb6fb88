"""Wrong input, data, options or environment: exit code 2, one line that names it, and nothing written or changed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from snp_onnx import model_io
from snp_onnx.errors import PassError
from snp_onnx.verbs import job as job_module
from tests.command_line import Bench, Outcome, bench, call, files, images, small
from tests.graphs import Net

OLD = b"an older file"
Given = Sequence[object]


def assert_refused(outcome: Outcome, code: int, *parts: str) -> None:
    assert outcome.code == code, outcome
    assert len(outcome.lines) == 1, outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.out == ""
    assert [part for part in parts if part not in outcome.err] == [], outcome.err


@pytest.fixture
def here(tmp_path: Path) -> Bench:
    found = bench(tmp_path)
    found.output.write_bytes(OLD)
    return found


# models


def two_inputs() -> onnx.ModelProto:
    net = Net(batch="N")
    x = net.Relu(net.Add(net.dense(net.input("a", 6), 6, 8), net.dense(net.input("b", 5), 5, 8)))
    net.output(net.dense(x, 8, 3))
    return net.model()


def external(here: Bench, location: str = "weights.bin", cut: int = 0, gone: bool = False) -> None:
    """The model with its weights outside, at `location`."""
    onnx.save_model(
        small(), here.model, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    weights = here.folder / "weights.bin"
    if cut:
        weights.write_bytes(weights.read_bytes()[:-cut])
    if gone:
        weights.unlink()
    if location != "weights.bin":
        proto = onnx.load(here.model, load_external_data=False)
        for tensor in proto.graph.initializer:
            tensor.external_data[0].value = location
        here.model.write_bytes(proto.SerializeToString())


def placed(key: str, value: str) -> Callable[[Bench], None]:
    """The model with its weights outside, at an odd place."""

    def write(here: Bench) -> None:
        external(here)
        proto = onnx.load(here.model, load_external_data=False)
        entries = proto.graph.initializer[0].external_data
        kept = [(entry.key, entry.value) for entry in entries if entry.key != key]
        del entries[:]
        for name, text in (*kept, (key, value)):
            entries.add(key=name, value=text)
        here.model.write_bytes(proto.SerializeToString())

    return write


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Bench], None]:
    def write(here: Bench) -> None:
        proto = small()
        change(proto)
        here.model.write_bytes(proto.SerializeToString())

    return write


def a_folder(here: Bench) -> None:
    here.model.unlink()
    here.model.mkdir()


def a_picture(here: Bench) -> None:
    Image.new("RGB", (9, 9)).save(here.model, format="png")


def own_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].domain = "my.ops"
    proto.opset_import.add(domain="my.ops", version=1)


def doubling(proto: onnx.ModelProto, depth: int = 30, last: str = "Relu") -> None:
    """Functions that each call the next one twice, behind the model's first node."""
    proto.ir_version = 9
    proto.opset_import.add(domain="my", version=1)
    for number in range(depth):
        inner = f"f{number + 1}" if number < depth - 1 else last
        nodes = [
            onnx.helper.make_node(inner, [x], [y], domain="" if inner == "Relu" else "my")
            for x, y in (("x", "a"), ("a", "y"))
        ]
        imports = [proto.opset_import[0], onnx.helper.make_opsetid("my", 1)]
        proto.functions.append(onnx.helper.make_function("my", f"f{number}", ["x"], ["y"], nodes, imports))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "f0", "my"


MODELS: dict[str, tuple[Callable[[Bench], object], tuple[str, ...]]] = {
    "missing": (lambda here: here.model.unlink(), ("no such model file",)),
    "folder": (a_folder, ("holds no ONNX file",)),
    "text": (lambda here: here.model.write_text("this is not a model\n" * 9), ("not an ONNX model",)),
    "empty": (lambda here: here.model.write_bytes(b""), ("not an ONNX model",)),
    "picture": (a_picture, ("not an ONNX model",)),
    "truncated": (lambda here: here.model.write_bytes(here.model.read_bytes()[:-2000]), ("truncated",)),
    "damaged weight": (
        changed(lambda p: setattr(p.graph.initializer[0], "raw_data", b"1234")),
        ("w1", "4 bytes", "864"),
    ),
    "data missing": (lambda here: external(here, gone=True), ("weights.bin", "w1", "missing")),
    "data truncated": (lambda here: external(here, cut=100), ("weights.bin", "too short")),
    "data outside": (lambda here: external(here, "../weights.bin"), ("outside", "../weights.bin")),
    "data at an absolute path": (lambda here: external(here, "/etc/hostname"), ("outside", "/etc/hostname")),
    "data at an offset in words": (placed("offset", "far"), ("w1", "nowhere")),
    "data at a negative offset": (placed("offset", "-8"), ("w1", "nowhere")),
    "data at a huge offset": (placed("offset", "9" * 400), ("w1", "nowhere")),
    "data past the end": (placed("offset", str(2**62)), ("w1", "too short")),
    "data of a length in words": (placed("length", "1e3"), ("w1", "nowhere")),
    "data of a wrong length": (placed("length", "4"), ("w1", "864 bytes")),
    "data in a loop": (
        lambda here: (external(here, gone=True), (here.folder / "weights.bin").symlink_to("weights.bin")),
        ("weights.bin", "missing"),
    ),
    "no values": (changed(lambda p: p.graph.initializer[0].ClearField("raw_data")), ("w1", "holds 0 values", "216")),
    "few values": (
        changed(lambda p: (p.graph.initializer[0].ClearField("raw_data"), p.graph.initializer[0].float_data.append(1))),
        ("w1", "holds 1 values"),
    ),
    "2^40 rows": (changed(lambda p: p.graph.initializer[0].dims.__setitem__(0, 2**40)), ("w1", "its shape wants")),
    "negative rows": (changed(lambda p: p.graph.initializer[0].dims.__setitem__(0, -8)), ("w1", "shape (-8")),
    "an endless input": (
        changed(lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 2**62)),
        ("'x'", "4611686018427387904"),
    ),
    "a name in bytes": (
        lambda here: here.model.write_bytes(here.model.read_bytes().replace(b"w1", b"\xff\xfe")),
        ("isn't UTF-8",),
    ),
    "doubling functions": (changed(doubling), ("1,073,741,8", "nodes", "are the most")),
    "a function in itself": (changed(lambda p: doubling(p, last="f0")), ("function f0 calls itself",)),
    "unknown operator": (changed(lambda p: setattr(p.graph.node[1], "op_type", "Unheard")), ("Unheard",)),
    "custom operator": (changed(own_operator), ("my.ops",)),
    "opset": (changed(lambda p: setattr(p.opset_import[0], "version", 99)), ("opset ai.onnx 99", "onnxruntime 1.")),
    "IR": (changed(lambda p: setattr(p, "ir_version", 99)), ("IR version 99", "onnxruntime 1.")),
    "dangling": (changed(lambda p: p.graph.node[2].input.__setitem__(0, "nowhere")), ("nowhere",)),
    "no such output": (changed(lambda p: setattr(p.graph.output[0], "name", "nowhere")), ("nowhere",)),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_used(case: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, parts = MODELS[case]
    spoil(here)
    before = files(here.folder)
    assert_refused(here.prune(capsys), 2, *parts)
    assert files(here.folder) == before


@pytest.mark.parametrize(
    "case", ["an endless input", "missing", "text", "truncated", "damaged weight", "data outside", "dangling"]
)
def test_inspect_refuses_them_too(case: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    MODELS[case][0](here)
    assert_refused(call(capsys, "inspect", here.model), 2)


# calibration


def arrays(**named: Any) -> Callable[[Bench], Given]:
    def write(here: Bench) -> Given:
        np.savez(here.data, **named)
        return ()

    return write


def loader(text: str, name: str = "") -> Callable[[Bench], Given]:
    def write(here: Bench) -> Given:
        path = here.folder / "feeds.py"
        path.write_text(text)
        return ("--calibration", f"{path}{name}")

    return write


def poisoned(value: float) -> np.ndarray[Any, Any]:
    values = images()
    values[17, 1, 2, 3] = value
    return values


def broken_zip(here: Bench) -> Given:
    here.data.write_bytes(here.data.read_bytes()[:-300])
    return ()


def headed(shape: str) -> Callable[[Bench], Given]:
    """A .npy file of which only the header is there."""

    def write(here: Bench) -> Given:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        (here.folder / "odd.npy").write_bytes(start + header)
        return ("--calibration", here.folder / "odd.npy")

    return write


def two_models(here: Bench) -> Given:
    onnx.save(two_inputs(), here.model)
    np.savez(here.data, a=np.zeros((40, 6)))
    return ()


RAISES = "def load_data():\n    yield {'x': None}\ndef other():\n    raise RuntimeError('the disk is on fire')\n"

SOURCES: dict[str, tuple[Callable[[Bench], Given], tuple[str, ...]]] = {
    "missing file": (lambda here: ("--calibration", "absent.npz"), ("absent.npz",)),
    "unknown form": (lambda here: ("--calibration", here.model), ("model.onnx", ".npz")),
    "broken": (broken_zip, ("data.npz",)),
    "input missing": (two_models, ("'b'", "'a'")),
    "misnamed": (arrays(u=images(), v=images()), ("'u'", "'v'", "--input-array")),
    "rank": (arrays(x=images()[:, 0]), ("'x'", "(48, 8, 8)")),
    "shape": (arrays(x=images(channels=5)), ("'x'", "(48, 5, 8, 8)", "(N, 3, 8, 8)")),
    "type": (arrays(x=np.full((9, 3, 8, 8), "a")), ("'x'",)),
    "no samples": (arrays(x=images()[:0]), ("no samples",)),
    "nan": (arrays(x=poisoned(np.nan)), ("'x'", "sample 17")),
    "infinity": (arrays(x=poisoned(np.inf)), ("'x'", "sample 17")),
    "a pipe": (lambda here: (os.mkfifo(here.folder / "p.npz"), ("--calibration", "p.npz"))[1], ("p.npz",)),
    "negative rows": (headed("(-4, 3, 8, 8)"), ("odd.npy", "shape")),
    "huge rows": (headed("(1099511627776, 3, 8, 8)"), ("odd.npy",)),
    "open brackets": (headed("(" * 9000), ("odd.npy",)),
    "pickled": (arrays(x=images().astype(object)), ("'x'", "Python objects")),
    "raising loader": (loader(RAISES, ":other"), ("feeds.py:4", "RuntimeError", "the disk is on fire")),
    "loader without the function": (loader(RAISES, ":third"), ("third", "load_data")),
    "loader with a syntax error": (loader("def load_data(:\n"), ("feeds.py:1", "SyntaxError")),
    "mean": (lambda here: ("--mean", "1,2"), ("--mean", "2 numbers")),
    "mean in words": (lambda here: ("--mean", "a,b"), ("--mean", "'a,b'")),
    "zero std": (lambda here: ("--std", "0"), ("--std",)),
    "layout": (lambda here: ("--layout", "chwn"), ("--layout", "nhwc")),
    "input array": (lambda here: ("--input-array", "absent"), ("absent", "'x'")),
    "label array": (lambda here: ("--label-array", "absent"), ("absent", "'x'")),
}


@pytest.mark.parametrize("case", SOURCES)
def test_calibration_that_cannot_be_used(case: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, parts = SOURCES[case]
    options = spoil(here)
    before = files(here.folder)
    assert_refused(here.prune(capsys, *options), 2, *parts)
    assert {k: v for k, v in files(here.folder).items() if "__pycache__" not in k} == before


def test_no_calibration_at_all(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(call(capsys, "prune", here.model, here.output, "--target-macs", 0.5), 2, "--calibration")
    assert here.output.read_bytes() == OLD


# options

OPTIONS: dict[str, tuple[Given, tuple[str, ...]]] = {
    "provider": (("--provider", "abacus"), ("abacus", "CPUExecutionProvider")),
    "include": (("--include", "("), ("--include", "'('")),
    "exclude": (("--exclude", "[a"), ("--exclude", "'[a'")),
    "two targets": (("--target-params", 0.5), ("2 targets", "--target-params")),
    "plan and target": (("--apply-plan", "plan.json"), ("plan", "target")),
    "preset": (("--preset", "magic"), ("--preset", "'magic'", "paper")),
    "order": (("--order", "best"), ("--order", "'best'", "zca")),
    "fold": (("--fold", "paper"), ("--fold", "'paper'", "channel")),
    "ratios": (("--ratios", "equal"), ("--ratios", "'equal'", "uniform")),
    "units": (("--units", "channels,wheels"), ("--units", "'wheels'", "heads")),
    "no units": (("--units", ""), ("--units", "channels")),
    "unknown option": (("--speed", 9), ("--speed",)),
    "misspelt option": (("--target-mac", 0.4), ("--target-mac",)),
    "option without its value": (("--samples",), ("--samples",)),
    "one argument too many": (("another.onnx",), ("another.onnx",)),
    "shape of no input": (("--input-shape", "y:1,3,8,8"), ("--input-shape y", "inputs are x")),
    "shape of another rank": (("--input-shape", "x:1,3,8"), ("x:1,3,8", "?,3,8,8")),
    "shape against the model": (("--input-shape", "x:1,4,8,8"), ("x:1,4,8,8", "?,3,8,8")),
    "shape with zero": (("--input-shape", "x:0,3,8,8"), ("x:0,3,8,8",)),
    "shape without a name": (("--input-shape", "1,3,8,8"), ("1,3,8,8", "NAME")),
    "shape in words": (("--input-shape", "x:one"), ("x:one", "NAME")),
    "samples": (("--samples", 0), ("--samples 0",)),
    "samples in words": (("--samples", "many"), ("--samples",)),
    "batch size": (("--batch-size", 0), ("--batch-size 0",)),
    "threads": (("--threads", 0), ("--threads 0",)),
    "negative threads": (("--threads", -1), ("--threads -1",)),
    "round to": (("--round-to", 0), ("--round-to 0",)),
    "min units": (("--min-units", 0), ("--min-units 0",)),
    "seed": (("--seed", -1), ("--seed -1",)),
    "ridge": (("--ridge", 0), ("--ridge 0",)),
    "ridge nan": (("--ridge", "nan"), ("--ridge nan",)),
    "custom operators": (("--custom-ops", "absent.so"), ("absent.so",)),
    "report": (("--report", "report.txt"), ("--report", ".json")),
    "report in no folder": (("--report", "absent/report.json"), ("absent",)),
    "plan": (("--plan", "plan.yaml"), ("--plan", ".json")),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_cannot_be_used(
    case: str, here: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, parts = OPTIONS[case]
    monkeypatch.chdir(here.folder)
    before = files(here.folder)
    assert_refused(here.prune(capsys, *options), 2, *parts)
    assert files(here.folder) == before


@pytest.mark.parametrize("name", ["target-macs", "target-params", "target-size", "variance"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "inf", "half"])
def test_targets_that_are_no_fraction(name: str, value: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(here.prune(capsys, f"--{name}", value, target=None), 2, f"--{name}")
    assert here.output.read_bytes() == OLD


def test_no_target(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(here.prune(capsys, target=None), 2, "no target", "--target-macs", "--variance")


def test_variance_implies_its_ratios(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = here.prune(capsys, "--variance", 0.9, "--ratios", "uniform", target=None)
    assert_refused(outcome, 2, "--variance", "uniform")


@pytest.mark.parametrize("arguments", [(), ("prone",), ("prune",), ("inspect", "a", "b"), ("compare", "a")])
def test_mistyped_commands(arguments: Given, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(call(capsys, *arguments), 2)


# where the output goes


def test_the_output_folder_must_exist(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "prune", here.model, here.folder / "a/b.onnx", "--calibration", here.data, "--variance", 0.9)
    assert_refused(outcome, 2, "folder", "doesn't exist")
    assert not (here.folder / "a").exists()


def test_the_output_folder_must_be_writable(
    here: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    assert_refused(here.prune(capsys), 2, "not writable")
    assert here.output.read_bytes() == OLD


def test_the_output_must_not_be_a_folder(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "prune", here.model, here.folder, "--calibration", here.data, "--variance", 0.9)
    assert_refused(outcome, 2, "name a file")


def test_the_output_must_be_named(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, "prune", here.model, "--calibration", here.data, "--variance", 0.9)
    assert_refused(outcome, 2, "OUTPUT", "--dry-run")


@pytest.mark.parametrize("how", ["name", "link", "dots"])
def test_the_model_is_replaced_only_by_force(how: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = {"name": here.model, "link": here.folder / "link.onnx", "dots": here.folder / "." / ".." / here.folder.name}
    output = path[how] / "model.onnx" if how == "dots" else path[how]
    if how == "link":
        output.symlink_to(here.model)
    before = files(here.folder)
    asked = ("prune", here.model, output, "--calibration", here.data, "--target-macs", 0.5, "--preset", "paper")
    assert_refused(call(capsys, *asked), 2, "--force")
    assert files(here.folder) == before
    assert call(capsys, *asked, "--force").code == 0
    assert onnx.load(output).graph.initializer[0].dims[0] < 8


@pytest.mark.parametrize(
    ("option", "name"),
    [("--report", "out.json"), ("--plan", "data.json"), ("--plan", "feeds.json"), ("--report", "old.json")],
)
def test_outputs_never_take_the_place_of_inputs(
    option: str, name: str, here: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report named like the output; a plan whose sidecar is the data or another archive; a report over the plan."""
    np.savez(here.folder / "feeds.npz", y=np.ones(3))
    assert here.prune(capsys, "--dry-run", "--plan", here.folder / "old.json").code == 0
    before = files(here.folder)
    output = here.folder / "out.json" if name == "out.json" else here.output
    source = ("--apply-plan", here.folder / "old.json") if name == "old.json" else ("--target-macs", 0.6)
    asked = ("prune", here.model, output, "--calibration", here.data, *source, option, here.folder / name)
    assert_refused(call(capsys, *asked), 2, name)
    assert files(here.folder) == before


def test_the_output_is_no_other_file_of_the_run(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    external(here)
    before = files(here.folder)
    for name in ("data.npz", "weights.bin"):
        outcome = call(
            capsys, "prune", here.model, here.folder / name, "--calibration", here.data, "--variance", 0.9, "--force"
        )
        assert_refused(outcome, 2, name, "input of the run")
    assert files(here.folder) == before


@pytest.mark.parametrize("options", [(), ("--save-as-external-data",)])
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS])
def test_a_file_system_that_fails(
    options: Given, fault: int, here: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError(fault, os.strerror(fault), str(target))

    before = files(here.folder)
    monkeypatch.setattr(model_io.os, "replace", fail)
    assert_refused(here.prune(capsys, *options), 2, "can't write", os.strerror(fault))
    assert files(here.folder) == before


def test_a_full_disk_is_seen_before_writing(
    here: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_io, "_free_bytes", lambda folder: 100)
    assert_refused(here.prune(capsys), 2, "bytes", "free")
    assert here.output.read_bytes() == OLD


# plans


def decisions(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda plan: change(plan["decisions"][0])


PLANS: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "version": (lambda plan: plan.update(version=99), ("version 99",)),
    "no decisions": (lambda plan: plan.pop("decisions"), ("not a plan", "decisions")),
    "unknown decision": (decisions(lambda d: d.update(type="paint")), ("w1:0", "'type'")),
    "unknown decision of version 1": (
        lambda plan: (plan.update(version=1), plan["decisions"][0].update(type="paint")),
        ("'paint'",),
    ),
    "decided twice": (lambda plan: plan["decisions"].append(plan["decisions"][0]), ("w1:0", "two decisions")),
    "huge number": (decisions(lambda d: d.update(kept=[10**400])), ("not a plan", "too large")),
    "large number": (decisions(lambda d: d.update(kept=[10**40])), ("not a plan", "is more than")),
    "huge whole float": (decisions(lambda d: d.update(kept=[1e300])), ("not a plan", "is more than")),
    "unit out of range": (decisions(lambda d: d.update(kept=[2**31 - 1])), ("w1:0", "different numbers")),
    "unknown field": (decisions(lambda d: d.update(colour="red")), ("not a plan",)),
    "other width": (decisions(lambda d: d.update(before=9)), ("w1:0", "wrong model")),
    "other group": (decisions(lambda d: d.update(group="w9:0")), ("w9:0", "wrong model")),
    "nothing kept": (decisions(lambda d: d.update(kept=[])), ("w1:0",)),
    "kept twice": (decisions(lambda d: d.update(kept=[1, 1])), ("w1:0",)),
    "kept beyond": (decisions(lambda d: d.update(kept=[8])), ("w1:0",)),
    "kept in words": (decisions(lambda d: d.update(kept=["a"])), ("w1:0",)),
}


@pytest.mark.parametrize("case", PLANS)
def test_plans_that_do_not_fit(case: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, parts = PLANS[case]
    path = here.folder / "plan.json"
    assert here.prune(capsys, "--dry-run", "--plan", path).code == 0
    plan = json.loads(path.read_text())
    spoil(plan)
    path.write_text(json.dumps(plan))
    before = files(here.folder)
    assert_refused(here.prune(capsys, "--apply-plan", path, target=None), 2, *parts)
    assert files(here.folder) == before


@pytest.mark.parametrize(
    "content", ["no plan", "[]", "7", "{}", '{"version": 1}', "\x00\xff", "[" * 99999, '{"version": 1e999}', "9" * 9999]
)
def test_files_that_are_no_plan(content: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = here.folder / "plan.json"
    path.write_bytes(content.encode("latin-1"))
    assert_refused(here.prune(capsys, "--apply-plan", path, target=None), 2, "plan.json")
    assert_refused(here.prune(capsys, "--apply-plan", here.folder / "absent.json", target=None), 2, "absent.json")


def test_a_damaged_sidecar(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = here.folder / "plan.json"
    here.prune(capsys, "--dry-run", "--plan", path)
    sidecar = here.folder / "plan.npz"
    sidecar.write_bytes(sidecar.read_bytes()[:-200])
    outcome = call(capsys, "prune", here.model, here.output, "--apply-plan", path)
    assert_refused(outcome, 2, "plan.npz", "folded weights")


# out of reach: exit code 3


def test_an_unreachable_target_says_how_far_it_gets(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = here.prune(capsys, target=0.01)
    smallest = (3 * 9 + 9 + 4 * 9) / (3 * 8 * 9 + 8 * 6 * 9 + 6 * 4 * 9)
    assert_refused(outcome, 3, "--target-macs 0.01", f"{smallest + 0.0005:.3f}")
    assert here.output.read_bytes() == OLD


@pytest.mark.parametrize("name", ["target-params", "target-size"])
def test_other_targets_out_of_reach(name: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(here.prune(capsys, f"--{name}", 0.001, target=None), 3, f"--{name} 0.001", "can't be reached")


def test_nothing_prunable_says_why_axis_by_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net(batch="N")
    x = net.conv(net.image(), 3, 8)
    net.output(x, net.conv(net.Softmax(net.conv(x, 8, 6), axis=1), 6, 4))
    here = bench(tmp_path, net.model())
    before = files(tmp_path)
    outcome = here.prune(capsys)
    assert_refused(outcome, 3, "nothing can be pruned", "w1 axis 0: graph output", "w2 axis 0", "w3 axis 0")
    assert "Softmax" in outcome.err or "softmax" in outcome.err.lower()
    assert files(tmp_path) == before


def test_everything_excluded(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused(here.prune(capsys, "--exclude", "."), 3, "nothing can be pruned: 2 groups need another --exclude")
    assert_refused(here.prune(capsys, "--units", "heads"), 3, "2 groups need --units channels,heads")
    assert here.output.read_bytes() == OLD


# our bugs: exit code 1


def test_failed_verification_is_our_bug(
    here: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PassError("the pruned model is bad")

    monkeypatch.setattr(job_module, "verify", fail)
    assert_refused(here.prune(capsys), 1, "the pruned model is bad")
    assert here.output.read_bytes() == OLD


def test_an_unexpected_error_is_one_line_too(
    here: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.delenv("SNP_ONNX_TRACEBACK", raising=False)
    monkeypatch.setattr(job_module, "find_candidate", fail)
    assert_refused(here.prune(capsys), 1, "ZeroDivisionError", "first line second line", "SNP_ONNX_TRACEBACK")
    assert here.output.read_bytes() == OLD
    monkeypatch.setenv("SNP_ONNX_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        here.prune(capsys)
