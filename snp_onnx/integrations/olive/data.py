"""Batches of an Olive dataloader by the names of the model's inputs, without their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from snp_onnx.errors import CalibrationError


def named_batches(dataloader: Iterable[Any], inputs: Sequence[str], origin: str) -> Iterator[dict[str, Any]]:
    """What a dataloader yields, by name.

    A batch is a mapping, an array or tensor for a model's one input, or a pair whose second part are labels; its inputs
    may also be a list of arrays, in the order of the model's inputs. Tensors of torch, numpy arrays and lists all do,
    and stay what they are; so do entries that the model has no input for: Olive may make others of them.

    >>> list(named_batches([([[1.0]], 3), {"x": [[2.0]], "id": 7}], ["x"], "the data"))
    [{'x': [[1.0]]}, {'x': [[2.0]], 'id': 7}]
    """
    for number, batch in enumerate(dataloader):
        where = f"batch {number} of {origin}"
        given = _without_labels(batch, where)
        arrays = dict(given) if isinstance(given, Mapping) else _in_order(given, inputs, where)
        if not arrays.keys() & set(inputs):
            held = ", ".join(map(str, arrays)) or "nothing"
            raise CalibrationError(
                f"{where} holds {held}, and the model's inputs are {', '.join(inputs)}: name them so in the data config"
            )
        yield {name: _free(value) for name, value in arrays.items()}


def _without_labels(batch: Any, where: str) -> Any:
    """The inputs of a batch: all of it, or the first part of a pair."""
    if not isinstance(batch, list | tuple):
        return batch
    if len(batch) not in (1, 2):
        raise CalibrationError(f"{where} has {len(batch)} parts: give inputs, or (inputs, labels)")
    return batch[0]


def _in_order(given: Any, inputs: Sequence[str], where: str) -> dict[str, Any]:
    """Arrays without names, in the order of the model's inputs; a list that holds no arrays is one itself."""
    is_several = isinstance(given, list | tuple) and any(hasattr(part, "shape") for part in given)
    parts = list(given) if is_several else [given]
    if len(parts) != len(inputs):
        names = ", ".join(inputs)
        raise CalibrationError(
            f"{where} has {len(parts)} arrays without names, and the model's inputs are {names}: give a dict"
        )
    return dict(zip(inputs, parts, strict=True))


def _free(value: Any) -> Any:
    """A tensor of torch off its graph, and of a type that numpy knows; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach()
    return tensor.float() if "bfloat16" in str(tensor.dtype) else tensor
