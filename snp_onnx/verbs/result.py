"""What the verbs give back: facts only; `snp_onnx.report` turns them into text and JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from snp_onnx import model_io
from snp_onnx._version import __version__
from snp_onnx.cost import Cost
from snp_onnx.errors import PlanError
from snp_onnx.external import Store
from snp_onnx.planning.plan import Bases, BlockDecision, Folds, Plan, save_plan
from snp_onnx.tracing import Stop, Trace
from snp_onnx.verbs.fidelity import Fidelity
from snp_onnx.verbs.latency import Latency
from snp_onnx.writing import Transaction, joined


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One group: its width before and after, the share of ΣD that was removed, and its producers' node names."""

    id: str
    kind: str
    before: int
    after: int
    error: float | None = None
    is_stream: bool = False
    note: str = ""
    producers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StopReport:
    """One weight axis that stays whole: the barrier's tensor, axis, node and reason."""

    weight: str
    weight_axis: int
    extent: int
    tensor: str
    axis: int
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class BlockReport:
    """One block: its share of the model's MACs, and why it can't go (empty where it can)."""

    name: str
    kind: str
    stage: int
    macs_share: float
    reason: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outlook:
    """What another target would leave: at most this share of the MACs, folded but not refitted."""

    target: float
    cost: Cost
    fidelity: tuple[Fidelity, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one pruning run."""

    dense: Cost
    pruned: Cost
    groups: tuple[GroupReport, ...]
    barriers: tuple[StopReport, ...]
    fidelity: tuple[Fidelity, ...]
    timings: Mapping[str, float]
    target: Mapping[str, Any]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    input_shapes: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    removed: tuple[BlockDecision, ...] = ()
    """Blocks that went, in this order."""
    latency: tuple[Latency, ...] = ()
    outlook: tuple[Outlook, ...] = ()


MADE_BY = "snp_onnx"


def config_of(output: Path) -> Path:
    """Where the numbers of a transformer's architecture go.

    >>> config_of(Path("small.onnx")).name
    'small.onnx.config.json'
    """
    return output.with_name(f"{output.name}.config.json")


def check_config(output: Path) -> None:
    """Refuse an output beside which a file of that name lies that isn't ours."""
    path = config_of(output)
    if not path.exists():
        return
    try:
        known = MADE_BY in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise PlanError(f"{path}: head counts go to this file, and it wasn't written by snp-onnx: name another output")


def save_with_config(
    proto: onnx.ModelProto, output: Path, external_data: bool, config: str | None, within: Transaction | None
) -> int:
    """Write a model and the text with its head counts beside it; an earlier such file goes where there is none."""
    model_io.check_destination(output, None, force=True)
    check_config(output)
    with joined(within) as files:
        written = model_io.save(proto, output, external_data, files)
        if config is None:
            files.remove(config_of(output))  # what it said was of the model that stood here
        else:
            files.new(config_of(output)).write_text(config, encoding="utf-8")
    return written


@dataclass(frozen=True, slots=True, eq=False)
class PruneResult:
    """The pruned model with its report and plan; nothing is on disk before `save`.

    The weights of a large model stay in the files of the dense one and of `store`, a temporary folder that lives as
    long as this result. `save` makes a model that stands alone; so does `model`, in memory, unless no protobuf can hold
    it (2 GB): then it refers to those files.
    """

    proto: onnx.ModelProto
    report: Report
    plan: Plan
    folds: Folds
    bases: Bases = field(default_factory=dict)
    architecture: Mapping[str, Any] | None = None
    """Head counts and hidden widths of a transformer, where they changed: what generation code needs to know."""
    store: Store | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The pruned model; of a large one its weights are read each time that this is asked for."""
        return model_io.gathered(self.proto)

    def save(
        self, path: str | os.PathLike[str], save_as_external_data: bool = False, within: Transaction | None = None
    ) -> int:
        """Write the model; returns its bytes on disk.

        Where head counts or hidden widths of a transformer changed they go to `<path>.config.json`. What stood there
        stays until everything is written, and is replaced at once; `within` has other files of the same result.
        """
        text = None
        if self.architecture is not None:
            text = json.dumps({MADE_BY: __version__, **self.architecture}, indent=2) + "\n"
        return save_with_config(self.proto, Path(path), save_as_external_data, text, within)

    def save_plan(self, path: str | os.PathLike[str], within: Transaction | None = None) -> None:
        """Write the plan as JSON and its folded weights and bases beside it as .npz, both or none of them."""
        save_plan(self.plan, Path(path), self.folds, self.bases, within)


@dataclass(frozen=True, slots=True)
class Prunable:
    """What units of one kind could save at most: the shares of the cost that remain with one unit of every group.

    `options` let them in ("" where they go by default). The last two have the units that go by default reduced too;
    None where these don't go together.
    """

    options: str
    groups: int
    units: int
    macs_left: float
    params_left: float
    macs_left_with_default: float | None = None
    params_left_with_default: float | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What could be pruned in a model, what could not, and what it costs."""

    dense: Cost
    groups: tuple[GroupReport, ...]
    barriers: tuple[StopReport, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    opset: int
    nodes: int
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockReport, ...] = ()
    prunable: Mapping[str, Prunable] = field(default_factory=dict)
    """By kind of unit, and for all that goes by `default`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A dense and a pruned model on the same samples."""

    dense: Cost
    pruned: Cost
    fidelity: tuple[Fidelity, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    latency: tuple[Latency, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Stopwatch:
    """Seconds by stage, summed where a stage runs several times."""

    seconds: dict[str, float] = field(default_factory=dict)
    _started: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._started[stage] = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, stage)

    def split(self, first: str, running: str) -> None:
        """What a running stage has taken so far counts as another stage."""
        self._add(first, running)
        self._started[running] = time.perf_counter()

    def _add(self, stage: str, running: str) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - self._started[running]


def stop_reports(trace: Trace) -> tuple[StopReport, ...]:
    """The trace's stops, flat."""
    return tuple(_stop(stop) for stop in trace.stops)


def _stop(stop: Stop) -> StopReport:
    barrier = stop.barrier
    return StopReport(stop.weight, stop.axis, stop.extent, barrier.tensor, barrier.axis, barrier.node, barrier.reason)


def versions() -> dict[str, str]:
    """Versions of what decided the result."""
    from importlib.metadata import PackageNotFoundError, version

    from snp_onnx._version import __version__

    found = {"snp_onnx": __version__}
    for package in ("onnx", "onnxruntime", "onnxruntime-gpu", "onnx-graphsurgeon", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
