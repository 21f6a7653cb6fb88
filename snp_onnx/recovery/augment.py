"""Augmentation of images: the same change for the dense and the pruned model, drawn anew each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from snp_onnx.errors import PlanError
from snp_onnx.planning.training import Augmentation

MARGIN = 8
"""A crop moves an image by up to an eighth of its side in every direction; what comes in is 0."""


def augmented(feed: Mapping[str, Tensor], ways: Sequence[Augmentation], rng: np.random.Generator) -> dict[str, Tensor]:
    """The feed with every floating-point input (N, C, H, W) flipped left to right, or moved, row by row."""
    images = [name for name, values in feed.items() if values.ndim == 4 and values.is_floating_point()]
    if ways and not images:
        raise PlanError("--augment is for images, and this model reads no (N, C, H, W) input: leave it out")
    changed = dict(feed)
    for way in ways:
        for name in images:
            changed[name] = _WAYS[way](changed[name], rng)
    return changed


def _flipped(x: Tensor, rng: np.random.Generator) -> Tensor:
    chosen = torch.from_numpy(rng.integers(0, 2, len(x)).astype(bool)).to(x.device)
    return torch.where(chosen[:, None, None, None], x.flip(-1), x)


def _moved(x: Tensor, rng: np.random.Generator) -> Tensor:
    rows, height, width = len(x), x.shape[2], x.shape[3]
    top, left = max(1, height // MARGIN), max(1, width // MARGIN)
    padded = F.pad(x, [left, left, top, top])
    down = torch.from_numpy(rng.integers(0, 2 * top + 1, rows))[:, None] + torch.arange(height)
    across = torch.from_numpy(rng.integers(0, 2 * left + 1, rows))[:, None] + torch.arange(width)
    places = torch.arange(rows)[:, None, None], down[:, :, None], across[:, None, :]
    picked = padded.permute(0, 2, 3, 1)[tuple(place.to(x.device) for place in places)]
    return picked.permute(0, 3, 1, 2)


def _mixed(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each row blended with another of the batch, in a proportion drawn evenly (mixup: Zhang et al. 2018)."""
    shares = torch.from_numpy(rng.random(len(x)).astype(np.float32)).to(x.device)[:, None, None, None]
    others = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    return shares * x + (1 - shares) * x[others]


_WAYS: Mapping[Augmentation, Callable[[Tensor, np.random.Generator], Tensor]] = {
    Augmentation.FLIP: _flipped,
    Augmentation.CROP: _moved,
    Augmentation.MIX: _mixed,
}
