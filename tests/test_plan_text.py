"""The plan as an artefact: its schema, its text, editing by hand, and plans of the earlier version."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx.errors import PlanError
from snp_onnx.planning.plan import Plan, load_plan
from snp_onnx.planning.schema import schema_text
from tests.command_line import ROOT, Bench, bench, call, done
from tests.plans import CASES, pruned

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path) -> Bench:
    return bench(tmp_path)


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


# the schema


@pytest.mark.parametrize("name", CASES)
def test_every_plan_keeps_to_the_schema(name: str, validator: Any) -> None:
    plan = pruned(name).plan
    raw = json.loads(plan.to_json())
    assert [error.message for error in validator.iter_errors(raw)] == []
    assert Plan.from_json(plan.to_json()) == plan
    kinds = {decision["kind"] for decision in raw["decisions"]}
    assert kinds <= set(CASES[name].units)
    assert set(CASES[name].units) == kinds | ({"blocks"} if raw["removed"] else set())
    assert {decision["group"] for decision in raw["decisions"]} <= {place["group"] for place in raw["groups"]}
    assert {decision["block"] for decision in raw["removed"]} <= {place["block"] for place in raw["blocks"]}


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1.0,
    1.5,
    "",
    "text",
    [],
    {},
    [1, 1],
    [0.5],
    ["a"],
    [[]],
    10**30,
    "ab" * 32,
)


def spoiled(raw: Any, rng: random.Random) -> Any:
    """The plan with one place in it changed: another value, a key gone or too many, an item twice."""
    raw = copy.deepcopy(raw)
    holders = list(_holders(raw))
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    way = rng.choice(("set", "set", "drop", "add"))
    if way == "add" and isinstance(holder, dict):
        holder[rng.choice(("colour", "group", "kept", "type", "version"))] = rng.choice(ODD)
    elif way == "add":
        holder.append(rng.choice([*ODD, *holder[:1]]))
    elif keys and way == "drop":
        del holder[rng.choice(keys)]
    elif keys:
        holder[rng.choice(keys)] = rng.choice(ODD)
    return raw


def _holders(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


def is_read(raw: Any) -> bool:
    said = ""
    try:
        Plan.from_json(json.dumps(raw))
    except PlanError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 200
    return not said


def test_the_reader_refuses_what_the_schema_refuses(validator: Any) -> None:
    rng, seen = random.Random(0), {True: 0, False: 0}
    for name in CASES:
        raw = json.loads(pruned(name).plan.to_json())
        raw["groups"] = raw["groups"][:3]
        for decision in raw["decisions"]:
            decision["order"], decision["variance"] = decision["order"][:4], decision["variance"][:4]
        for _ in range(150):
            bad = spoiled(raw, rng)
            if isinstance(bad, dict) and bad.get("version") == 1 and not isinstance(bad["version"], bool):
                continue  # read as what that version was
            is_valid = validator.is_valid(bad)
            assert is_read(bad) == is_valid, (bad, [error.message for error in validator.iter_errors(bad)])
            seen[is_valid] += 1
    assert min(seen.values()) > 50


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "null", '{"version": true}', '{"version": NaN}', "[" * 100_000, '"' + "\\ud800" + '"']
)
def test_what_is_no_plan_is_one_line(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text, "p.json")
    assert str(caught.value).startswith("p.json: not a plan: ")
    assert "\n" not in str(caught.value)


def test_reading_needs_no_other_package() -> None:
    text = pruned("channels").plan.to_json()
    code = "import sys; sys.modules['jsonschema'] = None; import snp_onnx; snp_onnx.Plan.from_json(sys.stdin.read())"
    assert subprocess.run([sys.executable, "-c", code], input=text, text=True, cwd=ROOT, check=False).returncode == 0


def test_the_schema_is_printed(capsys: Capture) -> None:
    outcome = call(capsys, "--plan-schema")
    assert outcome.code == 0
    assert outcome.out == schema_text()
    assert json.loads(outcome.out)["$schema"].endswith("2020-12/schema")


# the text


def test_a_group_is_a_block_of_lines_and_a_list_one_line() -> None:
    plan = pruned("channels").plan
    lines = plan.to_json().splitlines()
    kept = [line for line in lines if line.strip().startswith('"kept": [')]
    assert len(kept) == len(plan.decisions)
    assert all(line.rstrip(",").endswith("]") for line in kept)
    assert json.loads(kept[0].split(": ")[1].rstrip(",")) == list(plan.decisions[0].kept)
    assert lines[1] == ' "version": 2,'
    assert max(len(line) for line in lines if '"variance"' not in line) < 121


def test_the_layout_does_not_matter(tmp_path: Path) -> None:
    result = pruned("channels")
    path = tmp_path / "plan.json"
    result.save_plan(path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7, sort_keys=True))
    saved = load_plan(path)
    assert saved.plan == result.plan
    assert saved.folds is not None


# editing by hand


def edited(path: Path) -> list[int]:
    """Put another unit in place of the last one that is kept of the first group, as a person would, in the text."""
    raw = json.loads(path.read_text())
    first = raw["decisions"][0]
    other = [unit for unit in range(first["before"]) if unit not in first["kept"]][:1]
    kept = sorted([*first["kept"][:-1], *other])
    line = f'"kept": {json.dumps(first["kept"])}'
    assert line in path.read_text()
    path.write_text(path.read_text().replace(line, f'"kept": {json.dumps(kept)}', 1))
    return kept


def test_an_edited_plan_is_folded_anew(here: Bench, capsys: Capture) -> None:
    path, again = here.folder / "plan.json", here.folder / "again.onnx"
    done(here, capsys, "--plan", path, "--preset", "fast")
    kept = edited(path)
    asked = ("prune", here.model, again, "--apply-plan", path, "--no-latency")
    without = call(capsys, *asked)
    assert without.code == 0
    assert "warning: cut without folding" in without.err
    plain = onnx.numpy_helper.to_array(onnx.load(again).graph.initializer[0])
    dense = onnx.numpy_helper.to_array(onnx.load(here.model).graph.initializer[0])
    assert np.array_equal(plain, dense[kept])
    folded = call(capsys, *asked, "--calibration", here.data)
    assert folded.code == 0
    assert "warning" not in folded.err
    assert again.read_bytes() != here.output.read_bytes()


# the earlier version


def as_version_1(plan: Plan) -> str:
    """The text as version 1 wrote it."""
    raw = json.loads(plan.to_json())
    raw["version"] = 1
    for name in ("groups", "blocks"):
        del raw[name]
    for decision in raw["decisions"]:
        decision["type"] = "slice_units"
    return json.dumps(raw, indent=1, sort_keys=True) + "\n"


def test_a_plan_of_version_1_is_carried_out_with_its_sidecar(tmp_path: Path) -> None:
    """Its sidecar knows it by the digest of that version: of the text, byte for byte."""
    result = pruned("blocks")
    path, text = tmp_path / "plan.json", as_version_1(result.plan)
    result.save_plan(path)
    with np.load(tmp_path / "plan.npz") as arrays:
        held = dict(arrays)
    held["__plan__"] = np.array(hashlib.sha256(text.encode()).hexdigest()[:16])
    np.savez(tmp_path / "plan.npz", **held)
    path.write_text(text)
    again = snp_onnx.prune(CASES["blocks"].model(), plan=path)
    assert again.report.warnings == ()
    assert again.plan == result.plan
    assert again.model.graph == result.model.graph
    assert Plan.from_json(again.plan.to_json()).version == 2
