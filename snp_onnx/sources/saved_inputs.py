"""Inputs that polygraphy saved (`polygraphy run --save-inputs`, `save_json`): feeds in JSON, read one at a time.

An array is an object `{"array": BASE64, "polygraphy_class": "ndarray"}` whose text is that of a `.npy` file; a torch
tensor one of class `Tensor`, with the text of what `torch.save` writes. polygraphy itself isn't needed to read them.
"""

import base64
import binascii
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.arrays import Fleeting, RowArray, as_array

_BLOCK = 1 << 20
_CLASS = "polygraphy_class"
_OLD_CLASS, _OLD_MARK = "__polygraphy_encoded_", "polygraphy_serialized_json_type"
_BARE, _QUOTED = re.compile(r'[\[\]{}",]'), re.compile(r'"|\\.', re.DOTALL)
_RESULTS = {"IterationResult", "RunResults"}
_ANEW = "write it anew with `polygraphy run --save-inputs`"


def saved_feeds(path: Path) -> Iterator[Mapping[str, RowArray]]:
    """The feeds of a file: a list of objects, or a single one; never more than one of a list is in memory."""
    with _unreadable(path), path.open(encoding="utf-8") as file:
        for index, text in enumerate(_values(file)):
            feed = json.loads(text, object_pairs_hook=_decoded)
            if not isinstance(feed, Mapping):
                raise CalibrationError(
                    f"value {index} of {path} is no object of arrays, named like the inputs; {_ANEW}"
                )
            yield {name: Fleeting(_array(name, value, path)) for name, value in feed.items()}


def _array(name: str, value: object, path: Path) -> Any:
    if isinstance(value, Mapping):
        raise CalibrationError(f"{name!r} in {path} is an object, not an array; {_ANEW}")
    return as_array(name, value)


def _values(file: TextIO) -> Iterator[str]:
    """The texts of a list's values one after the other, or the text of anything else as a whole."""
    blocks = _blocks(file)
    first = next((block for block in blocks if block.strip()), "").lstrip()
    if not first.startswith("["):
        yield first + "".join(blocks)
        return
    yield from _split(first[1:], blocks)


def _blocks(file: TextIO) -> Iterator[str]:
    """The file in pieces that never end between a backslash and what it escapes."""
    while block := file.read(_BLOCK):
        while block.endswith("\\") and (more := file.read(1)):
            block += more
        yield block


def _split(first: str, blocks: Iterator[str]) -> Iterator[str]:
    """The texts between the commas of a list whose opening bracket is gone; nesting and quotes are minded."""
    depth, quoted, count, parts = 1, False, 0, list[str]()
    for block in _chain(first, blocks):
        start = place = 0
        while found := (_QUOTED if quoted else _BARE).search(block, place):
            mark, place = found[0], found.end()
            if mark == '"':
                quoted = not quoted
            elif not quoted and mark != ",":
                depth += 1 if mark in "[{" else -1
            if depth == 0 or (depth == 1 and mark == "," and not quoted):
                text = "".join([*parts, block[start : found.start()]])
                if depth or count or text.strip():
                    yield text
                count, start, parts = count + 1, place, []
            if depth == 0:
                _require_end(mark, block[place:], blocks)
                return
        parts.append(block[start:])
    raise ValueError("it ends before its list does")


def _chain(first: str, blocks: Iterator[str]) -> Iterator[str]:
    yield first
    yield from blocks


def _require_end(mark: str, rest: str, blocks: Iterable[str]) -> None:
    if mark != "]" or rest.strip() or any(block.strip() for block in blocks):
        raise ValueError("its list isn't closed, or something follows it")


def _decoded(pairs: Sequence[tuple[str, Any]]) -> Any:
    """The array that a JSON object stands for, or the object."""
    found = dict(pairs)
    old = (key for key, value in pairs if key.startswith(_OLD_CLASS) and value == _OLD_MARK)
    kind = found.get(_CLASS) or next(old, "").removeprefix(_OLD_CLASS)
    if not kind:
        return found
    if kind in _RESULTS:
        raise CalibrationError(
            "it holds results (--save-outputs), not inputs; give the file of --save-inputs, "
            "or turn it into one with `polygraphy data merge`"
        )
    if kind not in _READERS:
        raise ValueError(f"{kind} is no array")
    return _READERS[kind](found)


def _ndarray(found: Mapping[str, Any]) -> Any:
    text = found["array"]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = text.encode("latin-1")  # versions of 2020
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]


def _tensor(found: Mapping[str, Any]) -> Any:
    try:
        import torch
    except ImportError as error:
        raise CalibrationError(
            "it holds torch tensors and torch isn't installed; install it, or save numpy arrays"
        ) from error
    data = io.BytesIO(base64.b64decode(found["tensor"], validate=True))
    return torch.load(data, weights_only=True, map_location="cpu")


def _lazy(found: Mapping[str, Any]) -> Any:
    return found["values"]


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "ndarray": _ndarray,
    "Tensor": _tensor,
    "LazyArray": _lazy,
    "LazyNumpyArray": _lazy,
}


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """What is wrong with the file, in one line that names it."""
    try:
        yield
    except CalibrationError as error:
        named = str(error) if str(path) in str(error) else f"cannot use {path}: {error}"
        raise CalibrationError(named) from error
    except KeyError as error:
        raise CalibrationError(f"cannot read {path}: an array without its {error}; {_ANEW}") from error
    except Exception as error:  # what numpy and torch raise for damaged bytes is open-ended
        text = " ".join(str(error).split()) or type(error).__name__
        raise CalibrationError(f"cannot read {path} as inputs in JSON: {text}; {_ANEW}") from error
