"""MobileNetV2 (arXiv 1801.04381): inverted residuals with depthwise convolutions and ReLU6."""

from __future__ import annotations

from functools import partial

from torch import nn

from models.layers import Residual, conv_bn, global_pool_linear, projection, scaled

relu6 = partial(nn.ReLU6, inplace=True)

# expansion, output channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
)  # fmt: skip


def mobilenet_v2(
    width: float = 1.0,
    classes: int = 1000,
    stages: tuple[tuple[int, int, int, int], ...] = STAGES,
    stem_stride: int = 2,
) -> nn.Sequential:
    """Stem, the inverted residuals of `stages`, a 1x1 convolution and the classifier."""
    channels = scaled(32, width)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, stem_stride, activation=relu6)]
    for expansion, base, blocks, first_stride in stages:
        outer = scaled(base, width)
        for i in range(blocks):
            layers.append(inverted_residual(channels, outer, first_stride if i == 0 else 1, expansion))
            channels = outer
    last = scaled(1280, width)
    layers.append(conv_bn(channels, last, 1, activation=relu6))
    return nn.Sequential(*layers, global_pool_linear(last, classes))


def inverted_residual(inner: int, outer: int, stride: int, expansion: int) -> nn.Module:
    """Expand, filter depthwise, project linearly; a sum only where the shapes agree."""
    hidden = inner * expansion
    expand = [conv_bn(inner, hidden, 1, activation=relu6)] if expansion > 1 else []
    depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=relu6)
    body = nn.Sequential(*expand, depthwise, conv_bn(hidden, outer, 1, activation=None))
    if stride == 1 and inner == outer:
        return Residual(body, projection(inner, outer, stride), final_relu=False)
    return body
