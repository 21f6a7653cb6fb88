"""A multi-layer perceptron on flat features."""

from __future__ import annotations

from torch import nn

from models.layers import scaled


def mlp(
    width: float = 1.0,
    classes: int = 10,
    in_size: int = 64,
    hidden: tuple[int, ...] = (256, 128),
    batch_norm: bool = False,
) -> nn.Sequential:
    """Linear (BatchNorm) ReLU per entry of `hidden`, then a linear classifier; input `[batch, in_size]`."""
    layers: list[nn.Module] = []
    size = in_size
    for features in (scaled(h, width) for h in hidden):
        layers.append(nn.Linear(size, features))
        if batch_norm:
            layers.append(nn.BatchNorm1d(features))
        layers.append(nn.ReLU(inplace=True))
        size = features
    return nn.Sequential(*layers, nn.Linear(size, classes))
