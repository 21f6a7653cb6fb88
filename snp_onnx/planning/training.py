"""How a pruned model is trained towards the dense one: every choice of `recover`, checked once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from snp_onnx.errors import PlanError


class Optimiser(StrEnum):
    """Who turns gradients into steps."""

    ADAMW = "adamw"
    SGD = "sgd"


class Augmentation(StrEnum):
    """What may be done to images (N, C, H, W) before both models see them."""

    FLIP = "flip"
    CROP = "crop"
    MIX = "mix"


class Precision(StrEnum):
    """What products are computed in; weights, sums and the judgement stay float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


LEARNING_RATES = {Optimiser.ADAMW: 3e-4, Optimiser.SGD: 1e-2}
"""The highest rate where none is given."""


@dataclass(frozen=True, slots=True)
class Training:
    """The choices of one recovery.

    epochs : passes over the samples. time_limit : minutes at most; the schedule is squeezed into them. batch_size :
    samples a step. lr : the highest learning rate, reached after `warmup` (a fraction of all steps), then a half
    cosine down to 0. clip : the largest norm of a step's gradient. Weights of the losses: `output_weight` of the
    outputs' relative squared error, `kl_weight` of a classifier's divergence at `temperature`, `feature_weight` of the
    relative squared error of sums at the ends of residual blocks, `label_weight` of the cross-entropy, if there are
    labels. patience : checks without an improvement before it stops; 0 never stops early. augment : "flip", "crop",
    "mix" (every image becomes a blend of two: what the dense model makes of it says more than what it makes of images
    that it was trained on). precision : "bfloat16" is about twice as fast on processors that have instructions for it.
    whiten : train in coordinates in which every layer's inputs have unit moments. device : cpu or cuda. threads : None
    leaves torch its own choice.
    """

    epochs: int = 20
    time_limit: float | None = None
    batch_size: int = 64
    optimiser: Optimiser = Optimiser.ADAMW
    lr: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: float = 0.05
    clip: float = 1.0
    output_weight: float = 0.1
    kl_weight: float = 0.0
    temperature: float = 4.0
    feature_weight: float = 1.0
    label_weight: float = 1.0
    patience: int = 0
    augment: tuple[Augmentation, ...] = ()
    precision: Precision = Precision.FLOAT32
    whiten: bool = True
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("optimiser", Optimiser), ("precision", Precision)):
            object.__setattr__(self, name, _word(name, getattr(self, name), kind))
        given: Any = self.augment
        words = (given,) if isinstance(given, str) else given
        object.__setattr__(self, "augment", tuple(_word("augment", word, Augmentation) for word in words))
        for name in ("epochs", "batch_size", "temperature", "clip", "lr", "time_limit", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise PlanError(f"--{name.replace('_', '-')} {value}: give a positive number")
        for name in (
            "output_weight",
            "kl_weight",
            "feature_weight",
            "label_weight",
            "weight_decay",
            "patience",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise PlanError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or a positive number")
        for name in ("momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise PlanError(f"--{name} {getattr(self, name)}: give a number from 0 to below 1")
        if self.output_weight + self.kl_weight + self.feature_weight + self.label_weight <= 0:
            raise PlanError("all weights of the losses are 0: there is nothing to train towards")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return LEARNING_RATES[self.optimiser] if self.lr is None else self.lr

    def record(self) -> dict[str, Any]:
        """The choices as plain values."""
        found = asdict(self) | {"lr": self.rate, "augment": [str(word) for word in self.augment]}
        return {name: str(value) if isinstance(value, StrEnum) else value for name, value in found.items()}


def _word(name: str, value: Any, kind: type[StrEnum]) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise PlanError(f"--{name} {value!r}: give one of {', '.join(kind)}") from None


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where the state of a training goes every so many minutes, and whether to go on from what is there."""

    path: Path
    every: float = 5.0
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise PlanError(f"--every {self.every}: give the minutes between two checkpoints")
