"""Checkpoints: the whole state of a training in one file that is never half-written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snp_onnx.errors import PlanError
from snp_onnx.writing import written_whole

VERSION = 1


@dataclass(slots=True)
class State:
    """Where a training is: the next step, its weights, the best so far, and what was measured on the way."""

    epoch: int = 0
    step: int = 0
    elapsed: float = 0.0
    weights: list[Tensor] = field(default_factory=list)
    """In the order and the coordinates of the training."""
    optimiser: dict[str, Any] = field(default_factory=dict)
    start_error: float = 0.0
    best_error: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)
    """Empty while nothing is better than the start."""
    is_done: bool = False
    checked: float = 0.0
    """How much of the training was done at the last check."""
    stale: int = 0
    """Checks since the best."""
    history: list[dict[str, float]] = field(default_factory=list)


def write_state(state: State, path: Path, fingerprint: str) -> None:
    """Replace the file in one go."""
    with written_whole(path) as temporary:
        torch.save({"version": VERSION, "fingerprint": fingerprint, **_fields(state)}, temporary)


def _fields(state: State) -> dict[str, Any]:
    """The fields by name, tensors shared."""
    return {name: getattr(state, name) for name in State.__dataclass_fields__}


def read_state(path: Path, fingerprint: str) -> State:
    """The state in a file; PlanError where it is damaged, or of another training."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise PlanError(f"{path}: not a checkpoint that can be read: remove it and start again") from error
    if not isinstance(found, dict) or found.pop("version", None) != VERSION:
        raise PlanError(f"{path}: not a checkpoint of this version of snp-onnx: remove it and start again")
    if found.pop("fingerprint", None) != fingerprint:
        raise PlanError(
            f"{path}: a checkpoint of other models, samples or options: "
            "give those it was started with, or remove it and start again"
        )
    return State(**found)
