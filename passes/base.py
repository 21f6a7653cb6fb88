"""What a pass is: options in its fields, a graph edited in place, and an honest account of what it did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from snp_onnx.external import Store, array_of, is_external


@dataclass(frozen=True, slots=True)
class Note:
    """One thing a pass did, or left alone and why; `subject` is a node or tensor name."""

    subject: str
    text: str


def summarise(notes: Iterable[Note]) -> tuple[str, ...]:
    """One line for each thing that was done, however many it was done to.

    >>> summarise([Note("a", "folded"), Note("b", "folded"), Note("w", "copied")])
    ('a and 1 more: folded', 'w: copied')
    """
    subjects: dict[str, list[str]] = {}
    for note in notes:
        subjects.setdefault(note.text, []).append(note.subject)
    return tuple(
        f"{names[0]}: {text}" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more: {text}"
        for text, names in subjects.items()
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether the pass changed the graph, and its notes."""

    changed: bool
    notes: tuple[Note, ...] = ()


class Pass(ABC):
    """A rewrite: valid graph in, valid graph out; run again, it changes nothing more.

    `requires` and `ensures` say in words what isn't as the pass needs it, or as it promises to leave it; both are asked
    whenever it runs.
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self, graph: gs.Graph) -> Outcome:
        """Edit the graph in place."""

    def requires(self, graph: gs.Graph) -> str:
        """What the graph lacks; empty where the pass can run."""
        return ""

    def ensures(self, graph: gs.Graph) -> str:
        """What the pass has left undone; empty where it kept its promise."""
        return ""


def constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """The initialisers that something in the graph uses."""
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            yield tensor


class Outside(LazyValues):  # type: ignore[misc]
    """Values that lie in a file, and the store that takes what replaces them."""

    def __init__(self, tensor: onnx.TensorProto, store: Store) -> None:
        super().__init__(tensor)
        self.store = store

    def load(self) -> npt.NDArray[Any]:
        return array_of(self.tensor)


def values_of(constant: gs.Constant) -> npt.NDArray[Any]:
    """An initialiser's values; those that lie in a file stay there and are mapped."""
    lazy = constant._values
    return lazy.load() if isinstance(lazy, Outside) else constant.values


def replace_values(constant: gs.Constant, values: npt.NDArray[Any]) -> None:
    """Give an initialiser other values, keeping the element type it is stored with, and files for what lay in one."""
    lazy = constant._values
    if isinstance(lazy, Outside):
        constant.values = outside(constant.name, values, lazy.store)
        constant.data_location = None  # what is exported says itself where it lies
    else:
        constant.values = np.asarray(values, order="C")  # a scalar stays one


def outside(name: str, values: npt.NDArray[Any], store: Store) -> Outside | npt.NDArray[Any]:
    """Values for an initialiser: a place in the store, or themselves where they are few."""
    whole = np.asarray(values, order="C")
    tensor = store.tensor(name, whole)
    return Outside(tensor, store) if is_external(tensor) else whole


def holds_floats(constant: gs.Constant) -> bool:
    """Whether an initialiser is of a floating-point type."""
    return "float" in numpy_type(constant.dtype).name


def numpy_type(kind: Any) -> np.dtype[Any]:
    """The type of a tensor of graphsurgeon, which calls by their number those that numpy itself lacks, as bfloat16."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else kind)


def fresh_name(graph: gs.Graph, wish: str) -> str:
    """A tensor name like `wish` that the graph doesn't use yet."""
    taken = graph.tensors().keys()
    name, count = wish, 1
    while name in taken:
        name, count = f"{wish}_{count}", count + 1
    return name


def insert_before(graph: gs.Graph, node: gs.Node, new: gs.Node) -> None:
    """Put a node right before another one, so that the order stays topological."""
    place = next(index for index, other in enumerate(graph.nodes) if other is node)
    graph.nodes.insert(place, new)


def replace_node(graph: gs.Graph, node: gs.Node, tensor: gs.Tensor) -> None:
    """Let everything that reads the node's one output read `tensor`, and take the node out."""
    output = node.outputs[0]
    for reader in list(output.outputs):
        for place, read in enumerate(reader.inputs):
            if read is output:
                reader.inputs[place] = tensor
    node.inputs.clear()
    node.outputs.clear()
    graph.nodes.remove(node)
