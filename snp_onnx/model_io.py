"""Models on disk: loading with clear refusals, writing atomically, external data, provenance."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from snp_onnx.errors import ModelError, PlanError

MAX_PROTOBUF = 2**31 - 2**20
"""Bytes of a single protobuf file; larger models keep their weights as external data."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A model as the user gave it: the graph in memory, where it came from, its hash and its size on disk."""

    proto: onnx.ModelProto
    path: Path | None
    sha256: str
    bytes: int
    has_external_data: bool = False

    @property
    def label(self) -> str:
        return str(self.path) if self.path else "the model"


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> Model:
    """Load a model file with its external data, or take a copy of a model in memory.

    Raises ModelError for anything that is not a complete ONNX model.
    """
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        _require_graph(proto, "the model")
        if any(uses_external_data(tensor) for tensor in proto.graph.initializer):
            raise ModelError("the model in memory refers to external data: load it with onnx.load first")
        return Model(proto, None, _hash_in_memory(proto), _size_in_memory(proto))
    path = Path(source)
    proto = _parse(path)
    data_files = _external_files(proto, path)
    try:
        load_external_data_for_model(proto, str(path.parent))
    except Exception as error:
        raise ModelError(f"{path}: its external data can't be read: {_first_line(error)}") from error
    digest = hashlib.sha256()
    for file in (path, *data_files):
        _hash_file(digest, file)
    size = sum(file.stat().st_size for file in (path, *data_files))
    return Model(proto, path, digest.hexdigest(), size, bool(data_files))


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated: {_first_line(error)}") from error
    except Exception as error:
        raise ModelError(f"{path}: can't be read as an ONNX model: {_first_line(error)}") from error
    _require_graph(proto, str(path))
    return proto


def _require_graph(proto: onnx.ModelProto, label: str) -> None:
    if not proto.graph.node or not proto.graph.output or not proto.ir_version:
        raise ModelError(f"{label}: not an ONNX model: it has no graph with nodes and outputs")


def _external_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files the weights are kept in, each checked to lie inside the model's folder and to be long enough."""
    folder = path.parent.resolve()
    files: dict[Path, None] = {}
    for tensor in proto.graph.initializer:
        if not uses_external_data(tensor):
            continue
        info = ExternalDataInfo(tensor)
        file = (folder / info.location).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(
                f"{path}: the external data of {tensor.name} lies outside the model's folder: {info.location}"
            )
        if not file.is_file():
            raise ModelError(f"{path}: the external data file {info.location} of {tensor.name} is missing")
        if int(info.offset or 0) + int(info.length or 0) > file.stat().st_size:
            raise ModelError(
                f"{path}: the external data file {info.location} is too short for {tensor.name}: truncated?"
            )
        files[file] = None
    return tuple(files)


def _hash_file(digest: hashlib._Hash, file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)


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
    """Refuse an output that can't be written, before any work is done."""
    folder = output.parent
    if not folder.is_dir():
        raise PlanError(f"{output}: the output folder {folder} doesn't exist: create it first")
    if output.is_dir():
        raise PlanError(f"{output}: the output is a folder: name a file")
    if not os.access(folder, os.W_OK):
        raise PlanError(f"{output}: the output folder {folder} is not writable")
    if source is not None and not force and output.exists() and output.resolve() == source.resolve():
        raise PlanError(f"{output}: the output is the input model: add --force to replace it")


def save(proto: onnx.ModelProto, output: Path, external_data: bool = False) -> int:
    """Write a model so that at every moment the old file or the new one is there, whole; returns its bytes on disk.

    External data goes to a file named by its content, so that neither an old nor a new model ever meets the other's.
    """
    free = _free_bytes(output.parent)
    needed = _size_in_memory(proto)
    if free is not None and needed > free:
        raise PlanError(f"{output}: needs {needed:,} bytes, only {free:,} are free there")
    if not external_data and needed < MAX_PROTOBUF:
        _replace(output, proto.SerializeToString(deterministic=True))
        return output.stat().st_size
    return _save_external(proto, output)


def _save_external(proto: onnx.ModelProto, output: Path) -> int:
    stale = _data_files_of(output)
    thin = onnx.ModelProto()
    thin.CopyFrom(proto)
    with tempfile.TemporaryDirectory(prefix=".snp-", dir=output.parent) as scratch:
        data = Path(scratch, "data")
        onnx.save_model(
            thin, str(Path(scratch, "model")), save_as_external_data=True, all_tensors_to_one_file=True,
            location="data", size_threshold=1024, convert_attribute=False,
        )  # fmt: skip
        if not data.exists():
            _replace(output, proto.SerializeToString(deterministic=True))
            return output.stat().st_size
        digest = hashlib.sha256()
        _hash_file(digest, data)
        name = f"{output.name}.{digest.hexdigest()[:12]}.data"
        written = onnx.load(str(Path(scratch, "model")), load_external_data=False)
        for tensor in written.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
        os.replace(data, output.parent / name)
        _replace(output, written.SerializeToString(deterministic=True))
    for file in stale - {output.parent / name}:
        file.unlink(missing_ok=True)
    return output.stat().st_size + (output.parent / name).stat().st_size


def _data_files_of(output: Path) -> set[Path]:
    """Data files that an earlier write to the same output left, recognised by their name."""
    return {file for file in output.parent.glob(f"{output.name}.*.data") if file.is_file()}


def _replace(output: Path, content: bytes) -> None:
    with written_whole(output) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A temporary path beside `output` that takes its place only when the block ends without an error."""
    handle, name = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(output.stat().st_mode & 0o777 if output.exists() else 0o666 & ~_umask())
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _free_bytes(folder: Path) -> int | None:
    try:
        status = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
