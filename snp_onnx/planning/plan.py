"""The plan: what is kept, as versioned JSON of typed decisions with the curves they were chosen from.

Blocks go first and in order, units after that and in any: two lists of one type each. `plan.schema.json` describes the
text, `blocks` and `groups` the model that it was made for.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from snp_onnx.errors import PlanError
from snp_onnx.planning.plan_text import VERSION, digest_of, read_text, write_text
from snp_onnx.tracing import Group, Trace
from snp_onnx.tracing.groups import Mask
from snp_onnx.writing import Transaction, joined, settle

P = TypeVar("P", "GroupPlace", "BlockPlace")

Folds = Mapping[str, npt.NDArray[np.generic]]
"""Folded weights by initialiser name, in the dense shape, zero where units were removed."""


Bases = Mapping[str, npt.NDArray[np.generic]]
"""Changes of basis that were made before the cut, by name: "<kind>:<place>", as `verbs.bases` gives them."""

_BASIS = "__basis__:"
_DENSE = "__dense_sha256__"
_PLAN = "__plan__"
_CONTENT = "__content__"


_MOST_BYTES = 2**28
"""Of a plan that is read: the curves of a million units have a tenth of it."""


@dataclass(frozen=True, slots=True)
class UnitDecision:
    """Keep `kept` of a group's `before` units; `order` is the path, `variance[k-1]` what its first k units capture."""

    group: str
    kind: str
    before: int
    kept: tuple[int, ...]
    order: tuple[int, ...] = ()
    variance: tuple[float, ...] = ()

    @property
    def after(self) -> int:
        return len(self.kept)

    @property
    def error(self) -> float | None:
        """The share of ΣD that the removed units added; None where no statistics were taken."""
        return 1.0 - self.variance[self.after - 1] if len(self.variance) >= self.after else None


@dataclass(frozen=True, slots=True)
class BlockDecision:
    """Remove a block; `similarity` is that of the representation without it and those before, None where not taken.

    `macs` is the share of the dense model's that is left then.
    """

    block: str
    kind: str
    similarity: float | None
    macs: float


@dataclass(frozen=True, slots=True)
class BranchDecision:
    """Which branches of an If were opened, "then_branch" and "else_branch", so that layers inside have groups."""

    choice: str
    opened: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupPlace:
    """A group of the model that a plan was made for: how many layers make its units, and how many read them."""

    group: str
    kind: str
    units: int
    producers: int
    consumers: int


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """A block of the model that a plan was made for."""

    block: str
    kind: str
    stage: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions for one dense model, tied to it by its hash."""

    dense_sha256: str
    decisions: tuple[UnitDecision, ...]
    target: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    version: int = VERSION
    removed: tuple[BlockDecision, ...] = ()
    """Blocks that go before anything else, in this order."""
    groups: tuple[GroupPlace, ...] = ()
    """All groups that the model has then, in graph order; none where that isn't known."""
    blocks: tuple[BlockPlace, ...] = ()
    """All blocks of the dense model, in graph order; none where none goes."""
    branches: tuple[BranchDecision, ...] = ()
    """Of every If, in the order in which they were come by."""

    def to_json(self) -> str:
        """The plan as JSON text of the present version, the same for the same plan."""
        return write_text({**self._facts(), "version": VERSION})

    @classmethod
    def from_json(cls, text: str, label: str = "plan") -> Plan:
        """Read a plan; PlanError for anything that isn't one of a version we know."""
        raw = read_text(text, label)
        shapes = raw.get("input_shapes", {})
        return cls(
            raw["dense_sha256"],
            tuple(_decision(entry) for entry in raw["decisions"]),
            raw.get("target", {}),
            raw.get("options", {}),
            {name: _whole(shape) for name, shape in shapes.items()},
            int(raw["version"]),
            tuple(BlockDecision(**entry) for entry in raw.get("removed", ())),
            tuple(_place(GroupPlace, entry) for entry in raw.get("groups", ())),
            tuple(_place(BlockPlace, entry) for entry in raw.get("blocks", ())),
            tuple(BranchDecision(entry["choice"], tuple(entry["opened"])) for entry in raw.get("branches", ())),
        )

    def _facts(self) -> dict[str, Any]:
        """What the JSON says, in the order in which people look for it."""
        found = asdict(self)
        heads = {"version": self.version, "dense_sha256": self.dense_sha256}
        for name in ("target", "options", "input_shapes"):
            heads[name] = dict(sorted(found[name].items()))
        branches = {"branches": found["branches"]} if self.branches else {}  # few models have any
        return heads | branches | {name: found[name] for name in ("blocks", "removed", "groups", "decisions")}

    def digest(self) -> str:
        """A short name for the decisions."""
        return digest_of(self._facts())

    def summary(self) -> str:
        """Widths only, compact: what goes into the model's metadata."""
        widths = {d.group: [d.before, d.after] for d in self.decisions if d.after < d.before}
        found: dict[str, Any] = {"digest": self.digest(), "target": dict(self.target), "widths": widths}
        if self.removed:
            found["blocks"] = [decision.block for decision in self.removed]
        return json.dumps(found, sort_keys=True)

    def cut_groups(self, trace: Trace) -> tuple[Group, ...]:
        """The groups of a trace that lose units."""
        cut = {decision.group for decision in self.decisions if decision.after < decision.before}
        return tuple(group for group in trace.groups if group.id in cut)

    def alive(self, trace: Trace) -> Mask:
        """Which labels of a trace stay; PlanError where the plan was made for another graph."""
        groups = {group.id: group for group in trace.groups}
        removed = []
        for decision in _each_once(self.decisions):
            group = groups.get(decision.group)
            if group is None or len(group) != decision.before:
                found = "no such group" if group is None else f"{len(group)} units"
                raise PlanError(
                    f"the plan's group {decision.group} has {decision.before} units, here {found}: wrong model?"
                )
            removed.append(_removed(group, decision))
        return trace.alive(removed)


def _removed(group: Group, decision: UnitDecision) -> npt.NDArray[np.int64]:
    kept = np.array(decision.kept, dtype=np.int64)
    if not len(kept) or kept.min() < 0 or kept.max() >= len(group) or len(np.unique(kept)) != len(kept):
        raise PlanError(f"plan: the kept units of group {decision.group} must be 1 to {len(group)} different numbers")
    return np.delete(group.labels, kept)


def _each_once(decisions: Iterable[UnitDecision]) -> Iterator[UnitDecision]:
    seen: set[str] = set()
    for decision in decisions:
        if decision.group in seen:
            raise PlanError(f"plan: there are two decisions on group {decision.group}: leave one")
        seen.add(decision.group)
        yield decision


def _decision(entry: Mapping[str, Any]) -> UnitDecision:
    """A decision of a text that has been checked; JSON's 3.0 is a whole number too."""
    numbers = {name: _whole(entry.get(name, ())) for name in ("kept", "order")}
    variance = tuple(float(share) for share in entry.get("variance", ()))
    return UnitDecision(entry["group"], entry["kind"], int(entry["before"]), **numbers, variance=variance)


def _place(kind: Callable[..., P], entry: Mapping[str, Any]) -> P:
    return kind(**{name: value if isinstance(value, str) else int(value) for name, value in entry.items()})


def _whole(numbers: Iterable[float]) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers)


def widths(decisions: Iterable[UnitDecision], groups: Sequence[Group]) -> npt.NDArray[np.int64]:
    """Units kept of every group, (G,); groups without a decision keep all."""
    kept = {decision.group: decision.after for decision in decisions}
    return np.array([kept.get(group.id, len(group)) for group in groups], dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A plan with what its sidecar holds: folded weights (None without a sidecar of this very plan) and bases."""

    plan: Plan
    folds: Folds | None = None
    bases: Bases = field(default_factory=dict)


def save_plan(
    plan: Plan, path: FilePath, folds: Folds | None, bases: Bases | None = None, within: Transaction | None = None
) -> None:
    """Write the JSON and, beside it with suffix .npz, the bases and folded weights it was carried out with.

    `within` has the other files of the same result.
    """
    sidecar = sidecar_of(path)
    check_sidecar(path)
    with joined(within) as files:
        if folds or bases:
            turned = {_BASIS + name: array for name, array in (bases or {}).items()}
            marks = {_DENSE: np.array(plan.dense_sha256), _PLAN: np.array(plan.digest())}
            arrays = {**turned, **dict(folds or {})}
            marks[_CONTENT] = np.array(_content_digest(arrays))
            with files.new(sidecar).open("wb") as stream:
                np.savez_compressed(stream, **marks, **arrays)  # type: ignore[arg-type]
        else:
            files.remove(sidecar)
        files.new(path).write_text(plan.to_json(), encoding="utf-8")


def sidecar_of(path: FilePath) -> FilePath:
    """Where the folded weights of a plan lie."""
    return path.with_suffix(".npz")


def check_sidecar(path: FilePath) -> None:
    """Refuse a plan whose sidecar would take the place of a file that isn't one: `data.json` beside `data.npz`."""
    sidecar = sidecar_of(path)
    if not sidecar.exists():
        return
    try:
        with zipfile.ZipFile(sidecar) as archive:
            is_ours = f"{_DENSE}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        is_ours = False
    if not is_ours:
        raise PlanError(
            f"{path}: its folded weights would overwrite {sidecar}, which isn't a plan's: name it otherwise"
        )


def load_plan(path: FilePath) -> Saved:
    """A plan with the folded weights and bases of its sidecar, if there is one of this very plan."""
    settle(path.parent)
    try:
        if path.exists() and not path.is_file():
            raise PlanError(f"{path}: not a plan: it is no file")
        if path.stat().st_size > _MOST_BYTES:
            raise PlanError(f"{path}: not a plan: it has {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: can't be read as a plan: {error}") from error
    plan = Plan.from_json(text, str(path))
    sidecar = sidecar_of(path)
    if not sidecar.is_file():
        return Saved(plan)
    try:
        found = _arrays_of(sidecar)
    except Exception as error:  # what zipfile, zlib and numpy raise for damaged bytes is open-ended
        text = " ".join(str(error).split()) or type(error).__name__
        raise PlanError(f"{sidecar}: can't be read as the plan's folded weights: {text}") from error
    marks = str(found.pop(_DENSE, "")), str(found.pop(_PLAN, ""))
    if marks != (plan.dense_sha256, plan.digest()):
        return Saved(plan)
    if str(found.pop(_CONTENT, "")) != _content_digest(found):
        raise PlanError(
            f"{sidecar}: its arrays aren't those that were written with the plan, or an early version wrote it: "
            "make the plan anew, or move this file away and give --calibration"
        )
    bases = {name.removeprefix(_BASIS): found.pop(name) for name in list(found) if name.startswith(_BASIS)}
    return Saved(plan, found, bases)


def _arrays_of(sidecar: FilePath) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a sidecar; ValueError where one has another size than its header says, before it is read."""
    with zipfile.ZipFile(sidecar) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                if np.lib.format.read_magic(stream)[0] != 1:
                    raise ValueError(f"{entry.filename} is no array of ours")
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                if math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
                    raise ValueError(f"{entry.filename} says shape {shape} and holds {entry.file_size} bytes")
    with np.load(sidecar, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _content_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """A hash of names, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.require(arrays[name], requirements="C")
        digest.update(f"{name} {array.dtype.itemsize} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
