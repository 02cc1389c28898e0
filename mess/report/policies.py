"""The page of `mess search --policy all`: a table of the answers and a figure of the fronts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mess.common.files import write_text
from mess.report import figures as report_figures
from mess.report.figures import FrontLine, Unit
from mess.report.templates import templates
from mess.sentences.accuracy import against
from mess.sentences.new_images import new_images_lines


@dataclass(frozen=True, kw_only=True)
class PolicyLine:
    """One policy: its name, its front (rows of front.parquet) and its row of comparison.json."""

    name: str
    points: Sequence[Mapping[str, Any]]
    row: Mapping[str, Any]


def write_comparison(
    path: Path, comparison: Mapping[str, Any], lines: Sequence[PolicyLine]
) -> None:
    """Write the page; the policy that does best is the line that stands out."""
    baseline, miou = comparison["baseline"], against("mIoU", comparison["labels"])
    unit = Unit.of(baseline["macs"])
    ordered = sorted(lines, key=lambda line: line.row["search"] != comparison["best"])
    fronts = [
        FrontLine(name=line.name, points=line.points, predicted=line.row["predicted"])
        for line in ordered
    ]
    page = (
        templates()
        .get_template("policies.html.jinja")
        .render(
            comparison=comparison,
            lines=lines,
            promised=_promised(ordered[0].row, comparison["labels"]),
            unit=unit,
            plotly=Markup(get_plotlyjs()),
            labels=comparison["labels"],
            figure=Markup(report_figures.fronts(fronts, baseline, unit, miou)),
        )
    )
    write_text(path, page)


def _promised(best: Mapping[str, Any], labels: str) -> list[str]:
    """What the best answer's row says of new images, if anything was asked."""
    asked = "certificate" in best or "expected" in best
    return [against(line, labels) for line in new_images_lines(dict(best))] if asked else []
