"""How images are usually prepared, by the name of who does it so: what a model expects is written nowhere in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snp_onnx.errors import PlanError


@dataclass(frozen=True, slots=True)
class Convention:
    """`(x * scale - mean) / std` of 8-bit values; `margin` is the shorter side as a multiple of what is cut out.

    Without a margin images are stretched to the size of the input. Images that all have that size already are taken as
    they are: somebody has prepared them.
    """

    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    margin: float | None = None
    is_bicubic: bool = False


CONVENTIONS: Mapping[str, Convention] = {
    # torchvision, timm and most others: 256 to 224
    "imagenet": Convention(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256 / 224),
    # TensorFlow's slim models and MobileNets: -1 to 1, the middle 87.5 %
    "imagenet-tf": Convention(1 / 127.5, (1.0,), (), 1 / 0.875),
    # OpenAI's CLIP and its image encoders
    "clip": Convention(
        1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 1.0, is_bicubic=True
    ),
    "none": Convention(),
}


def convention_of(name: str | None) -> Convention:
    """The convention of a name; that of no name changes nothing."""
    found = CONVENTIONS.get("none" if name is None else name)
    if found is None:
        raise PlanError(f"--convention {name!r}: give one of {', '.join(CONVENTIONS)}")
    return found
