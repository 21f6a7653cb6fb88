"""Vision transformer (2010.11929) with the names of timm's checkpoints: one qkv projection, unbound after a permute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models.attention import attend, heads_at


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, sdpa: bool) -> None:
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, sequence, width = x.shape
        qkv = self.qkv(x).reshape(batch, sequence, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = attend(q, k, v, sdpa=self.sdpa).transpose(1, 2).reshape(batch, sequence, width)
        result: Tensor = self.proj(mixed)
        return result


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), activation(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.act(self.fc1(x)))
        return result


class Block(nn.Module):
    def __init__(self, attention: nn.Module, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), attention
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class PatchEmbedding(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return result


class VisionTransformer(nn.Module):
    """Images `[batch, 3, size, size]` to logits `[batch, classes]`, from the class token."""

    def __init__(self, width: int, patches: int, patch: int, blocks: list[nn.Module], classes: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(width, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        result: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return result


def vit(
    width: float = 1.0,
    in_size: int = 224,
    classes: int = 1000,
    *,
    depth: int = 12,
    heads: int = 3,
    head_dim: int = 64,
    patch: int = 16,
    gelu: str = "none",
    sdpa: bool = False,
) -> nn.Module:
    """DeiT-tiny unless told otherwise; `gelu` is torch's approximation, "none" (Erf) or "tanh"."""
    heads = heads_at(heads, width)
    wide = heads * head_dim
    blocks: list[nn.Module] = [
        Block(Attention(wide, heads, sdpa), Mlp(wide, 4 * wide, partial(nn.GELU, gelu)), wide) for _ in range(depth)
    ]
    return VisionTransformer(wide, (in_size // patch) ** 2, patch, blocks, classes)
