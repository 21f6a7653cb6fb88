"""ResNet for ImageNet (arXiv 1512.03385): basic and bottleneck blocks, projection shortcuts."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.layers import Residual, conv_bn, global_pool_linear, projection, scaled

BlockBuilder = Callable[[int, int, int], nn.Module]


def basic_block(inner: int, base: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions; `base` channels out."""
    body = nn.Sequential(conv_bn(inner, base, 3, stride), conv_bn(base, base, activation=None))
    return Residual(body, projection(inner, base, stride))


def bottleneck_block(inner: int, base: int, stride: int) -> nn.Module:
    """1x1, 3x3, 1x1 convolutions; `4 * base` channels out."""
    reduce, spatial = conv_bn(inner, base, 1), conv_bn(base, base, 3, stride)
    body = nn.Sequential(reduce, spatial, conv_bn(base, 4 * base, 1, activation=None))
    return Residual(body, projection(inner, 4 * base, stride))


def resnet(
    width: float = 1.0,
    classes: int = 1000,
    stages: tuple[int, ...] = (2, 2, 2, 2),
    block: BlockBuilder = basic_block,
    expansion: int = 1,
) -> nn.Sequential:
    """7x7 stem and max pool, then `stages[i]` blocks of `64 * 2**i` channels; `expansion` is that of `block`."""
    channels = scaled(64, width)
    layers: list[nn.Module] = [conv_bn(3, channels, 7, 2), nn.MaxPool2d(3, 2, padding=1)]
    for stage, depth in enumerate(stages):
        base = scaled(64 * 2**stage, width)
        for i in range(depth):
            layers.append(block(channels, base, 2 if stage and i == 0 else 1))
            channels = base * expansion
    return nn.Sequential(*layers, global_pool_linear(channels, classes))
