"""U-Net (arXiv 1505.04597): concatenated skips; up-sampling by ConvTranspose, nearest or bilinear Resize."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import conv, conv_bn, scaled


class Up(nn.Module):
    """Double the map's size: "transposed" learns it, "nearest" resizes by a scale, "bilinear" to the skip's size."""

    def __init__(self, inner: int, outer: int, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.body = nn.ConvTranspose2d(inner, outer, 2, stride=2) if mode == "transposed" else conv_bn(inner, outer)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.mode == "nearest":
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
        elif self.mode == "bilinear":
            x = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat((skip, self.body(x)), dim=1)


class UNet(nn.Module):
    """Encoder of `len(widths)` levels, decoder with one skip for each level but the last; the sides halve per level."""

    def __init__(self, widths: tuple[int, ...], classes: int, mode: str) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(double_conv(i, o) for i, o in zip((3, *widths), widths, strict=False))
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(Up(i, o, mode) for i, o in steps)
        self.merge = nn.ModuleList(double_conv(2 * o, o) for _, o in steps)
        self.head = conv(widths[0], classes, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(self.pool(x) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(up(x, skip))
        mask: Tensor = self.head(x)
        return mask


def double_conv(inner: int, outer: int) -> nn.Sequential:
    """Two 3x3 convolutions with BatchNorm and ReLU."""
    return nn.Sequential(conv_bn(inner, outer), conv_bn(outer, outer))


def unet(width: float = 1.0, classes: int = 2, levels: int = 5, mode: str = "transposed") -> UNet:
    """`levels` levels of `64 * 2**i` channels; the input's sides must be multiples of `2 ** (levels - 1)`."""
    if mode not in ("transposed", "nearest", "bilinear"):
        raise ValueError(f"mode {mode!r} is unknown: use 'transposed', 'nearest' or 'bilinear'")
    return UNet(tuple(scaled(64 * 2**i, width) for i in range(levels)), classes, mode)
