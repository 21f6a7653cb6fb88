"""`prune_folder`: a model pruned together with the folder it lives in, as `optimum` writes and loads them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from snp_onnx.errors import ModelError, PlanError
from snp_onnx.integrations.checkpoint_config import Setting, holds_cache_heads, updated
from snp_onnx.model_folder import model_file, onnx_files
from snp_onnx.model_io import data_files
from snp_onnx.planning.plan import Plan, UnitDecision
from snp_onnx.tracing import Kind
from snp_onnx.verbs.prune import prune
from snp_onnx.verbs.result import PruneResult, config_of
from snp_onnx.writing import Transaction, followed, is_hidden_scratch, is_mount, joined, settle

CONFIG = "config.json"

Shapes = Mapping[str, tuple[int | str, ...]]


def prune_folder(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    calibration: Any = None,
    *,
    onnx_file: str | None = None,
    force: bool = False,
    save_as_external_data: bool = False,
    **options: Any,
) -> PruneResult:
    """Prune the model of a folder and write a folder that can be loaded in its place.

    Parameters
    ----------
    source : a folder with `model.onnx` beside `config.json`, tokenizer files and the like; never changed.
    output : the new folder, which appears whole or not at all; it must not exist, or be empty. With `force` another
        folder with a model is replaced.
    calibration : any SOURCE of `prune`; with `caches` it must be one that can be read twice.
    onnx_file : which of several ONNX files is pruned, by its name in the folder.
    options : those of `prune`.

    Returns
    -------
    The result of `prune`, already written; notes say what became of other ONNX files, and what config.json can't hold.

    Raises
    ------
    As `prune` does; PlanError also where the parts of the new folder would not fit together.
    """
    folder = ModelFolder.at(Path(source), onnx_file)
    folder.check(Path(output), force)
    if save_as_external_data:
        options.setdefault("external_as", folder.file.name)
    result = folder.prune(calibration, **options)
    folder.write(result, Path(output), save_as_external_data)
    return result


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder with the model that is pruned in it, the ONNX files that are left out, and those that stay."""

    source: Path
    file: Path
    left_out: tuple[Path, ...]
    kept: tuple[Path, ...]
    config: Mapping[str, Any] | None

    @classmethod
    def at(cls, source: Path, onnx_file: str | None = None) -> ModelFolder:
        """Look at a folder; PlanError where pruning this file would leave parts that don't fit together."""
        if not source.is_dir():
            raise ModelError(f"{source}: no such folder")
        file = model_file(source, onnx_file)
        others = [other for other in onnx_files(source) if other != file]
        for other in others:
            if _is_twin(file.stem, other.stem):
                raise PlanError(
                    f"{other.name} is the same decoder as {file.name} and would stay dense beside it: export them as "
                    "one file, or prune a folder with one of them"
                )
        left_out = tuple(other for other in others if _is_form_of(file.stem, other.stem))
        kept = tuple(other for other in others if other not in left_out)
        return cls(source, file, left_out, kept, _read_config(source / CONFIG))

    def check(self, output: Path, force: bool, inputs: Iterable[Path] = ()) -> None:
        """Refuse an output folder that can't be written or that holds something else, before any work is done."""
        here, there = self.source.resolve(), followed(output).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise PlanError(f"{output}: the output folder and {self.source} lie in each other: name another folder")
        beside = output if _stays(output) else there.parent
        if not beside.is_dir() or not os.access(beside, os.W_OK):
            raise PlanError(f"{output}: the folder {beside} doesn't exist or can't be written: create it first")
        for folder in (there.parent, there):
            settle(folder)
        if output.suffix == ".onnx" or (output.exists() and not output.is_dir()):
            raise PlanError(f"{output}: {self.source} is pruned as a folder: name a folder, or give {self.file} itself")
        self._check_copied()
        if output.is_dir() and any(output.iterdir()):
            if not force:
                raise PlanError(f"{output}: the output folder isn't empty: name another one, or add --force")
            if not onnx_files(output):
                raise PlanError(f"{output}: this folder holds no model, so it isn't replaced: name another one")
            for path in inputs:
                if there in path.resolve().parents or there == path.resolve():
                    raise PlanError(f"{path}: this input of the run lies in the folder that would be replaced")

    def prune(self, calibration: Any, **options: Any) -> PruneResult:
        """`prune` on the model of the folder; caches keep as many heads in every layer, as config.json wants."""
        if options.get("caches"):
            self._check_caches()
        result = prune(self.file, calibration, **options)
        narrowed = self._levelled(result)
        if narrowed is not None:
            own = {name: value for name, value in options.items() if name not in _DECIDING}
            result = prune(self.file, calibration, plan=narrowed, **own)
            note = "heads of all layers brought to the fewest of any: config.json holds one number for their caches"
            result = _noted(result, (note,))
        return self._fitted(result)

    def write(
        self, result: PruneResult, output: Path, external_data: bool = False, within: Transaction | None = None
    ) -> int:
        """The folder with the pruned model, whole or not at all; returns the model's bytes on disk.

        What is mounted can't be replaced: there the new files are moved in, and those that were there out.
        """
        with joined(within) as files:
            stays = _stays(output)
            new = files.draft(output) if stays else files.new(output)
            shutil.copytree(self.source, new, ignore=self._ignored())
            written = result.save(new / self.file.relative_to(self.source), external_data)
            config, _ = self._new_config(result)
            if config is not None:
                (new / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            if stays:
                _move_in(new, output, files)
        return written

    def _ignored(self) -> Callable[[str, list[str]], set[str]]:
        """What isn't copied: the dense model, other forms of it, and their data files that no other file needs."""
        gone = [self.file, *self.left_out]
        data = {path for file in gone for path in data_files(file)} - {
            p for file in self.kept for p in data_files(file)
        }
        left = {os.path.realpath(path) for path in (*gone, config_of(self.file), *data)}

        def ignored(folder: str, names: list[str]) -> set[str]:
            paths = {name: Path(folder) / name for name in names}
            return {n for n, path in paths.items() if os.path.realpath(path) in left or is_hidden_scratch(path)}

        return ignored

    def _check_copied(self) -> None:
        """Refuse a folder with what can't be copied."""
        ignored = self._ignored()
        for folder, inner, names in os.walk(self.source, followlinks=True):
            left, around = ignored(folder, names), _folders_around(Path(folder), self.source)
            for path in (Path(folder) / name for name in sorted(names) if name not in left):
                if not path.is_file() or not os.access(path, os.R_OK):
                    kind = "a link to nothing" if path.is_symlink() and not os.path.exists(path) else "no readable file"
                    raise ModelError(f"{path}: this is {kind}, and the folder is copied: remove it")
            for path in (Path(folder) / name for name in inner):
                if os.path.realpath(path) in around:
                    raise ModelError(f"{path}: this link leads to a folder that it is in: remove it")

    def _fitted(self, result: PruneResult) -> PruneResult:
        """The result with notes on the folder; PlanError where its parts would not fit together."""
        notes = [f"{path.name} is another form of the dense model: left out" for path in self.left_out]
        notes += [f"{path.name} is another part of the model: copied as it is" for path in self.kept]
        return _noted(result, (*notes, *self._new_config(result)[1]))

    def _new_config(self, result: PruneResult) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
        lost, dense = self._is_narrower(result), shapes_of(self._dense())
        if lost:
            self._check_caches()
        if self.config is None:
            return None, ()
        part = next((name for name in ("encoder", "decoder") if self.file.stem.startswith(name)), self.file.stem)
        setting = Setting(_has_caches(dense), lost, part if self.kept else None)
        if lost and result.architecture is None:
            raise PlanError(f"{self.file}: its inputs or outputs changed, and config.json can't say how")
        return updated(self.config, result.architecture or {}, setting)

    def _is_narrower(self, result: PruneResult) -> bool:
        """Whether inputs or outputs lost heads."""
        dense, pruned = shapes_of(self._dense()), shapes_of(result.proto)
        return any(shape != dense.get(name, shape) for name, shape in pruned.items())

    def _dense(self) -> onnx.ModelProto:
        return onnx.load(str(self.file), load_external_data=False)

    def _check_caches(self) -> None:
        if self.kept:
            raise PlanError(
                f"--caches: {self.kept[0].name} would no longer fit {self.file.name}: prune without --caches"
            )
        if self.config is not None and not holds_cache_heads(self.config):
            kind = self.config.get("model_type", "this model")
            raise PlanError(
                f"--caches: the config.json of {kind} has no number of key-value heads, so that what loads it would "
                "make caches of another shape: prune without --caches"
            )

    def _levelled(self, result: PruneResult) -> Plan | None:
        """A plan with as many heads in every layer, where inputs or outputs lost some and layers differ."""
        heads = [decision for decision in result.plan.decisions if decision.kind == Kind.HEADS]
        fewest = min((decision.after for decision in heads), default=0)
        if all(decision.after == fewest for decision in heads) or not self._is_narrower(result):
            return None
        decisions = tuple(_narrowed(decision, fewest) for decision in result.plan.decisions)
        return replace(result.plan, decisions=decisions)


_DECIDING = (
    "target_macs",
    "target_params",
    "target_size",
    "target_latency",
    "variance",
    "min_fidelity",
    "plan",
    "plan_widths",
)


def _narrowed(decision: UnitDecision, width: int) -> UnitDecision:
    if decision.kind != Kind.HEADS:
        return decision
    best = decision.order or decision.kept
    return replace(decision, kept=tuple(sorted([unit for unit in best if unit in decision.kept][:width])))


def shapes_of(model: onnx.ModelProto) -> Shapes:
    """What a model declares of its inputs and outputs, by name."""
    return {
        value.name: tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }


def _has_caches(shapes: Shapes) -> bool:
    return any("past" in name or ".key" in name or ".value" in name for name in shapes)


def _is_twin(stem: str, other: str) -> bool:
    """Whether both are the decoder of one model, once with a cache and once without."""
    both = stem.startswith("decoder") and other.startswith("decoder")
    return both and not _is_form_of(stem, other)


def _is_form_of(stem: str, other: str) -> bool:
    """Whether one is the other in another precision or optimised, by the endings that exporters give: model_fp16."""
    short, long = sorted((stem, other), key=len)
    return long.startswith(f"{short}_") and not long.endswith("_merged")


def _read_config(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path}: can't be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise PlanError(f"{path}: not a model's config: it holds no object")
    return found


def _noted(result: PruneResult, notes: tuple[str, ...]) -> PruneResult:
    return replace(result, report=replace(result.report, notes=(*result.report.notes, *notes)))


def _folders_around(inner: Path, outer: Path) -> set[str]:
    """A folder and those that it is in, up to `outer`, as they really are."""
    return {os.path.realpath(path) for path in (inner, *inner.parents) if path == outer or outer in path.parents}


def _stays(output: Path) -> bool:
    """Whether a folder can only be filled: it is mounted, or nothing may be written beside it."""
    return output.is_dir() and (is_mount(output) or not os.access(followed(output).parent, os.W_OK))


def _move_in(new: Path, output: Path, files: Transaction) -> None:
    """Let what is in a draft stand in a folder, in place of all that was there."""
    names = sorted(path.name for path in new.iterdir())
    for path in output.iterdir():
        if path.name not in names and not is_hidden_scratch(path):
            files.remove(path)
    for name in names:
        draft = files.draft(output)
        os.rename(new / name, draft)
        files.put(draft, output / name)
