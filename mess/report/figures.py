"""The figures of the report as HTML fragments, and label maps as embedded pictures.

Colours of axes and text come from the page's style sheet, so that figures follow its light and dark
appearance; the colours of the data are of middle lightness and stand on both.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from PIL import Image
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from mess.common.records import Figures

DEPTH = ["#2f9e95", "#7fa63a", "#cf9f2e", "#dc7f3c", "#cf566c"]
"""From shallow to deep."""
GREY, CHOSEN = "#8a8f98", "#4a86d8"

_LABEL = {"bgcolor": "#1f2329", "bordercolor": "#1f2329", "font": {"color": "#f2f3f5"}}
_CONFIG = {"displayModeBar": False, "responsive": True}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How large counts are printed: divided by `scale`, with `suffix` and `digits` decimals."""

    scale: float
    suffix: str
    digits: int

    @classmethod
    def of(cls, largest: float) -> Unit:
        """The unit in which `largest` and figures of a thousandth of it are both readable."""
        if largest >= 1e10:
            return cls(scale=1e9, suffix="G", digits=2)
        if largest >= 1e7:
            return cls(scale=1e6, suffix="M", digits=1)
        return cls(scale=1e3, suffix="k", digits=1)

    def show(self, value: float | None) -> str:
        """`value` without the suffix, which stands in the column's head."""
        return "–" if value is None else f"{value / self.scale:,.{self.digits}f}"


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Signals of one early exit on the calibration split, counted in bins.

    `answered` by this exit, passed `onward` from it, or answered by an `earlier` one.
    """

    exit_id: str
    signal: str
    threshold: float
    edges: NDArray[np.float64]
    answered: NDArray[np.intp]
    onward: NDArray[np.intp]
    earlier: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class FrontLine:
    """The answer of one search and its front, rows of front.parquet."""

    name: str
    points: Sequence[Mapping[str, Any]]
    predicted: Figures


def candidates(rows: Sequence[Mapping[str, Any]], unit: Unit, miou: str, where: str) -> str:
    """MIoU of every exit against the MACs of its path, coloured by depth; chosen ones ringed.

    `miou` says what that is, and `where` of which images.
    """
    figure = go.Figure()
    points = sorted({row["point"] for row in rows})
    for point, color in zip(points, _colors(len(points)), strict=True):
        some = [row for row in rows if row["point"] == point]
        figure.add_scatter(
            x=[row["path_macs"] / unit.scale for row in some],
            y=[row["miou"] for row in some],
            mode="markers",
            name=f"point {point}",
            marker={
                "size": 11,
                "color": color,
                "symbol": ["diamond" if row["head"] is None else "circle" for row in some],
            },
            text=[_describe(row, miou) for row in some],
            hovertemplate="%{text}<extra></extra>",
        )
    chosen = [row for row in rows if row["chosen"]]
    if chosen:
        figure.add_scatter(
            x=[row["path_macs"] / unit.scale for row in chosen],
            y=[row["miou"] for row in chosen],
            mode="markers",
            name="chosen",
            marker={"size": 19, "symbol": "circle-open", "color": CHOSEN, "line": {"width": 2.5}},
            hoverinfo="skip",
        )
    figure.update_xaxes(title=f"MACs of the path ({unit.suffix})", rangemode="tozero")
    figure.update_yaxes(title=_plain(f"{miou} on {where}"))
    return _fragment(figure, "figure-candidates", 420)


def fronts(
    lines: Sequence[FrontLine],
    baseline: Figures,
    unit: Unit,
    miou: str = "mIoU",
    name: str = "figure-fronts",
) -> str:
    """MIoU against MACs, and against latency where it was measured; the first line stands out.

    `miou` says what that is. Points are joined where they are a front in the cost of the axis: the
    front of a search for latency need not be one in MACs.
    """
    axes: dict[Literal["macs", "latency_ms"], tuple[str, float]]
    axes = {"macs": (f"mean MACs ({unit.suffix})", unit.scale)}
    if any(point["latency_ms"] is not None for line in lines for point in line.points):
        axes["latency_ms"] = ("latency (ms)", 1.0)
    figure = make_subplots(cols=len(axes), shared_yaxes=True, horizontal_spacing=0.05)
    # One line alone leaves a colour over, hence the zip below is not strict.
    colors = [CHOSEN, *_colors(max(len(lines) - 1, 1))]
    for column, (key, (title, scale)) in enumerate(axes.items(), start=1):
        for line, color in zip(lines, colors, strict=False):
            points = sorted((p for p in line.points if p[key] is not None), key=lambda p: p[key])
            height = [point["miou"] for point in points]
            group = {"legendgroup": line.name, "name": _plain(line.name), "row": 1, "col": column}
            figure.add_scatter(
                x=[point[key] / scale for point in points],
                y=height,
                mode="lines+markers" if height == sorted(height) else "markers",
                # A front is a staircase: between two points one has the cheaper one's mIoU.
                line={"color": color, "width": 1.5, "shape": "hv"},
                marker={"size": 4, "color": color},
                showlegend=False,
                **group,
            )
            if (cost := line.predicted[key]) is not None:
                figure.add_scatter(
                    x=[cost / scale],
                    y=[line.predicted["miou"]],
                    mode="markers",
                    marker={"size": 14, "symbol": "star", "color": color},
                    showlegend=column == 1,
                    **group,
                )
        if (cost := baseline[key]) is not None:
            figure.add_scatter(
                x=[cost / scale],
                y=[baseline["miou"]],
                mode="markers",
                name="baseline",
                legendgroup="baseline",
                marker={"size": 12, "symbol": "diamond", "color": GREY},
                showlegend=column == 1,
                row=1,
                col=column,
            )
        figure.update_xaxes(title=title, rangemode="tozero", row=1, col=column)
    hover = f"%{{x:.4g}}: {_plain(miou)} %{{y:.4f}}<extra>%{{fullData.name}}</extra>"
    figure.update_traces(hovertemplate=hover)
    figure.update_yaxes(title=_plain(miou), row=1, col=1)
    return _fragment(figure, name, 420, legend_rows=len(lines) + 1)


def histograms(panels: Sequence[Histogram]) -> str:
    """Signals of the early exits, split by which exit answered, with the threshold."""
    titles = [_plain(f"{panel.exit_id}: threshold {panel.threshold:.4g}") for panel in panels]
    figure = make_subplots(cols=len(panels), shared_yaxes=True, subplot_titles=titles)
    parts = (("answered", CHOSEN), ("onward", GREY), ("earlier", "rgba(138,143,152,0.3)"))
    names = {"answered": "answered here", "onward": "passed on", "earlier": "answered earlier"}
    for column, panel in enumerate(panels, start=1):
        for part, color in parts:
            counts = getattr(panel, part)
            # Nothing answers before the first exit: its panel has no such bars and no such name.
            if part != "earlier" or counts.any():
                figure.add_bar(
                    x=(panel.edges[:-1] + panel.edges[1:]) / 2,
                    y=counts,
                    width=np.diff(panel.edges),
                    marker={"color": color, "line": {"width": 0}},
                    name=names[part],
                    legendgroup=part,
                    showlegend=part == "earlier" or column == 1,
                    hovertemplate="%{x:.3f}: %{y} images<extra>%{fullData.name}</extra>",
                    row=1,
                    col=column,
                )
        # plotly calls the axes x, x2, x3.
        axis = "" if column == 1 else str(column)
        figure.add_shape(
            type="line",
            xref=f"x{axis}",
            yref=f"y{axis} domain",
            x0=panel.threshold,
            x1=panel.threshold,
            y0=0,
            y1=1,
            line={"color": GREY, "width": 2, "dash": "dot"},
        )
        figure.update_xaxes(title=_plain(panel.signal), row=1, col=column)
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_yaxes(title="images", row=1, col=1)
    return _fragment(figure, "figure-thresholds", 340, legend_rows=1)


def losses(stages: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Mean loss over the iterations of every stage, in a panel each: the losses differ in kind."""
    figure = make_subplots(cols=len(stages), subplot_titles=[_plain(name) for name in stages])
    for column, (name, curve) in enumerate(stages.items(), start=1):
        figure.add_scatter(
            x=[iteration for iteration, _ in curve],
            y=[loss for _, loss in curve],
            mode="lines",
            name=_plain(name),
            line={"color": CHOSEN, "width": 1.8},
            showlegend=False,
            hovertemplate="iteration %{x}: %{y:.4f}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(title="iteration", row=1, col=column)
    figure.update_yaxes(title="mean loss", row=1, col=1)
    return _fragment(figure, "figure-training", 300)


def picture(label_map_hw: NDArray[np.uint8], palette: Sequence[Sequence[int]]) -> str:
    """A label map in the colours of its classes, as the data URL of a PNG."""
    image = Image.fromarray(label_map_hw)
    image.putpalette([value for color in palette for value in color])
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _colors(number: int) -> list[str]:
    places = np.linspace(0, 1, number) if number > 1 else [0.25]
    return [str(color) for color in sample_colorscale(DEPTH, [float(place) for place in places])]


def _describe(row: Mapping[str, Any], miou: str) -> str:
    lines = [f"<b>{_plain(row['exit_id'])}</b>", f"after {_plain(row['block'])}"]
    if row["head"] is None:
        lines.append("the network's own head")
    else:
        rapid = ", rapid dilation" if row["rdi"] else ""
        lines.append(
            f"{_plain(row['head'])} head, {row['blocks']} blocks{rapid}, channels / {row['crm']}"
        )
    lines.append(f"{_plain(miou)} {row['miou']:.4f}, {row['params']:,} parameters")
    if row["latency_ms"] is not None:
        lines.append(f"{row['latency_ms']:.3g} ms")
    return "<br>".join(lines)


def _plain(text: str) -> str:
    # plotly takes a subset of HTML in labels.
    return html.escape(text)


def _fragment(figure: go.Figure, name: str, height: int, *, legend_rows: int = 0) -> str:
    figure.update_layout(
        template="none",
        height=height + 28 * legend_rows,
        margin={"l": 58, "r": 8, "t": 28, "b": 56 + 28 * legend_rows},
        font={"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel=_LABEL,
    )
    if legend_rows:
        legend = {"yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
        figure.update_layout(legend=legend | {"orientation": "v" if legend_rows > 1 else "h"})
    figure.update_xaxes(zeroline=False, showline=True, ticks="outside")
    figure.update_yaxes(zeroline=False)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(title_standoff=10, title_font_size=13)
    figure.update_annotations(font={"size": 13})
    # The page holds plotly's 4.8 MB once. A name of its own keeps the page the same each time,
    # where plotly would draw one at random.
    return figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=name)
