"""What is wrong with a calibration source is said with the name, the shape found and the shape expected."""

import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from snp_onnx.errors import CalibrationError, PlanError
from snp_onnx.sources.inputs import Array, InputSpec
from snp_onnx.sources.samples import Part, Preprocess, open_samples

GOOD = np.zeros((4, 3, 8, 6), np.float32)
IMAGE = InputSpec("x", np.dtype(np.float32), (None, 3, 8, 6))
IDS = InputSpec("ids", np.dtype(np.int64), (None, None))
ONE = Preprocess(input_array="other")
LABELLED = Preprocess(label_array="y")


def bad(*values: float) -> Array:
    array = GOOD.copy()
    array[2, 1, 0, : len(values)] = values
    return array


CASES: dict[str, tuple[object, tuple[InputSpec, ...], Preprocess, tuple[str, ...]]] = {
    "shape": ({"x": GOOD[..., :5]}, (IMAGE,), Preprocess(), ("'x'", "(4, 3, 8, 5)", "(N, 3, 8, 6)")),
    "rank": ({"x": GOOD[0]}, (IMAGE,), Preprocess(), ("'x'", "(3, 8, 6)", "(N, 3, 8, 6)")),
    "missing": ({"x": GOOD}, (IMAGE, IDS), Preprocess(), ("'ids'", "'x' (4, 3, 8, 6)", "'ids' (N, ?)")),
    "misnamed": (
        {"a": GOOD[:, 0], "b": np.arange(4)},
        (IMAGE,),
        Preprocess(),
        ("'a' (4, 8, 6)", "'x' (N, 3, 8, 6)", "--input-array"),
    ),
    "several": (
        {"a": GOOD, "b": GOOD},
        (IMAGE,),
        Preprocess(),
        ("several", "'a' (4, 3, 8, 6)", "'b'", "--input-array"),
    ),
    "input-array": ({"x": GOOD}, (IMAGE,), ONE, ("'other'", "'x' (4, 3, 8, 6)", "(N, 3, 8, 6)")),
    "input-array-of-two": ({"x": GOOD}, (IMAGE, IDS), ONE, ("--input-array", "'x', 'ids'")),
    "wrong-layout": (GOOD, (IMAGE,), Preprocess(layout="nhwc"), ("'array' (4, 3, 8, 6)", "(N, 3, 8, 6)", "--layout")),
    "unknown-layout": (GOOD, (IMAGE,), Preprocess(layout="chw"), ("--layout 'chw'",)),  # type: ignore[arg-type]
    "float-for-int": (
        {"ids": np.ones((2, 3))},
        (IDS,),
        Preprocess(),
        ("'ids'", "(2, 3)", "float64", "int64", "(N, ?)"),
    ),
    "complex": ({"x": GOOD * 1j}, (IMAGE,), Preprocess(), ("'x'", "complex", "float32")),
    "text": ({"x": np.full(GOOD.shape, "a")}, (IMAGE,), Preprocess(), ("'x'", "<U1", "float32")),
    "objects": ({"x": GOOD.astype(object)}, (IMAGE,), Preprocess(), ("'x'", "(4, 3, 8, 6)", "Python objects")),
    "ragged": ({"x": [[1.0], [2.0, 3.0]]}, (IMAGE,), Preprocess(), ("'x'", "numpy")),
    "rows": (
        {"x": GOOD, "ids": np.zeros((5, 2), int)},
        (IMAGE, IDS),
        Preprocess(),
        ("'x' (4, 3, 8, 6)", "'ids' (5, 2)"),
    ),
    "empty-array": (GOOD[:0], (IMAGE,), Preprocess(), ("no samples",)),
    "empty-list": ([], (IMAGE,), Preprocess(), ("no samples",)),
    "fixed-batch": (GOOD, (InputSpec("x", np.dtype("f4"), (8, 3, 8, 6)),), Preprocess(), ("4 samples", "fixed size 8")),
    "not-a-feed": ([GOOD], (IMAGE,), Preprocess(), ("feed 0", "ndarray", "dict")),
    "second-feed": ([{"x": GOOD}, {"y": GOOD[0]}], (IMAGE,), Preprocess(), ("feed 1", "'y' (3, 8, 6)")),
    "no-source": (7, (IMAGE,), Preprocess(), ("int", ".npz", "get_next()")),
    "no-file": ("absent.npz", (IMAGE,), Preprocess(), ("absent.npz", ".npz or .npy")),
    "no-loader": ("absent.py", (IMAGE,), Preprocess(), ("no loader absent.py",)),
    "no-labels": ({"x": GOOD}, (IMAGE,), LABELLED, ("'y'", "'x' (4, 3, 8, 6)", "--label-array")),
    "few-labels": ({"x": GOOD, "y": np.arange(3)}, (IMAGE,), LABELLED, ("'y'", "(3,)", "4 samples")),
    "object-labels": ({"x": GOOD, "y": np.array([None] * 4)}, (IMAGE,), LABELLED, ("'y'", "(4,)", "Python objects")),
    "zero-std": (GOOD, (IMAGE,), Preprocess(std=(0.0,)), ("--std", "zero")),
    "scale-of-ints": ({"ids": np.ones((2, 3), int)}, (IDS,), Preprocess(scale=2.0), ("--scale", "floating-point")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named_on_opening(case: str) -> None:
    source, specs, preprocess, parts = CASES[case]
    with pytest.raises(CalibrationError) as caught:
        open_samples(source, specs, preprocess)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


VALUES: dict[str, tuple[Array, InputSpec, Preprocess, tuple[str, ...]]] = {
    "nan": (bad(np.nan), IMAGE, Preprocess(), ("'x'", "(4, 3, 8, 6)", "sample 2", "NaN")),
    "infinity": (bad(0, -np.inf), IMAGE, Preprocess(), ("'x'", "sample 2", "infinity")),
    "float16": (bad(1e6), InputSpec("x", np.dtype("f2"), IMAGE.shape), Preprocess(), ("sample 2", "float16")),
    "int32": (np.array([[1, 2**40]]), InputSpec("x", np.dtype("i4"), (None, 2)), Preprocess(), ("'x'", "int32")),
    "int64": (
        np.array([[1, 2**63]], np.uint64),
        InputSpec("x", np.dtype("i8"), (None, 2)),
        Preprocess(),
        ("'x'", "int64"),
    ),
    "bool": (np.array([[1, 2]]), InputSpec("x", np.dtype("?"), (None, 2)), Preprocess(), ("'x'", "bool")),
    "mean": (GOOD, IMAGE, Preprocess(mean=(1.0, 2.0)), ("--mean", "2 numbers", "'x'", "(4, 3, 8, 6)")),
    "std": (GOOD, IMAGE, Preprocess(std=(1.0,) * 5), ("--std", "5 numbers")),
}


@pytest.mark.parametrize("case", VALUES)
def test_wrong_values_are_named_when_read(case: str) -> None:
    data, spec, preprocess, parts = VALUES[case]
    with open_samples({"x": data}, [spec], preprocess) as samples, pytest.raises(CalibrationError) as caught:
        list(samples.batches(10, Part.ALL))
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


def test_the_bad_sample_is_counted_over_all_feeds() -> None:
    with (
        open_samples([{"x": GOOD}, {"x": GOOD}, {"x": bad(np.nan)}], [IMAGE]) as samples,
        pytest.raises(CalibrationError, match="in sample 10 for"),
    ):
        list(samples.batches(5, Part.CALIBRATION))


@pytest.mark.parametrize("number", [0, -3])
def test_numbers_below_one_are_refused(number: int) -> None:
    with pytest.raises(CalibrationError, match=f"--samples {number}"):
        open_samples(GOOD, [IMAGE], samples=number)
    with pytest.raises(CalibrationError, match=f"--batch-size {number}"):
        open_samples(GOOD, [IMAGE]).batches(number, Part.ALL)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ({"z": (1,)}, "--input-shape z: .* inputs are x"),
        ({"x": (1, 3, 8)}, r"x:1,3,8: the model wants \?,3,8,6"),
        ({"x": (1, 4, 8, 6)}, r"x:1,4,8,6: the model wants \?,3,8,6"),
        ({"x": (0, 3, 8, 6)}, r"x:0,3,8,6: the model wants"),
    ],
)
def test_random_shapes_must_fit(shapes: dict[str, tuple[int, ...]], text: str) -> None:
    with pytest.raises(PlanError, match=text):
        open_samples("random", [IMAGE], random_shapes=shapes)
    with pytest.raises(PlanError, match="give --input-shape ids:1,"):
        open_samples("random", [IDS])


def _pickled(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object))


def _cut(path: Path) -> None:
    np.save(path, GOOD)
    path.write_bytes(path.read_bytes()[:-100])


def _text(path: Path) -> None:
    path.write_text("not numpy")


@pytest.mark.parametrize(("write", "text"), [(_pickled, "array"), (_cut, "cannot read"), (_text, "cannot read")])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_broken_files(write: Callable[[Path], None], text: str, suffix: str, tmp_path: Path) -> None:
    write(tmp_path / "x.npy")
    if suffix == "npz":
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.write(tmp_path / "x.npy", "x.npy")
    path = tmp_path / ("x.npy" if suffix == "npy" else "d.npz")
    with pytest.raises(CalibrationError, match=text), open_samples(path, [IMAGE]) as samples:
        list(samples.batches(4, Part.ALL))


def test_an_npz_that_is_no_zip_or_an_unknown_suffix(tmp_path: Path) -> None:
    for name, text in (("d.npz", "cannot read"), ("d.csv", "cannot tell")):
        _text(tmp_path / name)
        with pytest.raises(CalibrationError, match=f"{text} .*{name}"):
            open_samples(tmp_path / name, [IMAGE])


def test_directories_of_nothing_or_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CalibrationError, match=r"has no \.npz, \.npy, \.json or image files"):
        open_samples(tmp_path, [IMAGE])
    np.save(tmp_path / "a.npy", GOOD)
    Image.new("RGB", (6, 8)).save(tmp_path / "a.png")
    with pytest.raises(CalibrationError, match=r"mixes \.npy, images"):
        open_samples(tmp_path, [IMAGE])


def test_labels_beside_must_be_as_many_as_the_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GOOD)
    np.save(tmp_path / "y.npy", np.arange(5))
    with pytest.raises(CalibrationError, match=r"y.npy of shape \(5,\) .* 4 samples"):
        open_samples(tmp_path, [IMAGE], LABELLED)
    assert open_samples(tmp_path, [IMAGE], LABELLED, samples=3).count == 3


def _shape(*dims: int | None) -> list[InputSpec]:
    return [InputSpec("x", np.dtype(np.float32), dims)]


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    Image.new("RGB", (6, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (7, 8)).save(tmp_path / "b.png")
    cases: list[tuple[Any, str]] = [
        (_shape(None, 3, None, None), r"b.png .*\(8, 7\).*\(8, 6\)"),
        (_shape(None, 16, 8, 8), r"'x' .*\(\?, 16, 8, 8\) has 16 channels"),
        (_shape(None, 10), r"'x' \(\?, 10\)"),
        ([IMAGE, IDS], "'ids'"),
    ]
    for specs, text in cases:
        with pytest.raises(CalibrationError, match=text):
            open_samples(tmp_path, specs)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with (
        open_samples(tmp_path, [IMAGE]) as samples,
        pytest.raises(CalibrationError, match=r"cannot read image .*c\.png"),
    ):
        list(samples.batches(4, Part.ALL))


LOADERS = {
    "raises": ("def load_data():\n    yield {'x': None}['y']\n", r"loader.py:2 raised KeyError: 'y'"),
    "raises-below": (
        "import json\ndef load_data():\n    return json.loads('{')\n",
        r"loader.py:3 raised JSONDecodeError: ",
    ),
    "at-import": ("\n\nimport absent_module_of_mine\n", r"loader.py:3 raised ModuleNotFoundError: No module named"),
    "syntax": ("def load_data(:\n    pass\n", r"loader.py:1 raised SyntaxError: "),
    "exits": ("def load_data():\n    raise SystemExit('enough')\n", r"loader.py:2 raised SystemExit: enough"),
    "lines": ("def load_data():\n    raise OSError('one\\ntwo')\n", r"loader.py:2 raised OSError: one two; fix"),
    "deep": ("def a():\n    1 / 0\ndef load_data():\n    yield a()\n", r"loader.py:2 raised ZeroDivisionError: "),
    "nameless": ("def feeds():\n    yield {}\n", r"no function 'load_data' \(it has: feeds\)"),
    "nothing": ("def load_data():\n    pass\n", "is a NoneType"),
}


@pytest.mark.parametrize("case", LOADERS)
def test_the_errors_of_a_loader_are_shown(case: str, tmp_path: Path) -> None:
    text, message = LOADERS[case]
    (tmp_path / "loader.py").write_text(text)
    path, modules = list(sys.path), set(sys.modules)
    with pytest.raises(CalibrationError, match=message):
        open_samples(tmp_path / "loader.py", [IMAGE])
    assert sys.path == path
    assert {name for name in set(sys.modules) - modules if "loader" in name} == set()


def test_an_error_of_the_callers_own_iterable_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def feeds() -> Iterator[dict[str, Array]]:
        yield {"x": GOOD}
        raise LookupError("mine")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(LookupError, match="mine") as caught:
        open_samples(feeds(), [IMAGE])
    assert caught.tb is not None  # what the frames hold is still alive, and the folder gone all the same
    assert list(tmp_path.iterdir()) == []
