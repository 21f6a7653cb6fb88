"""Which array of a source feeds which input of the model, and how its axes must be turned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snp_onnx.errors import CalibrationError
from snp_onnx.sources.arrays import Readable, RowArray
from snp_onnx.sources.inputs import (
    Array,
    InputSpec,
    Layout,
    expected_shape,
    image_layout,
    is_floating,
    is_integral,
    is_text,
)
from snp_onnx.sources.preprocess import Preprocess

_TO_NCHW = (0, 3, 1, 2)
_TO_NHWC = (0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class View:
    """How the axes of an array become those of an input: perhaps a new batch axis, then perhaps a transposition."""

    adds_batch: bool = False
    permutation: tuple[int, ...] | None = None

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape seen through the view."""
        if self.adds_batch:
            shape = (1, *shape)
        return shape if self.permutation is None else tuple(shape[axis] for axis in self.permutation)

    def read(self, array: Readable, rows: Array | None) -> Array:
        """Rows of the array (`None`: all) seen through the view."""
        values = array.read(None)[None] if self.adds_batch else array.read(rows)
        return values if self.permutation is None else values.transpose(self.permutation)


@dataclass(frozen=True, slots=True)
class Match:
    """An array of the source, chosen for an input."""

    name: str
    array: RowArray
    view: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape(self.array.shape)


@dataclass(frozen=True, slots=True)
class Matcher:
    """The rules for one model and one source; `single`: an array of one rank less is one sample."""

    specs: tuple[InputSpec, ...]
    batched: bool
    preprocess: Preprocess
    single: bool

    def match(self, arrays: Mapping[str, RowArray], origin: str) -> dict[str, Match]:
        """One array for every input, by name or, for a one-input model, the only one that fits."""
        if self.preprocess.input_array is not None:
            chosen = {self.specs[0].name: self.preprocess.input_array}
        elif len(self.specs) == 1 and self.specs[0].name not in arrays:
            chosen = {self.specs[0].name: self._only_fit(self.specs[0], arrays, origin)}
        else:
            chosen = {spec.name: spec.name for spec in self.specs}
        missing = sorted(name for name in chosen.values() if name not in arrays)
        if missing:
            raise CalibrationError(
                f"{origin} has no array {', '.join(map(repr, missing))} for the model's inputs {self._wanted()}; "
                f"it has {listing(arrays)}; name the arrays like the inputs"
            )
        return {
            spec.name: self._place(spec, chosen[spec.name], arrays[chosen[spec.name]], origin) for spec in self.specs
        }

    def _only_fit(self, spec: InputSpec, arrays: Mapping[str, RowArray], origin: str) -> str:
        candidates = [name for name in arrays if name != self.preprocess.label_array]
        fitting = [name for name in candidates if self._view(spec, arrays[name].shape) is not None]
        if len(fitting) == 1:
            return fitting[0]
        how_many = "several arrays fit" if fitting else "no array fits"
        raise CalibrationError(
            f"{how_many} input {self._wanted()} in {origin}, which has {listing(arrays)}; "
            "name one like the input, choose with --input-array, or tell --layout"
        )

    def _place(self, spec: InputSpec, name: str, array: RowArray, origin: str) -> Match:
        view = self._view(spec, array.shape)
        if view is None:
            raise CalibrationError(
                f"array {name!r} of shape {array.shape} in {origin} does not fit input {spec.name!r} of shape "
                f"{expected_shape(spec, self.batched)}; give arrays of that shape, or tell --layout"
            )
        if not _is_castable(array.dtype, spec):
            held = "Python objects" if array.dtype.hasobject else str(array.dtype)
            takes, wanted = ("strings", "strings") if is_text(spec.dtype) else (spec.dtype, "numbers of that type")
            raise CalibrationError(
                f"array {name!r} of shape {array.shape} in {origin} holds {held}, but input {spec.name!r} of shape "
                f"{expected_shape(spec, self.batched)} takes {takes}; save it as {wanted}"
            )
        return Match(name, array, view)

    def _view(self, spec: InputSpec, shape: tuple[int, ...]) -> View | None:
        rank = None if spec.shape is None else len(spec.shape)
        adds_batch = self.single and self.batched and rank is not None and len(shape) == rank - 1
        for permutation in _permutations(spec, self.preprocess.layout):
            if rank is None or len(shape) + adds_batch == rank:
                view = View(adds_batch, permutation)
                if _is_fitting(view.shape(shape), spec, self.batched):
                    return view
        return None

    def _wanted(self) -> str:
        return ", ".join(f"{spec.name!r} {expected_shape(spec, self.batched)}" for spec in self.specs)


def _permutations(spec: InputSpec, layout: Layout | None) -> Sequence[tuple[int, ...] | None]:
    """The turns to try, in this order; a turn only counts for 4-D inputs."""
    if spec.shape is None or len(spec.shape) != 4:
        return (None,)
    wanted, is_certain = image_layout(spec)
    turn = _TO_NCHW if wanted == "nchw" else _TO_NHWC
    if layout is None:
        return (None, turn)
    if is_certain:
        return (turn,) if layout != wanted else (None,)
    return (_TO_NCHW, None) if layout == "nhwc" else (None, _TO_NHWC)


def _is_fitting(shape: tuple[int, ...], spec: InputSpec, batched: bool) -> bool:
    if spec.shape is None:
        return len(shape) > 0 or not batched
    pairs = list(zip(shape, spec.shape, strict=True))[1 if batched else 0 :]
    return all(wanted is None or got == wanted for got, wanted in pairs)


def _is_castable(dtype: Any, spec: InputSpec) -> bool:
    if is_text(spec.dtype):
        return dtype.kind in "US"
    if is_floating(spec.dtype):
        return is_floating(dtype) or is_integral(dtype)
    return is_integral(spec.dtype) and is_integral(dtype)


def listing(arrays: Mapping[str, RowArray]) -> str:
    """The arrays and their shapes, as errors show them."""
    return ", ".join(f"{name!r} {arrays[name].shape}" for name in sorted(arrays)) or "no arrays"


def remarks(match: Match, spec: InputSpec, preprocess: Preprocess) -> list[str]:
    """What the user should know about how an array is used; independent of the array's name where files are many."""
    found = []
    if match.view.permutation is not None:
        turn = "NHWC to NCHW" if match.view.permutation == _TO_NCHW else "NCHW to NHWC"
        found.append(f"input {spec.name!r}: data transposed from {turn}")
    if is_floating(spec.dtype) and is_integral(match.array.dtype):
        known = f", then scaled by the convention {preprocess.convention}" if preprocess.convention else ""
        how = known if preprocess.has_arithmetic else " without scaling (--scale, --mean and --std are not given)"
        found.append(f"input {spec.name!r}: {match.array.dtype} data cast to {spec.dtype}{how}")
    elif preprocess.convention and preprocess.has_arithmetic:
        found.append(
            f"input {spec.name!r}: {match.array.dtype} data taken as values 0 to 255 and scaled by the convention "
            f"{preprocess.convention}: leave it out for data that are scaled already"
        )
    return found


def with_layout(preprocess: Preprocess, layout: Layout | None) -> Preprocess:
    """The same options for data whose layout is known."""
    return preprocess if layout is None else replace(preprocess, layout=layout)
