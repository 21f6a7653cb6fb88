"""VGG (arXiv 1409.1556): the ImageNet form with three linear layers, and the CIFAR form with one."""

from __future__ import annotations

from torch import nn

from models.layers import conv, scaled

STAGE_WIDTHS = (64, 128, 256, 512, 512)


def vgg(
    width: float = 1.0,
    classes: int = 1000,
    in_size: int = 224,
    stages: tuple[int, ...] = (2, 2, 3, 3, 3),
    batch_norm: bool = False,
    cifar: bool = False,
) -> nn.Sequential:
    """`stages[i]` convolutions of `STAGE_WIDTHS[i]` channels and a max pool each; then the classifier."""
    side = in_size // 2 ** len(stages)
    if side < 1:
        raise ValueError(f"in_size {in_size} is too small for {len(stages)} poolings: use at least {2 ** len(stages)}")
    layers: list[nn.Module] = []
    channels = 3
    for depth, base in zip(stages, STAGE_WIDTHS, strict=False):
        for _ in range(depth):
            outer = scaled(base, width)
            layers.append(conv(channels, outer, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outer))
            layers.append(nn.ReLU(inplace=True))
            channels = outer
        layers.append(nn.MaxPool2d(2))
    features = channels * side * side
    head = [nn.Linear(features, classes)] if cifar else _imagenet_head(features, scaled(4096, width), classes)
    return nn.Sequential(*layers, nn.Flatten(1), *head)


def _imagenet_head(features: int, hidden: int, classes: int) -> list[nn.Module]:
    first = [nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Dropout()]
    return [*first, nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(hidden, classes)]
