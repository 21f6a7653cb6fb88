"""Options that make every recipe so small that tests can build, export and run it; importable without torch."""

from __future__ import annotations

from typing import Any

# Wide enough that widths still differ from stage to stage: no recipe goes below four channels.
_NARROW: dict[str, Any] = {"width": 0.125, "in_size": 32}
_CIFAR: dict[str, Any] = {"width": 0.25, "in_size": 16, "depth": 8}
_UNET: dict[str, Any] = {"width": 0.125, "in_size": 16, "levels": 3, "classes": 3}

_BLOCKS: dict[str, Any] = {"depth": 2, "heads": 4, "head_dim": 8}
_TOKENS: dict[str, Any] = {**_BLOCKS, "in_size": 8, "vocabulary": 64}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "deit-tiny": {**_BLOCKS, "in_size": 16, "patch": 8, "classes": 10},
    "bert": {**_TOKENS, "positions": 32},
    "gpt2": {**_TOKENS, "positions": 32},
    "opt": {**_TOKENS, "positions": 32},
    "opt-alibi": _TOKENS,
    "opt-relative": _TOKENS,
    "llama": {**_TOKENS, "kv_heads": 2, "hidden": 40},
    "llama-fused": {**_TOKENS, "kv_heads": 2, "hidden": 40},
    "llama-interleaved": {**_TOKENS, "kv_heads": 2, "hidden": 40},
    "whisper-encoder": {**_BLOCKS, "in_size": 16},
}

TINY: dict[str, dict[str, Any]] = {
    "mlp": {"width": 0.125, "in_size": 12},
    "mlp-bn": {"width": 0.125, "in_size": 12},
    "vgg11": {**_NARROW, "width": 0.0625, "classes": 10},
    "vgg11-bn": {**_NARROW, "width": 0.0625, "classes": 10},
    "vgg16": {**_NARROW, "width": 0.0625, "classes": 10, "stages": (2, 1, 2)},
    "vgg16-bn": {**_NARROW, "width": 0.0625, "classes": 10, "stages": (2, 1, 2)},
    "vgg16-cifar": {**_NARROW, "stages": (2, 1, 2)},
    "vgg16-cifar-bn": {**_NARROW, "stages": (2, 1, 2)},
    "resnet18": {**_NARROW, "classes": 10, "stages": (2, 2)},
    "resnet34": {**_NARROW, "classes": 10, "stages": (3, 1)},
    "resnet50": {**_NARROW, "classes": 10, "stages": (2, 2)},
    "resnet20-a": _CIFAR,
    "resnet20-b": _CIFAR,
    "resnet56-a": {**_CIFAR, "depth": 14},
    "resnet56-b": {**_CIFAR, "depth": 14},
    "resnet110-a": _CIFAR,
    "preresnet20": _CIFAR,
    "preresnet56": {**_CIFAR, "depth": 14},
    "mobilenetv2": {**_NARROW, "width": 0.5, "classes": 10, "stages": ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))},
    "shufflenetv1": {**_NARROW, "classes": 10, "stages": (2, 2)},
    "shufflenetv2": {**_NARROW, "classes": 10, "stages": (2, 2)},
    "densenet121": {**_NARROW, "width": 0.25, "classes": 10, "stages": (2, 2)},
    "densenet40": {"width": 0.5, "in_size": 16, "stages": (3, 2)},
    "squeezenet": {**_NARROW, "width": 0.25, "classes": 10, "stages": ((16,), (32,))},
    "squeezenet-cifar": {"width": 0.25, "in_size": 16, "stages": ((16,), (32,))},
    "unet": _UNET,
    "unet-nearest": _UNET,
    "unet-bilinear": _UNET,
    "super-resolution": {"width": 0.125, "in_size": 8, "blocks": 2},
    "se-resnet18": {**_NARROW, "width": 0.25, "classes": 10, "stages": (1, 1)},
    "se-resnet18-linear": {**_NARROW, "width": 0.25, "classes": 10, "stages": (1, 1)},
    **TRANSFORMERS,
}
