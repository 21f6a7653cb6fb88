"""SqueezeNet (arXiv 1602.07360) with BatchNorm: fire modules, whose two expansions are concatenated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import conv_bn, scaled


class Fire(nn.Module):
    """A 1x1 squeeze, then a 1x1 and a 3x3 expansion to four times its width side by side."""

    def __init__(self, inner: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = conv_bn(inner, squeezed, 1)
        self.pointwise = conv_bn(squeezed, 4 * squeezed, 1)
        self.spatial = conv_bn(squeezed, 4 * squeezed, 3)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x)
        return torch.cat((self.pointwise(squeezed), self.spatial(squeezed)), dim=1)


def squeezenet(
    width: float = 1.0,
    classes: int = 1000,
    stages: tuple[tuple[int, ...], ...] = ((16, 16), (32, 32), (48, 48, 64, 64)),
    cifar: bool = False,
) -> nn.Sequential:
    """A max pool and fire modules of the squeeze widths `stages[i]` each; the classifier is a convolution, pooled.

    `cifar`: stem of stride 1.
    """
    channels = scaled(64, width)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, 1 if cifar else 2)]
    for widths in stages:
        layers.append(nn.MaxPool2d(2))
        for base in widths:
            squeezed = scaled(base, width)
            layers.append(Fire(channels, squeezed))
            channels = 8 * squeezed
    return nn.Sequential(*layers, nn.Conv2d(channels, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
