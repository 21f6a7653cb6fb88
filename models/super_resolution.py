"""Super-resolution in the form of SRResNet (arXiv 1609.04802): PReLU, residual blocks, a long skip, PixelShuffle."""

from __future__ import annotations

from torch import nn

from models.layers import Residual, conv, conv_bn, scaled


def super_resolution(width: float = 1.0, blocks: int = 16, doublings: int = 2) -> nn.Sequential:
    """`blocks` residual blocks of 64 channels, then `doublings` times Conv, PixelShuffle(2), PReLU."""
    channels = scaled(64, width)
    body = [residual_block(channels) for _ in range(blocks)]
    trunk = nn.Sequential(*body, conv_bn(channels, channels, activation=None))
    up: list[nn.Module] = []
    for _ in range(doublings):
        up += [conv(channels, 4 * channels, bias=True), nn.PixelShuffle(2), nn.PReLU(channels)]
    stem = [conv(3, channels, 9, bias=True), nn.PReLU(channels)]
    return nn.Sequential(*stem, Residual(trunk, nn.Identity(), final_relu=False), *up, conv(channels, 3, 9, bias=True))


def residual_block(channels: int) -> nn.Module:
    """Conv, BatchNorm, PReLU, Conv, BatchNorm; a plain sum with the input."""
    inner = conv_bn(channels, channels, activation=lambda: nn.PReLU(channels))
    body = nn.Sequential(inner, conv_bn(channels, channels, activation=None))
    return Residual(body, nn.Identity(), final_relu=False)
