"""ResNet for CIFAR, depth 6n + 2 (arXiv 1512.03385), and its pre-activation form (arXiv 1603.05027)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from models.layers import PadShortcut, Residual, conv, conv_bn, global_pool_linear, projection, scaled

STAGE_WIDTHS = (16, 32, 64)


def cifar_resnet(width: float = 1.0, classes: int = 10, depth: int = 20, shortcut: str = "a") -> nn.Sequential:
    """Three stages of `(depth - 2) / 6` basic blocks; `shortcut` "a" (slice and zero pad) or "b" (projection)."""
    channels = scaled(STAGE_WIDTHS[0], width)
    layers: list[nn.Module] = [conv_bn(3, channels)]
    for outer, stride in _block_shapes(depth, width):
        body = nn.Sequential(conv_bn(channels, outer, 3, stride), conv_bn(outer, outer, activation=None))
        layers.append(Residual(body, _shortcut(channels, outer, stride, shortcut)))
        channels = outer
    return nn.Sequential(*layers, global_pool_linear(channels, classes))


def preact_resnet(width: float = 1.0, classes: int = 10, depth: int = 20) -> nn.Sequential:
    """BatchNorm and ReLU before each convolution; where shapes change, the 1x1 projection shares the first ReLU."""
    channels = scaled(STAGE_WIDTHS[0], width)
    layers: list[nn.Module] = [conv(3, channels)]
    for outer, stride in _block_shapes(depth, width):
        layers.append(PreActBlock(channels, outer, stride))
        channels = outer
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), global_pool_linear(channels, classes))


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, Conv twice; the sum itself is left without activation."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inner)
        self.body = nn.Sequential(conv_bn(inner, outer, 3, stride), conv(outer, outer))
        self.shortcut = conv(inner, outer, 1, stride) if inner != outer or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm(x))
        skipped: Tensor = x if self.shortcut is None else self.shortcut(active)
        changed: Tensor = self.body(active)
        return skipped + changed


def _block_shapes(depth: int, width: float) -> list[tuple[int, int]]:
    """Output channels and stride of every block, in order."""
    if (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n + 2: use 8, 14, 20, 32, 44, 56 or 110")
    per_stage = (depth - 2) // 6
    return [
        (scaled(base, width), 2 if stage and i == 0 else 1)
        for stage, base in enumerate(STAGE_WIDTHS)
        for i in range(per_stage)
    ]


def _shortcut(inner: int, outer: int, stride: int, kind: str) -> nn.Module:
    if kind not in ("a", "b"):
        raise ValueError(f"shortcut {kind!r} is unknown: use 'a' (slice and zero pad) or 'b' (projection)")
    if kind == "a" and (inner != outer or stride != 1):
        return PadShortcut(inner, outer, stride)
    return projection(inner, outer, stride)
