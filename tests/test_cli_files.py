"""What the command line writes, byte for byte: models, reports, plans; and what it leaves alone."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from snp_onnx import __version__
from tests.command_line import (
    DIGITS,
    DIGITS_DATA,
    DIGITS_OPTIONS,
    Bench,
    bench,
    call,
    done,
    files,
    small,
)
from tests.graphs import Net
from tests.oracles import difference, run
from tests.topologies import CATALOGUE

Capture = pytest.CaptureFixture[str]


# what is written


def test_quiet_leaves_warnings_only(here: Bench, capsys: Capture) -> None:
    loud, quiet = here.prune(capsys), here.prune(capsys, "--quiet")
    assert "cost" in loud.out
    assert "fidelity" in loud.out
    assert (quiet.out, quiet.err) == ("", "")


def test_a_dry_run_writes_nothing(here: Bench, capsys: Capture) -> None:
    before = files(here.folder)
    asked = ("prune", here.model, "--calibration", here.data, "--target-macs", 0.6, "--dry-run")
    outcome = call(capsys, *asked)
    assert outcome.code == 0
    assert "w1:0" in outcome.out
    assert here.prune(capsys, "--dry-run").code == 0
    assert files(here.folder) == before


def test_the_input_stays_and_the_output_is_the_same_every_time(here: Bench, capsys: Capture) -> None:
    before = here.model.read_bytes()
    first, report = done(here, capsys), here.output.read_bytes()
    done(here, capsys)
    assert here.output.read_bytes() == report
    assert here.model.read_bytes() == before
    again = call(
        capsys, "prune", here.output, here.folder / "again.onnx", "--calibration", here.data, "--target-macs", 0.7
    )
    assert again.code == 0
    assert onnx.load(here.folder / "again.onnx").graph.initializer[0].dims[0] <= first.widths["w1:0"]


def test_force_replaces_the_model(here: Bench, capsys: Capture) -> None:
    dense = here.model.read_bytes()
    asked = ("--calibration", here.data, "--target-macs", 0.6, "--preset", "paper")
    outcome = call(capsys, "prune", here.model, here.model, *asked, "--force")
    assert outcome.code == 0
    assert len(here.model.read_bytes()) < len(dense)
    assert onnx.load(here.model).graph.initializer[0].dims[0] == 5


def test_external_data_loads_and_leaves_nothing_stale(tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "small.onnx"
    other = tmp_path / "small.onnx.notes.data"
    other.write_bytes(b"someone's own file")
    asked = ("prune", DIGITS, output, *DIGITS_OPTIONS, "--samples", 100, "--target-macs")
    assert call(capsys, *asked, 0.5).code == 0
    inside = run(onnx.load(output), {"input": digits(8)})
    assert call(capsys, *asked, 0.5, "--save-as-external-data").code == 0
    (first,) = set(tmp_path.glob("*.data")) - {other}
    outside = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    assert difference(inside, outside.run(None, {"input": digits(8)})) < 1e-5
    assert difference(inside, run(onnx.load(output), {"input": digits(8)})) == 0
    onnx.checker.check_model(output)
    assert call(capsys, *asked, 0.4, "--save-as-external-data").code == 0
    (second,) = set(tmp_path.glob("*.data")) - {other}
    assert first != second
    assert call(capsys, "compare", DIGITS, output, *DIGITS_OPTIONS).code == 0
    assert call(capsys, *asked, 0.4).code == 0
    assert sorted(files(tmp_path)) == ["small.onnx", "small.onnx.notes.data"]


def digits(count: int) -> np.ndarray[Any, Any]:
    with np.load(DIGITS_DATA) as arrays:
        return (arrays["images"][:count] / 16).astype(np.float32)


def test_the_report_has_what_is_promised(here: Bench, capsys: Capture) -> None:
    report = done(here, capsys).report
    assert set(report) >= {
        "dense", "pruned", "groups", "barriers", "fidelity", "timings", "target", "options", "versions",
        "input_shapes", "notes", "warnings",
    }  # fmt: skip
    assert set(report["dense"]) == set(report["pruned"]) == {"macs", "params", "bytes"}
    assert set(report["groups"][0]) >= {"id", "kind", "before", "after", "error"}
    assert set(report["barriers"][0]) >= {"tensor", "axis", "node", "reason"}
    assert set(report["fidelity"][0]) >= {"output", "cosine", "relative_l2", "agreement"}
    assert report["pruned"]["bytes"] == here.output.stat().st_size
    assert set(report["versions"]) >= {"snp_onnx", "onnx", "onnxruntime", "numpy"}


def test_provenance_is_in_the_metadata(here: Bench, capsys: Capture) -> None:
    pruned = done(here, capsys, "--preset", "paper")
    metadata = {entry.key: entry.value for entry in pruned.model.metadata_props}
    macs, params = (pruned.report["pruned"][kind] / pruned.report["dense"][kind] for kind in ("macs", "params"))
    words = f"{100 * macs:.1f} % of the MACs, {100 * params:.1f} % of the parameters, 2 of 2 groups cut"
    assert metadata["snp_onnx.summary"] == words
    assert metadata.keys() == {"author", *(f"snp_onnx.{key}" for key in ("version", "summary", "plan", "dense_sha256"))}
    assert metadata["author"] == "tests"
    assert metadata["snp_onnx.version"] == __version__
    assert json.loads(metadata["snp_onnx.plan"])["widths"] == {"w1:0": [8, 5], "w2:0": [6, 4]}
    assert re.fullmatch(r"[0-9a-f]{64}", metadata["snp_onnx.dense_sha256"])


# plans


def test_a_plan_with_its_sidecar_gives_the_same_model(here: Bench, capsys: Capture) -> None:
    plan, again = here.folder / "plan.json", here.folder / "again.onnx"
    first = done(here, capsys, "--plan", plan).outcome
    assert first.code == 0
    for calibration in ((), ("--calibration", here.data)):
        outcome = call(capsys, "prune", here.model, again, "--apply-plan", plan, *calibration, "--quiet")
        assert (outcome.code, outcome.err) == (0, "")
        assert again.read_bytes() == here.output.read_bytes()


def test_a_plan_of_streams_is_folded_too(tmp_path: Path, capsys: Capture) -> None:
    here = bench(tmp_path, CATALOGUE["residual-identity"].model("N"))
    plan, again = here.folder / "plan.json", here.folder / "again.onnx"
    assert done(here, capsys, "--streams", "--plan", plan, "--variance", 0.4, target=None).widths["w1:0"] < 8
    assert call(capsys, "prune", here.model, again, "--apply-plan", plan, "--calibration", here.data).code == 0
    assert again.read_bytes() == here.output.read_bytes()


def test_a_plan_without_statistics_warns(here: Bench, capsys: Capture) -> None:
    plan, again = here.folder / "plan.json", here.folder / "again.onnx"
    paper = ("--preset", "paper", "--plan", plan)
    done(here, capsys, *paper)
    (here.folder / "plan.npz").unlink()
    outcome = call(capsys, "prune", here.model, again, "--apply-plan", plan, "--quiet")
    assert outcome.code == 0
    assert len(outcome.lines) == 1
    assert outcome.err.startswith("warning: cut without folding")
    plain = done(here, capsys, *paper, "--fold", "none").model
    assert [t.raw_data for t in onnx.load(again).graph.initializer] == [t.raw_data for t in plain.graph.initializer]
    assert call(capsys, "prune", here.model, again, "--apply-plan", plan, "--quiet").err == ""  # it asks for no folding


def test_a_sidecar_of_another_plan_is_not_used(here: Bench, capsys: Capture) -> None:
    plan = here.folder / "plan.json"
    done(here, capsys, "--plan", plan)
    raw = json.loads(plan.read_text())
    raw["decisions"][0]["kept"] = [0, 1]
    plan.write_text(json.dumps(raw))
    outcome = call(capsys, "prune", here.model, here.output, "--apply-plan", plan, "--quiet")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: cut without folding")


def poisoned(arrays: dict[str, Any], name: str, value: float) -> dict[str, Any]:
    return {**arrays, name: np.full_like(arrays[name], value)}


DAMAGES = {
    "nan": lambda arrays: poisoned(arrays, "w2", np.nan),
    "zeroed": lambda arrays: poisoned(arrays, "w2", 0.0),
    "missing": lambda arrays: {name: array for name, array in arrays.items() if name != "w2"},
    "all missing": lambda arrays: {name: array for name, array in arrays.items() if name.startswith("__")},
    "more": lambda arrays: {**arrays, "w9": np.ones(3)},
    "no digest": lambda arrays: {name: array for name, array in arrays.items() if name != "__content__"},
}


@pytest.mark.parametrize("damage", [*DAMAGES, "bytes", "end", "huge", "text"])
def test_a_damaged_sidecar_is_found(damage: str, here: Bench, capsys: Capture) -> None:
    plan, sidecar = here.folder / "plan.json", here.folder / "plan.npz"
    assert here.prune(capsys, "--plan", plan, "--preset", "fast", "--no-latency").code == 0
    whole = sidecar.read_bytes()
    if damage in DAMAGES:
        with np.load(sidecar) as arrays:
            np.savez(sidecar, **DAMAGES[damage](dict(arrays)))
    elif damage == "huge":
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
        with zipfile.ZipFile(sidecar, "w") as archive:
            archive.writestr("w2.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    else:
        middle = len(whole) // 2
        parts = {"bytes": whole[:middle] + b"\xff" * 9 + whole[middle + 9 :], "end": whole[:-40], "text": b"x"}
        sidecar.write_bytes(parts[damage])
    here.output.unlink()
    outcome = call(capsys, "prune", here.model, here.output, "--apply-plan", plan, "--quiet")
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome.err
    assert "plan.npz" in outcome.err
    assert not here.output.exists()


def test_a_plan_fits_a_model_trained_anew(here: Bench, capsys: Capture) -> None:
    plan = here.folder / "plan.json"
    widths = done(here, capsys, "--plan", plan).widths
    onnx.save(small(seed=9), here.model)
    asked = ("prune", here.model, here.output, "--apply-plan", plan, "--report", here.folder / "report.json")
    without = call(capsys, *asked, "--quiet")
    assert without.code == 0
    assert "another model" in without.err
    plain = onnx.load(here.output)
    outcome = call(capsys, *asked, "--calibration", here.data, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    report = json.loads((here.folder / "report.json").read_text())
    assert {group["id"]: group["after"] for group in report["groups"]} == widths
    assert onnx.load(here.output) != plain


def test_a_plan_brings_its_input_shapes(tmp_path: Path, capsys: Capture) -> None:
    net = Net(batch="N")
    net.output(net.conv(net.conv_relu(net.input("x", 3, "H", "W"), 3, 8), 8, 4))
    here = bench(tmp_path, net.model())
    done(here, capsys, "--plan", here.folder / "plan.json")
    again = here.folder / "again.onnx"
    assert call(capsys, "prune", here.model, again, "--apply-plan", here.folder / "plan.json").code == 0
    assert again.read_bytes() == here.output.read_bytes()
