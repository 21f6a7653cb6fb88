"""The report as one HTML page: self-contained, for a screen of any width, in light and dark, and for paper."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from snp_onnx.cost import Cost
from snp_onnx.errors import PlanError
from snp_onnx.planning.options import TargetKind
from snp_onnx.planning.plan import BlockDecision, UnitDecision
from snp_onnx.report.charts import Curve, axis, chart
from snp_onnx.report.remarks import counted
from snp_onnx.report.table import fidelity_figures, in_bytes, in_short, nodes_of, number, share
from snp_onnx.verbs.fidelity import Fidelity
from snp_onnx.verbs.latency import Latency
from snp_onnx.verbs.result import GroupReport, Inspection, Outlook, Prunable, PruneResult, Report

TEMPLATE = "page.html.j2"

NAMES = {"held": "R² of the outputs", "agreement": "agreement"}
"""What is drawn of the fidelity, and what it is called."""

LEAST_SPAN = 0.01
"""Differences smaller than that are not blown up to the height of a chart."""

UNFOLDED = 24
"""Up to so many groups the curves are shown at once; more of them are folded in."""


def pruning_page(result: PruneResult, report: Report | None = None, subtitle: str = "") -> str:
    """What `prune` did, as HTML; `report` in place of the result's own where the bytes on disk are known.

    `subtitle` says which models it is about.
    """
    facts = report or result.report
    return _rendered(
        title="Pruning report",
        subtitle=subtitle,
        tiles=_tiles(facts),
        warnings=counted(facts.warnings),
        notes=counted(facts.notes),
        widths=[_width(group) for group in facts.groups],
        removed=_removed(facts.removed),
        tradeoff=_tradeoff(facts),
        outlook=[_outlook(entry) for entry in facts.outlook],
        curves=[found for decision in result.plan.decisions if (found := _curve(decision))],
        are_curves_open=len(result.plan.decisions) <= UNFOLDED,
        fidelity=[_fidelity(entry) for entry in facts.fidelity],
        is_labelled=any(entry.dense_accuracy is not None for entry in facts.fidelity),
        latency=[_latency(entry) for entry in facts.latency],
        barriers=facts.barriers,
        timings=_bars({name: seconds for name, seconds in facts.timings.items() if seconds >= 0.005}),
        facts={
            "target": _target(facts.target),
            "inputs": _shapes(facts.input_shapes),
            "dense model, SHA-256": result.plan.dense_sha256,
            "plan": result.plan.digest(),
        },
        options={name: _said(value) for name, value in facts.options.items()},
        versions=facts.versions,
    )


def inspection_page(inspection: Inspection, subtitle: str = "") -> str:
    """What `inspect` found, as HTML; `subtitle` says in which model."""
    cost = inspection.dense
    return _rendered(
        title="What may be pruned",
        subtitle=subtitle,
        tiles=[
            {"name": "MACs", "figure": in_short(cost.macs), "more": ""},
            {"name": "parameters", "figure": in_short(cost.params), "more": ""},
            {"name": "file size", "figure": in_bytes(cost.bytes), "more": ""},
            {"name": "nodes", "figure": str(inspection.nodes), "more": f"opset {inspection.opset}"},
            *_most(inspection.prunable),
        ],
        notes=counted(inspection.notes),
        widths=[_width(group, is_cut=False) for group in inspection.groups],
        blocks=[
            {"name": block.name, "kind": block.kind, "stage": block.stage, "macs": share(block.macs_share)}
            | {"verdict": f"no: {block.reason}" if block.reason else "yes"}
            for block in inspection.blocks
        ],
        barriers=inspection.barriers,
        facts={"inputs": _shapes(inspection.input_shapes)},
    )


def _most(found: Mapping[str, Prunable]) -> list[dict[str, str]]:
    """What can go at most by default, and in its small print what each option adds."""
    if not found:
        return []
    more = [
        f"{share(1 - entry.macs_left_with_default)} with {entry.options}"
        for entry in found.values()
        if entry.groups and entry.options and entry.macs_left_with_default is not None
    ]
    figure = share(1 - found["default"].macs_left)
    return [{"name": "MACs that can go, at most", "figure": figure, "more": ", ".join(more)}]


def require_pages() -> None:
    """Refuse, before any work, where pages can't be made."""
    if importlib.util.find_spec("jinja2") is None:
        raise PlanError("HTML reports need jinja2: pip install 'snp-onnx[report]', or write FILE.json")


def _rendered(**facts: Any) -> str:
    require_pages()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("snp_onnx.report", "templates")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    empty: dict[str, Any] = dict.fromkeys(_PARTS, ())
    return found.get_template(TEMPLATE).render(**(empty | facts)) + "\n"


_PARTS = (
    *(
        "tiles",
        "warnings",
        "notes",
        "widths",
        "removed",
        "tradeoff",
        "outlook",
        "curves",
        "are_curves_open",
        "fidelity",
    ),
    *("is_labelled", "latency", "blocks", "barriers", "timings", "facts", "options", "versions"),
)


def _tiles(report: Report) -> list[dict[str, str]]:
    """The headline: what is left of each cost, and how close the outputs are."""
    tiles = [
        _kept("MACs", report.dense, report.pruned, "macs", in_short),
        _kept("parameters", report.dense, report.pruned, "params", in_short),
        _kept("file size", report.dense, report.pruned, "bytes", in_bytes),
    ]
    for entry in report.latency[:1]:
        quartiles = f"quartiles {entry.ratio_low:.2f} to {entry.ratio_high:.2f}"
        spread = f"undisturbed; medians {entry.dense_ms:.2f} → {entry.pruned_ms:.2f} ms, {quartiles}"
        tiles.append(
            {"name": f"latency kept, batch {entry.batch}", "figure": f"{entry.undisturbed:.3f}", "more": spread}
        )
    for fidelity in report.fidelity[:1]:
        worst, _, agreement, cosine, _ = fidelity_figures(fidelity)
        more = f"1 - R² of the worst channel {worst}, cosine {cosine}, {fidelity.samples} samples set apart"
        if fidelity.agreement is not None:
            more = f"agreement {agreement}, {more}"
        tiles.append({"name": NAMES["held"], "figure": number(fidelity.held), "more": more})
    return tiles


def _kept(name: str, dense: Cost, pruned: Cost, field: str, show: Any) -> dict[str, str]:
    before, after = getattr(dense, field), getattr(pruned, field)
    figure = f"{after / before:.3f}" if before else "-"
    return {"name": f"{name} kept", "figure": figure, "more": f"{show(before)} → {show(after)}"}


def _width(group: GroupReport, is_cut: bool = True) -> dict[str, Any]:
    percent = 100.0 * group.after / group.before if group.before else 0.0
    kind = f"{group.kind}, stream" if group.is_stream else group.kind
    error = "" if group.error is None else f"{group.error:.4f}"
    return {
        "name": group.id,
        "nodes": nodes_of(group),
        "kind": kind,
        "before": group.before,
        "after": group.after if is_cut else "",
        "percent": f"{percent:.1f}",
        "error": error,
        "note": group.note,
    }


def _removed(blocks: Sequence[BlockDecision]) -> list[dict[str, Any]]:
    """With a bar from a little below the lowest similarity to 1."""
    known = [block.similarity for block in blocks if block.similarity is not None]
    low = min(known, default=0.0) - 0.02
    return [
        {
            "name": block.block,
            "kind": block.kind,
            "macs": share(block.macs),
            "similarity": "" if block.similarity is None else f"{block.similarity:.4f}",
            "percent": 0.0 if block.similarity is None else round(100.0 * (block.similarity - low) / (1.0 - low), 1),
        }
        for block in blocks
    ]


def _tradeoff(report: Report) -> dict[str, str]:
    """R² and the agreement against the MACs left, as far as the samples tell; the result is marked."""
    if not (report.outlook and report.fidelity and report.dense.macs):
        return {}
    shown = [*(entry.fidelity[0] for entry in report.outlook), report.fidelity[0]]
    known = [
        field
        for field in NAMES
        if all((value := getattr(entry, field)) is not None and isfinite(value) for entry in shown)
    ]
    return {NAMES[field]: _tradeoff_of(report, field, NAMES[field]) for field in known}


def _tradeoff_of(report: Report, field: str, name: str) -> str:
    dense = report.dense.macs
    path = [(entry.cost.macs / dense, max(0.0, getattr(entry.fidelity[0], field))) for entry in report.outlook]
    path.insert(0, (1.0, 1.0))
    here = report.pruned.macs / dense, float(getattr(report.fidelity[0], field))
    shown = [point[1] for point in [*path, here]]
    y = axis(name, [max(0.0, min(1.0 - LEAST_SPAN, *shown)), 1.0])
    text = f"this result: {here[0]:.3f} of the MACs, {name} {here[1]:.4f}"
    return chart(f"{name} against MACs kept", axis("MACs kept", [0.0, 1.0]), y, [Curve(path)], [(here, text)])


def _outlook(entry: Outlook) -> dict[str, Any]:
    first = entry.fidelity[0]
    return {
        "macs": f"{entry.target:g}",
        "params": in_short(entry.cost.params),
        "figures": fidelity_figures(first),
    }


def _curve(decision: UnitDecision) -> dict[str, Any] | None:
    """What a group's units capture at every width, and the error that is left; the chosen width is marked."""
    captured = decision.variance
    if not captured:
        return None
    widths = range(1, len(captured) + 1)
    at = captured[decision.after - 1] if 1 <= decision.after <= len(captured) else captured[-1]
    x, y = axis("units kept", [0, len(captured)]), axis("share", [0.0, 1.0])
    lines = [
        Curve([(width, max(0.0, value)) for width, value in zip(widths, captured, strict=True)], "line"),
        Curve(
            [(width, min(1.0, max(0.0, 1.0 - value))) for width, value in zip(widths, captured, strict=True)], "faint"
        ),
    ]
    text = f"{decision.after} of {decision.before} units capture {at:.4f}"
    drawn = chart(f"{decision.group}: {text}", x, y, lines, [((decision.after, max(0.0, at)), text)])
    return {"name": decision.group, "text": text, "chart": drawn}


def _fidelity(entry: Fidelity) -> dict[str, Any]:
    return {
        "output": entry.output,
        "samples": entry.samples,
        "figures": fidelity_figures(entry),
        "dense": share(entry.dense_accuracy),
        "pruned": share(entry.pruned_accuracy),
    }


def _latency(entry: Latency) -> dict[str, Any]:
    return {
        "batch": entry.batch,
        "dense": f"{entry.dense_ms:.3f}",
        "pruned": f"{entry.pruned_ms:.3f}",
        "ratio": f"{entry.ratio:.3f}",
        "quartiles": f"{entry.ratio_low:.3f} to {entry.ratio_high:.3f}",
        "undisturbed": f"{entry.undisturbed:.3f}",
        "rounds": entry.rounds,
    }


def _bars(values: Mapping[str, float]) -> list[dict[str, Any]]:
    most = max(values.values(), default=0.0) or 1.0
    return [
        {"name": name, "figure": f"{value:.2f} s", "percent": f"{100 * value / most:.1f}"}
        for name, value in values.items()
    ]


def _target(target: Mapping[str, Any]) -> str:
    """As it is typed, where the kind is known."""
    if set(target) == {"kind", "value"}:
        return f"--{TargetKind(target['kind']).option} {_said(target['value'])}"
    return ", ".join(f"{name} {_said(value)}" for name, value in target.items()) or "a plan made earlier"


def _shapes(shapes: Mapping[str, Iterable[int]]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in shapes.items())


def _said(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
