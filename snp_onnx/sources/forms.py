"""Every form of `SOURCE`, brought to one: feeds of named arrays, to be read once and in order."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.arrays import Fleeting, Held, RowArray, Stored, as_array, open_npy, open_npz
from snp_onnx.sources.examples import Values
from snp_onnx.sources.images import SUFFIXES as IMAGE_SUFFIXES
from snp_onnx.sources.images import Images, open_images, remarks_on
from snp_onnx.sources.inputs import InputSpec, Layout
from snp_onnx.sources.loader import loader, split_loader, tell_inputs
from snp_onnx.sources.preprocess import Preprocess
from snp_onnx.sources.random_rows import random_feeds
from snp_onnx.sources.saved_inputs import saved_feeds

_FORMS = (
    "an .npz or .npy file, a .json file of polygraphy's --save-inputs, a directory of them or of images, "
    "loader.py[:function] or random; "
    "in Python also an array, a mapping of arrays, an iterable of feed dicts, or an object with get_next()"
)
_RANDOM_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class RawFeed:
    """Arrays as the source names them; `origin` says where they are from, for errors."""

    origin: str
    arrays: Mapping[str, RowArray]


Feeds = Generator[RawFeed, None, None]


@dataclass(frozen=True, slots=True)
class Source:
    """Feeds in order; labels kept apart from them; `single`: an array of one rank less than its input is one sample."""

    origin: str
    feeds: Feeds
    labels: Stored | None = None
    layout: Layout | None = None
    single: bool = False
    is_random: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a source may need to know to find its feeds."""

    specs: tuple[InputSpec, ...]
    preprocess: Preprocess
    samples: int | None
    seed: int
    random_shapes: Mapping[str, tuple[int, ...]]
    batched: bool
    random_values: Values = field(default_factory=dict)


def open_source(source: object, request: Request) -> Source:
    """The feeds of any form of source; nothing is read before they are asked for, but for names."""
    if isinstance(source, str) and source == "random":
        count = request.samples or _RANDOM_SAMPLES
        shapes, values = request.random_shapes, request.random_values
        made = random_feeds(request.specs, count, request.seed, shapes, request.batched, values)
        return Source("random data", (RawFeed("random data", feed) for feed in made), is_random=True)
    if isinstance(source, str | Path):
        return _open_path(str(source), request)
    return Source("the calibration data", _python_feeds(source, "the calibration data", Held, request.specs))


def _open_path(text: str, request: Request) -> Source:
    path = Path(text)
    if path.is_dir():
        return _open_directory(path, request)
    named = split_loader(text)
    if named is not None:
        return Source(text, _loader_feeds(*named, request.specs))
    if not path.is_file():
        raise CalibrationError(f"there is no calibration source {text}; give {_FORMS}")
    if path.suffix.lower() not in _FILES:
        raise CalibrationError(f"cannot tell what calibration source {text} is; give {_FORMS}")
    return Source(text, _file_feeds([path]))


def _npy_feeds(path: Path) -> Iterator[Mapping[str, RowArray]]:
    yield {path.stem: open_npy(path)}


def _npz_feeds(path: Path) -> Iterator[Mapping[str, RowArray]]:
    yield open_npz(path)


_FILES: Mapping[str, Callable[[Path], Iterator[Mapping[str, RowArray]]]] = {
    ".npy": _npy_feeds,
    ".npz": _npz_feeds,
    ".json": saved_feeds,
}


def _file_feeds(paths: Iterable[Path]) -> Feeds:
    for path in paths:
        for index, arrays in enumerate(_FILES[path.suffix.lower()](path)):
            yield RawFeed(f"feed {index} of {path}" if path.suffix.lower() == ".json" else str(path), arrays)


def _open_directory(folder: Path, request: Request) -> Source:
    """One feed a file, in the order of names; `.npy` files named like the inputs are one feed together.

    `.json` files count where there is nothing else: beside other data they describe it.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    arrays = {path.stem: path for path in paths if path.suffix.lower() == ".npy"}
    wanted = {request.preprocess.input_array or spec.name for spec in request.specs}
    if wanted <= arrays.keys():
        return Source(str(folder), _together(folder, arrays), single=True)
    beside = arrays.get(request.preprocess.label_array or "")
    kinds: dict[str, list[Path]] = {}
    for path in paths:
        suffix = path.suffix.lower()
        if path != beside and (suffix in _FILES or suffix in IMAGE_SUFFIXES):
            kinds.setdefault("images" if suffix in IMAGE_SUFFIXES else suffix, []).append(path)
    if len(kinds) > 1:
        kinds.pop(".json", None)
    if len(kinds) != 1:
        what = (
            "mixes " + ", ".join(sorted(kinds))
            if kinds
            else "has no .npz, .npy, .json or image files (subfolders don't count)"
        )
        raise CalibrationError(f"directory {folder} {what}; give a directory of one kind")
    labels = None if beside is None else open_npy(beside)
    (kind, files), *_ = kinds.items()
    if kind == "images":
        images = open_images(files[: request.samples], request.specs, request.preprocess)
        feeds = (RawFeed(str(folder), {"images": images}) for _ in range(1))
        notes = (_of_images(images, request.preprocess), *remarks_on(images.paths))
        return Source(str(folder), feeds, labels, layout="nhwc", notes=notes)
    return Source(str(folder), _file_feeds(files), labels, single=kind != ".json")


def _together(folder: Path, paths: Mapping[str, Path]) -> Feeds:
    yield RawFeed(str(folder), {name: open_npy(path) for name, path in paths.items()})


def _of_images(images: Images, preprocess: Preprocess) -> str:
    """What is done to images, in words: nothing in a model says whether it is right."""
    if not preprocess.has_arithmetic:
        advice = "if the model wants others, give --convention or --scale, --mean and --std"
        return f"images: {images.geometry}, values 0 to 255 as they are ({advice})"
    known = f" by the convention {preprocess.convention}" if preprocess.convention else ""
    figures = f"scale {preprocess.scale:.6g}"
    for name, numbers in (("mean", preprocess.mean), ("std", preprocess.std)):
        figures += f", {name} {','.join(f'{number:g}' for number in numbers)}" if numbers else ""
    return f"images: {images.geometry}, values (x * scale - mean) / std with {figures}{known}"


def _loader_feeds(path: Path, function: str, specs: tuple[InputSpec, ...]) -> Feeds:
    with loader(path, function) as (found, room):
        feeds = _python_feeds(found, f"loader {path}", Fleeting, specs)
        while True:
            with room():
                feed = next(feeds, None)
            if feed is None:
                return
            yield feed


def _python_feeds(source: Any, origin: str, keep: Callable[[Any], RowArray], specs: tuple[InputSpec, ...]) -> Feeds:
    """The feeds of a Python object; `keep` wraps arrays that are there as a whole, single feeds are fleeting."""
    if isinstance(source, Mapping):
        yield RawFeed(origin, _arrays(source, keep))
    elif hasattr(source, "get_next"):
        yield from _iterated(_until_none(source.get_next), origin)
    elif isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        yield RawFeed(origin, {"array": keep(as_array("array", source))})
    elif not isinstance(source, str | bytes) and (isinstance(source, Iterable) or hasattr(source, "__getitem__")):
        tell_inputs(source, specs)
        yield from _iterated(iter(source), origin)
    else:
        raise CalibrationError(f"{origin} is a {type(source).__name__}; give {_FORMS}")


def _until_none(get_next: Callable[[], Any]) -> Iterator[Any]:
    while (feed := get_next()) is not None:
        yield feed


def _iterated(feeds: Iterator[Any], origin: str) -> Feeds:
    for index, feed in enumerate(feeds):
        where = f"feed {index} of {origin}"
        if not isinstance(feed, Mapping):
            raise CalibrationError(f"{where} is a {type(feed).__name__}; give a dict of arrays, named like the inputs")
        yield RawFeed(where, _arrays(feed, Fleeting))


def _arrays(feed: Mapping[Any, Any], keep: Callable[[Any], RowArray]) -> dict[str, RowArray]:
    return {str(name): keep(as_array(str(name), value)) for name, value in feed.items()}
