"""What trace, decide and rewrite cost against the number of nodes, and of units of one layer; memory beside it.

Seconds of CPU time of one thread, every point in a process of its own; the exponent is the slope of the straight line
through the logarithms. Statistics are taken by the runtime and are not part of it.

    python -m tools.bench.scale [--nodes 100 1000 10000] [--units 256 1024 4096] [--plot FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import snp_onnx
from snp_onnx.verbs import result
from tools.bench import material, plot

NODES = (100, 316, 1000, 3162, 10000)
UNITS = (256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTH = 16
"""Units of every layer where the nodes grow."""
ENDS = 64
"""Inputs and outputs where the units of one layer grow."""
SAMPLES = 96
TARGET = 0.6
STAGES: Mapping[str, Sequence[str]] = {"trace": ("trace",), "decide": ("decide",), "rewrite": ("fold", "rewrite")}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PLOT = Path(__file__).with_name("scale.svg")


class Drawing:
    """A graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def node(self, op: str, *inputs: str) -> str:
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"n{len(self.nodes)}"))
        return output

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        values = gain * self._rng.standard_normal(shape) / np.sqrt(shape[0])
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{len(self._weights)}"))
        return self._weights[-1].name

    def model(self, output: str, inputs: int, outputs: int) -> onnx.ModelProto:
        x, y = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
            for name, size in (("x", inputs), (output, outputs))
        )
        graph = helper.make_graph(self.nodes, "scale", [x], [y], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(nodes: int) -> onnx.ModelProto:
    """MatMul, Add, Relu, over and over."""
    drawing, x = Drawing(), "x"
    while len(drawing.nodes) < nodes - 1:
        product = drawing.node("MatMul", x, drawing.weight(WIDTH, WIDTH))
        x = drawing.node("Relu", drawing.node("Add", product, drawing.weight(WIDTH)))
    return drawing.model(drawing.node("MatMul", x, drawing.weight(WIDTH, WIDTH)), WIDTH, WIDTH)


def residual(nodes: int) -> onnx.ModelProto:
    """x + MatMul(Relu(MatMul(x))), over and over: one residual stream as deep as the network."""
    drawing = Drawing()
    x = drawing.node("MatMul", "x", drawing.weight(WIDTH, WIDTH))
    while len(drawing.nodes) < nodes - 1:
        hidden = drawing.node("Relu", drawing.node("MatMul", x, drawing.weight(WIDTH, WIDTH)))
        x = drawing.node("Add", x, drawing.node("MatMul", hidden, drawing.weight(WIDTH, WIDTH, gain=0.05)))
    return drawing.model(drawing.node("MatMul", x, drawing.weight(WIDTH, WIDTH)), WIDTH, WIDTH)


def wide(units: int) -> onnx.ModelProto:
    """One hidden layer."""
    drawing = Drawing()
    hidden = drawing.node("Relu", drawing.node("MatMul", "x", drawing.weight(ENDS, units)))
    return drawing.model(drawing.node("MatMul", hidden, drawing.weight(units, ENDS)), ENDS, ENDS)


GRAPHS = {"chain": chain, "residual": residual, "wide": wide}


def main() -> None:
    """Print the tables and draw the plot; with `--point`, one point as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=NODES)
    parser.add_argument("--units", type=int, nargs="*", default=UNITS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        print(json.dumps(measured(asked.point[0], int(asked.point[1]))))
        return
    print(f"{material.machine()}; one thread\n")
    found: dict[str, dict[int, dict[str, float]]] = {}
    for kind, sizes in (("chain", asked.nodes), ("residual", asked.nodes), ("wide", asked.units)):
        found[kind] = {size: _in_a_process(kind, size) for size in sizes}
        if sizes:
            print(f"{_table(kind, found[kind])}\n", flush=True)
    plot.draw_scale({kind: _totals(points) for kind, points in found.items() if points}, asked.plot)


def measured(kind: str, size: int) -> dict[str, float]:
    """CPU seconds of each stage, and peak memory in MiB with and without what was there before."""
    model = GRAPHS[kind](size)
    rows, columns = (size + size // 4, ENDS) if kind == "wide" else (SAMPLES, WIDTH)  # a tenth is held back
    source = {"x": np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)}
    before = _memory("VmRSS")
    with patch.object(result, "time", SimpleNamespace(perf_counter=time.process_time)):
        pruned = snp_onnx.prune(model, source, target_macs=TARGET, preset="fast", threads=1, batch_size=256)
    timings = pruned.report.timings
    seconds = {name: sum(timings.get(stage, 0.0) for stage in stages) for name, stages in STAGES.items()}
    return {**seconds, "apart": sum(timings.values()) - sum(seconds.values()), "memory": _memory("VmHWM") - before}


def _memory(field: str) -> float:
    """MiB, on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _in_a_process(kind: str, size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tools.bench.scale", "--point", kind, str(size)]
    outcome = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **ONE_THREAD})
    found: dict[str, float] = json.loads(outcome.stdout)
    return found


def _totals(points: Mapping[int, Mapping[str, float]]) -> list[tuple[int, float]]:
    return [(size, sum(point[stage] for stage in STAGES)) for size, point in points.items()]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of the least-squares line through log seconds against log size.

    >>> round(exponent([(1, 3.0), (10, 30.0), (100, 300.0)]), 3)
    1.0
    """
    if len(points) < 2:
        return float("nan")
    sizes, seconds = np.log(np.array(points, dtype=np.float64)).T
    slope: npt.NDArray[np.float64] = np.polyfit(sizes, seconds, 1)
    return float(slope[0])


def _table(kind: str, points: Mapping[int, Mapping[str, float]]) -> str:
    counted = "units" if kind == "wide" else "nodes"
    columns = (f"{kind}: {counted}", *(f"{stage}, s" for stage in STAGES), "together, s", "all else, s", "memory, MiB")
    rows: list[tuple[Any, ...]] = [
        (
            f"{size:,}",
            *(f"{point[stage]:.2f}" for stage in STAGES),
            f"{total:.2f}",
            f"{point['apart']:.2f}",
            f"{point['memory']:,.0f}",
        )
        for (size, point), (_, total) in zip(points.items(), _totals(points), strict=True)
    ]
    return f"{material.table(columns, rows)}\n\nexponent of the time together: {exponent(_totals(points)):.2f}"


if __name__ == "__main__":
    main()
