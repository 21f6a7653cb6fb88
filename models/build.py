"""`python -m models.build NAME OUT.onnx`: build one recipe with random weights and export it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pickle import UnpicklingError

import onnx
import torch

from models.exporting import export, optimised, recipe_surface
from models.recipes import RECIPES, build

__all__ = ["build", "export", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, build, export; 0 when the file is written."""
    parser = _parser()
    given = parser.parse_args(arguments)
    options = {key: getattr(given, key) for key in ("width", "classes", "in_size") if getattr(given, key) is not None}
    try:
        state = torch.load(given.weights, map_location="cpu", weights_only=True) if given.weights else None
        module = build(given.name, seed=given.seed, state=state, **options)
        surface = recipe_surface(given.name, given.in_size)
        export(module, given.output, given.exporter, given.batch, given.opset, surface=surface, keep_bn=given.keep_bn)
        if given.optimise:
            onnx.save(optimised(onnx.load(given.output), given.name, module), given.output)
    except (ValueError, OSError, UnpicklingError) as error:
        parser.error(str(error))
    parameters = sum(p.numel() for p in module.parameters())
    read = ", ".join(f"{name} {'x'.join(map(str, sample.shape))}" for name, sample in surface.samples.items())
    print(f"{given.output}: {given.name}, {parameters:,} parameters, input {read}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m models.build", description=__doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("output", metavar="OUT.onnx")
    parser.add_argument("--exporter", choices=("ts", "dynamo"), default="ts")
    parser.add_argument("--width", type=float, help="multiplier of every inner width")
    parser.add_argument("--batch", choices=("static", "dynamic"), default="dynamic")
    parser.add_argument("--opset", type=int, help="17 for ts, 18 for dynamo unless given")
    parser.add_argument("--weights", metavar="FILE", help="a state dict saved by torch, with the recipe's names")
    parser.add_argument("--optimise", action="store_true", help="what onnxruntime's transformer optimiser makes of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-size", type=int, help="side of the image, features, frames or tokens")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--keep-bn", action="store_true", help="leave BatchNormalization nodes in the graph")
    return parser


if __name__ == "__main__":
    sys.exit(main())
