"""Time against the size of the space, both logarithmic, as an SVG picture with several panels."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from svg import picture, segment, text

Kind = Literal["measured", "extrapolated", "not reached"]

WIDTH, HEIGHT = 900, 430
LEFT, RIGHT, TOP, BOTTOM, GAP = 64, 176, 34, 84, 22


class Style(NamedTuple):
    """Colour of a method, and the corners of its marker with the first one's angle in degrees.

    shift: where its arrow stands, in pixels: samplers are stopped after the same time.
    """

    color: str
    corners: int = 0
    turn: int = 0
    shift: int = 0


STYLES = {
    "exact": Style("#4a86d8"),
    "exact with front": Style("#4a86d8", 4, 45),
    "NumPy": Style("#cf9f2e", 3, -90),
    "NumPy, cost first": Style("#dc7f3c", 4),
    "Optuna TPE": Style("#cf566c", 5, -90, shift=-9),
    "Optuna NSGA-II": Style("#a05fc0", 6),
    "evolution": Style("#2f9e95", 3, 90, shift=9),
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


class Scale(NamedTuple):
    """A logarithmic axis: values `low` to `high` at positions `start` to `end`, in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Position of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def draw(panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> str:
    """The picture; `panels` maps a title to the points of every method, named as in `STYLES`."""
    lines = [line for methods in panels.values() for line in methods.values()]
    points = [point for line in lines for point in line]
    seconds = [point.seconds for point in points]
    y = Scale(min(seconds) / 2, max(seconds) * 4, HEIGHT - BOTTOM, TOP)
    names = list(dict.fromkeys(name for methods in panels.values() for name in methods))
    width = (WIDTH - LEFT - RIGHT + GAP) / len(panels)
    body = []
    for position, (title, methods) in enumerate(panels.items()):
        sizes = [point.configurations for line in methods.values() for point in line]
        start = LEFT + position * width
        x = Scale(min(sizes) / 3, max(sizes) * 3, start, start + width - GAP)
        body += _axes(x, y, title, named=position == 0)
        for name, line in methods.items():
            body += _line(x, y, line, STYLES[name])
    body += [part for row, name in enumerate(names) for part in _legend_entry(name, row)]
    body += _notes({point.kind for point in points})
    return picture(WIDTH, HEIGHT, "Search time against size of the space", body)


def _axes(x: Scale, y: Scale, title: str, named: bool) -> Iterator[str]:
    powers = range(math.ceil(math.log10(x.low)), math.floor(math.log10(x.high)) + 1)
    for power in powers[:: 1 + len(powers) // 5]:
        at = x(10.0**power)
        yield segment(at, y.start, at, y.end, width=0.3)
        yield text(at, y.start + 20, f'10<tspan dy="-5" font-size="10">{power}</tspan>', "middle")
    for seconds, name in SECONDS.items():
        if y.low <= seconds <= y.high:
            yield segment(x.start, y(seconds), x.end, y(seconds), width=0.3)
            if named:
                yield text(x.start - 8, y(seconds) + 4, name, "end")
    yield segment(x.start, y.start, x.end, y.start, width=1)
    yield segment(x.start, y.start, x.start, y.end, width=1)
    yield text((x.start + x.end) / 2, TOP - 14, html.escape(title), "middle")
    yield text((x.start + x.end) / 2, y.start + 42, "configurations", "middle")


def _line(x: Scale, y: Scale, line: Sequence[Point], style: Style) -> Iterator[str]:
    """The points of a method, those that it reached joined."""
    places = {point: (x(point.configurations), y(point.seconds)) for point in sorted(line)}
    path = " ".join(
        f"{left:.1f},{top:.1f}"
        for point, (left, top) in places.items()
        if point.kind != "not reached"
    )
    yield f'<polyline points="{path}" fill="none" stroke="{style.color}" stroke-width="1.5"/>'
    for point, (left, top) in places.items():
        if point.kind == "not reached":
            yield _arrow(left + style.shift, top, style.color)
        else:
            yield _marker(left, top, style, hollow=point.kind == "extrapolated")


def _arrow(x: float, y: float, color: str) -> str:
    shape = f"M{x - 4:.1f},{y:.1f} h8 M{x:.1f},{y:.1f} v-14 m-3.5,5 l3.5,-5 l3.5,5"
    return f'<path d="{shape}" fill="none" stroke="{color}" stroke-width="1.8"/>'


def _marker(x: float, y: float, style: Style, hollow: bool) -> str:
    color, corners, turn, _ = style
    paint = f'fill="{"none" if hollow else color}" stroke="{color}" stroke-width="1.6"'
    if not corners:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {paint}/>'
    angles = [math.radians(turn + 360 * corner / corners) for corner in range(corners)]
    around = " ".join(f"{x + 5.5 * math.cos(a):.1f},{y + 5.5 * math.sin(a):.1f}" for a in angles)
    return f'<polygon points="{around}" {paint}/>'


def _legend_entry(name: str, row: int) -> Iterator[str]:
    left, at = WIDTH - RIGHT + 26, TOP + 12 + 24 * row
    yield segment(left - 10, at, left + 10, at, width=1.5, color=STYLES[name].color)
    yield _marker(left, at, STYLES[name], hollow=False)
    yield text(left + 18, at + 4, html.escape(name), "start")


def _notes(kinds: set[Kind]) -> Iterator[str]:
    notes = ["samplers: until within 1% of the optimum"]
    if "not reached" in kinds:
        notes.append("arrow: stopped before")
    if "extrapolated" in kinds:
        notes.append("hollow: extrapolated from a sample")
    yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "; ".join(notes), "middle")
