"""Multiply-adds against the pixels of the image as an SVG picture, a line an exit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from svg import picture, segment, text

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 90, 32, 84

COLORS = (
    "#4a86d8", "#2f9e95", "#5da548", "#cf9f2e", "#dc7f3c", "#cf566c", "#a05fc0", "#8a8f98",
)  # fmt: skip
"""From the shallowest exit to the network's own head."""

TICKS = (256, 512, 768, 1024)
"""Sides of square images."""

Point = tuple[int, float]
"""Side of a square image in pixels, and multiply-adds."""


def draw(lines: Mapping[str, Sequence[Point]]) -> str:
    """The picture, with the points of every exit.

    Pixels, not sides, are equidistant, so that what is proportional to them is a straight line.
    """
    largest = max(side for line in lines.values() for side, _ in line)
    dearest = max(macs for line in lines.values() for _, macs in line)

    def x(side: float) -> float:
        return LEFT + (side / largest) ** 2 * (WIDTH - LEFT - RIGHT)

    def y(macs: float) -> float:
        return HEIGHT - BOTTOM - macs / dearest * (HEIGHT - BOTTOM - TOP)

    def axes() -> Iterator[str]:
        for gmacs in range(0, int(dearest / 1e9) + 1, 200):
            yield segment(x(0), y(1e9 * gmacs), x(largest), y(1e9 * gmacs), width=0.3)
            yield text(x(0) - 8, y(1e9 * gmacs) + 4, str(gmacs), "end")
        for side in TICKS:
            yield segment(x(side), y(0), x(side), y(dearest), width=0.3)
            yield text(x(side), y(0) + 20, f"{side}×{side}", "middle")
        yield segment(x(0), y(0), x(largest), y(0), width=1)
        yield segment(x(0), y(0), x(0), y(dearest), width=1)
        yield text(x(0) + 8, TOP - 12, "GMACs to reach the exit", "start")
        yield text((x(0) + x(largest)) / 2, y(0) + 42, "image, equidistant in pixels", "middle")
        note = "DeepLabV3 on ResNet101 with seven side branches, 21 classes"
        yield text((x(0) + x(largest)) / 2, HEIGHT - 14, note, "middle")

    def curve(line: Sequence[Point], name: str, color: str) -> Iterator[str]:
        places = [(x(side), y(macs)) for side, macs in line]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        for left, top in places:
            yield f'<circle cx="{left:.1f}" cy="{top:.1f}" r="2.5" fill="{color}"/>'
        left, top = places[-1]
        label = f'<tspan fill="{color}">{name}</tspan> {line[-1][1] / 1e9:.0f}'
        yield text(left + 10, top + 4, label, "start")

    body = [*axes()]
    for (name, line), color in zip(lines.items(), COLORS, strict=True):
        body += curve(line, name, color)
    return picture(WIDTH, HEIGHT, "Multiply-adds of every exit against image size", body)
