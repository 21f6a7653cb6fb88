"""The parts that several network families share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

relu = partial(nn.ReLU, inplace=True)


def scaled(channels: int, width: float, divisor: int = 4) -> int:
    """`channels * width` rounded to a multiple of `divisor`, at least one `divisor`."""
    return max(divisor, round(channels * width / divisor) * divisor)


def conv(inner: int, outer: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the map's size, up to its stride."""
    return nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def conv_bn(
    inner: int,
    outer: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = relu,
) -> nn.Sequential:
    """Conv, BatchNorm and, unless it is None, an activation."""
    parts: list[nn.Module] = [conv(inner, outer, kernel, stride, groups), nn.BatchNorm2d(outer)]
    return nn.Sequential(*parts, *([activation()] if activation else []))


def global_pool_linear(channels: int, classes: int) -> nn.Sequential:
    """The usual classifier head: global average pool, flatten, linear."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))


def projection(inner: int, outer: int, stride: int) -> nn.Module:
    """Option B: the identity where shapes agree, else a strided 1x1 convolution with BatchNorm."""
    if inner == outer and stride == 1:
        return nn.Identity()
    return conv_bn(inner, outer, 1, stride, activation=None)


class PadShortcut(nn.Module):
    """Option A: every second position, and zero channels on both sides; no weights."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.stride, self.before = stride, (outer - inner) // 2
        self.after = outer - inner - self.before

    def forward(self, x: Tensor) -> Tensor:
        strided = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(strided, (0, 0, 0, 0, self.before, self.after))


class Residual(nn.Module):
    """`activation(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, final_relu: bool = True) -> None:
        super().__init__()
        self.body, self.shortcut, self.final_relu = body, shortcut, final_relu

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.body(x) + self.shortcut(x)
        return functional.relu(summed) if self.final_relu else summed
