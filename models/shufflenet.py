"""ShuffleNet V1 (arXiv 1707.01083, grouped convolutions) and V2 (arXiv 1807.11164, channel split)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import conv_bn, global_pool_linear, scaled


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups: view, transpose, view."""
    batch, channels, height, width = x.shape
    grouped = x.view(batch, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass, half are convolved, then shuffled; with stride both branches see all of them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        half = outer // 2
        self.left = None
        if stride > 1:
            depthwise = conv_bn(inner, inner, 3, stride, groups=inner, activation=None)
            self.left = nn.Sequential(depthwise, conv_bn(inner, half, 1))
        self.right = nn.Sequential(
            conv_bn(inner if stride > 1 else half, half, 1),
            conv_bn(half, half, 3, stride, groups=half, activation=None),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:
            return shuffle(torch.cat((self.left(x), self.right(x)), dim=1), 2)
        passed, convolved = x.chunk(2, dim=1)
        return shuffle(torch.cat((passed, self.right(convolved)), dim=1), 2)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; joined with the input by a sum, or by concat under stride."""

    def __init__(self, inner: int, outer: int, stride: int, groups: int) -> None:
        super().__init__()
        hidden, self.groups, self.stride = outer // 4, groups, stride
        self.reduce = conv_bn(inner, hidden, 1, groups=groups)
        self.depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=None)
        self.expand = conv_bn(hidden, outer - inner if stride > 1 else outer, 1, groups=groups, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.depthwise(shuffle(self.reduce(x), self.groups)))
        if self.stride > 1:
            return functional.relu(torch.cat((functional.avg_pool2d(x, 3, self.stride, 1), y), dim=1))
        return functional.relu(x + y)


def shufflenet_v2(
    width: float = 1.0, classes: int = 1000, stages: tuple[int, ...] = (4, 8, 4), stem_stride: int = 2
) -> nn.Sequential:
    """Stem, stages of `116 * 2**i` channels, a 1x1 convolution and the classifier."""
    channels = scaled(24, width)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, stem_stride), nn.MaxPool2d(3, 2, padding=1)]
    for stage, depth in enumerate(stages):
        outer = scaled(116 * 2**stage, width)
        for i in range(depth):
            layers.append(ShuffleUnitV2(channels, outer, 2 if i == 0 else 1))
            channels = outer
    last = scaled(1024, width)
    return nn.Sequential(*layers, conv_bn(channels, last, 1), global_pool_linear(last, classes))


def shufflenet_v1(
    width: float = 1.0, classes: int = 1000, stages: tuple[int, ...] = (4, 8, 4), stem_stride: int = 2, groups: int = 2
) -> nn.Sequential:
    """Stem, stages of `200 * 2**i` channels with `groups` groups, and the classifier."""
    channels = scaled(24, width, 4 * groups)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, stem_stride), nn.MaxPool2d(3, 2, padding=1)]
    for stage, depth in enumerate(stages):
        # strictly growing: a strided unit adds `outer - inner` channels to those it passes
        outer = max(scaled(200 * 2**stage, width, 8 * groups), channels + 4 * groups)
        for i in range(depth):
            layers.append(ShuffleUnitV1(channels, outer, 2 if i == 0 else 1, groups))
            channels = outer
    return nn.Sequential(*layers, global_pool_linear(channels, classes))
