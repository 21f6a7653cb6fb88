"""Models on disk: loading with clear refusals, writing atomically, external data, provenance."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from snp_onnx import memory
from snp_onnx.errors import ModelError, PlanError
from snp_onnx.external import (
    WHOLE_BYTES,
    Store,
    byte_count,
    chunks_of,
    copy_fields,
    every_tensor,
    fault_of,
    has_external,
    hash_file,
    is_external,
    is_worthwhile,
    place_of,
    refer,
    size_as_one_file,
    weight_bytes,
)
from snp_onnx.model_folder import model_file
from snp_onnx.writing import Transaction, followed, is_mount, joined, settle

_DATA_FROM = 1024
"""Bytes from which on a weight is kept in the external data file."""

_ALIGNMENT = 64

MAX_PROTOBUF = 2**31 - 2**20
"""Bytes of a single protobuf file; larger models keep their weights as external data."""


MOST_NODES = 10**6
"""Of a graph with the functions of its model written out."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model as the user gave it: the graph in memory, where it came from, its hash and its size on disk.

    The weights of a large model stay in its data files or go to those of `store`; the graph refers to them.
    """

    proto: onnx.ModelProto
    path: Path | None
    sha256: str
    bytes: int
    has_external_data: bool = False
    store: Store | None = None

    def keep(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values made for this model: kept in a file where its weights are, else in memory."""
        return array if self.store is None else self.store.keep(array)

    @property
    def label(self) -> str:
        return str(self.path) if self.path else "the model"


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> Model:
    """Load a model file (or that of a folder) with its external data, or take a copy of a model in memory.

    Raises ModelError for anything that is not a complete ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        return _copied(source)
    path = model_file(Path(source))
    proto = _parse(path)
    files = _external_files(proto, path)
    store = Store() if memory.is_large(weight_bytes(proto)) else None
    outside = _left_outside(proto, path) if store is not None else {}
    try:
        load_external_data_for_model(proto, str(path.parent))
    except Exception as error:
        raise ModelError(f"{path}: its external data can't be read: {_first_line(error)}") from error
    _require_whole(proto, str(path), outside)
    for number, tensor in enumerate(proto.graph.initializer):
        if number in outside:
            refer(tensor, *outside[number])
        elif store is not None:
            store.take(tensor)
    digest = hashlib.sha256()
    for file in (path, *files):
        hash_file(digest, file)
    size = sum(file.stat().st_size for file in (path, *files))
    return Model(proto, path, digest.hexdigest(), size, bool(files), store)


def _copied(source: onnx.ModelProto) -> Model:
    """A copy of a model in memory."""
    _require_graph(source, "the model")
    if any(uses_external_data(tensor) for tensor in source.graph.initializer):
        raise ModelError("the model in memory refers to external data: load it with onnx.load first")
    _require_whole(source, "the model")
    store = Store() if memory.is_large(weight_bytes(source)) else None
    proto = onnx.ModelProto()
    if store is None:
        proto.CopyFrom(source)
    else:
        copy_fields(source, proto, "graph")
        copy_fields(source.graph, proto.graph, "initializer")
        for tensor in source.graph.initializer:
            proto.graph.initializer.add().CopyFrom(tensor)
            store.take(proto.graph.initializer[-1])
    return Model(proto, None, _hash_in_memory(source), _size_in_memory(source), store=store)


def _left_outside(proto: onnx.ModelProto, path: Path) -> dict[int, tuple[Path, int]]:
    """Weights by number that needn't be read: their file and offset; until `refer` they look like empty ones."""
    found = {}
    for number, tensor in enumerate(proto.graph.initializer):
        if not (is_external(tensor) and is_worthwhile(tensor)):
            continue
        location, offset, length = _place_of(tensor, path)
        file, wanted = (path.parent / location).resolve(), byte_count(tensor)
        if (length or wanted) != wanted or offset + wanted > file.stat().st_size:
            raise ModelError(_not_its_bytes(path, tensor, wanted))
        found[number] = file, offset
        tensor.data_location = onnx.TensorProto.DEFAULT
    return found


def _parse(path: Path) -> onnx.ModelProto:
    settle(path.parent)
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated: {_first_line(error)}") from error
    except Exception as error:
        raise ModelError(f"{path}: can't be read as an ONNX model: {_first_line(error)}") from error
    _require_graph(proto, str(path))
    _require_small_functions(proto, str(path))
    return proto


def _require_graph(proto: onnx.ModelProto, label: str) -> None:
    names = [name for node in proto.graph.node for name in (node.name, node.op_type, *node.input, *node.output)]
    names += [value.name for value in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output)]
    if odd := next((name for name in names if not isinstance(name, str)), None):  # protobuf gives bytes then
        raise ModelError(f"{label}: a name in its graph, {odd!r}, isn't UTF-8, as ONNX wants it: export it again")
    if not proto.graph.node or not proto.graph.output or not proto.ir_version:
        raise ModelError(f"{label}: not an ONNX model: it has no graph with nodes and outputs")


def _require_small_functions(proto: onnx.ModelProto, label: str) -> None:
    """Refuse functions that, written out in each other and in the graph, would be too many nodes."""
    bodies = {(function.domain, function.name): function.node for function in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], around: frozenset[tuple[str, str]] = frozenset()) -> int:
        for key in {(node.domain, node.op_type) for node in nodes} & (bodies.keys() - sizes.keys()):
            if key in around:
                raise ModelError(f"{label}: its function {key[1]} calls itself: export it again")
            sizes[key] = size(bodies[key], around | {key})
        return sum(sizes.get((node.domain, node.op_type), 1) for node in nodes)

    if (count := size(proto.graph.node)) > MOST_NODES:
        raise ModelError(f"{label}: its functions written out are {count:,} nodes, and {MOST_NODES:,} are the most")


def _require_whole(proto: onnx.ModelProto, label: str, outside: Container[int] = ()) -> None:
    """Every tensor, initialisers first, has as many values as its shape asks for."""
    for number, tensor in enumerate(every_tensor(proto.graph)):
        fault = None if number in outside or is_external(tensor) else fault_of(tensor)
        if fault is not None:
            raise ModelError(f"{label}: the weight {tensor.name} {fault}: the file is damaged, export it again")


def data_files(path: Path) -> tuple[Path, ...]:
    """The external data files of a model on disk; none for anything else."""
    try:
        return _external_files(_parse(path), path)
    except ModelError:
        return ()


def _external_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files the weights are kept in, each checked to lie inside the model's folder and to be long enough."""
    folder = path.parent.resolve()
    files: dict[Path, None] = {}
    for tensor in every_tensor(proto.graph):
        if not uses_external_data(tensor):
            continue
        location, offset, length = _place_of(tensor, path)
        file = Path(os.path.realpath(folder / location))
        if not file.is_relative_to(folder):
            raise ModelError(f"{path}: the external data of {tensor.name} lies outside the model's folder: {location}")
        if not file.is_file():
            raise ModelError(f"{path}: the external data file {location} of {tensor.name} is missing")
        wanted = byte_count(tensor) if tensor.data_type in WHOLE_BYTES else length or 0
        if offset + max(wanted, length or 0) > file.stat().st_size:
            raise ModelError(f"{path}: the external data file {location} is too short for {tensor.name}: truncated?")
        if length is not None and length != wanted:
            raise ModelError(_not_its_bytes(path, tensor, wanted))
        files[file] = None
    return tuple(files)


def _place_of(tensor: onnx.TensorProto, path: Path) -> tuple[str, int, int | None]:
    try:
        return place_of(tensor)
    except ValueError as error:
        raise ModelError(f"{path}: the external data of {tensor.name} lies nowhere: {_first_line(error)}") from error


def _not_its_bytes(path: Path, tensor: onnx.TensorProto, wanted: int) -> str:
    return (
        f"{path}: the external data of {tensor.name} is not the {wanted} bytes that its shape wants: "
        "the file is damaged, export it again"
    )


def _hash_in_memory(proto: onnx.ModelProto) -> str:
    """A hash of the graph and its weights that never serialises all weights at once."""
    digest = hashlib.sha256()
    if _size_in_memory(proto) < MAX_PROTOBUF:
        digest.update(proto.SerializeToString(deterministic=True))
        return digest.hexdigest()
    for tensor in proto.graph.initializer:
        digest.update(tensor.SerializeToString(deterministic=True))
    for node in proto.graph.node:
        digest.update(node.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _size_in_memory(proto: onnx.ModelProto) -> int:
    try:
        return int(proto.ByteSize())
    except Exception:  # protobuf refuses to count messages over 2 GB
        return sum(tensor.ByteSize() for tensor in proto.graph.initializer)


def with_provenance(proto: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    """Set `snp_onnx.*` entries of the model's metadata, replacing earlier ones of the same key."""
    kept = [entry for entry in proto.metadata_props if entry.key not in entries]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key in sorted(entries):
        proto.metadata_props.add(key=key, value=entries[key])


def check_destination(output: Path, source: Path | None, force: bool) -> None:
    """Refuse an output that can't be written, before any work is done; what a killed run left there is settled."""
    folder = output.parent
    if not folder.is_dir():
        raise PlanError(f"{output}: the output folder {folder} doesn't exist: create it first")
    settle(folder)
    target = followed(output)
    if target.is_dir():
        raise PlanError(f"{output}: the output is a folder: name a file")
    if target.exists() and not target.is_file():
        raise PlanError(f"{output}: the output is a device or a pipe, which would be replaced: name a file")
    if is_mount(target):
        raise PlanError(f"{output}: this file is mounted, and can't be replaced: mount its folder")
    if not os.access(target.parent, os.W_OK):
        raise PlanError(f"{output}: the output folder {target.parent} is not writable")
    if source is not None and not force and target.exists() and os.path.realpath(target) == os.path.realpath(source):
        raise PlanError(f"{output}: the output is the input model: add --force to replace it")


def save(proto: onnx.ModelProto, output: Path, external_data: bool = False, within: Transaction | None = None) -> int:
    """Write a model so that at every moment the old file or the new one is there, whole; returns its bytes on disk.

    External data goes to a file named by its content, so that neither an old nor a new model ever meets the other's;
    data files of earlier writes to the same output are removed. `within` has the other files of the same result.
    """
    free = _free_bytes(output.parent)
    needed = bytes_on_disk(proto)
    if free is not None and needed > free:
        raise PlanError(f"{output}: needs {needed:,} bytes, only {free:,} are free there")
    with joined(within) as files:
        is_apart = external_data or needed >= MAX_PROTOBUF
        data, size = _write_data(proto, output, files) if is_apart else (None, 0)
        thin = _thin(proto, data or "") if data or has_external(proto) else proto
        content = thin.SerializeToString(deterministic=True)
        files.new(output).write_bytes(content)
        files.remove_others(output.parent, re.escape(_in_utf8(output.name)) + r"\.[0-9a-f]{12}\.data", data or "")
    return len(content) + size


def bytes_on_disk(proto: onnx.ModelProto, external_as: str | None = None) -> int:
    """What `save` would write: one file, or a file of the name `external_as` and one with the weights."""
    places = _places(proto) if external_as else []
    if not external_as or not places:
        return size_as_one_file(proto) if has_external(proto) else _size_in_memory(proto)
    _, offset, length = places[-1]
    return int(_thin(proto, _data_name(external_as, "0" * 64)).ByteSize()) + offset + length


def _places(proto: onnx.ModelProto) -> list[tuple[int, int, int]]:
    """Number, offset and length of every weight that goes to the data file, in order."""
    places, end = [], 0
    for number, tensor in enumerate(proto.graph.initializer):
        length = byte_count(tensor) if is_external(tensor) else len(tensor.raw_data)
        if length >= _DATA_FROM:
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = offset + length
            places.append((number, offset, length))
    return places


def _data_name(output: str, digest: str) -> str:
    return f"{_in_utf8(output)}.{digest[:12]}.data"


def _in_utf8(name: str) -> str:
    """A file's name as a model can refer to it: bytes that aren't UTF-8 are spelt out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _write_data(proto: onnx.ModelProto, output: Path, files: Transaction) -> tuple[str | None, int]:
    """The data file beside `output`, named by its content, and its bytes; None where no weight is large enough."""
    places = _places(proto)
    if not places:
        return None, 0
    if output.is_symlink():
        raise PlanError(f"{output}: this is a link, and data beside a model is looked for beside the link: name a file")
    digest = hashlib.sha256()
    draft = files.draft(output.parent)
    with draft.open("wb") as stream:
        for number, offset, _ in places:
            tensor = proto.graph.initializer[number]
            for part in itertools.chain([b"\0" * (offset - stream.tell())], chunks_of(tensor)):
                stream.write(part)
                digest.update(part)
        size = stream.tell()
    name = _data_name(output.name, digest.hexdigest())
    files.put(draft, output.parent / name)
    return name, size


def gathered(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights in memory, where one protobuf can hold them; else as it is."""
    return _thin(proto, "") if has_external(proto) and bytes_on_disk(proto) < MAX_PROTOBUF else proto


def _thin(proto: onnx.ModelProto, data: str) -> onnx.ModelProto:
    """The model without the weights that lie in the data file, and where they lie; none do where that has no name.

    Weights that lie in other files come into the model then, and only then.
    """
    thin = onnx.ModelProto()
    copy_fields(proto, thin, "graph")
    copy_fields(proto.graph, thin.graph, "initializer")
    places = {number: (offset, length) for number, offset, length in _places(proto)} if data else {}
    for number, tensor in enumerate(proto.graph.initializer):
        written = thin.graph.initializer.add()
        if number not in places and not is_external(tensor):
            written.CopyFrom(tensor)
            continue
        copy_fields(tensor, written, "raw_data")
        written.ClearField("external_data")
        if number not in places:
            written.ClearField("data_location")
            written.raw_data = b"".join(chunks_of(tensor))
            continue
        written.data_location = onnx.TensorProto.EXTERNAL
        offset, length = places[number]
        for key, value in (("location", data), ("offset", str(offset)), ("length", str(length))):
            written.external_data.add(key=key, value=value)
    return thin


def _free_bytes(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
