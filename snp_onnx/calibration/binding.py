"""Bound runs: inputs and outputs stay on the session's device, and a feed is bound once for as many runs as wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from snp_onnx.calibration.sessions import CUDA, Runtime, fed, open_session, run_failure, runtime_module

Feed = Mapping[str, NDArray[Any]]
Answer = dict[str, NDArray[Any]]

OPSET = 13
IR_VERSION = 8

TOTAL_TYPES = {
    TensorProto.FLOAT: TensorProto.DOUBLE,
    TensorProto.DOUBLE: TensorProto.DOUBLE,
    TensorProto.INT64: TensorProto.INT64,
}
"""What sums of a type are taken in."""


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A feed bound to a session. A run takes no copies on the device itself, and is over when `run` returns."""

    session: Any
    feed: Mapping[str, Any]
    names: tuple[str, ...]
    binding: Any

    def run(self) -> None:
        """Run once; CalibrationError where the runtime can't."""
        try:
            self.session.run_with_iobinding(self.binding)
            self.binding.synchronize_outputs()
        except Exception as error:
            raise run_failure(self.feed, error) from error

    def values(self) -> dict[str, Any]:
        """The outputs of the last run by name, where they are: as `onnxruntime.OrtValue`."""
        return dict(zip(self.names, self.binding.get_outputs(), strict=True))

    def arrays(self) -> Answer:
        """The outputs of the last run as arrays on the host."""
        return {name: array_of(value) for name, value in self.values().items()}


def device_of(session: Any) -> str:
    """Where a session keeps its tensors: `cuda`, or `cpu` for every other provider."""
    return "cuda" if CUDA in session.get_providers() else "cpu"


def bind(session: Any, feed: Mapping[str, Any], device: str | None = None, at_hand: Collection[str] = ()) -> Bound:
    """Bind all inputs and outputs of a session to its device, or to the one given; outputs of `at_hand` to the CPU.

    The feed's values are arrays, which are sent to the device now, or values that lie there already.
    """
    where = device_of(session) if device is None else device
    binding = session.io_binding()
    wanted = fed(session, feed)
    for name, value in wanted.items():
        binding.bind_ortvalue_input(name, _sent(value, where) if isinstance(value, np.ndarray) else value)
    binding.synchronize_inputs()
    names = tuple(value.name for value in session.get_outputs())
    for name in names:
        binding.bind_output(name, "cpu" if name in at_hand else where, 0)
    return Bound(session, wanted, names, binding)


def _sent(array: NDArray[Any], device: str) -> Any:
    return runtime_module().OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), device, 0)


def array_of(value: Any) -> NDArray[Any]:
    """A value of the runtime as an array that doesn't share its memory."""
    return np.array(value.numpy())


def summed_on_device(session: Any, feeds: Iterable[Feed], apart: Collection[str], runtime: Runtime) -> Iterator[Answer]:
    """What each batch says, but all outputs other than those of `apart` come as sums, with the last batch.

    The sums are taken in float64 where the session has its tensors, in the order of the batches: what adding up batch
    by batch gives, bit for bit, without a transfer each. An output whose shape changes from batch to batch has no sum:
    it comes as NaN. Nothing comes with the earlier batches but the outputs of `apart`.
    """
    totals = _Totals(device_of(session), runtime)
    earlier: Answer | None = None
    for feed in feeds:
        if earlier is not None:
            yield earlier
        bound = bind(session, feed, totals.device, apart)
        bound.run()
        values = bound.values()
        earlier = {name: array_of(values.pop(name)) for name in bound.names if name in apart}
        totals.add(values)
    if earlier is not None:
        yield earlier | totals.arrays()


class _Totals:
    """Sums that lie on a device, and the session that adds to them."""

    def __init__(self, device: str, runtime: Runtime) -> None:
        self.device, self._runtime = device, runtime
        self._adding: Any = None
        self._values: dict[str, Any] = {}
        self._lost: dict[str, NDArray[np.float64]] = {}

    def add(self, values: Mapping[str, Any]) -> None:
        """Add the outputs of one batch, names and types always the same."""
        if self._adding is None:
            self._adding = open_session(_adding(values), self._runtime, for_one_pass=True)
            self._values = {name: self._wide(value) for name, value in values.items()}
            return
        for name, value in values.items():
            if tuple(self._values[name].shape()) != tuple(value.shape()):
                self._lost[name] = np.full(value.shape(), np.nan)
                self._values[name] = self._wide(value)
        feed = {f"total::{name}": value for name, value in self._values.items()}
        bound = bind(self._adding, feed | {f"batch::{name}": value for name, value in values.items()}, self.device)
        bound.run()
        self._values = bound.values()

    def _wide(self, value: Any) -> Any:
        """A value in the type of its total, by way of the host: once, not for every batch."""
        kind = helper.tensor_dtype_to_np_dtype(TOTAL_TYPES[value.element_type()])
        return _sent(array_of(value).astype(kind), self.device)

    def arrays(self) -> Answer:
        return {name: array_of(value) for name, value in self._values.items()} | self._lost


def _adding(values: Mapping[str, Any]) -> onnx.ModelProto:
    """total + batch for every output, in the type of the total."""
    nodes, inputs, outputs = [], [], []
    for name, value in values.items():
        kind = TOTAL_TYPES[value.element_type()]
        nodes.append(helper.make_node("Cast", [f"batch::{name}"], [f"wide::{name}"], to=kind))
        nodes.append(helper.make_node("Add", [f"total::{name}", f"wide::{name}"], [name]))
        shape = [None] * len(value.shape())
        inputs.append(helper.make_tensor_value_info(f"batch::{name}", value.element_type(), shape))
        inputs.append(helper.make_tensor_value_info(f"total::{name}", kind, shape))
        outputs.append(helper.make_tensor_value_info(name, kind, shape))
    graph = helper.make_graph(nodes, "totals", inputs, outputs)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
