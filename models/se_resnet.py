"""SE-ResNet (arXiv 1709.01507): basic blocks whose channels are gated by a squeeze-and-excite branch."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from models.layers import Residual, conv, conv_bn, projection
from models.resnet import resnet


class ConvGate(nn.Module):
    """`x * sigmoid(excite(relu(squeeze(pool(x)))))` with 1x1 convolutions."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        squeeze = [nn.AdaptiveAvgPool2d(1), conv(channels, squeezed, 1, bias=True), nn.ReLU()]
        self.gate = nn.Sequential(*squeeze, conv(squeezed, channels, 1, bias=True), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(x)
        return gated


class LinearGate(nn.Module):
    """The same with linear layers: flatten before, view as `[batch, channels, 1, 1]` after."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        squeeze = [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, squeezed), nn.ReLU()]
        self.gate = nn.Sequential(*squeeze, nn.Linear(squeezed, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        factors: Tensor = self.gate(x)
        return x * factors.view(x.shape[0], x.shape[1], 1, 1)


def gated_block(inner: int, base: int, stride: int, gate: type[ConvGate] | type[LinearGate]) -> nn.Module:
    """A basic block with a gate before the sum; the gate squeezes to a quarter."""
    convolutions = [conv_bn(inner, base, 3, stride), conv_bn(base, base, activation=None)]
    return Residual(nn.Sequential(*convolutions, gate(base, max(4, base // 4))), projection(inner, base, stride))


def se_resnet(
    width: float = 1.0, classes: int = 1000, stages: tuple[int, ...] = (2, 2, 2, 2), gate: str = "conv"
) -> nn.Sequential:
    """ResNet with gated basic blocks; `gate` "conv" or "linear"."""
    if gate not in ("conv", "linear"):
        raise ValueError(f"gate {gate!r} is unknown: use 'conv' or 'linear'")
    block = partial(gated_block, gate=ConvGate if gate == "conv" else LinearGate)
    return resnet(width, classes, stages, block)
