"""Large models: weights stay in files, the result is that of the ordinary way, memory stays below the model's size."""

from __future__ import annotations

import gc
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

import snp_onnx
from snp_onnx import external, memory, model_io
from snp_onnx.calibration import sessions
from snp_onnx.calibration.sessions import Runtime, open_session, run
from snp_onnx.errors import ModelError
from snp_onnx.planning import parallel
from tests import topologies_attention as attention
from tests import topologies_conv as conv
from tests.graphs import Net

ROOT = Path(__file__).parents[1]


def make_everything_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight of 16 bytes goes the way of large models."""
    monkeypatch.setattr(memory, "available", lambda: 0)
    monkeypatch.setattr(model_io, "_DATA_FROM", 64)
    monkeypatch.setattr(external, "LEAST", 16)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    make_everything_large(monkeypatch)


def built(build=attention.separate, dtype=np.float32, batch="n") -> onnx.ModelProto:
    net = Net(batch=batch, dtype=dtype)
    build(net)
    return net.model()


def rows(count: int = 40, seed: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 5, 6)).astype(np.float32)}


def outputs(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    (found,) = run(open_session(model, Runtime()), feed).values()
    return found.astype(np.float64)


def whole(model: onnx.ModelProto | Path) -> dict[str, np.ndarray]:
    proto = onnx.load(model) if isinstance(model, Path) else model
    return {t.name: external.array_of(t).astype(np.float64) for t in proto.graph.initializer}


def in_both_ways(monkeypatch, model, feed, **options) -> tuple[snp_onnx.PruneResult, snp_onnx.PruneResult]:
    ordinary = snp_onnx.prune(model, feed, **options)
    make_everything_large(monkeypatch)
    return ordinary, snp_onnx.prune(model, feed, **options)


@pytest.mark.parametrize("preset", ["best", "fast", "paper"])
@pytest.mark.parametrize("count", [1, 40])
def test_the_result_is_that_of_the_ordinary_way(monkeypatch, preset: str, count: int):
    """With one sample there are 5 rows for 10 hidden units: the dual form, in elimination and in folding."""
    target = {"variance": 0.9} if preset == "paper" else {"target_macs": 0.7}
    ordinary, large = in_both_ways(monkeypatch, built(), rows(count), preset=preset, **target)
    assert (ordinary.store, large.store is None) == (None, False)
    assert not external.has_external(large.model)  # it stands alone where one file can hold it
    assert [d.kept for d in large.plan.decisions] == [d.kept for d in ordinary.plan.decisions]
    assert any(d.after < d.before for d in large.plan.decisions)
    expected = whole(ordinary.model)
    assert whole(large.model).keys() == expected.keys()
    for name, values in whole(large.model).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5 * max(1.0, np.abs(values).max()))
    np.testing.assert_allclose(outputs(large.model, rows(4)), outputs(ordinary.model, rows(4)), rtol=1e-3, atol=1e-4)


def test_dimensions_inside_heads_go_the_same_way(monkeypatch):
    units = ["channels", "heads", "head-dims"]
    ordinary, large = in_both_ways(monkeypatch, built(), rows(), target_macs=0.6, units=units)
    assert any(d.kind == "head-dims" and d.after < d.before for d in large.plan.decisions)
    assert [d.kept for d in large.plan.decisions] == [d.kept for d in ordinary.plan.decisions]
    np.testing.assert_allclose(outputs(large.model, rows(4)), outputs(ordinary.model, rows(4)), rtol=1e-3, atol=1e-3)


def test_a_convolutional_model_goes_the_same_way(monkeypatch):
    feed = {"x": np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)}
    ordinary, large = in_both_ways(monkeypatch, built(conv.conv_bn_relu), feed, target_macs=0.6)
    assert [d.kept for d in large.plan.decisions] == [d.kept for d in ordinary.plan.decisions]
    np.testing.assert_allclose(outputs(large.model, feed), outputs(ordinary.model, feed), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("is_external", [True, False])
@pytest.mark.parametrize("fits", [True, False])
def test_what_is_saved_stands_alone(tmp_path: Path, monkeypatch, is_external: bool, fits: bool):
    if not fits:
        monkeypatch.setattr(model_io, "gathered", lambda proto: proto)
    given = tmp_path / "model.onnx"
    onnx.save(built(), given, save_as_external_data=True, location="model.data", size_threshold=0)
    before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.iterdir()}
    result = snp_onnx.prune(given, rows(), target_macs=0.7)
    assert external.has_external(result.model) != fits
    assert external.has_external(result.proto)
    expected = outputs(result.model, rows(4))
    out = tmp_path / "out" / "small.onnx"
    out.parent.mkdir()
    size = result.save(out, save_as_external_data=is_external)
    written = [file for file in out.parent.iterdir() if file.suffix != ".json"]
    assert size == sum(file.stat().st_size for file in written)
    assert len(written) == 1 + is_external
    folder = result.store.folder
    del result
    gc.collect()
    assert not folder.exists()
    assert {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.iterdir() if file.is_file()
    } == before
    onnx.checker.check_model(str(out), full_check=True)
    np.testing.assert_array_equal(outputs(onnx.load(out), rows(4)), expected)
    again = snp_onnx.prune(out, rows(), target_macs=0.8)
    assert again.report.pruned.macs < again.report.dense.macs


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("is_external", [True, False])
def test_bytes_are_counted_before_they_are_written(tmp_path: Path, is_external: bool):
    dense = built()
    name = "small.onnx" if is_external else None
    result = snp_onnx.prune(dense, rows(), target_size=0.9, external_as=name)
    assert result.save(tmp_path / "small.onnx", save_as_external_data=is_external) == result.report.pruned.bytes
    assert result.report.pruned.bytes <= 0.9 * dense.ByteSize()


@pytest.mark.usefixtures("everything_is_large")
def test_a_plan_is_carried_out_again_from_its_sidecar(tmp_path: Path):
    result = snp_onnx.prune(built(), rows(), target_macs=0.7)
    result.save_plan(tmp_path / "plan.json")
    again = snp_onnx.prune(built(), plan=tmp_path / "plan.json")
    np.testing.assert_allclose(outputs(again.model, rows(4)), outputs(result.model, rows(4)), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("everything_is_large")
def test_a_full_disk_is_said_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(ModelError, match="TMPDIR"):
        snp_onnx.prune(built(), rows(), target_macs=0.7)


@pytest.mark.usefixtures("everything_is_large")
def test_external_data_of_the_wrong_length_is_refused(tmp_path: Path):
    onnx.save(built(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    proto.graph.initializer[0].dims[0] += 1
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="damaged"):
        model_io.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("is_large", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_stay_so(monkeypatch, dtype, is_large: bool):
    if is_large:
        make_everything_large(monkeypatch)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    feed = {"x": rows()["x"].astype(dtype)}
    result = snp_onnx.prune(built(dtype=dtype), feed, target_macs=0.7)
    assert (result.store is not None) == is_large
    assert {t.data_type for t in result.model.graph.initializer} <= {kind, onnx.TensorProto.INT64}
    assert result.report.pruned.macs <= 0.7 * result.report.dense.macs
    single = snp_onnx.prune(built(), rows(), target_macs=0.7)
    assert [d.after for d in result.plan.decisions] == [d.after for d in single.plan.decisions]
    assert abs(result.report.fidelity[0].relative_l2 - single.report.fidelity[0].relative_l2) < 0.1


def test_half_precision_counts_as_it_is_computed():
    single, half = (external.weight_bytes(built(dtype=dtype)) for dtype in (np.float32, np.float16))
    assert half == pytest.approx(single, rel=0.05)


def with_scalars() -> onnx.ModelProto:
    """Scalars where exporters write them: an index, a divisor, the bounds of a Clip."""
    net = Net(batch="n", opset=13)
    h = net.op("Relu", net.linear(net.input("x", 5, 6), 6, 10))
    size = net.op("Gather", net.op("Shape", h), net.const(1), axis=0)
    h = net.op("Clip", net.op("Div", h, net.const(5.0)), net.const(-9.0), net.const(9.0))
    h = net.op("Reshape", h, net.computed_shape(-1, net.unsqueeze(size, 0), 10))
    net.output(net.linear(h, 10, 4))
    return net.model()


def test_scalars_stay_scalars(monkeypatch):
    ordinary, large = in_both_ways(monkeypatch, with_scalars(), rows(), target_macs=0.7)
    assert large.store is not None
    for result in (ordinary, large):
        constants = [tuple(t.dims) for t in result.proto.graph.initializer]
        assert constants.count(()) == 4
    np.testing.assert_allclose(outputs(large.model, rows(4)), outputs(ordinary.model, rows(4)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "free", "expected"),
    [(540e6, 24e9, False), (540e6, 4e9, True), (200e6, 1e9, True), (30e6, 1e9, False), (2.2e9, 1e12, True)],
)
def test_large_means_large_for_this_machine(monkeypatch, weights: float, free: float, expected: bool):
    monkeypatch.setattr(memory, "available", lambda: int(free))
    assert memory.is_large(int(weights)) == expected


def control_groups(folder: Path, is_first_version: bool) -> tuple[Path, Path]:
    """The kernel's files: a group with 1,000 of 5,000 bytes left and 300 in files, within a group without a limit."""
    root = folder / "cgroup"
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if is_first_version else ("memory.max", "memory.current")
    outer = root / "memory" if is_first_version else root
    (outer / "a" / "b").mkdir(parents=True)
    unlimited = str(2**63 - 4096) if is_first_version else "max"
    for group, values in ((outer / "a", (unlimited, "7000")), (outer / "a" / "b", ("5000", "4000"))):
        for name, value in zip(names, values, strict=True):
            (group / name).write_text(value + "\n")
        (group / "memory.stat").write_text("anon 9\ninactive_file 300\ntotal_inactive_file 300\n")
    own = folder / "self"
    own.write_text("9:name=systemd:/\n4:memory:/a/b\n0::/\n" if is_first_version else "0::/a/b\n")
    return own, root


@pytest.mark.parametrize("is_first_version", [True, False])
def test_free_memory_is_what_a_container_may_take(tmp_path: Path, monkeypatch, is_first_version: bool):
    own, root = control_groups(tmp_path, is_first_version)
    assert memory.available() > 1300
    monkeypatch.setattr(memory, "_OWN_GROUPS", own)
    monkeypatch.setattr(memory, "_GROUPS", root)
    assert memory.available() == 1300
    assert memory.has_room(1300)
    assert not memory.has_room(1301)


def test_free_memory_needs_no_control_groups(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "none")
    assert memory.available() > 0


@pytest.mark.parametrize(("free", "expected"), [(0, 3), (10**9, 1)])
def test_sessions_of_large_models_stay_where_memory_allows(monkeypatch, free: int, expected: int):
    make_everything_large(monkeypatch)
    model = model_io.load(built())
    monkeypatch.setattr(memory, "available", lambda: free)
    opened = []
    monkeypatch.setattr(sessions, "_options", lambda *args, own=sessions._options: opened.append(1) or own(*args))
    session = open_session(model.proto, Runtime())
    first, second = (run(session, rows(4)) for _ in range(2))
    np.testing.assert_array_equal(*first.values(), *second.values())
    assert len(opened) == expected


def test_large_pieces_of_algebra_go_one_after_the_other():
    at_once, most = [0], {True: 0, False: 0}

    def work(size: int) -> int:
        at_once[0] += 1
        time.sleep(0.02)
        is_large = size >= parallel.ALONE
        most[is_large] = max(most[is_large], at_once[0])
        at_once[0] -= 1
        return size

    sizes = [10, parallel.ALONE, 20, parallel.ALONE + 1, 30, 40]
    assert parallel.side_by_side(work, sizes, lambda size: size) == sizes
    assert most[True] == 1
    assert most[False] >= 1


MEASURED = """
import resource, sys, numpy as np, snp_onnx
from pathlib import Path
from snp_onnx import memory
from tools.bench.decoder import Shape, write_decoder
memory.available = lambda: 0
path = Path(sys.argv[1])
size = write_decoder(path, Shape(512, 24, 8, 2048, vocabulary=512, sequence=16))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = np.random.default_rng(0).integers(0, 512, (4, 16))
result = snp_onnx.prune(path, {"ids": ids}, target_params=0.98, include="layers.[01].", threads=1)
assert result.report.pruned.params < result.report.dense.params
result.save(path.with_name("small.onnx"), save_as_external_data=True)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(size, 1024 * before, 1024 * after)
"""


def test_the_weights_are_never_in_memory_together(tmp_path: Path):
    """300 MB of weights where memory is short. Pages of mapped files count, as long as they are mapped."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "model.onnx")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    size, before, after = map(int, done.stdout.split())
    assert after - before < 2 * size
