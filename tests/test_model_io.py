"""Models on disk: what is refused, what is written, and that nothing is ever half there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from snp_onnx import model_io
from snp_onnx.errors import ModelError, PlanError
from snp_onnx.model_io import bytes_on_disk, check_destination, load, save, with_provenance
from snp_onnx.writing import Transaction, written_whole
from tests.command_line import files, small
from tests.graphs import Net, feed_for
from tests.oracles import difference, run


def wide(seed: int = 0) -> onnx.ModelProto:
    """A model with weights large enough for an external file, and some that are not."""
    net = Net(batch="N", seed=seed)
    net.output(net.dense(net.Relu(net.dense(net.input("x", 20), 20, 30)), 30, 40))
    return net.model()


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    return run(model, feed_for(wide(), 3))


def test_a_model_in_memory_is_copied() -> None:
    given = small()
    before = given.SerializeToString()
    loaded = load(given)
    loaded.proto.graph.node[0].name = "another"
    assert given.SerializeToString() == before
    assert loaded.bytes == given.ByteSize()
    assert loaded.path is None


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    onnx.save(small(), tmp_path / "a.onnx")
    onnx.save(small(), tmp_path / "b.onnx")
    onnx.save(small(seed=1), tmp_path / "c.onnx")
    a, b, c = (load(tmp_path / f"{name}.onnx") for name in "abc")
    assert a.sha256 == b.sha256 != c.sha256
    assert a.bytes == (tmp_path / "a.onnx").stat().st_size
    assert load(str(tmp_path / "a.onnx")).proto == small()


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "not an ONNX model"), (b"some text", "not an ONNX model"), (onnx.ModelProto(ir_version=8), "no graph")],
)
def test_files_that_are_no_model(content: bytes | onnx.ModelProto, word: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(ModelError, match=word):
        load(path)
    if isinstance(content, onnx.ModelProto):
        with pytest.raises(ModelError, match=word):
            load(content)


def test_every_truncation_is_seen(tmp_path: Path) -> None:
    whole = small().SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            load(path)


def test_weights_that_do_not_fill_their_shape() -> None:
    for kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BFLOAT16):
        model = small()
        model.graph.initializer.append(TensorProto(name="odd", data_type=kind, dims=[3], raw_data=b"12345"))
        with pytest.raises(ModelError, match="odd holds 5 bytes"):
            load(model)
    model = small()
    four_bits = onnx.helper.make_tensor("packed", TensorProto.INT4, [3], [1, 2, 3])
    model.graph.initializer.append(four_bits)
    assert load(model).proto == model


def test_a_model_that_lost_its_external_data() -> None:
    model = small()
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match=r"onnx\.load"):
        load(model)


def test_external_data_counts_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(wide(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    loaded = load(path)
    assert loaded.has_external_data
    assert loaded.bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert difference(outputs(loaded.proto), outputs(wide())) == 0
    assert model_io.data_files(path) == ((tmp_path / "weights.bin").resolve(),)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert load(path).sha256 != loaded.sha256


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "folder/../../weights.bin", "link.bin"])
def test_external_data_stays_in_the_folder(location: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / "model.onnx"
    onnx.save_model(wide(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    os.replace(inside / "weights.bin", tmp_path / "weights.bin")
    (inside / "link.bin").symlink_to(tmp_path / "weights.bin")
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(path)
    assert model_io.data_files(path) == ()


# writing


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("draw", [small, wide])
def test_what_is_written_is_what_was_given(draw: Callable[[], onnx.ModelProto], external: bool, tmp_path: Path) -> None:
    model = draw()
    before = model.SerializeToString()
    output = tmp_path / "model.onnx"
    size = save(model, output, external)
    assert model.SerializeToString() == before
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == bytes_on_disk(model, output.name if external else None)
    again = onnx.load(output)
    for tensor, other in zip(again.graph.initializer, model.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(other))
        tensor.CopyFrom(other)
    assert again == model
    assert load(output).has_external_data == external


def test_small_weights_stay_inside(tmp_path: Path) -> None:
    net = Net(batch="N")
    net.output(net.dense(net.input("x", 3), 3, 4))
    save(net.model(), tmp_path / "model.onnx", external_data=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert onnx.load(tmp_path / "model.onnx", load_external_data=False) == net.model()


def test_data_files_never_meet(tmp_path: Path) -> None:
    for name, seed in (("a.onnx", 0), ("b.onnx", 1), ("a.onnx.b.onnx", 2)):
        save(wide(seed), tmp_path / name, external_data=True)
    for name, seed in (("a.onnx", 0), ("b.onnx", 1), ("a.onnx.b.onnx", 2)):
        assert difference(outputs(onnx.load(tmp_path / name)), outputs(wide(seed))) == 0
    save(wide(7), tmp_path / "a.onnx", external_data=True)
    assert len(list(tmp_path.glob("*.data"))) == 3
    assert difference(outputs(onnx.load(tmp_path / "b.onnx")), outputs(wide(1))) == 0
    assert difference(outputs(onnx.load(tmp_path / "a.onnx")), outputs(wide(7))) == 0


def test_no_data_file_is_left_over_and_no_other_is_touched(tmp_path: Path) -> None:
    output = tmp_path / "model[1].onnx"
    own = tmp_path / "model[1].onnx.backup.data"
    own.write_bytes(b"not ours")
    save(wide(0), output, external_data=True)
    save(wide(1), output, external_data=True)
    assert len(files(tmp_path)) == 3
    save(wide(1), output, external_data=True)
    assert len(files(tmp_path)) == 3
    save(wide(1), output)
    assert sorted(files(tmp_path)) == [output.name, own.name]


def test_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(wide(), tmp_path / "model.onnx", external_data=True)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
    (tmp_path / "model.onnx").chmod(0o600)
    save(wide(), tmp_path / "model.onnx")
    assert stat.S_IMODE((tmp_path / "model.onnx").stat().st_mode) == 0o600


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_a_failed_write_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_bytes(b"old")

    def fail_halfway() -> None:
        with written_whole(output) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert files(tmp_path) == {"model.onnx": b"old"}


def test_a_failed_write_leaves_no_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "model.onnx"
    save(wide(0), output, external_data=True)
    before = files(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("no more")

    monkeypatch.setattr(Transaction, "new", fail)
    with pytest.raises(OSError, match="no more"):
        save(wide(1), output, external_data=True)
    assert files(tmp_path) == before


def test_free_space_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_io, "_free_bytes", lambda folder: 10)
    with pytest.raises(PlanError, match="only 10 are free"):
        save(small(), tmp_path / "model.onnx")
    assert files(tmp_path) == {}


def test_destinations(tmp_path: Path) -> None:
    model, link = tmp_path / "model.onnx", tmp_path / "link.onnx"
    model.write_bytes(b"m")
    link.symlink_to(model)
    check_destination(tmp_path / "new.onnx", model, force=False)
    check_destination(model, model, force=True)
    os.mkfifo(tmp_path / "pipe")
    for output, word in (
        (tmp_path / "pipe", "would be replaced"),
        (tmp_path / "absent" / "a.onnx", "doesn't exist"),
        (tmp_path, "name a file"),
        (model, "--force"),
        (link, "--force"),
    ):
        with pytest.raises(PlanError, match=word):
            check_destination(output, model, force=False)
    with pytest.raises(PlanError, match="--force"):
        check_destination(model, link, force=False)


def test_provenance_replaces_its_own_entries_only() -> None:
    model = small()
    for value in ("1", "2"):
        with_provenance(model, {"snp_onnx.version": value, "snp_onnx.plan": "p"})
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "author": "tests",
        "snp_onnx.version": "2",
        "snp_onnx.plan": "p",
    }
    assert len(model.metadata_props) == 3
