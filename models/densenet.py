"""DenseNet (arXiv 1608.06993): each layer's output is concatenated to everything before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import conv, conv_bn, global_pool_linear, scaled


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, (1x1, BatchNorm, ReLU,) 3x3; the result is appended to the input's channels."""

    def __init__(self, inner: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        before = [nn.BatchNorm2d(inner), nn.ReLU()]
        body = [conv_bn(inner, 4 * growth, 1), conv(4 * growth, growth)] if bottleneck else [conv(inner, growth)]
        self.body = nn.Sequential(*before, *body)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), dim=1)


def densenet(
    width: float = 1.0,
    classes: int = 1000,
    stages: tuple[int, ...] = (6, 12, 24, 16),
    growth: int = 32,
    bottleneck: bool = True,
    cifar: bool = False,
) -> nn.Sequential:
    """Dense blocks of `stages[i]` layers, a pooling transition between; `cifar`: 3x3 stem, no halving of channels."""
    grown = scaled(growth, width)
    channels = 2 * grown
    stem = [conv(3, channels)] if cifar else [conv_bn(3, channels, 7, 2), nn.MaxPool2d(3, 2, padding=1)]
    layers: list[nn.Module] = [*stem]
    for stage, depth in enumerate(stages):
        for _ in range(depth):
            layers.append(DenseLayer(channels, grown, bottleneck))
            channels += grown
        if stage + 1 < len(stages):
            outer = channels if cifar else channels // 2
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, outer, 1), nn.AvgPool2d(2)]
            channels = outer
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), global_pool_linear(channels, classes))
