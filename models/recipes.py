"""The table of recipes: a name, how to build it, and the shape of its input."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.bert import bert
from models.cifar_resnet import cifar_resnet, preact_resnet
from models.densenet import densenet
from models.gpt2 import gpt2
from models.initialise import randomise
from models.inputs import FEATURES, IMAGE, MASKED_TOKENS, MELS, TOKENS, Input
from models.llama import llama
from models.mlp import mlp
from models.mobilenet import mobilenet_v2
from models.opt import opt
from models.resnet import bottleneck_block, resnet
from models.se_resnet import se_resnet
from models.shufflenet import shufflenet_v1, shufflenet_v2
from models.squeezenet import squeezenet
from models.super_resolution import super_resolution
from models.unet import unet
from models.vgg import vgg
from models.vit import vit
from models.whisper import whisper_encoder


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build one network, what it reads, and which of onnxruntime's model types it is to its optimiser."""

    builder: Callable[..., nn.Module]
    in_size: int
    """Side of the image, number of features or frames; of networks that read tokens, the sequence's length."""
    inputs: tuple[Input, ...] = IMAGE
    model_type: str = ""

    def samples(self, in_size: int | None = None, rows: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """An example of every input with `rows` rows, at the recipe's own size unless another is given."""
        size = self.in_size if in_size is None else in_size
        extents = {"batch": rows, "size": size, "sequence": size}
        generator = torch.Generator().manual_seed(seed)
        return {given.name: given.sample(extents, generator) for given in self.inputs}

    def input_shape(self, in_size: int | None = None, rows: int = 1) -> tuple[int, ...]:
        """The first input's shape with `rows` rows, at the recipe's own size unless another is given."""
        size = self.in_size if in_size is None else in_size
        return self.inputs[0].shape({"batch": rows, "size": size, "sequence": size})


VGG11, VGG16 = (1, 1, 2, 2, 2), (2, 2, 3, 3, 3)

RECIPES: dict[str, Recipe] = {
    "mlp": Recipe(mlp, 64, FEATURES),
    "mlp-bn": Recipe(partial(mlp, batch_norm=True), 64, FEATURES),
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
    "deit-tiny": Recipe(vit, 224, model_type="vit"),
    "bert": Recipe(bert, 128, MASKED_TOKENS, "bert"),
    "gpt2": Recipe(gpt2, 128, TOKENS, "gpt2"),
    "opt": Recipe(opt, 128, TOKENS, "gpt2"),
    "opt-alibi": Recipe(partial(opt, bias="alibi"), 128, TOKENS, "gpt2"),
    "opt-relative": Recipe(partial(opt, bias="relative"), 128, TOKENS, "gpt2"),
    "llama": Recipe(llama, 128, TOKENS, "gpt2"),
    "llama-fused": Recipe(partial(llama, fused=True), 128, TOKENS, "gpt2"),
    "llama-interleaved": Recipe(partial(llama, interleaved=True), 128, TOKENS, "gpt2"),
    "whisper-encoder": Recipe(whisper_encoder, 3000, MELS, "bart"),
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`."""
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}: use one of {', '.join(RECIPES)}")
    return RECIPES[name]


def build(
    name: str,
    *,
    seed: int = 0,
    in_size: int | None = None,
    state: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> nn.Module:
    """Recipe `name` in eval mode, with random weights or those of a state dict with exactly its names.

    `options` (width, classes, stages, heads …) go to its builder.
    """
    found = recipe(name)
    accepted = inspect.signature(found.builder).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"recipe {name!r} has no option {unknown[0]!r}: it takes {', '.join(accepted)}, in_size, seed")
    if "in_size" in accepted:
        options["in_size"] = found.in_size if in_size is None else in_size
    module = found.builder(**options).eval()
    if state is None:
        return randomise(module, found.input_shape(in_size), seed)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights don't fit recipe {name!r}: {' '.join(str(error).split())}") from error
    return module
