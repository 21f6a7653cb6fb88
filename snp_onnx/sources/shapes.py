"""Concrete shapes of all inputs: given or seen, one number for every symbol, and one question for what is missing."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from snp_onnx.errors import PlanError
from snp_onnx.sources.inputs import InputSpec

Shape = tuple[int, ...]
Open = tuple[int | None, ...]
"""A shape with None where a number is missing."""

MOST_ELEMENTS = 2**36
"""Of an input's row."""
MOST_INPUTS = 8
"""Inputs that a question names; of more, those with a symbol that no earlier one has."""


def resolve_shapes(
    specs: Sequence[InputSpec], given: Mapping[str, Shape], seen: Mapping[str, Shape] | None = None
) -> dict[str, Shape]:
    """One concrete shape for every input: as given, as seen in the samples, or the model's own with batch 1.

    What the model fixes stays, its batch too; `seen` fills in the dynamic axes. The number that a given shape has for a
    symbol of the model holds for all axes of that name. PlanError for a shape that doesn't fit, for a symbol with two
    numbers, and for what is missing, of all inputs at once.
    """
    _check_fit(specs, given)
    bound = _bound(specs, given)
    known = dict(_numbers(specs, seen or {})) | bound
    batches = _batch_symbols(specs)
    shapes: dict[str, Shape] = {}
    missing: list[tuple[InputSpec, Open | None]] = []
    for spec in specs:
        found = given.get(spec.name) or _filled(spec, (seen or {}).get(spec.name), bound, known, batches)
        shape = None if found is None else tuple(n for n in found if n is not None)
        if found is None or shape is None or len(shape) < len(found):
            missing.append((spec, found))
        else:
            shapes[spec.name] = shape
    if missing:
        raise PlanError(_question(missing))
    for name, shape in shapes.items():
        if math.prod(shape) > MOST_ELEMENTS:
            raise PlanError(
                f"input {name} has the shape {shape}, more elements than any memory: check the model's axes"
            )
    return shapes


def _check_fit(specs: Sequence[InputSpec], given: Mapping[str, Shape]) -> None:
    declared = {spec.name: spec.shape for spec in specs}
    for name, shape in given.items():
        if name not in declared:
            raise PlanError(f"--input-shape {name}: the model has no such input; its inputs are {', '.join(declared)}")
        wanted = declared[name]
        fits = wanted is None or (
            len(wanted) == len(shape) and all(w in (None, n) for w, n in zip(wanted, shape, strict=True))
        )
        if not fits or not _has_rows(shape, wanted):
            wish = ",".join("?" if n is None else str(n) for n in wanted or ())
            raise PlanError(f"--input-shape {_typed(name, shape)}: the model wants {wish or 'numbers from 1 on'}")


def _has_rows(shape: Shape, declared: Open | None) -> bool:
    """Whether a shape has something along its first axis; other axes may be empty, as those of a cache are."""
    is_empty = bool(shape) and shape[0] == 0 and (declared is None or declared[0] != 0)
    return min(shape, default=0) >= 0 and not is_empty


def _bound(specs: Sequence[InputSpec], given: Mapping[str, Shape]) -> dict[str, int]:
    """The number of every symbol that a given shape says; PlanError for two."""
    bound: dict[str, int] = {}
    places: dict[str, str] = {}
    for spec in specs:
        if spec.name not in given:
            continue
        typed = f"--input-shape {_typed(spec.name, given[spec.name])}"
        for symbol, number in _numbers([spec], given):
            if bound.setdefault(symbol, number) != number:
                raise PlanError(
                    f"{places[symbol]} and {typed}: {symbol} is {bound[symbol]} there and {number} here: "
                    "give every axis of that name the same number"
                )
            places.setdefault(symbol, typed)
    return bound


def _numbers(specs: Sequence[InputSpec], shapes: Mapping[str, Shape]) -> Iterator[tuple[str, int]]:
    """Symbols with the number that an input's shape has in their place."""
    for spec in specs:
        shape = shapes.get(spec.name)
        if shape is not None and len(shape) == len(spec.symbols):
            yield from ((symbol, number) for symbol, number in zip(spec.symbols, shape, strict=True) if symbol)


def _batch_symbols(specs: Sequence[InputSpec]) -> set[str]:
    """Symbols of first axes: 1 where nothing else is said. What an input has twice (an adjacency) is no batch."""
    first = {spec.symbols[0] for spec in specs if spec.symbols}
    return {symbol for symbol in first if all(spec.symbols.count(symbol) < 2 for spec in specs)}


def _filled(
    spec: InputSpec, seen: Shape | None, bound: Mapping[str, int], known: Mapping[str, int], batches: set[str]
) -> Open | None:
    """An input's shape as far as it is known; None where not even its rank is."""
    if spec.shape is None:
        return seen
    is_seen = seen is not None and len(seen) == len(spec.shape)
    symbols = spec.symbols or ("",) * len(spec.shape)
    found: list[int | None] = []
    for axis, (number, symbol) in enumerate(zip(spec.shape, symbols, strict=True)):
        if number is None:
            number = bound.get(symbol)
        if number is None:
            number = seen[axis] if is_seen and seen is not None else known.get(symbol)
        if number is None and (symbol in batches or (axis == 0 and not symbol)):
            number = 1
        found.append(number)
    return tuple(found)


def _question(missing: Sequence[tuple[InputSpec, Open | None]]) -> str:
    """What to type, of all inputs with dynamic axes; `?` is an axis without a name."""
    asked = [(spec.name, _axes(spec, found)) for spec, found in missing]
    shown = asked if len(asked) <= MOST_INPUTS else _telling(asked)
    options = " ".join(f"--input-shape {_typed(name, axes)}" for name, axes in shown)
    axes = dict.fromkeys(axis for _, axes in shown for axis in axes if not axis.isdigit())
    wanted = [*(axis for axis in axes if axis not in ("?", "...")), *(["every ?"] if "?" in axes else [])]
    numbers = f"{', '.join(wanted[:-1])} and {wanted[-1]}" if len(wanted) > 1 else wanted[0]
    whose = f"input {asked[0][0]} has" if len(asked) == 1 else "the inputs have"
    rest = f" ({len(asked) - len(shown)} more inputs have the same)" if len(shown) < len(asked) else ""
    return f"{whose} dynamic axes: give {options} with numbers for {numbers}{rest}"


def _telling(asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[tuple[str, tuple[str, ...]]]:
    """The inputs with an axis that no earlier one tells."""
    told: set[str] = set()
    telling = []
    for name, axes in asked:
        fresh = {axis for axis in axes if axis == "?" or not axis.isdigit()} - told
        if fresh:
            telling.append((name, axes))
            told |= fresh - {"?", "..."}
    return telling


def _axes(spec: InputSpec, found: Open | None) -> tuple[str, ...]:
    """An input's axes as they are asked for: numbers, symbols that can be typed, or `?`."""
    if found is None:
        return ("?", "...")
    symbols = spec.symbols or ("",) * len(found)
    words = (symbol if re.fullmatch(r"[A-Za-z_][\w.-]*", symbol) else "?" for symbol in symbols)
    return tuple(word if number is None else str(number) for number, word in zip(found, words, strict=True))


def _typed(name: str, axes: Sequence[object]) -> str:
    """`NAME:SHAPE` as a shell takes it.

    >>> _typed("x", (1, 3)), _typed("my input", ("1", "seq"))
    ('x:1,3', "'my input:1,seq'")
    """
    text = f"{name}:{','.join(map(str, axes))}"
    return text if shlex.quote(name) == name else shlex.quote(text)
