"""The figures of docs/method.md, from the sample network in models/: measured, kept as numbers, and drawn.

python -m tools.docs.figures            # measures (a minute) and draws
python -m tools.docs.figures --draw     # draws what was measured
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snp_onnx.report.charts import HEIGHT, RIGHT, TOP, WIDTH, Curve, axis, chart

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "figures"
NUMBERS = FOLDER / "digits.json"
PRESETS = ("best", "fast", "paper")
TARGETS = (0.8, 0.65, 0.5, 0.4, 0.3)
COLOURS = ("#0b5cad", "#b5442e", "#2e7d5b", "#7a5ba6", "#8a6d1f")
STYLE = (
    "text{font:8px sans-serif;fill:#444}.name{font-size:9px;fill:#222}.grid{stroke:#ddd;stroke-width:.6}"
    "polyline{fill:none;stroke-width:1.6}.mark{fill:#fff;stroke:#222;stroke-width:1.4}"
    + "".join(f".c{place}{{stroke:{colour}}}.f{place}{{fill:{colour}}}" for place, colour in enumerate(COLOURS))
)


def measure() -> dict[str, Any]:
    """Errors by width and the widths of preset fast at half of the MACs; errors on test images at every target."""
    import numpy as np

    import snp_onnx

    data = np.load(ROOT / "models" / "digits.npz")
    images, test = ({"input": data[name].astype(np.float32) / 16} for name in ("images", "test_images"))
    model = ROOT / "models" / "digits.onnx"
    errors = {}
    for preset in PRESETS:
        errors[preset] = []
        for target in TARGETS:
            result = snp_onnx.prune(model, images, target_macs=target, preset=preset)
            fidelity = snp_onnx.compare(model, result.model, test).fidelity[0]
            share = result.report.pruned.macs / result.report.dense.macs
            errors[preset].append([round(share, 4), round(fidelity.relative_l2, 4)])
    return {"groups": widths(), "errors": errors}


def widths() -> list[dict[str, Any]]:
    """Of every group that preset fast narrows at half of the MACs: dense and kept width, and the error at each."""
    import numpy as np

    import snp_onnx

    images = np.load(ROOT / "models" / "digits.npz")["images"].astype(np.float32) / 16
    result = snp_onnx.prune(ROOT / "models" / "digits.onnx", {"input": images}, target_macs=0.5, preset="fast")
    return [
        {
            "group": decision.group,
            "before": decision.before,
            "after": decision.after,
            "error": [round(1.0 - share, 5) for share in decision.variance],
        }
        for decision in result.plan.decisions
        if decision.variance
    ]


def draw(numbers: dict[str, Any]) -> dict[str, str]:
    """Every figure by the name of its file."""
    return {
        "error_by_width.svg": _errors(numbers["groups"]),
        "widths.svg": _widths(numbers["groups"]),
        "error_by_macs.svg": _presets(numbers["errors"]),
    }


def _errors(groups: Sequence[dict[str, Any]]) -> str:
    curves, marks = [], []
    for place, group in enumerate(groups):
        points = [(k / group["before"], error) for k, error in enumerate(group["error"], start=1)]
        shown = [(share, error) for share, error in points if share >= 0.25]
        curves.append(Curve(shown, f"c{place}"))
        kept = points[group["after"] - 1]
        marks.append((kept, f"{group['group']}: {group['after']} of {group['before']}"))
    values = [error for curve in curves for _, error in curve.points]
    x, y = axis("share of the group's units kept", [0.25, 1.0]), axis("error", [0.0, *values])
    return _standing(chart("error against width", x, y, curves, marks), [group["group"] for group in groups], y.name)


def _presets(errors: dict[str, Sequence[Sequence[float]]]) -> str:
    curves = [Curve([(a, b) for a, b in points], f"c{place}") for place, points in enumerate(errors.values())]
    shares = [share for points in errors.values() for share, _ in points]
    values = [error for points in errors.values() for _, error in points]
    x, y = axis("MACs kept", [min(shares), 0.8]), axis("relative L2 error of the logits", [0.0, 1.1 * max(values)])
    marks = [((a, b), f"{a:.2f}: {b:.3f}") for points in errors.values() for a, b in points]
    return _standing(chart("error against MACs", x, y, curves, marks), list(errors), y.name)


def _widths(groups: Sequence[dict[str, Any]]) -> str:
    """Bars: the dense width behind, the kept one in front."""
    top = max(group["before"] for group in groups)
    step, parts = (HEIGHT - TOP - 12) / len(groups), []
    for place, group in enumerate(groups):
        y = TOP + place * step
        scale = (WIDTH - RIGHT - 124 - 42) / top  # names on the left, figures on the right
        for width, style in ((group["before"], 'fill="#d9d9d9"'), (group["after"], 'class="f0"')):
            parts.append(f'<rect x="124" y="{y:.1f}" width="{width * scale:.1f}" height="{step - 8:.1f}" {style}/>')
        middle = f'y="{y + step / 2 - 1:.1f}"'
        parts.append(f'<text x="118" {middle} text-anchor="end">{group["group"]}</text>')
        parts.append(
            f'<text x="{128 + group["before"] * scale:.1f}" {middle}>{group["after"]} of {group["before"]}</text>'
        )
    return _standing(f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">{"".join(parts)}</svg>', [])


def _standing(svg: str, legend: Sequence[str], upward: str = "") -> str:
    """An SVG as a file of its own: its own colours, what goes upward, and a legend in the upper right."""
    upward = f'<text class="name" x="4" y="9">{upward}</text>'
    inside = svg[svg.index(">") + 1 :].removesuffix("</svg>")
    lines = "".join(
        f'<rect class="f{place}" x="{WIDTH - 108:g}" y="{TOP + 4 + place * 11:g}" width="10" height="3"/>'
        f'<text x="{WIDTH - 94:g}" y="{TOP + 9 + place * 11:g}">{name}</text>'
        for place, name in enumerate(legend)
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="640" height="380">'
    return f'{head}<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{inside}{upward}{lines}</svg>\n'


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    if "--draw" not in sys.argv[1:]:
        NUMBERS.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    for name, svg in draw(json.loads(NUMBERS.read_text(encoding="utf-8"))).items():
        (FOLDER / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
