"""The config.json of published checkpoints: head counts and widths brought to those of a pruned model.

A number is changed only where the file has the dense model's under a name that is known for it, and where all layers
agree on the new one. A model with key-value caches keeps its `num_attention_heads` and `hidden_size`: what runs it
makes the first, empty cache with `hidden_size // num_attention_heads` entries a head, whatever the layers hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from snp_onnx.errors import PlanError

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "num_attention_heads": ("num_attention_heads", "num_heads", "n_heads", "n_head"),
        "num_key_value_heads": ("num_key_value_heads", "num_kv_heads"),
        "head_dim": ("head_dim", "d_kv"),
        "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
        "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "hidden_dim", "d_ff"),
    }
)
"""What an architecture's number is called, by model type."""

_OF_A_PART: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        part: {"num_attention_heads": (f"{part}_attention_heads",), "intermediate_size": (f"{part}_ffn_dim",)}
        for part in ("encoder", "decoder")
    }
)
_OF_THE_CACHE = ("num_attention_heads", "hidden_size", "head_dim")


@dataclass(frozen=True, slots=True)
class Setting:
    """How the model is used beside its config: with a cache, whose heads went; as one part of several."""

    is_cached: bool = False
    lost_cache_heads: bool = False
    part: str | None = None
    """"encoder", "decoder", or another name where several files make up the model."""


def updated(
    config: Mapping[str, Any], architecture: Mapping[str, Any], setting: Setting
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config of the pruned model, and notes on what it can't say.

    PlanError where it couldn't be loaded: the heads of its caches changed, and no number of the config says how many.
    """
    changed, notes = dict(config), []
    names = NAMES if setting.part is None else _OF_A_PART.get(setting.part, {})
    for number, before in architecture.get("dense", {}).items():
        after = architecture.get(number, before)
        if after == before:
            continue
        key = _key(config, names.get(number, ()), number, before)
        is_needed = number == "num_key_value_heads" and setting.lost_cache_heads
        why = _why_not(number, after, key, setting)
        if why is None and key is not None:
            changed[key] = after
        elif is_needed:
            raise PlanError(
                f"config.json can't hold the key-value heads of the pruned caches ({why}): what loads it would make "
                "caches of another shape: prune without --caches"
            )
        elif number != "num_key_value_heads" or key is not None:
            notes.append(f"config.json keeps its {key or number}: {why}; the pruned model's is in the file beside it")
    if "removed_blocks" in architecture:
        notes.append("config.json keeps its number of layers: blocks that went are in the file beside it")
    return changed, tuple(notes)


def holds_cache_heads(config: Mapping[str, Any]) -> bool:
    """Whether the config has a number of key-value heads of its own."""
    return any(isinstance(config.get(name), int) for name in NAMES["num_key_value_heads"])


def _key(config: Mapping[str, Any], names: tuple[str, ...], number: str, before: object) -> str | None:
    """The name under which the config holds the dense number; an empty one stands for what is usual."""
    for name in names:
        if name in config and config[name] == before:
            return name
        if name in config and config[name] is None and number == "intermediate_size":
            return name
    return None


def _why_not(number: str, after: object, key: str | None, setting: Setting) -> str | None:
    if setting.is_cached and number in _OF_THE_CACHE:
        return "the shape of an empty cache follows from it"
    if key is None:
        return "it holds no such number of the dense model"
    return "layers differ" if isinstance(after, list) else None
