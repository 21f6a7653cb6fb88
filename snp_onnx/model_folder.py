"""Folders that hold a model beside its config.json, as optimum writes them: which file in them is the model."""

from __future__ import annotations

from pathlib import Path

from snp_onnx.errors import ModelError

DEFAULT = "model.onnx"
_INNER = "onnx"


def model_file(path: Path, name: str | None = None) -> Path:
    """The model of a path: the file itself or, of a folder, `name`, `model.onnx`, or the only ONNX file there is.

    ModelError where a folder has none, or several of which none is the one that is meant.
    """
    if not path.is_dir():
        if name is not None:
            raise ModelError(f"--onnx-file {name}: {path} is no folder: name the folder that the file is in")
        return path
    if name is not None:
        chosen = path / name
        if not chosen.is_file() or not chosen.resolve().is_relative_to(path.resolve()):
            raise ModelError(f"{path}: it has no file {name}: --onnx-file names one of {_listed(path)}")
        return chosen
    found = onnx_files(path)
    for folder in (path, path / _INNER):
        if folder / DEFAULT in found:
            return folder / DEFAULT
    if len(found) != 1:
        said = "holds no ONNX file" if not found else f"holds several models, {_listed(path)}"
        raise ModelError(f"{path}: this folder {said}: name the file (--onnx-file for the folder as a whole)")
    return found[0]


def onnx_files(folder: Path) -> tuple[Path, ...]:
    """All ONNX files of a folder, and of the folder `onnx` in it."""
    return tuple(file for inner in (folder, folder / _INNER) for file in sorted(inner.glob("*.onnx")) if file.is_file())


def _listed(folder: Path) -> str:
    return ", ".join(str(file.relative_to(folder)) for file in onnx_files(folder)) or "none"
