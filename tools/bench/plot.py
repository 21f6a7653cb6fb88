"""The plot of accuracy against MACs kept: every preset of ours, and the best row of every other family."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float]]
Named = tuple[str, str, Curve]
"""Family, name, and (share of MACs, top-1 in per cent) points."""

OURS = "snp-onnx"
OWN_COLOURS = ("#0b5cad", "#2f8fe0", "#8cc4f5")
COLOURS = ("#b5442e", "#7a5ba6", "#2e7d5b", "#8a6d1f", "#666666")
MARKERS = "sD^vP"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "snp-onnx",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(rows: Sequence[Named], dense: float, path: Path) -> None:
    """Write an SVG, the same bytes for the same rows; without matplotlib only a line that says so."""
    with _figure(path) as figure:
        if figure is not None:
            axes = figure.add_subplot()
            _curves(axes, chosen(rows))
            _frame(axes, dense)


def draw_depth(paths: Mapping[str, tuple[Curve, Curve]], path: Path) -> None:
    """An SVG of blocks going: by name the similarity after each, and the top-1 where it was taken."""
    with _figure(path) as figure:
        if figure is not None:
            upper, lower = figure.subplots(2, 1, sharex=True)
            for at, (name, (similar, accurate)) in enumerate(paths.items()):
                look: Any = {
                    "color": (*OWN_COLOURS[:1], *COLOURS)[at % 6],
                    "marker": "o",
                    "markersize": 4,
                    "label": name,
                }
                for axes, curve in ((upper, similar), (lower, accurate)):
                    if curve:
                        axes.plot(*zip(*curve, strict=True), **look)
            upper.set(ylabel="similarity")
            upper.set_title("ResNet-56, CIFAR-10: blocks removed, no training", loc="left", fontsize=11)
            lower.set(xlabel="MACs kept", ylabel="top-1, %")
            lower.legend(loc="lower right", fontsize=8.5, frameon=True, edgecolor="none")
            for axes in (upper, lower):
                axes.grid(color="#e5e5e5", linewidth=0.6)


def draw_scale(points: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """An SVG of seconds against nodes and against units, logarithmic both ways, with lines of slope 1 and 3."""
    with _figure(path) as figure:
        if figure is not None:
            by_nodes, by_units = figure.subplots(1, 2, sharey=True)
            for at, (name, curve) in enumerate(points.items()):
                axes, slope = (by_units, 3) if name == "wide" else (by_nodes, 1)
                sizes, seconds = zip(*curve, strict=True)
                axes.loglog(sizes, seconds, color=(*OWN_COLOURS[:1], *COLOURS)[at % 6], marker="o", label=name)
                guide = [seconds[-1] * (size / sizes[-1]) ** slope for size in sizes]
                axes.loglog(sizes, guide, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            by_nodes.set(xlabel="nodes (dashed: linear)", ylabel="seconds of one thread", ylim=(1e-3, None))
            by_units.set(xlabel="units of one layer (dashed: cubic)")
            by_nodes.set_title("trace + decide + rewrite", loc="left", fontsize=11)
            for axes in (by_nodes, by_units):
                axes.grid(color="#e5e5e5", linewidth=0.6)
                if axes.get_legend_handles_labels()[0]:
                    axes.legend(loc="upper left", fontsize=8.5, frameon=True, edgecolor="none")


@contextmanager
def _figure(path: Path) -> Iterator[Any]:
    """A figure that is written at the end; None without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plot: pip install matplotlib", file=sys.stderr)
        yield None
        return
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        yield figure
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})


def chosen(rows: Sequence[Named]) -> list[Named]:
    """Our presets, best first, then of every other family the row with the highest mean, best first."""
    full = [row for row in rows if row[2]]
    ours = [row for row in full if row[0] == OURS]
    families = dict.fromkeys(row[0] for row in full if row[0] != OURS)
    best = [max((row for row in full if row[0] == family), key=_mean) for family in families]
    return sorted(ours, key=_mean, reverse=True) + sorted(best, key=_mean, reverse=True)


def _mean(row: Named) -> float:
    return sum(accuracy for _, accuracy in row[2]) / len(row[2])


def _curves(axes: Any, rows: Sequence[Named]) -> None:
    others = 0
    for at, (family, name, curve) in enumerate(rows):
        own = family == OURS
        colour = OWN_COLOURS[min(at, len(OWN_COLOURS) - 1)] if own else COLOURS[others % len(COLOURS)]
        look = {"marker": "o" if own else MARKERS[others % len(MARKERS)], "linewidth": 2.4 if own else 1.3}
        others += not own
        shares, accuracies = zip(*sorted(curve), strict=True)
        axes.plot(shares, accuracies, color=colour, markersize=5, label=f"{family}, {name}", **look)


def _frame(axes: Any, dense: float) -> None:
    axes.axhline(dense, color="#999999", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(f"dense {dense:.2f} %", (0.3, dense), (0, 3), textcoords="offset points", color="#555555", fontsize=9)
    axes.set(xlabel="MACs kept", ylabel="top-1 on the test images, %", xlim=(0.28, 0.82), ylim=(0, 100))
    axes.set_title("ResNet-56, CIFAR-10: 1,024 unlabelled images, no training", loc="left", fontsize=11)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=8.5, frameon=True, edgecolor="none")
