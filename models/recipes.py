"""The table of recipes: a name, how to build it, and the shape of its input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from models.cifar_resnet import cifar_resnet, preact_resnet
from models.densenet import densenet
from models.initialise import randomise
from models.mlp import mlp
from models.mobilenet import mobilenet_v2
from models.resnet import bottleneck_block, resnet
from models.se_resnet import se_resnet
from models.shufflenet import shufflenet_v1, shufflenet_v2
from models.squeezenet import squeezenet
from models.super_resolution import super_resolution
from models.unet import unet
from models.vgg import vgg


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build one network; `image` inputs are `[batch, 3, in_size, in_size]`, others `[batch, in_size]`."""

    builder: Callable[..., nn.Module]
    in_size: int
    image: bool = True

    def input_shape(self, in_size: int | None = None, rows: int = 1) -> tuple[int, ...]:
        """The input's shape with `rows` rows, at the recipe's own size unless another is given."""
        size = self.in_size if in_size is None else in_size
        return (rows, 3, size, size) if self.image else (rows, size)


VGG11, VGG16 = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3)

RECIPES: dict[str, Recipe] = {
    "mlp": Recipe(mlp, 64, image=False),
    "mlp-bn": Recipe(partial(mlp, batch_norm=True), 64, image=False),
    "vgg11": Recipe(partial(vgg, stages=VGG11), 224),
    "vgg11-bn": Recipe(partial(vgg, stages=VGG11, batch_norm=True), 224),
    "vgg16": Recipe(partial(vgg, stages=VGG16), 224),
    "vgg16-bn": Recipe(partial(vgg, stages=VGG16, batch_norm=True), 224),
    "vgg16-cifar": Recipe(partial(vgg, stages=VGG16, cifar=True, classes=10), 32),
    "vgg16-cifar-bn": Recipe(partial(vgg, stages=VGG16, cifar=True, classes=10, batch_norm=True), 32),
    "resnet18": Recipe(partial(resnet, stages=(2, 2, 2, 2)), 224),
    "resnet34": Recipe(partial(resnet, stages=(3, 4, 6, 3)), 224),
    "resnet50": Recipe(partial(resnet, stages=(3, 4, 6, 3), block=bottleneck_block, expansion=4), 224),
    "resnet20-a": Recipe(partial(cifar_resnet, depth=20, shortcut="a"), 32),
    "resnet20-b": Recipe(partial(cifar_resnet, depth=20, shortcut="b"), 32),
    "resnet56-a": Recipe(partial(cifar_resnet, depth=56, shortcut="a"), 32),
    "resnet56-b": Recipe(partial(cifar_resnet, depth=56, shortcut="b"), 32),
    "resnet110-a": Recipe(partial(cifar_resnet, depth=110, shortcut="a"), 32),
    "preresnet20": Recipe(partial(preact_resnet, depth=20), 32),
    "preresnet56": Recipe(partial(preact_resnet, depth=56), 32),
    "mobilenetv2": Recipe(mobilenet_v2, 224),
    "shufflenetv1": Recipe(shufflenet_v1, 224),
    "shufflenetv2": Recipe(shufflenet_v2, 224),
    "densenet121": Recipe(partial(densenet, stages=(6, 12, 24, 16)), 224),
    "densenet40": Recipe(
        partial(densenet, stages=(12, 12, 12), growth=12, bottleneck=False, cifar=True, classes=10), 32
    ),
    "squeezenet": Recipe(squeezenet, 224),
    "squeezenet-cifar": Recipe(partial(squeezenet, cifar=True, classes=10), 32),
    "unet": Recipe(partial(unet, mode="transposed"), 256),
    "unet-nearest": Recipe(partial(unet, mode="nearest"), 256),
    "unet-bilinear": Recipe(partial(unet, mode="bilinear"), 256),
    "super-resolution": Recipe(super_resolution, 64),
    "se-resnet18": Recipe(partial(se_resnet, gate="conv"), 224),
    "se-resnet18-linear": Recipe(partial(se_resnet, gate="linear"), 224),
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`."""
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}: use one of {', '.join(RECIPES)}")
    return RECIPES[name]


def build(name: str, *, seed: int = 0, in_size: int | None = None, **options: Any) -> nn.Module:
    """Recipe `name` with random weights, in eval mode; `options` (width, classes, stages …) go to its builder."""
    found = recipe(name)
    accepted = inspect.signature(found.builder).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"recipe {name!r} has no option {unknown[0]!r}: it takes {', '.join(accepted)}, in_size, seed")
    if "in_size" in accepted:
        options["in_size"] = found.in_size if in_size is None else in_size
    return randomise(found.builder(**options), found.input_shape(in_size), seed)
