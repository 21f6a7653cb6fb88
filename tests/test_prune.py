"""Pruning from Python, the whole road: every source, target and kind of model, and the oracles on the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import snp_onnx
from snp_onnx import CalibrationError, ModelError, PassError, PlanError, PruneResult, TargetError
from snp_onnx.calibration.sessions import Runtime
from snp_onnx.cost import mac_terms, param_terms
from snp_onnx.passes import prepare
from snp_onnx.planning.budget import legal_widths
from snp_onnx.planning.cost_table import CostTable
from snp_onnx.sources.samples import Part
from snp_onnx.tracing import trace
from snp_onnx.verbs.verify import verify
from tests.command_line import DIGITS, DIGITS_DATA, classifier, images, small
from tests.graphs import Net, feed_for
from tests.oracles import assert_same_surface, assert_valid, cut, difference, run
from tests.topologies import CATALOGUE

Array = npt.NDArray[Any]


def widths(result: PruneResult) -> dict[str, int]:
    return {group.id: group.after for group in result.report.groups}


def weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: tensor.raw_data for tensor in model.graph.initializer}


# sources


class Reader:
    """The protocol of onnxruntime's calibration readers."""

    def __init__(self, x: Array) -> None:
        self.feeds = iter([{"x": part} for part in np.array_split(x, 6)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def yielded(x: Array) -> Iterator[dict[str, Array]]:
    yield from ({"x": part} for part in np.array_split(x, 6))


@pytest.mark.parametrize("form", ["mapping", "array", "list", "generator", "reader", "npz", "npy", "folder", "loader"])
def test_every_source_gives_the_same_model(form: str, tmp_path: Path) -> None:
    x = images()
    np.savez(tmp_path / "data.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "x.npy", x)
    (tmp_path / "feeds.py").write_text(
        f"import numpy as np\ndef load_data():\n    yield {{'x': np.load({str(tmp_path / 'x.npy')!r})}}\n"
    )
    sources = {
        "mapping": {"x": x},
        "array": x,
        "list": list(yielded(x)),
        "generator": yielded(x),
        "reader": Reader(x),
        "npz": tmp_path / "data.npz",
        "npy": str(tmp_path / "x.npy"),
        "folder": tmp_path / "folder",
        "loader": str(tmp_path / "feeds.py"),
    }
    expected = snp_onnx.prune(small(), {"x": x}, target_macs=0.6).model
    assert snp_onnx.prune(small(), sources[form], target_macs=0.6).model == expected


# arguments


def test_misspelt_keywords_are_type_errors() -> None:
    with pytest.raises(TypeError, match="target_mac"):
        snp_onnx.prune(small(), images(), target_mac=0.5)
    with pytest.raises(TypeError, match="sampels"):
        snp_onnx.compare(small(), small(), images(), sampels=3)


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({}, PlanError, "no target"),
        ({"target_macs": 0.5, "variance": 0.9}, PlanError, "2 targets"),
        ({"target_macs": 0}, PlanError, "--target-macs"),
        ({"target_macs": 0.5, "order": "x"}, PlanError, "--order"),
        ({"target_macs": 0.5, "units": ["x"]}, PlanError, "--units"),
        ({"target_macs": 0.5, "threads": 0}, PlanError, "--threads"),
        ({"target_macs": 0.5, "batch_size": 0}, PlanError, "--batch-size"),
        ({"target_macs": 0.5, "input_shapes": {"y": (1,)}}, PlanError, "y"),
        ({"target_macs": 0.5, "provider": "abacus"}, PlanError, "abacus"),
        ({"target_macs": 0.5, "plan": "plan.json"}, PlanError, "plan and a target"),
        ({"target_macs": 0.5, "calibration": None}, CalibrationError, "SOURCE"),
        ({"target_macs": 0.5, "calibration": {"y": np.zeros(3)}}, CalibrationError, "'y'"),
        ({"target_macs": 0.5, "model": "absent.onnx"}, ModelError, "absent.onnx"),
        ({"target_macs": 0.01}, TargetError, "can't be reached"),
    ],
)
def test_wrong_arguments_are_value_errors(options: dict[str, Any], kind: type[Exception], word: str) -> None:
    given = {"model": small(), "calibration": images(), **options}
    with pytest.raises(kind, match=word) as caught:
        snp_onnx.prune(given.pop("model"), given.pop("calibration"), **given)
    assert isinstance(caught.value, ValueError)


def test_numbers_may_be_given_plainly() -> None:
    one = snp_onnx.prune(small(), images(), target_macs=0.6, mean=0.5, std=np.float64(2.0)).model
    assert one == snp_onnx.prune(small(), images(), target_macs=0.6, mean=(0.5,) * 3, std=[2.0]).model
    assert one != snp_onnx.prune(small(), images(), target_macs=0.6, scale=None, batch_size=None, seed=None).model


def test_progress_is_told() -> None:
    heard: list[tuple[str, int, int]] = []
    snp_onnx.prune(small(), images(), target_macs=0.6, batch_size=10, progress=lambda *event: heard.append(event))
    assert ("calibrate", 5, 5) in heard  # 44 of 48 samples, ten at a time
    assert heard[0][0] == "prepare"


# what a caller keeps


def test_the_model_given_is_never_changed(tmp_path: Path) -> None:
    model = CATALOGUE["conv-bn-relu"].model("N")
    before = model.SerializeToString()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    on_disk = path.read_bytes()
    first, second = (snp_onnx.prune(given, images(), target_macs=0.6).model for given in (model, path))
    assert weights(first) == weights(second)
    assert model.SerializeToString() == before
    assert path.read_bytes() == on_disk


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (snp_onnx.prune(classifier(), images(), target_macs=0.5) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.plan == second.plan


def test_keeping_all_changes_no_output() -> None:
    for options in ({"target_macs": 1.0}, {"variance": 1.0}):
        result = snp_onnx.prune(small(), images(), **options)  # type: ignore[arg-type]
        assert widths(result) == {"w1:0": 8, "w2:0": 6}
        assert difference(run(small(), {"x": images()}), run(result.model, {"x": images()})) == 0


def test_results_are_saved_whole(tmp_path: Path) -> None:
    result = snp_onnx.prune(small(), images(), target_macs=0.6)
    assert list(tmp_path.iterdir()) == []
    assert result.save(tmp_path / "small.onnx") == (tmp_path / "small.onnx").stat().st_size
    assert onnx.load(tmp_path / "small.onnx") == result.model
    result.save_plan(tmp_path / "plan.json")
    again = snp_onnx.prune(small(), plan=tmp_path / "plan.json")
    assert again.model == result.model
    assert again.report.warnings == ()
    assert again.report.fidelity == ()
    carried = snp_onnx.prune(small(), images(), plan=result.plan)
    assert carried.model == result.model
    with pytest.raises(PlanError, match="doesn't exist"):
        result.save(tmp_path / "absent" / "small.onnx")


def test_fidelity_is_measured_on_samples_held_back() -> None:
    x = images(400)
    result = snp_onnx.prune(classifier(), {"x": x}, target_macs=0.3)
    (entry,) = result.report.fidelity
    places = Part.HELD_OUT.choose(np.arange(400))
    held = x[places]
    dense, pruned = (run(model, {"x": held})[0].astype(np.float64) for model in (classifier(), result.model))
    cosines = (dense * pruned).sum(1) / np.linalg.norm(dense, axis=1) / np.linalg.norm(pruned, axis=1)
    assert entry.samples == len(held) == 40
    assert entry.cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert entry.relative_l2 == pytest.approx(np.linalg.norm(dense - pruned) / np.linalg.norm(dense), rel=1e-4)
    assert entry.agreement == pytest.approx((dense.argmax(1) == pruned.argmax(1)).mean())
    assert entry.agreement is not None
    assert entry.agreement < 1
    x[places] *= 0.9  # the samples held back have no part in the statistics
    assert weights(snp_onnx.prune(classifier(), {"x": x}, target_macs=0.3).model) == weights(result.model)


# targets


@pytest.mark.parametrize("share", [0.85, 0.55, 0.25])
@pytest.mark.parametrize("options", [{}, {"round_to": 2}, {"min_units": 3, "round_to": 2}], ids=str)
@pytest.mark.parametrize("kind", ["macs", "params", "size"])
def test_no_single_step_still_fits(kind: str, share: float, options: dict[str, int]) -> None:
    model = CATALOGUE["unet"].model("N")
    least, step = options.get("min_units", 1), options.get("round_to", 1)
    try:
        target = {f"target_{kind}": share}
        result = snp_onnx.prune(model, images(), preset="fast", streams=True, threads=1, **target, **options)  # type: ignore[arg-type]
    except TargetError:
        assert share == 0.25
        return
    prepared = prepare(model).model
    found = trace(prepared, {"x": (1, 3, 8, 8)})
    limit = share * {"macs": result.report.dense.macs, "params": result.report.dense.params}.get(kind, model.ByteSize())
    kept = np.array([widths(result)[group.id] for group in found.groups])
    assert cost(kind, kept, prepared, found, result) <= limit
    for number, group in enumerate(found.groups):
        rungs = legal_widths(len(group), least, step)
        assert kept[number] in rungs
        for wider in [rung for rung in rungs if rung > kept[number]][:1]:
            tried = kept.copy()
            tried[number] = wider
            assert cost(kind, tried, prepared, found, result) > limit - 16 * (kind == "size"), group.id


def cost(kind: str, kept: Array, prepared: onnx.ModelProto, found: Any, result: PruneResult) -> float:
    """What the model costs at these widths; bytes by cutting it."""
    if kind != "size":
        terms = mac_terms(prepared, found.facts.shapes) if kind == "macs" else param_terms(prepared)
        return CostTable(terms, found, found.groups).cost(kept)
    removed = [group.labels[width:] for group, width in zip(found.groups, kept, strict=True)]
    small_model = cut(prepared, found, found.alive(removed))
    ours = [entry for entry in result.model.metadata_props if entry.key.startswith("snp_onnx")]
    small_model.metadata_props.extend(ours)
    return float(small_model.ByteSize())


def test_reported_costs_are_those_of_the_model() -> None:
    result = snp_onnx.prune(DIGITS, DIGITS_DATA, input_array="images", scale=1 / 16, samples=200, target_macs=0.5)
    again = snp_onnx.inspect(result.model).dense
    assert (again.macs, again.params) == (result.report.pruned.macs, result.report.pruned.params)
    assert result.report.pruned.bytes == result.model.ByteSize()
    assert result.report.fidelity[0].agreement is not None
    assert result.report.fidelity[0].agreement > 0.8


# models of every kind


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_whole_road_on_every_topology(name: str) -> None:
    model = CATALOGUE[name].model("N" if "N" in CATALOGUE[name].batches else 2)
    feeds = [feed_for(model, 2, seed) for seed in range(24)]
    before = model.SerializeToString()
    if not CATALOGUE[name].groups and not CATALOGUE[name].heads:
        with pytest.raises(TargetError, match="nothing can be pruned"):
            snp_onnx.prune(model, feeds, target_params=0.8, streams=True)
        return
    result = snp_onnx.prune(model, feeds, variance=0.8, preset="paper", streams=True, threads=1)
    assert model.SerializeToString() == before
    assert result.report.pruned.params < result.report.dense.params
    assert all("not finite" not in warning for warning in result.report.warnings)
    for feed in feeds[:2]:
        dense, pruned = run(model, feed), run(result.model, feed)
        assert [output.shape for output in dense] == [output.shape for output in pruned]


@pytest.mark.parametrize("name", [name for name, t in CATALOGUE.items() if t.groups or t.heads])
def test_best_on_every_topology(name: str) -> None:
    """Enough rows for nearly every layer to be refitted, over chains too, and still batches of different sizes."""
    model = CATALOGUE[name].model("N" if "N" in CATALOGUE[name].batches else 2)
    is_fixed = "N" not in CATALOGUE[name].batches
    feeds = [feed_for(model, 2 if is_fixed else 7 + seed % 3, seed) for seed in range(32 if is_fixed else 8)]
    before = model.SerializeToString()
    result = snp_onnx.prune(model, feeds, target_params=0.85, streams=True, threads=1)
    assert model.SerializeToString() == before
    assert result.report.options["refine"] == "sequential"
    assert result.report.pruned.params <= 0.85 * result.report.dense.params
    assert result.report.pruned.bytes == result.model.ByteSize()
    assert all("not finite" not in warning for warning in result.report.warnings)
    assert_valid(result.model, feeds[0], full_check=not CATALOGUE[name].is_deprecated)
    dense, pruned = run(model, feeds[1]), run(result.model, feeds[1])
    assert [output.shape for output in dense] == [output.shape for output in pruned]


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_batches(batch: int) -> None:
    result = snp_onnx.prune(small(batch), images(46), target_macs=0.6)
    free = snp_onnx.prune(small(), images(), target_macs=0.6)
    assert widths(result) == widths(free)
    assert result.report.dense.macs == free.report.dense.macs
    assert result.report.pruned.macs == free.report.pruned.macs
    assert result.report.input_shapes == {"x": (batch, 3, 8, 8)}
    assert any("dropped" in note for note in result.report.notes) == (batch == 4)
    assert run(result.model, {"x": images(batch)})[0].shape == (batch, 4, 8, 8)
    assert snp_onnx.inspect(small(batch)).dense.macs == free.report.dense.macs


def test_a_fixed_batch_written_into_shapes() -> None:
    net = Net(batch=4)
    x = net.reshape(net.reshape(net.conv_relu(net.image(), 3, 8), 4, 8, 64), 4, 8, 8, 8)
    x = net.reshape(net.conv_relu(x, 8, 6), 4, 384)
    net.output(net.dense(x, 384, 5))
    result = snp_onnx.prune(net.model(), images(), target_macs=0.5)
    assert max(result.report.groups, key=lambda group: group.before).after < 8
    assert_valid(result.model, {"x": images(4)})


def test_several_inputs() -> None:
    net = Net(batch="N")
    x = net.Relu(net.Add(net.dense(net.input("a", 6), 6, 8), net.dense(net.input("b", 5), 5, 8)))
    net.output(net.dense(net.Relu(net.dense(x, 8, 9)), 9, 3))
    rng = np.random.default_rng(0)
    data = {"b": rng.standard_normal((90, 5)), "a": rng.standard_normal((90, 6))}
    result = snp_onnx.prune(net.model(), data, target_macs=0.6)
    assert result.report.pruned.macs <= 0.6 * result.report.dense.macs
    assert_valid(result.model, {name: array[:3].astype(np.float32) for name, array in data.items()})
    with pytest.raises(CalibrationError, match="'b'"):
        snp_onnx.prune(net.model(), {"a": data["a"]}, target_macs=0.6)


def test_half_precision() -> None:
    """Without a refit: its joint steps are taken in float32 alone (see `test_refit`)."""
    result = snp_onnx.prune(small(dtype=np.float16), images(), target_macs=0.6, preset="fast")
    single = snp_onnx.prune(small(), images(), target_macs=0.6, preset="fast")
    assert widths(result) == widths(single)
    assert {tensor.data_type for tensor in result.model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    x = images(4).astype(np.float16)
    assert (
        difference(run(result.model, {"x": x}), [o.astype(np.float16) for o in run(single.model, {"x": images(4)})])
        < 0.05
    )
    assert result.report.fidelity[0].relative_l2 == pytest.approx(single.report.fidelity[0].relative_l2, rel=0.05)


def test_a_model_without_a_batch_axis() -> None:
    net = Net()
    x = net.Relu(net.Add(net.linear(net.input("a", 7, 6, batched=False), 6, 8), net.input("b", 8, batched=False)))
    net.output(net.linear(net.Relu(net.linear(x, 8, 9)), 9, 3))
    rng = np.random.default_rng(0)
    feeds = [{"a": rng.standard_normal((7, 6)), "b": rng.standard_normal(8)} for _ in range(30)]
    result = snp_onnx.prune(net.model(), feeds, target_macs=0.6)
    assert result.report.options["samples"] == 30
    assert result.report.dense.macs == 7 * (6 * 8 + 8 * 9 + 9 * 3)
    assert result.report.pruned.macs <= 0.6 * result.report.dense.macs
    assert_valid(result.model, {name: array.astype(np.float32) for name, array in feeds[0].items()})


# planted redundancy: oracle (b)


def linear_chain(net: Net) -> None:
    """Nothing between producer and consumer: any linear combination of filters may be planted."""
    net.output(net.conv(net.conv(net.image(), 3, 8), 8, 4))


def relu_chain(net: Net) -> None:
    net.output(net.conv(net.conv_relu(net.image(), 3, 8), 8, 4))


def flattened(net: Net) -> None:
    net.output(net.dense(net.Flatten(net.conv_relu(net.image(), 3, 8)), 512, 4))


def replanted(draw: Callable[[Net], None], mixing: Array) -> onnx.ModelProto:
    """The model with filters 5, 6 and 7 of the first convolution as combinations of the first five."""
    net = Net(batch="N", seed=1)
    draw(net)
    model = net.model()
    for name in ("w1", "b1"):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        values[5:] = np.tensordot(mixing, values[:5], axes=1)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


MIXED = np.array([[0.5, -1.0, 0.25, 0.0, 0.7], [0.0, 1.0, 1.0, -0.5, 0.0], [-0.3, 0.0, 0.0, 1.2, 0.4]])
SCALED = np.array([[0.0, 2.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("draw", "mixing"),
    [(linear_chain, MIXED), (relu_chain, SCALED), (flattened, SCALED)],
    ids=["linear", "relu", "flat"],
)
def test_planted_redundancy_vanishes_without_a_trace(draw: Callable[[Net], None], mixing: Array) -> None:
    model = replanted(draw, mixing)
    dense = run(model, {"x": images(8, seed=11)})
    result = snp_onnx.prune(model, images(400), variance=0.9999, preset="paper")
    assert widths(result) == {"w1:0": 5}
    assert difference(dense, run(result.model, {"x": images(8, seed=11)})) < 1e-3
    unfolded = snp_onnx.prune(model, images(400), variance=0.9999, preset="paper", fold="none")
    assert widths(unfolded) == {"w1:0": 5}
    assert difference(dense, run(unfolded.model, {"x": images(8, seed=11)})) > 1e-1


def test_without_redundancy_nothing_vanishes() -> None:
    net = Net(batch="N", seed=1)
    linear_chain(net)
    assert widths(snp_onnx.prune(net.model(), images(400), variance=0.9999, preset="paper")) == {"w1:0": 8}


# what follows


def test_a_pruned_model_can_be_pruned_again(tmp_path: Path) -> None:
    first = snp_onnx.prune(classifier(), images(), target_macs=0.7)
    first.save(tmp_path / "once.onnx", save_as_external_data=True)
    second = snp_onnx.prune(tmp_path / "once.onnx", images(), target_macs=0.7)
    second.save(tmp_path / "twice.onnx")
    assert_valid(onnx.load(tmp_path / "twice.onnx"), {"x": images(4)})
    assert second.report.dense.macs == first.report.pruned.macs
    assert second.report.pruned.macs <= 0.7 * second.report.dense.macs
    assert sum(entry.key == "snp_onnx.plan" for entry in second.model.metadata_props) == 1
    found = snp_onnx.compare(classifier(), tmp_path / "twice.onnx", images())
    assert found.pruned.macs == second.report.pruned.macs


def test_a_pruned_model_can_be_quantised(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    result = snp_onnx.prune(classifier(), images(), target_macs=0.6)
    paths = [tmp_path / name for name in ("pruned.onnx", "ready.onnx", "int8.onnx")]
    result.save(paths[0])
    quant_pre_process(str(paths[0]), str(paths[1]))
    quantize_static(str(paths[1]), str(paths[2]), Reader(images()))
    kinds = {node.op_type for node in onnx.load(paths[2]).graph.node}
    assert "QuantizeLinear" in kinds or "QLinearConv" in kinds
    session = onnxruntime.InferenceSession(paths[2], providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": images(4)})
    assert difference(run(result.model, {"x": images(4)}), [output]) < 0.2


# verification has to fail on what is broken


def renamed(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "another"
    model.graph.node[-1].output[0] = "another"


def poisoned(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def narrowed(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:5].copy(), tensor.name))


def disconnected(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "renamed": (renamed, "outputs differ"),
    "poisoned": (poisoned, "not finite"),
    "narrowed": (narrowed, "fails|can't be run"),
    "disconnected": (disconnected, "fails|can't be run"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_verification_refuses_broken_models(case: str) -> None:
    spoil, word = BROKEN[case]
    broken = small()
    verify(small(), broken, Runtime(), {"x": images(4)})
    spoil(broken)
    with pytest.raises(PassError, match=word):
        verify(small(), broken, Runtime(), {"x": images(4)})


def test_the_surface_of_the_model_stays() -> None:
    result = snp_onnx.prune(CATALOGUE["residual-projection"].model("N"), images(), target_macs=0.6)
    kept = [entry for entry in result.model.metadata_props if not entry.key.startswith("snp_onnx.")]
    del result.model.metadata_props[:]
    result.model.metadata_props.extend(kept)
    assert_same_surface(CATALOGUE["residual-projection"].model("N"), result.model)
