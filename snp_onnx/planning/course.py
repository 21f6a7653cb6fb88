"""The course of a refit: which layers are solved anew, in which order, together with which, and on how many samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from snp_onnx.planning.aims import Aim, find_aims, on_samples
from snp_onnx.planning.chains import Chain, find_chains, worth_a_step
from snp_onnx.planning.detours import Detour
from snp_onnx.planning.rations import joint_every, shares
from snp_onnx.tracing.flow import Flow
from snp_onnx.tracing.groups import Mask


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """One layer of the course, and the chains that end in it.

    One in `every` batches takes part, never fewer than for the layer before, and of these one in `joint_every` in the
    joint steps.
    """

    aim: Aim
    chains: tuple[Chain, ...]
    every: int
    joint_every: int


def course_of(flow: Flow, alive: Mask, samples: int, gone: Detour | None = None, always: bool = False) -> list[Leg]:
    """The course when only `alive` labels stay and blocks are `gone`.

    `always`: producers are solved together with their consumers even where these lost no inputs.
    """
    aims: Sequence[Aim] = find_aims(flow, alive, samples, gone)
    found = [find_chains(flow, alive, aim, samples, always) for aim in aims]
    aims, found = worth_a_step(flow, alive, aims, found)
    parts = shares([_elements(flow, *given) for given in zip(aims, found, strict=True)], samples)
    return [_leg(flow, *given, samples) for given in zip(aims, found, parts, strict=True)]


def _elements(flow: Flow, aim: Aim, chains: Sequence[Chain]) -> int:
    """Of one sample's largest map that a step has to do with."""
    layers = [aim.layer, *(chain.producer for chain in chains)]
    tensors = {name for layer in layers for name in (layer.linear.input, layer.output)}
    return max(int(np.prod(flow.shape(name)[1:])) for name in tensors)


def _leg(flow: Flow, aim: Aim, chains: tuple[Chain, ...], every: int, samples: int) -> Leg:
    few = samples // every
    aim = replace(aim, layer=on_samples(flow, aim.layer, few))
    chains = tuple(replace(chain, producer=on_samples(flow, chain.producer, few)) for chain in chains)
    return Leg(aim, chains, every, joint_every(flow, chains, few))
