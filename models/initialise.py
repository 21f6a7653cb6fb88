"""Random weights under which a network is a real test: nothing explodes or vanishes, no BatchNorm is trivial."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Weighted = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


@torch.no_grad()
def randomise(module: nn.Module, input_shape: tuple[int, ...], seed: int = 0, rows: int = 8) -> nn.Module:
    """Draw every parameter and BatchNorm statistic of `module` from `seed`, in place; it is left in eval mode.

    The statistics are measured on `rows` standard normal inputs of `input_shape` (batch axis ignored), then moved by a
    tenth of a standard deviation (mean) and about a fifth (variance), as those of a trained network never fit exactly.
    """
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    for part in module.modules():
        _draw(part, generator)
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if norms:
        _measure(module, norms, torch.randn(rows, *input_shape[1:], generator=generator))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += 0.1 * norm.running_var.sqrt() * _normal(norm.running_mean, generator)
        norm.running_var *= torch.exp(0.2 * _normal(norm.running_var, generator))
    return module


def _draw(part: nn.Module, generator: torch.Generator) -> None:
    """He initialisation for the weights; scales around one for BatchNorm, slopes around a quarter for PReLU."""
    if isinstance(part, Weighted):
        fan_in = part.weight[0].numel()
        if isinstance(part, nn.ConvTranspose2d):
            fan_in = part.weight.shape[0]  # kernel = stride: one tap per output position
        part.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
        if part.bias is not None:
            part.bias.normal_(0.0, 0.1, generator=generator)
    elif isinstance(part, _BatchNorm):
        part.weight.uniform_(0.5, 1.5, generator=generator)
        part.bias.normal_(0.0, 0.2, generator=generator)
    elif isinstance(part, nn.PReLU):
        part.weight.uniform_(0.05, 0.45, generator=generator)
    else:
        _draw_own(part, generator)


def _draw_own(part: nn.Module, generator: torch.Generator) -> None:
    """What transformers hold besides linear layers: gains, tables, tokens, weights stored `[in, out]`."""
    for name, values in part.named_parameters(recurse=False):
        if not values.requires_grad:  # a computed table
            continue
        if isinstance(part, nn.Embedding):
            values.normal_(0.0, 1.0, generator=generator)
        elif name == "weight" and values.ndim == 1:
            values.uniform_(0.5, 1.5, generator=generator)
        elif name == "weight":
            values.normal_(0.0, (2.0 / values.shape[0]) ** 0.5, generator=generator)
        else:
            values.normal_(0.0, 0.2, generator=generator)


def _measure(module: nn.Module, norms: list[_BatchNorm], batch: Tensor) -> None:
    """Set the running statistics to those of `batch`, with the rest of the network in eval mode."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a plain average
        norm.train()
    module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)
