"""What may be chosen: the target, and how units are ordered, widths shared out and weights folded."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from snp_onnx.errors import PlanError
from snp_onnx.subspace import Order
from snp_onnx.tracing import PLAIN_KINDS, Kind


class Fold(StrEnum):
    """How removed units are absorbed by the weights that stay."""

    PATCH = "patch"
    CHANNEL = "channel"
    NONE = "none"


class Ratios(StrEnum):
    """How the widths of groups are set against each other."""

    BUDGET = "budget"
    VARIANCE = "variance"
    UNIFORM = "uniform"


class Refine(StrEnum):
    """Whether layers are solved anew, one after the other, on what the pruned layers before them give."""

    SEQUENTIAL = "sequential"
    NONE = "none"


class Weigh(StrEnum):
    """What errors of different groups are compared by: their layers' outputs, or what they do to the model's."""

    LAYERS = "layers"
    OUTPUTS = "outputs"


class Preset(StrEnum):
    """Named sets of choices; single ones can be overridden."""

    BEST = "best"
    FAST = "fast"
    PAPER = "paper"


class BlockScore(StrEnum):
    """By what blocks are ranked: how alike the representation stays without one, or a baseline."""

    CKA = "cka"
    DEBIASED_CKA = "debiased-cka"
    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    MAGNITUDE = "magnitude"
    RANDOM = "random"


class TargetKind(StrEnum):
    """What the target measures: a share of the dense cost, the paper's τ, or the R² that outputs must keep."""

    MACS = "macs"
    PARAMS = "params"
    SIZE = "size"
    LATENCY = "latency"
    VARIANCE = "variance"
    FIDELITY = "fidelity"

    @property
    def option(self) -> str:
        """The name it has on the command line."""
        names = {TargetKind.VARIANCE: "variance", TargetKind.FIDELITY: "min-fidelity"}
        return names.get(self, f"target-{self}")


AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Target:
    """Keep at most `value` of the dense cost; for `variance` at least `value` of every group's ΣD, for `fidelity` R²
    of at least `value` of every channel of every output.
    """

    kind: TargetKind
    value: float

    def __post_init__(self) -> None:
        if not 0.0 < self.value <= 1.0:
            raise PlanError(f"--{self.option} {self.value}: give a fraction above 0 and up to 1")

    @property
    def option(self) -> str:
        """The name it has on the command line."""
        return self.kind.option


@dataclass(frozen=True, slots=True)
class Choices:
    """How a plan is decided and carried out. `streams` says whether convolutional residual streams may lose width,
    `caches` whether heads may go whose keys and values are inputs and outputs of the graph, which get narrower then.

    Widths are multiples of `round_to` or, with "auto", those between which the runtime's clock sees a difference.
    `ridge` is ρ, the one strength of every anchor: elimination and folding use ρ, the refit, which rests on fewer rows,
    10 ρ. `repair` is a in e / (V (1 + a r)), by which errors of different groups are compared: V is the variance
    of the sum that a layer's output goes into, r how many layers behind it can make up for its error in a refit.
    `weigh` says whether these errors are then put on the scale of the model's outputs; None leaves it to the model:
    with attention.
    Blocks are ranked by `similarity` of the `representation` (a tensor; "": the last layer's input) on
    `ranking_samples` samples; every stage keeps `min_blocks`. Latencies are those of `latency_batch` rows. `fallback`
    lets fold and refit be left out where they surely harm the samples set apart for choosing.
    """

    order: Order = Order.ZCA
    fold: Fold = Fold.CHANNEL
    ratios: Ratios = Ratios.VARIANCE
    kinds: frozenset[Kind] = PLAIN_KINDS
    streams: bool = False
    caches: bool = False
    include: str | None = None
    exclude: str | None = None
    min_units: int = 1
    round_to: int | str = 1
    ridge: float = 1e-6
    refine: Refine = Refine.NONE
    repair: float = 0.0
    weigh: Weigh | None = None
    similarity: BlockScore = BlockScore.CKA
    representation: str = ""
    ranking_samples: int = 256
    min_blocks: int = 1
    latency_batch: int = 1
    fallback: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for option, pattern in (("--include", self.include), ("--exclude", self.exclude)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise PlanError(f"{option} {pattern!r}: not a regular expression: {error}") from error
        if isinstance(self.round_to, str) and self.round_to != AUTO:
            raise PlanError(f"--round-to {self.round_to!r}: give a number or {AUTO}")
        least = {"min_units": 1, "step": 1, "min_blocks": 0, "ranking_samples": 4, "latency_batch": 1}
        for name, lowest in least.items():
            option = "--round-to" if name == "step" else f"--{name.replace('_', '-')}"
            number = getattr(self, name)
            if number < lowest:
                raise PlanError(f"{option} {number}: give {lowest} or more")
        if not 0.0 < self.ridge < math.inf:
            raise PlanError(f"--ridge {self.ridge}: give a positive number")
        if not 0.0 <= self.repair < math.inf:
            raise PlanError(f"--repair {self.repair}: give 0 or a positive number")
        if not self.kinds:
            raise PlanError(f"--units names none: choose from {', '.join(Kind)}")

    @property
    def step(self) -> int:
        """What widths are multiples of, whatever the clock says."""
        return self.round_to if isinstance(self.round_to, int) else 1

    @property
    def is_rounded_by_clock(self) -> bool:
        return self.round_to == AUTO

    def record(self) -> dict[str, Any]:
        """The choices as plain JSON values."""
        plain = {name: value for name, value in asdict(self).items() if name != "kinds"}
        plain["kinds"] = sorted(str(kind) for kind in self.kinds)
        return {name: str(value) if isinstance(value, str) else value for name, value in plain.items()}


PAPER = Choices()
"""Subspace Node Pruning as published: unnormalised ZCA order, LDL subspace, cumulative variance, channel folding."""

FAST = Choices(order=Order.OUTPUT, fold=Fold.PATCH, ratios=Ratios.BUDGET, ridge=1e-3)
"""Output-aware elimination, folding of whole windows with the bias, widths by error against cost; one pass."""

BEST = replace(FAST, refine=Refine.SEQUENTIAL, repair=0.125)
"""`fast`, then every layer refitted in turn; what a refit can repair counts for less in the budget."""

_PRESETS = {Preset.BEST: BEST, Preset.FAST: FAST, Preset.PAPER: PAPER}


def choices(preset: str = Preset.BEST, **overrides: Any) -> Choices:
    """A preset's choices with the given ones in place of its own; None leaves one as it is."""
    given = {name: value for name, value in overrides.items() if value is not None}
    enums = {"order": Order, "fold": Fold, "ratios": Ratios, "refine": Refine, "weigh": Weigh, "similarity": BlockScore}
    for name, kind in enums.items():
        if name in given:
            given[name] = _member(kind, given[name], f"--{name}")
    if isinstance(given.get("round_to"), str) and re.fullmatch(r"-?\d+", given["round_to"]):
        given["round_to"] = int(given["round_to"])
    if "kinds" in given:
        given["kinds"] = frozenset(_member(Kind, kind, "--units") for kind in given["kinds"])
    return replace(_PRESETS[_member(Preset, preset, "--preset")], **given)


def _member(kind: type[Any], value: object, option: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(member) for member in kind)
        raise PlanError(f"{option} {value!r}: not known; choose from {known}") from None
