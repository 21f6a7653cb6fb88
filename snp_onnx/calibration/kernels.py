"""Kernels: what single nodes take in the runtime, at shapes that the model doesn't have yet."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from snp_onnx.calibration.binding import bind
from snp_onnx.calibration.sessions import CPU, Runtime, open_session
from snp_onnx.errors import SnpError
from snp_onnx.writing import Scratch

Times = npt.NDArray[np.float64]

TIMED_AT_ONCE = 256 << 20
"""Bytes of weights and inputs of the kernels that are timed in turn, so that a drifting machine slows all of them."""
LEAST_ROUNDS, MOST_ROUNDS = 2, 6
BURST = 3
"""Runs of one kernel after another: the first, which finds caches and threads as others left them, isn't counted."""
LONG = 0.02
"""Seconds from which on a run isn't disturbed by what came before."""
_LAYOUT = ("ReorderInput", "ReorderOutput")
"""Around a convolution alone; in a network they are paid for once on the way in and once on the way out."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An input of a kernel: its type and shape; the values are drawn."""

    dtype: int
    shape: tuple[int, ...]
    is_weight: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """One node at concrete shapes, serialised without names: equal where the runtime can't tell two nodes apart."""

    node: bytes
    opset: int
    operands: tuple[Operand | None, ...]

    @property
    def description(self) -> str:
        """What it is in words, the same on every run: the key under which its time is kept."""
        node = onnx.NodeProto.FromString(self.node)
        attributes = sorted(str(onnx.helper.printable_attribute(attribute)) for attribute in node.attribute)
        shapes = ["-" if operand is None else _operand_text(operand) for operand in self.operands]
        return f"{node.domain}:{node.op_type}-{self.opset}({', '.join(shapes)}) {' '.join(attributes)}".strip()

    @property
    def bytes(self) -> int:
        """Of its operands, as float32."""
        return sum(4 * int(np.prod(operand.shape)) for operand in self.operands if operand is not None)


def _operand_text(operand: Operand) -> str:
    kind = "w" if operand.is_weight else "x"
    extents = "x".join(map(str, operand.shape))
    return f"{kind}{operand.dtype}[{extents}]"


def kernel_of(node: onnx.NodeProto, opset: int, operands: Sequence[Operand | None]) -> Kernel:
    """A node without its names."""
    bare = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    bare.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    bare.input.extend("" if operand is None else f"x{place}" for place, operand in enumerate(operands))
    bare.output.extend(f"y{place}" if name else "" for place, name in enumerate(node.output))
    return Kernel(bare.SerializeToString(deterministic=True), opset, tuple(operands))


def time_kernels(
    kernels: Sequence[Kernel], runtime: Runtime, seconds: float, progress: Callable[[int], None] | None = None
) -> list[float]:
    """Milliseconds of one run of each kernel, NaN for what the runtime refuses to run alone; about `seconds` in all.

    On the CPU it is the kernel's own time as the runtime's profile has it, without the change of layout around it; on
    other providers, whose kernels run on after the call, it is the time of the whole call. Kernels run in turn, in
    bursts; the mean of the fastest half of all runs counts, because other work on the machine only ever adds time.
    """
    found: list[float] = []
    start = time.perf_counter()
    for chunk in _chunks(kernels):
        left = seconds - (time.perf_counter() - start)
        share = max(left, 0.0) * len(chunk) / (len(kernels) - len(found))
        found += _time_chunk(chunk, runtime, share)
        if progress is not None:
            progress(len(found))
    return found


def _chunks(kernels: Sequence[Kernel]) -> Iterator[list[Kernel]]:
    chunk: list[Kernel] = []
    size = 0
    for kernel in kernels:
        if chunk and (size + kernel.bytes > TIMED_AT_ONCE or len(chunk) >= 64):
            yield chunk
            chunk, size = [], 0
        chunk.append(kernel)
        size += kernel.bytes
    if chunk:
        yield chunk


def _time_chunk(kernels: Sequence[Kernel], runtime: Runtime, seconds: float) -> list[float]:
    with Scratch() as folder:
        timed = [_Timed.of(kernel, runtime, folder / str(place)) for place, kernel in enumerate(kernels)]
        once = sum(sum(each.run() for _ in range(2)) for each in timed if each is not None) / 2
        runs = LEAST_ROUNDS
        if once > 0.0:
            runs = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / (once * BURST))))
        for _ in range(runs):
            for each in timed:
                if each is not None:
                    each.burst()
        return [float("nan") if each is None else each.milliseconds() for each in timed]


class _Timed:
    """A session of one kernel and the runs that count."""

    def __init__(self, session: Any, run: Callable[[], None], has_profile: bool) -> None:
        self._session, self._run, self._has_profile = session, run, has_profile
        self._counts: list[bool] = []
        self._seconds: list[float] = []

    @classmethod
    def of(cls, kernel: Kernel, runtime: Runtime, prefix: Path) -> _Timed | None:
        model, feed = _model(kernel)
        try:
            session = open_session(model, runtime, timed=True, profile=str(prefix))
            bound = bind(session, feed)
            bound.run()
        except SnpError:  # what the runtime can't run alone isn't timed
            return None
        timed = cls(session, bound.run, session.get_providers()[0] == CPU)
        timed._counts.append(False)
        timed._seconds.append(0.0)
        return timed

    def run(self, counts: bool = False) -> float:
        """Seconds of one run."""
        start = time.perf_counter()
        self._run()
        self._seconds.append(time.perf_counter() - start)
        self._counts.append(counts)
        return self._seconds[-1]

    def burst(self) -> None:
        is_long = self._seconds[-1] > LONG
        if not is_long:
            self.run()
        for _ in range(1 if is_long else BURST - 1):
            self.run(counts=True)

    def milliseconds(self) -> float:
        path = self._session.end_profiling()
        seconds = _profiled(Path(path)) if self._has_profile else np.array(self._seconds)
        if len(seconds) != len(self._counts):  # the profile of another runtime's form: its calls as a whole
            seconds = np.array(self._seconds)
        runs = np.sort(seconds[np.array(self._counts)])
        return float(runs[: max(1, len(runs) // 2)].mean()) * 1000.0


def _profiled(path: Path) -> Times:
    """Seconds of every run, all nodes together but changes of layout."""
    events = json.loads(path.read_text())
    path.unlink()
    by_node: dict[str, list[float]] = {}
    for event in events:
        is_kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if is_kernel and event["args"].get("op_name") not in _LAYOUT:
            by_node.setdefault(event["name"], []).append(event["dur"] * 1e-6)
    lengths = {len(durations) for durations in by_node.values()}
    return np.sum(list(by_node.values()), axis=0) if len(lengths) == 1 else np.empty(0)


def _model(kernel: Kernel) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model of one node, its weights drawn, and a feed for its other inputs."""
    node = onnx.NodeProto.FromString(kernel.node)
    rng = np.random.default_rng(0)
    inputs, weights, feed = [], [], {}
    for place, operand in enumerate(kernel.operands):
        if operand is None:
            continue
        name = f"x{place}"
        array = _drawn(operand, rng)
        if operand.is_weight:
            weights.append(onnx.numpy_helper.from_array(array, name))
        else:
            inputs.append(onnx.helper.make_tensor_value_info(name, operand.dtype, operand.shape))
            feed[name] = array
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "kernel", inputs, outputs, weights)
    imports = [onnx.helper.make_opsetid(node.domain, kernel.opset)]
    if node.domain:
        imports.append(onnx.helper.make_opsetid("", 17))
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=9), feed


def _drawn(operand: Operand, rng: np.random.Generator) -> npt.NDArray[Any]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(operand.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(operand.shape, dtype=np.float32).astype(dtype)
    return np.zeros(operand.shape, dtype=dtype)
