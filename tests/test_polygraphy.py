"""Saved inputs and loader scripts of polygraphy: what the real one writes and takes is read and taken here."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import snp_onnx
from snp_onnx.errors import CalibrationError
from snp_onnx.sources import saved_inputs
from snp_onnx.sources.inputs import InputSpec
from snp_onnx.sources.samples import Part, open_samples
from tests.command_line import DIGITS, Bench, files
from tests.test_bad_input import assert_refused
from tests.test_samples import peak

Array = npt.NDArray[Any]
ROWS = 12
DATA = np.random.default_rng(0).standard_normal((ROWS, 3, 4, 5)).astype(np.float32)
SPEC = InputSpec("x", np.dtype(np.float32), (None, 3, 4, 5))
FEEDS = [{"x": part} for part in np.split(DATA, 4)]


def everything(source: object, specs: tuple[InputSpec, ...] = (SPEC,), samples: int | None = None) -> dict[str, Array]:
    with open_samples(source, specs, samples=samples) as opened:
        batches = list(opened.batches(5, Part.ALL))
    return {spec.name: np.concatenate([batch[spec.name] for batch in batches]) for spec in specs}


def save(value: object, path: Path) -> Path:
    """As `polygraphy run --save-inputs` does."""
    serde = pytest.importorskip("polygraphy.json")
    serde.save_json(value, str(path))
    return path


def test_the_inputs_that_polygraphy_saved_are_read_feed_by_feed(tmp_path: Path) -> None:
    path = save(FEEDS, tmp_path / "inputs.json")
    np.testing.assert_array_equal(everything(path)["x"], DATA)
    np.testing.assert_array_equal(everything(str(path), samples=7)["x"], DATA[:7])
    assert len(everything(save({"x": DATA}, path))["x"]) == ROWS  # one feed, not in a list


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_border_of_a_block_may_be_anywhere(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ('a"[', "b\\", "c,]}", "ü")
    feeds = [{name: np.full((2, 3), index) for index, name in enumerate(names)}] * 2
    path = save(feeds, tmp_path / "inputs.json")
    monkeypatch.setattr(saved_inputs, "_BLOCK", block)
    specs = tuple(InputSpec(name, np.dtype(np.float32), (None, 3)) for name in names)
    got = everything(path, specs)
    assert [float(got[name].mean()) for name in names] == [0, 1, 2, 3]
    assert all(values.shape == (4, 3) for values in got.values())


def test_a_folder_of_iterations_in_order_and_json_beside_other_data(tmp_path: Path) -> None:
    serde = pytest.importorskip("polygraphy.json.serde")
    with serde.IterationWriter(str(tmp_path / "iterations")) as writer:
        for feed in FEEDS:
            writer.append(feed)
    np.testing.assert_array_equal(everything(tmp_path / "iterations")["x"], DATA)
    (tmp_path / "d").mkdir()
    np.savez(tmp_path / "d" / "a.npz", x=DATA)
    (tmp_path / "d" / "about.json").write_text('{"by": "me"}')
    np.testing.assert_array_equal(everything(tmp_path / "d")["x"], DATA)


TYPES = [np.float32, np.float16, np.float64, np.int64, np.int32, np.int8, np.uint8, np.bool_]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_of_array_comes_back(dtype: type, tmp_path: Path) -> None:
    values: Array = np.arange(6).reshape(3, 2).astype(dtype)
    path = save([{"x": values}], tmp_path / "inputs.json")
    got = everything(path, (InputSpec("x", np.dtype(dtype), (None, 2)),))["x"]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_torch_tensors_come_back(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6).reshape(3, 2).to(getattr(torch, kind))
    path = save([{"x": tensor}], tmp_path / "inputs.json")
    wanted = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(kind, kind))
    got = everything(path, (InputSpec("x", wanted, (None, 2)),))["x"]
    assert got.dtype == wanted
    np.testing.assert_array_equal(got.astype(float), tensor.double().numpy())


def test_torch_tensors_without_torch_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    path = save([{"x": torch.ones(3, 2)}], tmp_path / "inputs.json")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CalibrationError, match=r"inputs\.json: it holds torch tensors"):
        everything(path)


def test_lazily_written_arrays_those_of_2020_and_plain_lists(tmp_path: Path) -> None:
    lazy = pytest.importorskip("polygraphy.comparator.struct").LazyArray
    np.testing.assert_array_equal(everything(save([{"x": lazy(DATA)}], tmp_path / "lazy.json"))["x"], DATA)
    np.save(tmp_path / "x.npy", DATA)
    np.savez(tmp_path / "x.npz", DATA)
    for name in ("x.npy", "x.npz"):
        text = (tmp_path / name).read_bytes().decode("latin-1")
        old = {"array": text, "__polygraphy_encoded_ndarray": "polygraphy_serialized_json_type"}
        (tmp_path / "old.json").write_text(json.dumps([{"x": old}]))
        np.testing.assert_array_equal(everything(tmp_path / "old.json")["x"], DATA)
    (tmp_path / "plain.json").write_text(json.dumps({"x": DATA.tolist()}))
    np.testing.assert_array_equal(everything(tmp_path / "plain.json")["x"], DATA)


def test_only_one_feed_is_read_at_a_time(tmp_path: Path) -> None:
    """Not even a broken end is seen where the samples end before it."""
    path = save(FEEDS * 100, tmp_path / "inputs.json")
    text = path.read_text()
    path.write_text(text[: 2 * len(text) // 3])
    assert len(everything(path, samples=30)["x"]) == 30
    with pytest.raises(CalibrationError, match="ends before"):
        everything(path)


def test_memory_does_not_grow_with_the_feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_inputs, "_BLOCK", 1 << 16)
    image = InputSpec("x", np.dtype(np.float32), (None, 3, 32, 32))
    feed = {"x": np.zeros((64, 3, 32, 32), np.uint8)}
    peaks = [peak(save([feed] * count, tmp_path / "inputs.json"), image) for count in (4, 4, 32)]
    assert peaks[2] < peaks[1] + 256 * 1024  # the file grew by 7 MB
    assert peak(tmp_path / "inputs.json", image, hoards=True) > peaks[2] + 2**24


def _array_text(data: bytes) -> str:
    array = {"array": base64.b64encode(data).decode(), "polygraphy_class": "ndarray"}
    return json.dumps([{"x": array}])


FEED = json.dumps({"x": np.zeros((2, 3, 8, 8)).tolist()})
BROKEN: dict[str, tuple[str, str]] = {
    "empty": ("", "Expecting value"),
    "no feeds": ("[]", "no samples"),
    "truncated list": (f"[{FEED}, {FEED[:9]}", "ends before"),
    "truncated object": (FEED[:-3], "delimiter"),
    "two values": (f"[{FEED}] {FEED}", "something follows"),
    "wrong bracket": (f"[{FEED}}}", "isn't closed"),
    "trailing comma": (f"[{FEED}, ]", "Expecting value"),
    "numbers": ("[1, 2]", "value 0"),
    "a number": ("3", "value 0"),
    "an array alone": ('{"array": "AAAA", "polygraphy_class": "ndarray"}', "inputs in JSON"),
    "no base64 of an array": (_array_text(b"\x93NUMPY\x01"), "inputs in JSON"),
    "pickle": (_array_text(b"\x80\x04N."), "inputs in JSON"),
    "no array": ('[{"x": {"polygraphy_class": "ndarray"}}]', "an array without its 'array'"),
    "array of no text": ('[{"x": {"array": 3, "polygraphy_class": "ndarray"}}]', "inputs in JSON"),
    "another class": ('[{"x": {"polygraphy_class": "Algorithm"}}]', "Algorithm is no array"),
    "an object": ('[{"x": {"a": 1}}]', "is an object"),
    "ragged": ('[{"x": [[1], [1, 2]]}]', "'x' cannot be read"),
    "words": ('[{"x": ["a", "b"]}]', "'x'"),
    "another input": ('[{"y": [[1.0]], "z": [[1.0]]}]', "feed 0"),
    "deep": ("[" + "[" * 100_000, "ends before"),
    "deep and closed": ("[" * 100_000 + "]" * 100_000, "recursion"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_json_that_cannot_be_used(case: str, here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    text, part = BROKEN[case]
    source = here.folder / "inputs.json"
    source.write_text(text)
    before = files(here.folder)
    assert_refused(here.prune(capsys, "--calibration", source), 2, "inputs.json", part)
    assert files(here.folder) == before


def test_bytes_that_are_no_text(here: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    source = here.folder / "inputs.json"
    source.write_bytes(b"\xff\xfe[")
    assert_refused(here.prune(capsys, "--calibration", source), 2, "inputs.json", "utf-8")


LOADERS = {
    "generator": "    for part in parts: yield {'x': part}\n",
    "list": "    return [{'x': part} for part in parts]\n",
    "iterator": "    return iter([{'x': part} for part in parts])\n",
    "torch": "    import torch\n    return [{'x': torch.tensor(part, requires_grad=True)} for part in parts]\n",
    "items": "    return Items()\nclass Items:\n    def __getitem__(self, index):\n        return {'x': parts[index]}\n"
    "    def __len__(self):\n        return len(parts)\n",
    "told": "    return Told()\nclass Told:\n    input_metadata = None\n    def __iter__(self):\n"
    "        (name, (dtype, shape)), = self.input_metadata.items()\n        assert list(shape)[1:] == [3, 4, 5]\n"
    "        return iter([{name: part} for part in parts])\n",
    "device": "    class View:\n        def __init__(self, part):\n            self.part = part\n"
    "        def numpy(self):\n            return self.part\n    return [{'x': View(part)} for part in parts]\n",
}


@pytest.mark.parametrize("case", LOADERS)
def test_a_loader_script_gives_here_what_it_gives_there(case: str, tmp_path: Path) -> None:
    if case == "torch":
        pytest.importorskip("torch")
    np.save(tmp_path / "raw.npy", DATA)
    script = tmp_path / f"{case}_script.py"
    head = f"import numpy as np\nparts = np.split(np.load({str(tmp_path / 'raw.npy')!r}), 4)\n"
    script.write_text(f"{head}def load_data():\n{LOADERS[case]}")
    polygraphy = pytest.importorskip("polygraphy")
    from polygraphy.common import TensorMetadata
    from polygraphy.comparator.data_loader import DataLoaderCache

    np.testing.assert_array_equal(everything(script)["x"], DATA)
    np.testing.assert_array_equal(everything(f"{script}:load_data")["x"], DATA)
    if case == "device":  # a stand-in for a DeviceView, which needs a GPU
        return
    cache = DataLoaderCache(polygraphy.mod.import_from_script(str(script), "load_data")())
    cache.set_input_metadata(TensorMetadata().add("x", np.float32, (None, 3, 4, 5)))
    theirs = [np.asarray(feed["x"].detach() if case == "torch" else feed["x"]) for feed in cache]
    np.testing.assert_array_equal(np.concatenate(theirs), DATA)


def test_polygraphys_own_loader_of_made_up_data() -> None:
    comparator = pytest.importorskip("polygraphy.comparator")
    got = everything(comparator.DataLoader(iterations=4))["x"]
    assert got.shape == (4, 3, 4, 5)
    assert got.min() >= 0
    assert got.std() > 0.1


def test_dense_and_pruned_compared_by_the_command_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = pytest.importorskip("polygraphy.tools")
    inputs, outputs, small = tmp_path / "inputs.json", tmp_path / "outputs.json", tmp_path / "small.onnx"

    def run(model: Path, *options: object) -> object:
        monkeypatch.setattr(sys, "argv", ["polygraphy", "run", str(model), "--onnxrt", *map(str, options)])
        try:
            return tools.main() or 0
        except SystemExit as left:
            return left.code

    made_up = ("--input-shapes", "input:[4,1,8,8]", "--iterations", 5)
    assert run(DIGITS, *made_up, "--save-inputs", inputs, "--save-outputs", outputs) == 0
    with pytest.raises(CalibrationError, match=r"outputs\.json: it holds results .*--save-inputs"):
        snp_onnx.prune(DIGITS, outputs, target_macs=0.5)
    result = snp_onnx.prune(DIGITS, inputs, target_macs=0.5, preset="fast")
    assert result.report.pruned.macs <= 0.5 * result.report.dense.macs
    result.save(small)
    compared = ("--load-inputs", inputs, "--load-outputs", outputs, "--compare", "cosine_similarity")
    assert run(small, *compared, "--cosine-similarity-threshold", 0.5) == 0
    assert run(small, *compared, "--cosine-similarity-threshold", 0.9999999) == 1


def test_a_callers_own_error_is_not_taken_for_a_broken_file() -> None:
    def feeds() -> Iterator[dict[str, Array]]:
        yield FEEDS[0]
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        everything(feeds())
