"""Samples: batches, the split, labels, constant memory, and nothing left behind."""

import tracemalloc
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.inputs import Array, InputSpec
from snp_onnx.sources.samples import Part, Preprocess, Samples, open_samples

LABELLED = Preprocess(label_array="y")


def spec(name: str = "x", shape: tuple[int | None, ...] | None = (None, 2), dtype: type = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def numbered(count: int, start: int = 0) -> Array:
    """Samples of which the first value is their index."""
    return np.stack([np.arange(start, start + count), np.ones(count)], axis=1).astype(np.float32)


def indices(samples: Samples, part: Part, batch_size: int = 8) -> list[int]:
    return [int(row[0]) for feed in samples.batches(batch_size, part) for row in feed["x"]]


def sizes(samples: Samples, batch_size: int, part: Part = Part.ALL) -> list[int]:
    return [len(feed["x"]) for feed in samples.batches(batch_size, part)]


@pytest.mark.parametrize("count", [10, 37, 256, 4000])
def test_the_split_is_disjoint_complete_and_capped(count: int) -> None:
    with open_samples(numbered(count), [spec()]) as samples:
        kept, choosing, held_out = (indices(samples, part) for part in (Part.CALIBRATION, Part.CHOOSING, Part.HELD_OUT))
        assert sorted(kept + choosing + held_out) == indices(samples, Part.ALL) == list(range(count))
        assert len(held_out) == samples.part_count(Part.HELD_OUT) == len(Part.HELD_OUT.choose(np.arange(count)))
        assert len(choosing) == samples.part_count(Part.CHOOSING) == len(Part.CHOOSING.choose(np.arange(count)))
        for cycle in (10, 20) if count == 4000 else ():  # class by class they come: no class is missed
            assert len({index % cycle for index in held_out}) == len({index % cycle for index in choosing}) == cycle
        assert samples.part_count(Part.CALIBRATION) == len(kept)


def test_where_a_part_would_be_empty_it_is_all_samples() -> None:
    with open_samples(numbered(9), [spec()]) as samples:
        assert all(indices(samples, part) == list(range(9)) for part in Part)
        assert samples.part_count(Part.HELD_OUT) == 9
        assert len([note for note in samples.notes if "set any apart" in note]) == 3
    with open_samples(numbered(16), [spec(shape=(4, 2))]) as samples:  # one that chooses fills no batch of four
        assert indices(samples, Part.CHOOSING) == indices(samples, Part.CALIBRATION)
        assert len(indices(samples, Part.CALIBRATION)) == 12
        notes = [note for note in samples.notes if "set any apart" in note]
        assert notes[0].endswith("the choosing part is the calibration part")
    with open_samples(numbered(10), [spec()]) as samples:
        assert [samples.part_count(part) for part in (Part.CALIBRATION, Part.CHOOSING, Part.HELD_OUT)] == [8, 1, 1]
        assert samples.notes == []


def test_feeds_are_regrouped_across_their_borders() -> None:
    feeds = [{"x": numbered(count, start)} for count, start in ((3, 0), (0, 3), (7, 3), (1, 10))]
    with open_samples(feeds, [spec()]) as samples:
        assert sizes(samples, 4) == [4, 4, 3]
        assert sizes(samples, 100) == [11]
        assert indices(samples, Part.ALL, 4) == list(range(11))


def test_samples_of_other_shapes_start_a_new_batch() -> None:
    feeds = [{"x": np.ones((count, width), np.float32)} for count, width in ((3, 2), (2, 2), (4, 6), (1, 2))]
    with open_samples(feeds, [spec(shape=(None, None))]) as samples:
        shapes = [feed["x"].shape for feed in samples.batches(4, Part.ALL)]
        assert samples.largest_shapes == {"x": (1, 6)}
    assert shapes == [(4, 2), (1, 2), (4, 6), (1, 2)]


def test_a_fixed_batch_wins_and_what_is_left_over_is_dropped() -> None:
    with open_samples({"x": numbered(43), "y": np.arange(43)}, [spec(shape=(4, 2))], LABELLED) as samples:
        assert sizes(samples, 16) == [4] * 10
        assert indices(samples, Part.CALIBRATION) == Part.CALIBRATION.choose(np.arange(43))[:36].tolist()
        assert samples.part_count(Part.CALIBRATION) == 36
        assert samples.part_count(Part.HELD_OUT) == 4
        labels = samples.labels(Part.CALIBRATION)
        assert labels is not None
        assert labels.tolist() == indices(samples, Part.CALIBRATION)
        assert "held-out: 1 samples dropped, they do not fill the model's fixed batch of 4" in samples.notes


def test_a_fixed_batch_that_the_held_out_part_cannot_fill_takes_all() -> None:
    with open_samples(numbered(20), [spec(shape=(4, 2))]) as samples:
        assert indices(samples, Part.HELD_OUT) == list(range(20))
        assert any("held-out part is all" in note for note in samples.notes)


def test_a_fixed_batch_of_one_drops_nothing() -> None:
    with open_samples(numbered(11), [spec(shape=(1, 2))]) as samples:
        assert sizes(samples, 8) == [1] * 11
        assert samples.notes == []


def test_without_a_batch_axis_a_feed_is_a_sample() -> None:
    feeds = [{"x": numbered(3, index), "b": np.zeros(5, np.float32), "y": np.array(index)} for index in range(12)]
    with open_samples(feeds, [spec(shape=(3, 2)), spec("b", (5,))], LABELLED) as samples:
        assert samples.count == 12
        got = [int(feed["x"][0, 0]) for feed in samples.batches(8, Part.CALIBRATION)]
        assert got == Part.CALIBRATION.choose(np.arange(12)).tolist()
        labels = samples.labels(Part.CALIBRATION)
        assert labels is not None
        assert labels.tolist() == got
        assert samples.largest_shapes == {"x": (3, 2), "b": (5,)}


@pytest.mark.parametrize("form", ["npz", "mapping", "feeds", "directory", "singles", "beside", "together"])
def test_labels_stay_with_their_samples(form: str, tmp_path: Path) -> None:
    x, y = numbered(23), np.arange(23) * 10
    source: object = tmp_path
    if form == "npz":
        np.savez(tmp_path / "d.npz", x=x, y=y)
        source = tmp_path / "d.npz"
    elif form == "mapping":
        source = {"x": x, "y": y}
    elif form == "feeds":
        source = ({"x": x[rows], "y": y[rows]} for rows in (slice(0, 9), slice(9, 23)))
    elif form == "directory":
        for index, rows in enumerate((slice(0, 9), slice(9, 23))):
            np.savez(tmp_path / f"{index}.npz", x=x[rows], y=y[rows])
    elif form == "singles":
        for index in range(23):
            np.savez(tmp_path / f"{index:02d}.npz", x=x[index], y=y[index])
    elif form == "beside":
        np.save(tmp_path / "y.npy", y)
        for index in range(23):
            np.save(tmp_path / f"{index:02d}.npy", x[index])
    else:
        np.save(tmp_path / "y.npy", y)
        np.save(tmp_path / "x.npy", x)
    with open_samples(source, [spec()], LABELLED, samples=21) as samples:
        for part in Part:
            labels = samples.labels(part)
            assert labels is not None
            assert labels.tolist() == [index * 10 for index in indices(samples, part)]
        assert samples.part_count(Part.ALL) == 21


def test_without_a_label_array_there_are_no_labels() -> None:
    assert open_samples({"x": numbered(3), "y": np.arange(3)}, [spec()]).labels(Part.ALL) is None


def test_a_generator_is_not_read_beyond_the_samples_asked_for() -> None:
    asked = []

    def feeds() -> Iterator[dict[str, Array]]:
        try:
            for index in range(100):
                asked.append(index)
                yield {"x": numbered(4, 4 * index)}
        finally:
            asked.append(-1)

    with open_samples(feeds(), [spec()], samples=10) as samples:
        assert asked == [0, 1, 2, -1]
        assert indices(samples, Part.ALL) == list(range(10))


def test_spooled_files_go_on_close_and_on_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    feeds = [{"x": numbered(4)}, {"x": numbered(4, 4)}]
    with open_samples(feeds, [spec()]) as samples:
        assert len(list(tmp_path.rglob("*.npy"))) == 2
        batches = samples.batches(2, Part.ALL)
        next(batches)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CalibrationError, match="cannot read"):
        list(batches)
    samples.close()
    with pytest.raises(KeyError), open_samples(feeds, [spec()]):
        raise KeyError
    with pytest.raises(CalibrationError), open_samples([*feeds, {"x": numbered(4).T}], [spec()]):
        pass
    assert list(tmp_path.iterdir()) == []
    with open_samples(numbered(4), [spec()]) as samples:
        assert indices(samples, Part.ALL) == [0, 1, 2, 3]
        assert list(tmp_path.iterdir()) == []


def test_only_the_members_and_rows_needed_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    np.savez(tmp_path / "d.npz", x=numbered(1000), unused=numbered(1000))
    with open_samples(tmp_path / "d.npz", [spec()], samples=10) as samples:
        (unpacked,) = tmp_path.rglob("*.npy")
        assert np.load(unpacked).shape == (10, 2)
        assert indices(samples, Part.ALL) == list(range(10))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(CalibrationError, match=r"cannot spool samples .* set TMPDIR"):
        open_samples([{"x": numbered(4)}], [spec()])


def peak(source: object, image: InputSpec, hoards: bool = False) -> int:
    """Bytes allocated at most while all parts are read, keeping one batch, or all of them."""
    tracemalloc.start()
    try:
        with open_samples(source, [image]) as samples:
            kept: deque[object] = deque(maxlen=None if hoards else 1)
            kept.extend(feed for part in Part for feed in samples.batches(16, part))
            assert kept
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_memory_measured_sees_hoarding() -> None:
    data, image = np.zeros((512, 3, 32, 32), np.float32), spec(shape=(None, 3, 32, 32))
    assert peak(data, image, hoards=True) > peak(data, image) + data.nbytes


@pytest.mark.parametrize("form", ["npz", "npy", "feeds"])
def test_memory_does_not_grow_with_the_samples(form: str, tmp_path: Path) -> None:
    image = spec(shape=(None, 3, 32, 32))
    peaks = []
    for count in (128, 128, 2048):  # the first run warms caches up
        data = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        np.savez(tmp_path / "d.npz", x=data)
        np.save(tmp_path / "d.npy", data)
        np.save(tmp_path / "x.npy", data)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        feeds = ({"x": np.array(mapped[start : start + 16])} for start in range(0, count, 16))
        del data
        peaks.append(peak(feeds if form == "feeds" else tmp_path / f"d.{form}", image))
    assert peaks[2] < peaks[1] + 256 * 1024  # the samples themselves grew by 5.9 MB, as float32 by 23.6 MB


# samples that say nothing


def warned(source: object, *specs: InputSpec) -> tuple[str, ...]:
    with open_samples(source, specs or [spec()]) as samples:
        for part in (Part.CALIBRATION, Part.HELD_OUT, Part.ALL):
            deque(samples.batches(8, part), maxlen=0)
        return samples.warnings


def test_samples_that_differ_are_not_warned_about() -> None:
    assert warned(numbered(64)) == ()
    assert warned(np.concatenate([numbered(60), numbered(4)])) == ()
    assert warned(numbered(1)) == ()


@pytest.mark.parametrize("data", [np.zeros((64, 2)), np.full((64, 2), 7.5), np.repeat(numbered(1, 3), 64, axis=0)])
def test_one_sample_many_times_is_warned_about(data: Array) -> None:
    (warning,) = warned(data)
    assert "all 64 samples that were read are the same" in warning


def test_samples_that_repeat_are_counted() -> None:
    (warning,) = warned(np.tile(numbered(16), (4, 1)))
    assert "only 16 of the 64 that were read are different" in warning


def test_whole_feeds_that_repeat_are_counted() -> None:
    feeds = [{"x": numbered(3, index % 4), "s": np.float32(1)} for index in range(12)]
    (warning,) = warned(feeds, spec(shape=(3, 2)), spec("s", ()))
    assert "only 4 of the 12 that were read are different" in warning


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((32, 3), np.float32), True),
        (np.full((32, 3), 0.5, np.float32), True),
        (np.ones((32, 3), np.float32), False),
        (np.zeros((32, 3), np.int64), False),
        (np.full((32, 1), 0.5, np.float32), False),
    ],
    ids=["zeros", "constant", "mask", "integers", "number"],
)
def test_an_input_that_never_varies_is_warned_about_if_it_is_data(values: Array, said: bool) -> None:
    found = warned({"x": numbered(32), "z": values}, spec(), spec("z", (None, values.shape[1]), values.dtype.type))
    assert len(found) == said
    assert all("input 'z' is the same in all 32 samples that were read" in line for line in found)


def windows(count: int, shift: int) -> Array:
    """Windows of a random walk, so many steps apart."""
    walk = np.random.default_rng(0).standard_normal((shift * count + 16, 4)).cumsum(axis=0)
    return np.stack([walk[shift * k : shift * k + 16] for k in range(count)]).astype(np.float32)


def test_samples_of_one_recording_are_set_apart_as_a_whole() -> None:
    x = windows(100, shift=1)
    with open_samples(x, [spec(shape=(None, 16, 4))]) as samples:
        parts = {
            part: np.concatenate([feed["x"] for feed in samples.batches(8, part)])
            for part in (Part.CHOOSING, Part.CALIBRATION, Part.HELD_OUT)
        }
        (warning,) = samples.warnings
        assert samples.split == "of 100 samples 85 calibrate, 5 choose between ways, 10 are reported"
    assert "one recording" in warning
    np.testing.assert_array_equal(np.concatenate(list(parts.values())), x)


@pytest.mark.parametrize("kind", ["shuffled", "noise", "classes", "few", "narrow"])
def test_samples_that_are_no_recording_are_set_apart_here_and_there(kind: str) -> None:
    draw = np.random.default_rng(1)
    x = {
        "shuffled": draw.permutation(windows(100, shift=1)),
        "noise": draw.standard_normal((100, 16, 4)),
        "classes": np.repeat(draw.standard_normal((4, 1, 4)), 25, axis=0) + draw.standard_normal((100, 16, 4)),
        "few": windows(19, shift=1),
        "narrow": numbered(100)[:, None, :].repeat(2, axis=1),
    }[kind].astype(np.float32)
    with open_samples(x, [spec(shape=(None, *x.shape[1:]))]) as samples:
        held_out = np.concatenate([feed["x"] for feed in samples.batches(8, Part.HELD_OUT)])
        assert samples.warnings == ()
    np.testing.assert_array_equal(held_out, x[Part.HELD_OUT.choose(np.arange(len(x)))])
