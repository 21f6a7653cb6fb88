"""Every form of calibration source gives the same samples, turned into what the model wants."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from PIL import Image

from snp_onnx.errors import ModelError
from snp_onnx.sources.inputs import Array, InputSpec, fixed_batch, has_batch_axis, input_specs, require_tensors
from snp_onnx.sources.samples import Part, Preprocess, Samples, open_samples

ROWS = 12
DATA = np.random.default_rng(0).standard_normal((ROWS, 3, 4, 5)).astype(np.float32)


def spec(
    name: str = "x", shape: tuple[int | None, ...] | None = (None, 3, 4, 5), dtype: type = np.float32
) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def everything(samples: Samples, name: str = "x", batch_size: int = 5) -> Array:
    return np.concatenate([feed[name] for feed in samples.batches(batch_size, Part.ALL)])


class Reader:
    """A `CalibrationDataReader` in all but name."""

    def __init__(self) -> None:
        self.left = list(np.split(DATA, 3))

    def get_next(self) -> dict[str, Array] | None:
        return {"x": self.left.pop(0)} if self.left else None


def _npz(folder: Path) -> Path:
    np.savez_compressed(folder / "d.npz", x=DATA, y=np.arange(ROWS))
    return folder / "d.npz"


def _npy(folder: Path) -> Path:
    np.save(folder / "anything.npy", np.asfortranarray(DATA))
    return folder / "anything.npy"


def _npz_directory(folder: Path) -> Path:
    for index, part in enumerate(np.split(DATA, 3)):
        np.savez(folder / f"{index}.npz", x=part)
    return folder


def _npy_directory(folder: Path) -> Path:
    for index, sample in enumerate(DATA):
        np.save(folder / f"{index:02d}.npy", sample)
    (folder / "README.txt").write_text("not data")
    return folder


def _named_npy_directory(folder: Path) -> Path:
    np.save(folder / "x.npy", DATA)
    np.save(folder / "other.npy", np.zeros((ROWS, 3, 4, 5)))
    return folder


def _loader(folder: Path, function: str = "load_data") -> Path:
    np.save(folder / "raw.npy", DATA)
    (folder / "sibling.py").write_text("NAME = 'x'\n")
    text = f"import numpy as np\nfrom sibling import NAME\ndef {function}():\n"
    text += f"    for rows in np.split(np.load({str(folder / 'raw.npy')!r}), 6):\n        yield {{NAME: rows}}\n"
    (folder / "loader.py").write_text(text)
    return folder / "loader.py"


FORMS: Mapping[str, Callable[[Path], object]] = {
    "npz": _npz,
    "npz-as-text": lambda folder: str(_npz(folder)),
    "npy": _npy,
    "directory-of-npz": _npz_directory,
    "directory-of-npy": _npy_directory,
    "directory-of-named-npy": _named_npy_directory,
    "loader": _loader,
    "loader-function": lambda folder: f"{_loader(folder, 'feeds')}:feeds",
    "array": lambda _: DATA,
    "mapping": lambda _: {"x": DATA},
    "mapping-of-lists": lambda _: {"x": DATA.tolist()},
    "list-of-feeds": lambda _: [{"x": part} for part in np.split(DATA, 4)],
    "generator": lambda _: ({"x": part, "unused": None} for part in np.split(DATA, 4)),
    "get_next": lambda _: Reader(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples_twice(form: str, tmp_path: Path) -> None:
    with open_samples(FORMS[form](tmp_path), [spec()]) as samples:
        assert samples.count == ROWS
        assert not samples.is_random
        assert samples.largest_shapes == {"x": (1, 3, 4, 5)}
        for _ in range(2):
            got = everything(samples)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, DATA)


@pytest.mark.parametrize("form", FORMS)
def test_samples_limits_every_form(form: str, tmp_path: Path) -> None:
    with open_samples(FORMS[form](tmp_path), [spec()], samples=7) as samples:
        assert samples.count == 7
        np.testing.assert_array_equal(everything(samples), DATA[:7])


def test_random_is_seeded_and_flagged() -> None:
    specs = [spec(), spec("ids", (None, None), np.int64)]
    shapes = {"ids": (1, 6)}
    first, again, other = (open_samples("random", specs, seed=seed, random_shapes=shapes) for seed in (3, 3, 4))
    assert first.is_random
    assert first.count == 64
    assert abs(float(everything(first).mean())) < 0.1
    np.testing.assert_array_equal(everything(first, batch_size=5), everything(again, batch_size=64))
    assert not np.array_equal(everything(first), everything(other))
    assert set(everything(first, "ids").ravel().tolist()) == {0, 1}
    assert first.largest_shapes["ids"] == (1, 6)


def test_random_without_a_batch_axis_gives_whole_samples() -> None:
    with open_samples("random", [spec("a", (3, 4)), spec("b", (2,))], samples=5) as samples:
        feeds = list(samples.batches(4, Part.ALL))
    assert [feed["a"].shape for feed in feeds] == [(3, 4)] * 5
    assert not np.array_equal(feeds[0]["b"], feeds[1]["b"])


def _images(folder: Path, size: tuple[int, int] = (5, 4), mode: str = "RGB") -> Array:
    pixels = np.random.default_rng(1).integers(0, 256, (3, size[1], size[0], 3), dtype=np.uint8)
    for name, image in zip(("b.png", "a.BMP", "c.png"), pixels, strict=True):
        Image.fromarray(image).convert(mode).save(folder / name)
    return pixels[[1, 0, 2]]


@pytest.mark.parametrize("shape", [(None, 3, 4, 5), (None, 3, None, None), (None, None, None, None)])
def test_images_become_nchw_in_the_order_of_names(shape: tuple[int | None, ...], tmp_path: Path) -> None:
    pixels = _images(tmp_path)
    with open_samples(tmp_path, [spec(shape=shape)]) as samples:
        np.testing.assert_array_equal(everything(samples), pixels.transpose(0, 3, 1, 2).astype(np.float32))
        assert samples.largest_shapes == {"x": (1, 3, 4, 5)}


def test_images_for_an_nhwc_model_of_bytes(tmp_path: Path) -> None:
    pixels = _images(tmp_path)
    with open_samples(tmp_path, [spec(shape=(1, 4, 5, 3), dtype=np.uint8)]) as samples:
        got = everything(samples)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, pixels)


def test_images_are_resized_bilinearly_and_made_grey(tmp_path: Path) -> None:
    pixels = _images(tmp_path, (9, 8))
    with open_samples(tmp_path, [spec(shape=(None, 1, 4, 5))], samples=1) as samples:
        got = everything(samples)
    wanted = Image.fromarray(pixels[0]).convert("L").resize((5, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, np.asarray(wanted)[None, None].astype(np.float32))


def test_bytes_are_cast_turned_and_normalised() -> None:
    data = np.random.default_rng(2).integers(0, 256, (4, 4, 5, 3), dtype=np.uint8)
    options = Preprocess(scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    with open_samples(data, [spec()], options) as samples:
        wanted = ((data / 255 - options.mean) / options.std).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(everything(samples), wanted, rtol=1e-6, atol=1e-7)
        assert "input 'x': data transposed from NHWC to NCHW" in samples.notes
        assert "input 'x': uint8 data cast to float32" in samples.notes


def test_one_number_of_mean_and_std_holds_for_every_channel() -> None:
    with open_samples(DATA, [spec()], Preprocess(mean=(0.5,), std=(2.0,))) as samples:
        np.testing.assert_allclose(everything(samples), (DATA - 0.5) / 2, rtol=1e-6, atol=1e-7)


def test_layout_decides_where_both_would_fit() -> None:
    cube = np.random.default_rng(3).standard_normal((2, 3, 3, 3)).astype(np.float32)
    specs = [spec(shape=(None, 3, 3, 3))]
    np.testing.assert_array_equal(everything(open_samples(cube, specs)), cube)
    turned = everything(open_samples(cube, specs, Preprocess(layout="nhwc")))
    np.testing.assert_array_equal(turned, cube.transpose(0, 3, 1, 2))
    wide = np.zeros((2, 16, 8, 8), np.float32)
    assert everything(open_samples(wide, [spec(shape=(None, 8, 8, 16))], Preprocess(layout="nchw"))).shape == (
        2,
        8,
        8,
        16,
    )


@pytest.mark.parametrize("wanted", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("given", [np.float64, np.float32, np.int16, np.bool_, ml_dtypes.bfloat16])
def test_any_number_is_cast_to_a_float_input(given: type, wanted: type) -> None:
    data: Array = np.arange(6).reshape(3, 2).astype(given)
    with open_samples([{"x": data}], [spec(shape=(None, 2), dtype=wanted)]) as samples:
        got = everything(samples)
        assert got.dtype == np.dtype(wanted)
        np.testing.assert_array_equal(got.astype(float), data.astype(float))


def test_the_only_array_that_fits_and_the_one_that_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=DATA, y=np.arange(ROWS), meta=np.array(["a", None], dtype=object))
    np.testing.assert_array_equal(everything(open_samples(tmp_path / "d.npz", [spec()])), DATA)
    both = {"x": DATA * 2, "other": DATA}
    np.testing.assert_array_equal(everything(open_samples(both, [spec()])), DATA * 2)
    np.testing.assert_array_equal(everything(open_samples(both, [spec()], Preprocess(input_array="other"))), DATA)


def test_the_label_array_is_never_taken_for_the_input() -> None:
    samples = open_samples({"a": DATA, "b": DATA * 2}, [spec()], Preprocess(label_array="b"))
    np.testing.assert_array_equal(everything(samples), DATA)


def test_images_beyond_the_samples_asked_for_are_not_opened(tmp_path: Path) -> None:
    pixels = _images(tmp_path)
    (tmp_path / "z.png").write_bytes(b"no image")
    with open_samples(tmp_path, [spec(shape=(None, 3, None, None))], samples=3) as samples:
        np.testing.assert_array_equal(everything(samples), pixels.transpose(0, 3, 1, 2).astype(np.float32))


def test_empty_arrays_and_scalars_of_a_model_without_a_batch_axis() -> None:
    def feeds() -> Iterator[dict[str, Array]]:
        for step in range(3):
            yield {"past": np.empty((1, 0, 4), np.float32), "step": np.array(step)}

    with open_samples(feeds(), [spec("past", (1, None, 4)), spec("step", (), np.int64)]) as samples:
        got = list(samples.batches(8, Part.ALL))
    assert [int(feed["step"]) for feed in got] == [0, 1, 2]
    assert got[0]["past"].shape == (1, 0, 4)


def test_input_specs_leave_initialisers_out_and_know_the_batch() -> None:
    graph = (
        "agraph (float[N,3,H,4] x, float[2] w, int64[7,?] ids) => (float[N] y) <float[2] w = {1.0, 2.0}> { y = Foo(x) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph.replace("?", "M")}')
    specs = input_specs(model)
    assert [(entry.name, entry.dtype, entry.shape) for entry in specs] == [
        ("x", np.dtype(np.float32), (None, 3, None, 4)),
        ("ids", np.dtype(np.int64), (7, None)),
    ]
    assert not has_batch_axis(specs)
    assert has_batch_axis(specs[:1])
    assert (fixed_batch(specs), fixed_batch(specs[:1]), fixed_batch(specs[1:])) == (None, None, 7)
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    assert [entry.name for entry in input_specs(model)] == ["ids"]
    with pytest.raises(ModelError, match="'x' is not a tensor"):
        require_tensors(model)
