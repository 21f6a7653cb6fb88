"""The command line as a user calls it: every option changes what it promises to change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from snp_onnx.verbs import measure as measure_module
from tests.command_line import (
    DIGITS,
    DIGITS_OPTIONS,
    Bench,
    Done,
    bench,
    call,
    classifier,
    done,
    images,
)
from tests.graphs import Net
from tests.oracles import run
from tests.topologies import CATALOGUE

Capture = pytest.CaptureFixture[str]


# targets


@pytest.mark.parametrize(("option", "kind"), [("macs", "macs"), ("params", "params"), ("size", "bytes")])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_targets_are_kept(option: str, kind: str, share: float, tmp_path: Path, capsys: Capture) -> None:
    output, path = tmp_path / "small.onnx", tmp_path / "report.json"
    asked = ("prune", DIGITS, output, *DIGITS_OPTIONS, f"--target-{option}", share, "--report", path, "--samples", 200)
    assert call(capsys, *asked).code == 0
    report = json.loads(path.read_text())
    assert 0.95 * share < report["pruned"][kind] / report["dense"][kind] <= share
    assert report["target"] == {"kind": option, "value": share}
    assert report["pruned"]["bytes"] == output.stat().st_size
    assert report["dense"]["bytes"] == DIGITS.stat().st_size
    if kind == "bytes":
        assert output.stat().st_size <= share * DIGITS.stat().st_size


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_size_counts_external_data(share: float, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "a_rather_long_name_for_a_small_model.onnx"
    asked = ("prune", DIGITS, output, *DIGITS_OPTIONS, "--target-size", share, "--save-as-external-data")
    assert call(capsys, *asked, "--samples", 200).code == 0
    (data,) = tmp_path.glob("*.data")
    assert output.stat().st_size < 20_000
    assert 0.95 * share < (output.stat().st_size + data.stat().st_size) / DIGITS.stat().st_size <= share


def test_variance_gives_every_group_its_share(here: Bench, capsys: Capture) -> None:
    widths = {}
    for share in (0.5, 0.9, 1.0):
        found = done(here, capsys, "--variance", share, target=None)
        errors = [group["error"] for group in found.report["groups"]]
        assert all(error <= 1 - share + 1e-9 for error in errors)
        widths[share] = sum(found.widths.values())
    assert widths[0.5] < widths[0.9] < widths[1.0] <= 14


# choices


def test_round_to_gives_multiples_or_the_dense_width(here: Bench, capsys: Capture) -> None:
    plain = done(here, capsys, "--preset", "paper").widths
    assert plain == {"w1:0": 5, "w2:0": 4}
    rounded = done(here, capsys, "--preset", "paper", "--round-to", 4).widths
    assert rounded != plain
    assert all(after % 4 == 0 or after == before for after, before in zip(rounded.values(), (8, 6), strict=True))


def test_min_units_is_a_floor_and_wins_over_round_to(here: Bench, capsys: Capture) -> None:
    assert min(done(here, capsys, target=0.3).widths.values()) < 5
    assert min(done(here, capsys, "--min-units", 5, "--variance", 0.01, target=None).widths.values()) == 5
    rounded = done(here, capsys, "--min-units", 5, "--round-to", 4, "--variance", 0.01, target=None).widths
    assert rounded == {"w1:0": 8, "w2:0": 6}


def test_include_and_exclude_match_node_names(here: Bench, capsys: Capture) -> None:
    assert done(here, capsys, "--include", "^n1$", target=0.7).widths["w2:0"] == 6
    assert done(here, capsys, "--exclude", "n1", target=0.7).widths["w1:0"] == 8
    both = done(here, capsys, "--include", "n[13]", "--exclude", "n3", target=0.7)
    assert both.widths["w2:0"] == 6
    assert both.widths["w1:0"] < 8
    assert [group["note"] != "" for group in both.report["groups"]] == [False, True]


def test_units_says_what_may_go(tmp_path: Path, capsys: Capture) -> None:
    model = CATALOGUE["separate"].model("N")
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    data = np.random.default_rng(0).standard_normal((200, *shape))
    here = bench(tmp_path, model, {model.graph.input[0].name: data})
    dense = {
        group["id"]: group["before"] for group in done(here, capsys, "--variance", 1, target=None).report["groups"]
    }
    heads = done(here, capsys, "--units", "heads", "--variance", 0.3, target=None).widths
    channels = done(here, capsys, "--units", "channels", "--variance", 0.3, target=None).widths
    assert {name for name in dense if heads[name] < dense[name]} == {"w2:1"}
    assert {name for name in dense if channels[name] < dense[name]} == {"w1:1", "w6:1"} - {
        name for name in dense if channels[name] == dense[name]
    }
    assert channels["w2:1"] == dense["w2:1"] == 4
    inside = done(here, capsys, "--units", "head-dims", "--variance", 0.3, target=None)
    assert {group["id"] for group in inside.report["groups"] if group["kind"] == "head-dims"} == {"w2:1", "w4:1"}
    assert inside.widths["w2:1"] < 3 or inside.widths["w4:1"] < 3
    assert inside.widths["w1:1"] == 12


def test_streams_are_cut_only_when_asked(tmp_path: Path, capsys: Capture) -> None:
    here = bench(tmp_path, CATALOGUE["residual-identity"].model("N"))
    assert done(here, capsys, target=0.8).widths["w1:0"] == 8
    assert done(here, capsys, "--no-streams", target=0.8).widths["w1:0"] == 8
    assert done(here, capsys, "--streams", "--variance", 0.4, target=None).widths["w1:0"] < 8


def test_every_order_is_another(here: Bench, capsys: Capture) -> None:
    orders = {}
    for order in ("zca", "saw", "magnitude", "natural", "random"):
        done(here, capsys, "--order", order, "--plan", here.folder / "plan.json")
        orders[order] = json.loads((here.folder / "plan.json").read_text())["decisions"][0]["order"]
    assert len({tuple(order) for order in orders.values()}) == 5
    assert orders["natural"] == list(range(8))
    assert all(sorted(order) == list(range(8)) for order in orders.values())


def test_seed_changes_the_random_order(here: Bench, capsys: Capture) -> None:
    def order(seed: int) -> list[int]:
        done(here, capsys, "--order", "random", "--seed", seed, "--plan", here.folder / "plan.json")
        found: list[int] = json.loads((here.folder / "plan.json").read_text())["decisions"][0]["order"]
        return found

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_folding_lowers_the_error(here: Bench, capsys: Capture) -> None:
    paper = ("--preset", "paper")
    folded, plain = done(here, capsys, *paper), done(here, capsys, *paper, "--fold", "none")
    assert folded.widths == plain.widths
    assert folded.report["fidelity"][0]["relative_l2"] < plain.report["fidelity"][0]["relative_l2"]
    assert not np.array_equal(folded.weight(2), plain.weight(2))
    assert done(here, capsys, *paper, "--fold", "channel").model == folded.model


def test_uniform_ratios_cut_all_alike(tmp_path: Path, capsys: Capture) -> None:
    shares = {}
    for ratios in ("variance", "uniform"):
        asked = ("prune", DIGITS, "--dry-run", *DIGITS_OPTIONS, "--samples", 200, "--target-macs", 0.5)
        assert call(capsys, *asked, "--ratios", ratios, "--report", tmp_path / "report.json").code == 0
        groups = json.loads((tmp_path / "report.json").read_text())["groups"]
        shares[ratios] = [group["after"] / group["before"] for group in groups if not group["note"]]
    assert max(shares["uniform"]) - min(shares["uniform"]) <= 1 / 64
    assert max(shares["variance"]) - min(shares["variance"]) > 1 / 64


def test_ridge_changes_the_fold(here: Bench, capsys: Capture) -> None:
    plain, ridged = done(here, capsys), done(here, capsys, "--ridge", 10)
    assert ridged.report["options"]["ridge"] == 10
    assert ridged.report["fidelity"][0]["relative_l2"] != plain.report["fidelity"][0]["relative_l2"]


def test_preset_paper_is_what_it_says(here: Bench, capsys: Capture) -> None:
    named = done(here, capsys, "--preset", "paper")
    single = {"order": "zca", "fold": "channel", "ratios": "variance", "ridge": 1e-6, "refine": "none"}
    assert {name: named.report["options"][name] for name in single} == single
    spelt = [word for name, value in single.items() for word in (f"--{name}", value)]
    assert held(done(here, capsys, *spelt)) == held(named)
    assert held(done(here, capsys)) != held(named)


def held(found: Done) -> list[bytes]:
    """The weights alone: the metadata have the options too."""
    return [tensor.raw_data for tensor in found.model.graph.initializer]


def test_preset_best_is_the_default(here: Bench, capsys: Capture) -> None:
    plain = done(here, capsys)
    assert done(here, capsys, "--preset", "best").model == plain.model
    single = {"order": "output", "fold": "patch", "ratios": "budget", "ridge": 1e-3, "refine": "sequential"}
    assert {name: plain.report["options"][name] for name in single} == single


def test_refine_none_leaves_the_weights_as_they_were_folded(here: Bench, capsys: Capture) -> None:
    best, unrefined = done(here, capsys), done(here, capsys, "--refine", "none")
    assert best.widths == unrefined.widths
    assert held(best) != held(unrefined)
    assert unrefined.report["options"]["refine"] == "none"
    assert best.report["fidelity"][0]["relative_l2"] != unrefined.report["fidelity"][0]["relative_l2"]
    fast = done(here, capsys, "--preset", "fast", "--refine", "sequential")
    assert held(fast) != held(done(here, capsys, "--preset", "fast"))
    outcome = here.prune(capsys, "--refine", "twice")
    assert outcome.code == 2
    assert "--refine 'twice'" in outcome.err
    assert "sequential, none" in outcome.err


# data


def test_samples_are_the_first_ones(here: Bench, capsys: Capture) -> None:
    few = done(here, capsys, "--samples", 20)
    assert few.report["options"]["samples"] == 20
    np.savez(here.data, x=images()[:20])
    assert done(here, capsys).model == few.model
    np.savez(here.data, x=images())
    assert done(here, capsys).model != few.model


def test_batch_size_is_the_number_of_rows_a_run(here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    collect = measure_module.collect

    def spy(model: Any, requests: Any, batches: Any, *rest: Any, **more: Any) -> Any:
        kept = list(batches)
        seen.append(max(len(batch["x"]) for batch in kept))
        return collect(model, requests, kept, *rest, **more)

    monkeypatch.setattr(measure_module, "collect", spy)
    for size in (1, 7):
        assert done(here, capsys, "--batch-size", size).report["options"]["batch_size"] == size
    assert done(here, capsys, "--preset", "paper").widths == {"w1:0": 5, "w2:0": 4}
    assert seen == [5, 7, 16]  # activations are small here: no more than eight batches or so are worth their overhead


def test_preprocessing_is_as_if_the_data_were_so(here: Bench, capsys: Capture) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), dtype=np.uint8)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    np.savez(here.data, x=((raw / 255.0 - mean[:, None, None]) / std[:, None, None]).astype(np.float32))
    ready = done(here, capsys)
    np.savez(here.data, x=raw)
    options = ("--scale", 1 / 255, "--mean", "0.4,0.5,0.6", "--std", "0.2,0.3,0.4")
    normalised = done(here, capsys, *options)
    np.savez(here.data, x=raw.transpose(0, 2, 3, 1))
    transposed = done(here, capsys, *options, "--layout", "nhwc")
    for found in (normalised, transposed):
        assert found.widths == ready.widths
        assert np.allclose(found.weight(2), ready.weight(2), atol=1e-4)
    np.savez(here.data, x=raw)
    fidelity = [done(here, capsys, *options[:n]).report["fidelity"][0]["relative_l2"] for n in (0, 2, 4, 6)]
    assert len(set(fidelity)) == 4


def test_arrays_are_chosen_by_name(here: Bench, capsys: Capture) -> None:
    np.savez(here.data, a=images(seed=1), b=images(seed=2) * np.arange(48)[:, None, None, None].astype(np.float32))
    first, second = (done(here, capsys, "--input-array", name) for name in ("a", "b"))
    assert first.model != second.model


def test_labels_give_accuracies(tmp_path: Path, capsys: Capture) -> None:
    model = classifier()
    labels = run(model, {"x": images()})[0].argmax(axis=1)
    here = bench(tmp_path, model, {"x": images(), "y": labels})
    assert done(here, capsys).report["fidelity"][0]["dense_accuracy"] is None
    found = done(here, capsys, "--label-array", "y", target=0.9).report["fidelity"][0]
    assert found["dense_accuracy"] == 1.0
    assert found["pruned_accuracy"] == found["agreement"]
    assert "dense top-1" in here.prune(capsys, "--label-array", "y").out


def test_input_shape_sets_the_dynamic_axes(tmp_path: Path, capsys: Capture) -> None:
    net = Net(batch="N")
    x = net.conv_relu(net.input("x", 3, "H", "W"), 3, 8)
    net.output(net.conv(x, 8, 4))
    here = bench(tmp_path, net.model())
    seen = done(here, capsys).report
    given = done(here, capsys, "--input-shape", "x:1,3,16,16").report
    assert seen["input_shapes"] == {"x": [1, 3, 8, 8]}
    assert given["input_shapes"] == {"x": [1, 3, 16, 16]}
    assert given["dense"]["macs"] == 4 * seen["dense"]["macs"]
    refused = call(capsys, "inspect", here.model)
    assert refused.code == 2
    assert "--input-shape" in refused.err
    inspected = json.loads(call(capsys, "inspect", here.model, "--input-shape", "x:1,3,16,16", "--json").out)
    assert inspected["dense"] == given["dense"]
    random = ("--calibration", "random", "--target-macs", 0.6, "--dry-run")
    assert call(capsys, "prune", here.model, *random).code == 2
    assert call(capsys, "prune", here.model, *random, "--input-shape", "x:1,3,8,8").code == 0


def test_random_calibration_is_said_loudly(here: Bench, capsys: Capture) -> None:
    asked = ("prune", here.model, here.output, "--calibration", "random", "--target-macs", 0.6)
    outcome = call(capsys, *asked, "--quiet")
    assert outcome.code == 0
    assert outcome.lines[0].startswith("warning: RANDOM")
    first = onnx.load(here.output)
    assert call(capsys, *asked, "--seed", 5).code == 0
    again = onnx.load(here.output)
    assert [t.raw_data for t in again.graph.initializer] != [t.raw_data for t in first.graph.initializer]


def test_loaders_and_folders_are_sources(here: Bench, capsys: Capture) -> None:
    expected = done(here, capsys).model
    loader = here.folder / "feeds.py"
    loader.write_text(
        "import numpy as np\n"
        f"x = np.load({str(here.data)!r})['x']\n"
        "def load_data():\n    for part in np.array_split(x, 5):\n        yield {'x': part}\n"
        "def other():\n    return ({'x': 2 * feed['x']} for feed in load_data())\n"
    )
    folder = here.folder / "arrays"
    folder.mkdir()
    np.save(folder / "x.npy", images())
    np.save(here.folder / "alone.npy", images())
    for source in (loader, f"{loader}:load_data", folder, here.folder / "alone.npy"):
        assert done(here, capsys, "--calibration", source).model == expected
    assert done(here, capsys, "--calibration", f"{loader}:other").model != expected


# the runtime


def test_threads_reach_the_runtime(here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    session = onnxruntime.InferenceSession

    def spy(model: Any, options: Any, **more: Any) -> Any:
        seen.add(options.intra_op_num_threads)
        return session(model, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    done(here, capsys, "--threads", 3)
    assert seen == {3}
    seen.clear()
    monkeypatch.setenv("SNP_ONNX_THREADS", "2")
    done(here, capsys)
    assert seen == {2}


def test_providers(here: Bench, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        done(here, capsys, "--provider", "CPUExecutionProvider").report["options"]["provider"] == "CPUExecutionProvider"
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    outcome = done(here, capsys, "--provider", "cuda", "--quiet").outcome
    assert outcome.lines
    assert all(line.startswith("warning: running on the CPU") for line in outcome.lines)


def test_custom_operator_libraries_are_loaded(here: Bench, capsys: Capture) -> None:
    library = here.folder / "library.so"
    library.write_bytes(b"no library at all")
    outcome = here.prune(capsys, "--custom-ops", library)
    assert outcome.code == 2
    assert "library.so" in outcome.err
    assert len(outcome.lines) == 1


# warnings that name the layer


def test_too_few_positions_name_the_layer(tmp_path: Path, capsys: Capture) -> None:
    net = Net(batch="N")
    net.output(net.dense(net.Relu(net.dense(net.input("x", 5), 5, 40)), 40, 3))
    here = bench(tmp_path, net.model(), {"x": np.random.default_rng(0).standard_normal((20, 5))})
    outcome = here.prune(capsys, "--quiet")
    assert outcome.code == 0
    assert len(outcome.lines) == 1
    assert outcome.err.startswith("warning: layer n3: 17 calibration positions for 40 units")


def test_a_layer_that_is_not_finite_is_left_alone(tmp_path: Path, capsys: Capture) -> None:
    net = Net(batch="N")
    x = net.Relu(net.dense(net.Relu(net.dense(net.input("x", 5), 5, 12)), 12, 10))
    wild = net.Div(net.const(np.ones(10)), net.Mul(x, net.const(np.zeros(10))))  # infinite everywhere
    positive = net.const(np.abs(net.rng.standard_normal((10, 3))))
    net.output(net.Add(net.Sigmoid(net.MatMul(wild, positive)), net.dense(x, 10, 3)))
    here = bench(tmp_path, net.model(), {"x": np.random.default_rng(0).standard_normal((100, 5))})
    found = done(here, capsys, "--quiet", target=0.7)
    assert found.widths["w2:0"] == 10
    assert found.widths["w1:0"] < 12
    (line,) = found.outcome.lines
    assert line.startswith("warning: layer ")
    assert "not finite" in line


def test_widths_by_the_clock_and_what_is_timed(here: Bench, capsys: Capture) -> None:
    report = here.folder / "report.json"
    options = ("--preset", "paper", "--round-to", "auto", "--latency-batch", 2, "--report", report)
    assert here.prune(capsys, *options).code == 0
    found = json.loads(report.read_text())
    assert found["options"]["round_to"] == "auto"
    assert [entry["batch"] for entry in found["latency"]] == [1, 2]
    assert here.prune(capsys, *options, "--no-latency").code == 0
    assert json.loads(report.read_text())["latency"] == []
