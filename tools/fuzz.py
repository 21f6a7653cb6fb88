"""Random graphs for as long as one likes: each is cut by random choices and judged by the oracles of the tests.

    python -m tools.fuzz --graphs 10000 --seed 0 [--kinds maps,tokens] [--output FOLDER]
    python -m tools.fuzz --operators [--every 10]      onnx's own tests of operators, each between two layers
    python -m tools.fuzz --models FOLDER               files that another generator wrote, such as NNSmith's

Hypothesis draws graphs in runs of some hundred, one seed a run, and makes what fails small. The smallest graph of a
fault is written to FOLDER, and its seed and reason are shown; exit code 1 where there was any.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import onnx
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.between_layers import between_layers, is_run, judged, places
from tests.graphs import feed_for
from tests.onnx_cases import operator_cases
from tests.oracles import Feed
from tests.random_graphs import assert_cut_rightly, random_model, random_token_model

RUN = 200
"""Graphs of one seed: a fault ends them, and the next seed goes on."""
Draw = Callable[[st.DataObject], onnx.ModelProto]
KINDS: Mapping[str, Draw] = MappingProxyType({"maps": random_model, "tokens": random_token_model})


@dataclass(slots=True)
class Tally:
    """What came of the graphs so far."""

    judged: int = 0
    faults: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def fault(self, where: str, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self.faults.append(f"{where}: {reason} ({Path(last.filename).name}:{last.lineno})")
        print(self.faults[-1], flush=True)


@dataclass(slots=True)
class Last:
    """The graph that was judged last: where Hypothesis ends with a fault, the smallest that has it."""

    model: onnx.ModelProto = field(default_factory=onnx.ModelProto)


def fuzz(kind: str, number: int, graphs: int, tally: Tally, folder: Path) -> None:
    """One run of Hypothesis with one seed."""
    last = Last()

    @seed(number)
    @settings(
        max_examples=graphs, database=None, deadline=None, report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(data=st.data())
    def judge(data: st.DataObject) -> None:
        last.model = KINDS[kind](data)
        assert_cut_rightly(last.model, data.draw(st.integers(0, 99)))
        tally.judged += 1

    try:
        judge()
    except Exception as error:  # a fault of whatever kind is what this looks for
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(last.model, folder / f"{kind}-{number}.onnx")
        tally.fault(f"{kind}, seed {number}", error)


def judge_operators(every: int, tally: Tally) -> None:
    """Every so many of onnx's tests of operators, with a layer before each axis of each input in turn."""
    found = [(case, place) for case in operator_cases() for place in places(case)]
    for case, place in found[::every]:
        model, feed = between_layers(case, place)
        if not is_run(model, feed):
            tally.outcomes["not run"] += 1
            continue
        _judge(f"{case.name}, {place}", model, feed, tally)


def judge_models(source: Path, tally: Tally) -> None:
    """Graphs that another generator wrote, such as NNSmith's, in whatever folders."""
    for path in sorted(source.rglob("*.onnx")):
        model = onnx.load(path)
        feed = feed_for(model, 1)
        if not is_run(model, feed):
            tally.outcomes["not run"] += 1
            continue
        _judge(str(path), model, feed, tally)


def _judge(name: str, model: onnx.ModelProto, feed: Feed, tally: Tally) -> None:
    try:
        tally.outcomes["cut" if judged(model, feed).units else "whole"] += 1
        tally.judged += 1
    except Exception as error:  # a fault of whatever kind is what this looks for
        tally.fault(name, error)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=0, help="how many random graphs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of maps and tokens")
    parser.add_argument("--operators", action="store_true", help="onnx's own tests of operators")
    parser.add_argument("--every", type=int, default=1, help="every so many of them")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="a folder of models")
    parser.add_argument("--output", type=Path, default=Path("faults"), help="where the smallest graphs of faults go")
    return parser.parse_args()


def main() -> int:
    """Run what is asked for; 0 where nothing failed."""
    asked, tally, start = options(), Tally(), time.monotonic()
    kinds = asked.kinds.split(",")
    for number in range(-(-asked.graphs // RUN)):
        left = min(RUN, asked.graphs - number * RUN)
        fuzz(kinds[number % len(kinds)], asked.seed + number, left, tally, asked.output)
        print(f"{tally.judged} graphs, {len(tally.faults)} faults, {time.monotonic() - start:.0f} s", flush=True)
    if asked.operators:
        judge_operators(asked.every, tally)
    if asked.models:
        judge_models(asked.models, tally)
    outcomes = ", ".join(f"{count} {name}" for name, count in tally.outcomes.items())
    print(f"{tally.judged} graphs judged, {len(tally.faults)} faults{' ' + outcomes if outcomes else ''}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
