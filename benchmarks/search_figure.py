"""Time against the size of the space, both logarithmic, as a chart with several panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from figures import styled, svg
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

Kind = Literal["measured", "extrapolated", "not reached"]


class Style(NamedTuple):
    """Colour and marker of a method.

    shift: where its arrow stands, in points: samplers are stopped after the same time.
    """

    color: str
    marker: str
    shift: int = 0


STYLES = {
    "exact": Style("#4a86d8", "o"),
    "exact with front": Style("#4a86d8", "s"),
    "NumPy": Style("#cf9f2e", "^"),
    "NumPy, cost first": Style("#dc7f3c", "D"),
    "Optuna TPE": Style("#cf566c", "p", shift=-7),
    "Optuna NSGA-II": Style("#a05fc0", "h"),
    "evolution": Style("#2f9e95", "v", shift=7),
}

SECONDS = {
    1e-3: "1 ms",
    1e-2: "10 ms",
    1e-1: "100 ms",
    1.0: "1 s",
    10.0: "10 s",
    60.0: "1 min",
    600.0: "10 min",
    3600.0: "1 h",
    86400.0: "1 day",
    30 * 86400.0: "30 days",
    365 * 86400.0: "1 year",
}


class Point(NamedTuple):
    """Seconds that a method took for a space of so many configurations.

    `not reached`: the method was stopped after so many seconds.
    """

    configurations: int
    seconds: float
    kind: Kind


def draw(panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> str:
    """The chart; `panels` maps a title to the points of every method, named as in `STYLES`."""
    points = [p for methods in panels.values() for line in methods.values() for p in line]
    with styled():
        figure = Figure((10, 4.6), layout="constrained")
        plots = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for plot, (title, methods) in zip(plots, panels.items(), strict=True):
            plot.set(title=title, xscale="log", yscale="log", xlabel="configurations")
            for name, line in methods.items():
                _line(plot, sorted(line), STYLES[name])
            plot.margins(x=0.15)
            plot.minorticks_off()
        low, high = (end(point.seconds for point in points) for end in (min, max))
        ticks = {s: name for s, name in SECONDS.items() if low / 2 <= s <= 4 * high}
        plots[0].set_yticks(list(ticks), list(ticks.values()))
        plots[0].set_ylim(low / 2, 4 * high)
        names = dict.fromkeys(name for methods in panels.values() for name in methods)
        figure.legend(handles=[_handle(name) for name in names], loc="outside right center")
        figure.supxlabel(_notes({point.kind for point in points}), fontsize="medium")
        return svg(figure)


def _line(plot: Axes, line: Sequence[Point], style: Style) -> None:
    """The points of a method, those that it reached joined."""
    reached = [point for point in line if point.kind != "not reached"]
    sizes, seconds, _ = zip(*reached, strict=True) if reached else ((), (), ())
    plot.plot(sizes, seconds, color=style.color)
    for point in line:
        if point.kind == "not reached":
            _arrow(plot, point, style)
        else:
            face = "none" if point.kind == "extrapolated" else style.color
            plot.plot(
                point.configurations, point.seconds,
                color=style.color, marker=style.marker, markerfacecolor=face,
            )  # fmt: skip


def _arrow(plot: Axes, point: Point, style: Style) -> None:
    figure = plot.get_figure()
    assert figure is not None
    aside = ScaledTranslation(style.shift / 72, 0, figure.dpi_scale_trans)
    plot.errorbar(
        point.configurations, point.seconds, yerr=0.8 * point.seconds,
        lolims=True, color=style.color, capsize=3, transform=plot.transData + aside,
    )  # fmt: skip


def _handle(name: str) -> Line2D:
    style = STYLES[name]
    return Line2D([], [], color=style.color, marker=style.marker, label=name)


def _notes(kinds: set[Kind]) -> str:
    notes = ["samplers: until within 1% of the optimum"]
    if "not reached" in kinds:
        notes.append("arrow: stopped before")
    if "extrapolated" in kinds:
        notes.append("hollow: extrapolated from a sample")
    return "; ".join(notes)
