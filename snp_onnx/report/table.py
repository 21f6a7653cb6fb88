"""Tables: dense and pruned side by side, widths of groups, axes that stay whole, fidelity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from snp_onnx.cost import Cost
from snp_onnx.planning.plan import BlockDecision
from snp_onnx.report.remarks import printable
from snp_onnx.verbs.fidelity import Fidelity
from snp_onnx.verbs.latency import Latency
from snp_onnx.verbs.recovered import RecoverReport
from snp_onnx.verbs.result import BlockReport, Comparison, GroupReport, Inspection, Prunable, Report, StopReport

BAR = 20
"""Cells of a bar for a similarity of 1, besides the one that every bar has."""

MOST_ALIKE = 8
"""Axes that stay whole for one reason at one kind of place that a table lists; of more it gives the number."""


class _Plain(Table):
    """A table whose cells show names as they are: rich would take `[a]` and `:b:` in them for styles and emoji."""

    def add_row(self, *cells: str) -> None:  # type: ignore[override]  # the styles of rows are of no use here
        super().add_row(*(Text(printable(cell)) for cell in cells))


def pruning_table(report: Report) -> RenderableType:
    """What `prune` shows."""
    parts: list[RenderableType] = [_costs(report.dense, report.pruned)]
    if report.removed:
        parts.append(_removed(report.removed))
    parts.append(_groups(report.groups))
    if report.barriers:
        parts.append(_barriers(report.barriers))
    if report.fidelity:
        parts.append(_fidelity(report.fidelity, "fidelity on the samples set apart for this report"))
    if report.latency:
        parts.append(_latency(report.latency))
    return Group(*parts)


def inspection_table(inspection: Inspection) -> RenderableType:
    """What `inspect` shows."""
    cost = inspection.dense
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in inspection.input_shapes.items())
    head = (
        f"{in_short(cost.macs)} MACs, {in_short(cost.params)} parameters, {in_bytes(cost.bytes)}; "
        f"{inspection.nodes} nodes, opset {inspection.opset}; inputs {shapes}"
    )
    parts: list[RenderableType] = [Text(printable(head))]
    if inspection.prunable:
        parts += _prunable(inspection.prunable)
    if inspection.groups:
        parts.append(_widths(inspection.groups))
    if inspection.blocks:
        parts.append(_blocks(inspection.blocks))
    free = "every axis may be cut" if inspection.groups else "there is nothing to cut"
    parts.append(_barriers(inspection.barriers) if inspection.barriers else Text(free))
    return Group(*parts)


def comparison_table(comparison: Comparison) -> RenderableType:
    """What `compare` shows."""
    parts: list[RenderableType] = [_costs(comparison.dense, comparison.pruned)]
    parts.append(_fidelity(comparison.fidelity, "fidelity over all samples"))
    if comparison.latency:
        parts.append(_latency(comparison.latency))
    return Group(*parts)


def recovery_table(report: RecoverReport) -> RenderableType:
    """What `recover` shows."""
    parts: list[RenderableType] = [_checks(report.history)] if report.history else []
    parts.append(_fidelity(report.before, "fidelity on the samples set apart for this report, before"))
    parts.append(_fidelity(report.after, "after" if report.changed else "after: unchanged"))
    return Group(*parts)


def _checks(history: Iterable[Mapping[str, float]]) -> Table:
    table = _table("training", ("epochs", "mean loss", "held-back error", "minutes"))
    for entry in history:
        figures = f"{entry['loss']:.4f}", f"{entry['held_back_error']:.4f}", f"{entry['seconds'] / 60:.1f}"
        table.add_row(f"{entry['epoch']:.0f}", *figures)
    return table


def _table(title: str, columns: Sequence[str]) -> _Plain:
    table = _Plain(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    return table


def _costs(dense: Cost, pruned: Cost) -> Table:
    table = _table("cost", ("", "dense", "pruned", "kept"))
    rows = (
        ("MACs", dense.macs, pruned.macs, in_short),
        ("parameters", dense.params, pruned.params, in_short),
        ("file size", dense.bytes, pruned.bytes, in_bytes),
    )
    for name, before, after, show in rows:
        table.add_row(name, show(before), show(after), f"{after / before:.3f}" if before else "-")
    return table


def _prunable(found: Mapping[str, Prunable]) -> list[RenderableType]:
    """What goes by default in one sentence, and what every kind of unit could save, in a table."""
    default = found["default"]
    macs, params = (f"{100 * (1 - left):.3g} %" for left in (default.macs_left, default.params_left))
    sentence = f"by default at most {macs} of the MACs and {params} of the parameters can go"
    table = _table("what can go at most", ("units", "groups", "count", "MACs", "parameters", "MACs with the default"))
    table.add_column("options", justify="left", overflow="fold")
    for kind, entry in found.items():
        if kind == "default" or not entry.groups:
            continue
        together = None if entry.macs_left_with_default is None else 1 - entry.macs_left_with_default
        figures = share(1 - entry.macs_left), share(1 - entry.params_left), share(together)
        table.add_row(kind, str(entry.groups), str(entry.units), *figures, entry.options or "by default")
    return [Text(sentence), *([table] if table.row_count else [])]


def _groups(groups: Iterable[GroupReport]) -> Table:
    table = _table("groups", ("first producer:axis", "kind", "before", "after", "error"))
    for group in groups:
        error = "-" if group.error is None else f"{group.error:.4f}"
        after = str(group.after) if not group.note else f"{group.after} ({group.note})"
        table.add_row(group.id, _kind(group), str(group.before), after, error)
    return table


def _widths(groups: Iterable[GroupReport]) -> Table:
    table = _table("groups that may be cut", ("first producer:axis", "kind", "units"))
    table.add_column("producers' nodes (--include, --exclude)", justify="left", overflow="fold")
    for group in groups:
        units = f"{group.before} ({group.note})" if group.note else str(group.before)
        table.add_row(group.id, _kind(group), units, nodes_of(group))
    return table


def nodes_of(group: GroupReport) -> str:
    """The name of the first node that produces a group's units, and how many more do; "" where it has no name."""
    name, more = next(iter(group.producers), ""), len(group.producers) - 1
    return f"{name} and {more} more" if name and more > 0 else name


def _blocks(blocks: Iterable[BlockReport]) -> Table:
    table = _table("blocks", ("adding node", "kind", "stage", "MACs"))
    table.add_column("may go", justify="left", overflow="fold")
    for block in blocks:
        verdict = f"no: {block.reason}" if block.reason else "yes"
        table.add_row(block.name, block.kind, str(block.stage), share(block.macs_share), verdict)
    return table


def _removed(blocks: Iterable[BlockDecision]) -> Table:
    """With the path of the similarity drawn as bars, from a little below the lowest to 1."""
    blocks = list(blocks)
    table = _table("blocks removed, in order", ("adding node", "kind", "MACs left", "similarity"))
    table.add_column("", justify="left")
    lowest = min((block.similarity for block in blocks if block.similarity is not None), default=0.0)
    for block in blocks:
        known = block.similarity is not None
        length = 1.0 if not known or lowest == 1.0 else ((block.similarity or 0.0) - lowest) / (1.0 - lowest)
        bar = "█" * (1 + round(BAR * length)) if known else ""
        table.add_row(block.block, block.kind, share(block.macs), f"{block.similarity:.4f}" if known else "-", bar)
    return table


def _kind(group: GroupReport) -> str:
    return f"{group.kind}, stream" if group.is_stream else group.kind


def _barriers(stops: Iterable[StopReport]) -> Table:
    table = _table("axes that stay whole", ("weight", "axis", "extent", "barrier at"))
    table.add_column("reason", justify="left", overflow="fold")
    alike: dict[str, list[StopReport]] = {}
    for stop in stops:
        alike.setdefault(stop.reason, []).append(stop)
    for reason, several in alike.items():
        listed = several if len(several) <= MOST_ALIKE else several[:1]
        for stop in listed:
            place = f"{stop.tensor} axis {stop.axis}"
            reason_there = f"{reason} ({stop.node})" if stop.node else reason
            table.add_row(stop.weight, str(stop.weight_axis), str(stop.extent), place, reason_there)
        if len(listed) < len(several):
            table.add_row(f"and {len(several) - 1} more (all: --json)", "", "", "", reason)
    return table


def _fidelity(outputs: Iterable[Fidelity], title: str) -> Table:
    outputs = list(outputs)
    labelled = any(entry.dense_accuracy is not None for entry in outputs)
    columns = ["output", "samples", "worst 1 - R²", "mean 1 - R²", "agreement", "cosine", "relative L2"]
    table = _table(title, columns + (["dense top-1", "pruned top-1"] if labelled else []))
    for entry in outputs:
        row = [entry.output, str(entry.samples), *fidelity_figures(entry)]
        if labelled:
            row += [share(entry.dense_accuracy), share(entry.pruned_accuracy)]
        table.add_row(*row)
    return table


def fidelity_figures(entry: Fidelity) -> tuple[str, str, str, str, str]:
    """The worst error with its channel, the mean error, the agreement with what is decided, cosine and relative L2.

    >>> fidelity_figures(Fidelity("y", 9, 0.5, 0.25, 0.75, error=0.5, mean_error=0.25, decision="largest entry"))
    ('0.5000', '0.2500', '75.00 % (largest entry)', '0.5000', '0.2500')
    """
    if not entry.compared:
        return ("not compared: not finite, or its size depends on the data", "-", "-", "-", "-")
    worst = f"{number(entry.error)} ({entry.channel})" if entry.channel else number(entry.error)
    agreement = share(entry.agreement) + (f" ({entry.decision})" if entry.decision else "")
    return worst, number(entry.mean_error), agreement, number(entry.cosine), number(entry.relative_l2)


def number(value: float) -> str:
    """Four decimals; "-" for what the samples don't tell.

    >>> number(0.25), number(float("nan"))
    ('0.2500', '-')
    """
    return "-" if value != value else f"{value:.4f}"


def _latency(entries: Iterable[Latency]) -> Table:
    table = _table(
        "latency, interleaved runs", ("batch", "dense ms", "pruned ms", "ratio", "quartiles", "undisturbed", "runs")
    )
    for entry in entries:
        quartiles = f"{entry.ratio_low:.3f} .. {entry.ratio_high:.3f}"
        times = f"{entry.dense_ms:.3f}", f"{entry.pruned_ms:.3f}", f"{entry.ratio:.3f}"
        table.add_row(str(entry.batch), *times, quartiles, f"{entry.undisturbed:.3f}", str(entry.rounds))
    return table


def share(value: float | None) -> str:
    """A fraction in percent.

    >>> share(0.5), share(None)
    ('50.00 %', '-')
    """
    return "-" if value is None else f"{100 * value:.2f} %"


def in_short(value: float) -> str:
    """A count with a unit.

    >>> in_short(4_400_000), in_short(900)
    ('4.40 M', '900')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.2f} {unit}"
    return f"{value:.0f}"


def in_bytes(value: float) -> str:
    """A size with a unit.

    >>> in_bytes(676_950)
    '676.95 kB'
    """
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:.0f} B"
